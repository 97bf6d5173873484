//! Puts the planned mounts into the new root, in order.
//!
//! Sources on the host are opened first, as detached mounts, before anything hides their paths; targets are resolved
//! inside the new root only. So neither side can be led astray by a link.

use crate::accounts;
use crate::devices::HostDevices;
use crate::plan::{ContainerPlan, PlannedKind, PlannedMount};
use crate::rootfs::{Staging, skip_in};
use crate::step::Stop;
use corebox_sys::mount::{
    FsContext, attach, attr, clone_fd, clone_tree, open_in_root, open_in_root_for_reading, open_in_root_without_links,
    set_attributes,
};
use corebox_sys::{Errno, Error, fd, fs};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the mounts take from the host, opened.
#[derive(Debug)]
pub(crate) struct Sources {
    binds: Vec<Option<(OwnedFd, bool)>>,
    devices: HostDevices,
}

impl Sources {
    /// Opens everything that the plan binds.
    pub(crate) fn open(plan: &ContainerPlan) -> Result<Self, Stop> {
        let terminal = plan.mounts.iter().find_map(|mount| match &mount.kind {
            PlannedKind::Devices { terminal } => terminal.as_deref(),
            _ => None,
        });
        let mut binds = Vec::with_capacity(plan.mounts.len());
        for mount in &plan.mounts {
            binds.push(match &mount.kind {
                PlannedKind::Bind { source } => {
                    let tree = clone_tree(Path::new(source), true)?;
                    set_attributes(&tree, attributes(mount), true, source)?;
                    Some((tree, Path::new(source).is_dir()))
                }
                _ => None,
            });
        }
        Ok(Self { binds, devices: HostDevices::open(terminal)? })
    }

    /// Whether the mount with this index goes to a directory; decided while its source's path was still there.
    pub(crate) fn is_directory(&self, index: usize, kind: &PlannedKind) -> bool {
        match (kind, &self.binds[index]) {
            (PlannedKind::File { .. } | PlannedKind::Accounts { .. }, _) => false,
            (_, Some((_, directory))) => *directory,
            _ => true,
        }
    }
}

fn attributes(mount: &PlannedMount) -> u64 {
    let read_only = if mount.read_only { attr::RDONLY } else { 0 };
    let devices = if mount.devices { 0 } else { attr::NODEV };
    attr::NOSUID | read_only | devices
}

/// Attaches all mounts below `root`.
pub(crate) fn attach_all(
    plan: &ContainerPlan,
    sources: &Sources,
    staging: &Staging,
    root: &OwnedFd,
) -> Result<(), Stop> {
    let mut ours: Vec<PathBuf> = Vec::new();
    for (index, mount) in plan.mounts.iter().enumerate() {
        if skip_in(root, &staging.image, mount) {
            continue;
        }
        let place = mount_point(root, mount, sources.is_directory(index, &mount.kind), &ours)?;
        if let Some(new) = new_mount(mount, sources, staging, root, &place, index)? {
            attach(new, &place, &mount.target)?;
        } else if let Some((tree, _)) = &sources.binds[index] {
            attach(tree, &place, &mount.target).map_err(|e| wrong_type(e, mount))?;
        }
        match mount.kind {
            PlannedKind::Tmpfs { .. } | PlannedKind::Devices { .. } => ours.push(PathBuf::from(&mount.target)),
            PlannedKind::Proc => mask(root, staging, "/proc/")?,
            _ if mount.target == "/sys" => mask(root, staging, "/sys/")?,
            _ => {}
        }
    }
    Ok(())
}

fn wrong_type(error: Error, mount: &PlannedMount) -> Stop {
    let stop = Stop::new(format!("{error}, asked for by `{}`", mount.origin.0));
    if error.errno == Errno::ENOTDIR {
        stop.hint("a directory is bound to a directory, a file to a file.")
    } else {
        stop
    }
}

/// What the kernel is found by. A link there could lead into a directory that others change (CVE-2025-52881).
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The place of a mount. The image's missing ones exist by now; below a tmpfs of ours they are made; below a bind of
/// the host they are not, as that would write to the host.
fn mount_point(root: &OwnedFd, mount: &PlannedMount, directory: bool, ours: &[PathBuf]) -> Result<OwnedFd, Stop> {
    let target = Path::new(&mount.target);
    let kernels = KERNELS.contains(&mount.target.as_str());
    let found = if kernels { open_in_root_without_links(root, target) } else { open_in_root(root, target) };
    match found {
        Err(error) if kernels && error.errno == Errno::ELOOP => {
            Err(Stop::new(format!("the image has a symbolic link at {}", mount.target))
                .hint("programs and corebox find the kernel there by its name: make it a directory in the image."))
        }
        Err(error) if error.errno == Errno::ENOENT => {
            let Some(base) = ours.iter().rev().find(|base| target.starts_with(base)) else {
                return Err(Stop::new(format!("mount point {}: {error}", mount.target)).hint(
                    "it lies in a directory bound from the host, which corebox does not write to: make it there.",
                ));
            };
            make_below(root, base, target, directory)?;
            Ok(open_in_root(root, target)?)
        }
        other => Ok(other?),
    }
}

