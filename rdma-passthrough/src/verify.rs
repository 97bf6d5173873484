//! Whether the fabric works where it will be used: called in the finished container, as its user, before any program.
//!
//! libibverbs masks what the kernel says: a node that may not be opened is "not there", a missing provider is an empty
//! list. So every piece is tried here by itself, and the kernel's own words are kept.

use corebox_spec::{DeviceNode, FabricCheck};
use corebox_sys::{Errno, Error, fd, fs, process};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Locked memory below which communication libraries fail: UCX registers tens of MiB per process.
const ENOUGH: u64 = 64 << 20;
/// Where libibverbs of the distributions has its providers, and its list of them.
const PROVIDERS: [&str; 5] = [
    "usr/lib/x86_64-linux-gnu/libibverbs",
    "usr/lib/aarch64-linux-gnu/libibverbs",
    "usr/lib64/libibverbs",
    "usr/lib/libibverbs",
    "usr/local/lib/libibverbs",
];
const LIBRARIES: [&str; 6] =
    ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib", "lib"];

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What, with the kernel's errno where there is one.
    pub cause: String,
    /// What helps, and who can do it.
    pub cure: String,
}

/// Looks at everything; `root` is the container's root directory (`/` inside).
pub fn inside(check: &FabricCheck, root: &Path) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        check.problems.iter().map(|(cause, cure)| Finding { cause: cause.clone(), cure: cure.clone() }).collect();
    found.extend(check.nodes.iter().filter_map(|node| opened(root, node)));
    found.extend(locked_memory(check));
    found.extend(shown(check, root));
    found.extend(stack(check, root));
    found
}

fn finding(cause: impl ToString, cure: &str) -> Option<Finding> {
    Some(Finding { cause: cause.to_string(), cure: cure.to_owned() })
}

/// Opens a node as a program would.
fn opened(root: &Path, node: &DeviceNode) -> Option<Finding> {
    let path = root.join(node.path.trim_start_matches('/'));
    let named = |error: &Error| format!("{} cannot be opened inside: {error}", node.path);
    match fd::open_read_write(&path) {
        Ok(file) => {
            let seen = nix_number(&file);
            match (node.number, seen) {
                (Some(wanted), Some(seen)) if wanted != seen => finding(
                    format!(
                        "{} is device {}:{} inside, and {}:{} for the kernel",
                        node.path, seen.0, seen.1, wanted.0, wanted.1
                    ),
                    "the node on this host is stale: your administrator can make it anew (udevadm trigger).",
                ),
                _ => None,
            }
        }
        Err(error) => {
            let cure = match error.errno {
                Errno::ENOENT => {
                    "the node is missing on this host or was not exposed: `corebox run --plan` shows the mounts."
                }
                Errno::EACCES => {
                    "you have no right to the device node (ask for its group, often `rdma`), or it is mounted nodev."
                }
                Errno::EPERM => {
                    "a device cgroup denies it, or the device is of another network namespace: the batch system must allow it to the job."
                }
                Errno::EAGAIN => "the rdma cgroup's limit of open handles is reached: raise rdma.max (--rdma-limit).",
                Errno::ENXIO | Errno::ENODEV => "its driver is gone or resetting: see dmesg.",
                _ => "see dmesg.",
            };
            finding(named(&error), cure)
        }
    }
}

/// Major and minor number of an open device.
fn nix_number(file: &impl std::os::fd::AsRawFd) -> Option<(u32, u32)> {
    let number = std::fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?.st_rdev();
    // gnu_dev_major(3), gnu_dev_minor(3)
    let major = ((number >> 8) & 0xfff) | ((number >> 32) & !0xfff);
    let minor = (number & 0xff) | ((number >> 12) & !0xff);
    Some((u32::try_from(major).ok()?, u32::try_from(minor).ok()?))
}

/// CAP_IPC_LOCK counts in the first user namespace only, so inside the limit is all there is.
fn locked_memory(check: &FabricCheck) -> Option<Finding> {
    if check.nodes.is_empty() {
        return None;
    }
    let (soft, _) = process::limit(process::LOCKED_MEMORY).ok()?;
    if soft >= ENOUGH {
        return None;
    }
    finding(
        format!(
            "memory that may be locked is limited to {} KiB (RLIMIT_MEMLOCK): registering memory fails with ENOMEM, or EPERM at 0",
            soft / 1024
        ),
        "`ulimit -l unlimited` before corebox; in a batch job the administrator raises it for the batch system's daemon.",
    )
}

/// UCX aborts and older libibverbs finds nothing without the devices in sysfs.
fn shown(check: &FabricCheck, root: &Path) -> Option<Finding> {
    let missing =
        check.devices.iter().find(|name| !root.join("sys/class/infiniband").join(name).join("node_type").exists())?;
    finding(
        format!("/sys/class/infiniband/{missing} is not visible inside"),
        "do not mount over /sys; with `--net none`, use the host's network.",
    )
}

/// The image's own verbs: library, list of providers, providers.
fn stack(check: &FabricCheck, root: &Path) -> Option<Finding> {
    const INSTALL: &str =
        "install its packages in the image: libibverbs1 and ibverbs-providers (Debian), rdma-core (others).";
    if check.providers.is_empty() {
        return None;
    }
    let has = |place: &&str| root.join(place).join("libibverbs.so.1").exists();
    if !LIBRARIES.iter().any(has) {
        return finding("the image has no libibverbs.so.1", INSTALL);
    }
    let lists = fs::list(root.join("etc/libibverbs.d")).unwrap_or_default();
    if lists.is_empty() {
        return finding("the image has no /etc/libibverbs.d: libibverbs finds no device and says nothing", INSTALL);
    }
    let places: Vec<PathBuf> = PROVIDERS.iter().map(|place| root.join(place)).collect();
    let files: Vec<String> = places.iter().flat_map(|place| fs::list(place).unwrap_or_default()).collect();
    let abis = |provider: &String| -> Vec<String> {
        let start = format!("lib{provider}-rdmav");
        files.iter().filter_map(|name| Some(name.strip_prefix(&start)?.strip_suffix(".so")?.to_owned())).collect()
    };
    let missing = check
        .providers
        .iter()
        .find(|provider| abis(provider).is_empty() || !lists.contains(&format!("{provider}.driver")))?;
    finding(
        format!("the image has no provider `{missing}` for libibverbs (lib{missing}-rdmav*.so with its .driver file)"),
        INSTALL,
    )
}
