//! What this process is and may do on this host, found without changing anything.

use crate::cgroup::{self, Hierarchy};
use corebox_spec::IdSet;
use corebox_sys::user::{self, Account, Capability};
use corebox_sys::{affinity, fd, fs, process};
use std::path::{Path, PathBuf};

/// One line of /proc/PID/uid_map (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// The id it is outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Facts that [`crate::plan()`] decides by. Tests build their own.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Our effective user id.
    pub uid: u32,
    /// Our effective group id.
    pub gid: u32,
    /// Our account, if the name service knows it.
    pub account: Option<Account>,
    /// Our group's name, if the name service knows it.
    pub group: Option<String>,
    /// We may mount images with the kernel and map all ids: root with its capabilities.
    pub privileged: bool,
    /// We are in the initial user namespace, whose root the kernel's file systems trust.
    pub initial_namespace: bool,
    /// Ids that our user namespace has, mapped to themselves.
    pub uid_ranges: Vec<IdRange>,
    /// As `uid_ranges`, for groups.
    pub gid_ranges: Vec<IdRange>,
    /// CPUs we may use.
    pub cpus: IdSet,
    /// The host's name.
    pub hostname: String,
    /// Why user namespaces are not for us, with the cure: (cause, hint).
    pub no_user_namespaces: Option<(String, String)>,
    /// Why /dev/fuse is not for us.
    pub no_fuse_device: Option<String>,
    /// The FUSE server for squashfs.
    pub fuse_program: Option<PathBuf>,
    /// Memory in bytes that can be had without swapping (MemAvailable, proc_meminfo(5)).
    pub free_memory: u64,
    /// The terminal on our standard input.
    pub terminal: Option<String>,
    /// Soft and hard limit of locked memory in bytes.
    pub locked_memory: (u64, u64),
    /// We may raise hard limits.
    pub may_raise_limits: bool,
    /// Where we are in each cgroup hierarchy.
    pub hierarchies: Vec<Hierarchy>,
}

impl HostFacts {
    /// Looks.
    ///
    /// # Errors
    /// A [`corebox_spec::Failure`] naming what could not be read.
    pub fn find() -> Result<Self, corebox_spec::Failure> {
        Self::look().map_err(|e| {
            corebox_spec::Failure::new("cannot find out what this host offers", e)
                .during("looking at the host", "facts")
        })
    }

    fn look() -> corebox_sys::Result<Self> {
        let (uid, gid) = user::ids();
        let uid_ranges = own_ranges(&fs::read_to_string("/proc/self/uid_map")?);
        let gid_ranges = own_ranges(&fs::read_to_string("/proc/self/gid_map")?);
        let mut privileged = uid == 0;
        for capability in [Capability::CAP_SYS_ADMIN, Capability::CAP_SETUID, Capability::CAP_SETGID] {
            privileged = privileged && user::capable(capability)?;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(Self {
            uid,
            gid,
            account: user::account(uid)?,
            group: user::group_name(gid)?,
            privileged,
            initial_namespace: in_initial_user_namespace()?,
            uid_ranges,
            gid_ranges,
            cpus: affinity::cpus()?.into_iter().collect(),
            hostname: process::hostname()?,
            no_user_namespaces: no_user_namespaces(privileged),
            no_fuse_device: fd::may_read_write(Path::new("/dev/fuse")).err().map(|e| e.to_string()),
            fuse_program: corebox_images::fuse::squashfuse(&path),
            free_memory: free_memory(),
            terminal: terminal(),
            locked_memory: process::limit(process::LOCKED_MEMORY)?,
            may_raise_limits: user::capable(Capability::CAP_SYS_RESOURCE)?,
            hierarchies: cgroup::hierarchies()?,
        })
    }
}

/// Whether we are in the user namespace of the host, which maps all ids to themselves.
pub(crate) fn in_initial_user_namespace() -> corebox_sys::Result<bool> {
    Ok(fs::read_to_string("/proc/self/uid_map")?.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// The ids of our namespace, each mapped to itself, from /proc/self/uid_map or gid_map.
fn own_ranges(map: &str) -> Vec<IdRange> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let (Some(Ok(inside)), Some(Ok::<u32, _>(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return None;
        };
        Some(IdRange { inside, outside: inside, count })
    };
    map.lines().filter_map(line).collect()
}

/// MemAvailable; 0 where it cannot be read.
fn free_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok());
    kib.map_or(0, |kib: u64| kib.saturating_mul(1024))
}

/// The path of the terminal on standard input, as /proc shows it.
fn terminal() -> Option<String> {
    let stdin = std::io::stdin();
    if !fd::is_terminal(&stdin) {
        return None;
    }
    let path = std::fs::read_link("/proc/self/fd/0").ok()?;
    // A terminal of another mount namespace has a path that is not here.
    (path.starts_with("/dev") && path.exists()).then(|| path.display().to_string())
}

/// Reads the switches by which kernels and distributions turn user namespaces off. Not having one means it is not off.
fn no_user_namespaces(privileged: bool) -> Option<(String, String)> {
    let value = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let off = |name: &str, value: &str, good: &str| {
        let cause = format!("user namespaces are turned off here: sysctl {name} is {value}");
        Some((cause, format!("your administrator can allow them: sysctl -w {name}={good}")))
    };
    if value("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return off("user.max_user_namespaces", "0", "10000");
    }
    if privileged {
        return None;
    }
    if value("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return off("kernel.unprivileged_userns_clone", "0", "1");
    }
    let restricted = value("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1");
    let confined = value("/proc/self/attr/current").is_some_and(|profile| profile != "unconfined");
    if restricted && !confined {
        return off(
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "0 (or installs an AppArmor profile for corebox)",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_what_our_namespace_has() {
        assert_eq!(
            own_ranges("         0       1000          1\n         1     100000      65536\n"),
            [IdRange { inside: 0, outside: 0, count: 1 }, IdRange { inside: 1, outside: 1, count: 65536 }]
        );
    }

    #[test]
    fn finds_facts_of_this_host() {
        let facts = HostFacts::find().unwrap();
        assert!(!facts.cpus.is_empty() && !facts.hostname.is_empty() && !facts.uid_ranges.is_empty());
    }
}