/// Makes the directories (and the file) from `base`, a tmpfs of ours, down to `target`.
fn make_below(root: &OwnedFd, base: &Path, target: &Path, directory: bool) -> Result<(), Stop> {
    let place = open_in_root(root, base)?;
    let start = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
    let below = target.strip_prefix(base).unwrap_or(target);
    let path = start.join(below);
    if directory {
        return Ok(fs::create_dir_all(&path)?);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    crate::mountpoints::make_file(&path)
}

/// A mount that is made here; `None` for a bind, and for those that attach themselves.
fn new_mount(
    mount: &PlannedMount,
    sources: &Sources,
    staging: &Staging,
    root: &OwnedFd,
    place: &OwnedFd,
    index: usize,
) -> Result<Option<OwnedFd>, Stop> {
    let plain = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    Ok(Some(match &mount.kind {
        PlannedKind::Bind { .. } => return Ok(None),
        PlannedKind::Devices { .. } => {
            sources.devices.mount(place, root)?;
            return Ok(None);
        }
        PlannedKind::Proc => FsContext::open("proc")?.mount(plain).map_err(hidden_by_host)?,
        PlannedKind::Sysfs => FsContext::open("sysfs")?.mount(plain | attr::RDONLY).map_err(hidden_by_host)?,
        PlannedKind::MessageQueues => match FsContext::open("mqueue").and_then(|c| c.mount(plain)) {
            // A kernel without POSIX message queues has programs that do not use them.
            Err(error) if error.errno == Errno::ENODEV => return Ok(None),
            other => other?,
        },
        PlannedKind::Terminals { gid } => terminals(*gid)?,
        PlannedKind::Tmpfs { size, mode, .. } => tmpfs(*size, *mode, attributes(mount))?,
        PlannedKind::File { content } => generated(staging, index, content, mount)?,
        PlannedKind::Accounts { entries } => {
            let content = accounts::with_entries(&text_of(root, mount), entries);
            generated(staging, index, &content, mount)?
        }
    }))
}

/// The kernel mounts a new proc or sysfs in a user namespace only where the one we see is whole.
fn hidden_by_host(error: Error) -> Stop {
    let denied = error.errno == Errno::EPERM;
    let stop = Stop::from(error);
    if denied {
        stop.hint("/proc or /sys is partly hidden here, as inside another container: that one must be started with an unmasked /proc.")
    } else {
        stop
    }
}

fn terminals(gid: Option<u32>) -> Result<OwnedFd, Stop> {
    let context = FsContext::open("devpts")?;
    context.set("ptmxmode", "0666")?.set("mode", "0620")?;
    if let Some(gid) = gid {
        context.set("gid", gid.to_string())?;
    }
    Ok(context.mount(attr::NOSUID | attr::NOEXEC)?)
}

fn tmpfs(size: Option<u64>, mode: u32, attributes: u64) -> Result<OwnedFd, Stop> {
    let context = FsContext::open("tmpfs")?;
    context.set("mode", format!("{mode:o}"))?;
    if let Some(size) = size {
        context.set("size", size.to_string())?;
    }
    Ok(context.mount(attributes)?)
}

/// A file of the staging tmpfs, as a mount of its own.
fn generated(staging: &Staging, index: usize, content: &str, mount: &PlannedMount) -> Result<OwnedFd, Stop> {
    let path = staging.files.join(index.to_string());
    fs::write(&path, content)?;
    let tree = clone_tree(&path, false)?;
    set_attributes(&tree, attributes(mount) | attr::NOEXEC, false, &mount.target)?;
    Ok(tree)
}

/// The text of the image's file; what is empty, too large or no text counts as empty.
fn text_of(root: &OwnedFd, mount: &PlannedMount) -> String {
    let mut text = String::new();
    if let Ok(file) = open_in_root_for_reading(root, Path::new(&mount.target)) {
        let read = std::fs::File::from(file).take(4 << 20).read_to_string(&mut text);
        if read.is_err() {
            text.clear();
        }
    }
    text
}

/// Kernel details that no job needs, hidden or read-only as runc does by default (opencontainers/runc,
/// libcontainer/specconv/example.go), and what other kernel file systems show below /sys where the host mounted them.
const HIDDEN: [&str; 15] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/fs/pstore",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Covers what lies below `mounted`, which has just been attached.
fn mask(root: &OwnedFd, staging: &Staging, mounted: &str) -> Result<(), Stop> {
    let below = |path: &&&str| path.starts_with(mounted);
    for name in HIDDEN.iter().filter(below) {
        let target = Path::new(name);
        let Ok(place) = open_in_root_without_links(root, target) else { continue };
        let cover = match open_in_root_for_reading(root, &target.join(".")) {
            Ok(_) => clone_tree(&staging.empty, false)?,
            Err(_) => null_device()?,
        };
        set_attributes(&cover, attr::NOSUID | attr::NOEXEC | attr::RDONLY, false, name)?;
        attach(cover, place, name)?;
    }
    for name in READ_ONLY.iter().filter(below) {
        let Ok(place) = open_in_root_without_links(root, Path::new(name)) else { continue };
        let same = clone_fd(place.as_fd(), name)?;
        set_attributes(&same, attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::RDONLY, false, name)?;
        attach(same, place, name)?;
    }
    Ok(())
}

/// The host's /dev/null, which must be it: what hides a file may not show another (CVE-2025-31133).
fn null_device() -> Result<OwnedFd, Stop> {
    let null = clone_tree(Path::new("/dev/null"), false)?;
    if fd::is_device(&null, 1, 3) {
        Ok(null)
    } else {
        Err(Stop::new("/dev/null of the host is not the null device (1, 3)"))
    }
}
