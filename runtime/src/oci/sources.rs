//! What a container takes from the host, opened as detached mounts before anything hides or changes it.

use crate::facts::IdRange;
use crate::oci::plan::Plan;
use crate::oci::plan::mounts::{IdMap, What};
use crate::step::Stop;
use corebox_sys::mount::{Change, change, clone_tree};
use corebox_sys::process::{self, Forked, SingleThreaded, ns};
use corebox_sys::signal::SIGKILL;
use corebox_sys::{fd, fs, place};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Opened sources.
#[derive(Debug)]
pub(crate) struct Sources {
    /// A copy of the mount of the root directory, with what is mounted below it.
    pub(crate) root: OwnedFd,
    /// For each mount that is a bind: the tree, and whether it is a directory. None where it is opened in its turn, so
    /// that mountinfo lists the mounts in the order of config.json.
    pub(crate) binds: Vec<Option<(OwnedFd, bool)>>,
    /// User namespaces that map ids of mounts.
    pub(crate) id_maps: Vec<Option<OwnedFd>>,
    /// The host's /dev/null, to hide files with.
    pub(crate) null: Option<OwnedFd>,
}

/// Whether they must be opened with the caller's rights, before the user namespace takes them away.
pub(crate) fn by_parent(plan: &Plan<'_>) -> bool {
    plan.namespaces.has(ns::USER)
        || plan.namespaces.join.iter().any(|(kind, _)| *kind == ns::MOUNT)
        || plan.mounts.iter().any(|m| m.id_map.is_some())
}

impl Sources {
    /// Opens them; in the parent, with `single`, all of them.
    pub(crate) fn open(plan: &Plan<'_>, single: Option<&SingleThreaded>) -> Result<Self, Stop> {
        let root = clone_tree(&plan.rootfs, true)?;
        let mut binds = Vec::with_capacity(plan.mounts.len());
        let mut id_maps = Vec::with_capacity(plan.mounts.len());
        for mount in &plan.mounts {
            binds.push(match &mount.what {
                What::Bind { source, recursive } if single.is_some() => Some(bind(source, *recursive)?),
                _ => None,
            });
            id_maps.push(match (&mount.id_map, single) {
                (Some(map), Some(single)) => Some(user_namespace(map, single)?),
                _ => None,
            });
        }
        let masks =
            plan.spec.linux().as_ref().is_some_and(|l| l.masked_paths().as_ref().is_some_and(|m| !m.is_empty()));
        let null = masks.then(null).transpose()?;
        Ok(Self { root, binds, id_maps, null })
    }

    /// Maps the ids of mount `index`, where it is asked for.
    pub(crate) fn map_ids(&self, index: usize, mount: &OwnedFd, map: Option<&IdMap>) -> Result<(), Stop> {
        let (Some(namespace), Some(map)) = (&self.id_maps[index], map) else { return Ok(()) };
        let wanted = Change { id_map: Some(namespace.as_fd()), ..Change::default() };
        change(mount, &wanted, map.recursive, format_args!("`mounts[{index}]` (its id mapping)")).map_err(|e| {
            Stop::from(e).hint("its file system may not support mapped ids (ext4, xfs, btrfs, tmpfs, overlay do, each from a certain kernel on).")
        })
    }
}

/// A detached copy of a path's mount, and whether it is a directory.
pub(crate) fn bind(source: &Path, recursive: bool) -> Result<(OwnedFd, bool), Stop> {
    let tree = clone_tree(source, recursive)?;
    let directory = place::kind(&tree)?.is_directory();
    Ok((tree, directory))
}

/// Really the null device: what it covers must not become readable through another node (the class of CVE-2025-31133).
fn null() -> Result<OwnedFd, Stop> {
    let null = clone_tree(Path::new("/dev/null"), false)?;
    let kind = place::kind(&null)?;
    if kind.is_character() && kind.device == (1, 3) {
        return Ok(null);
    }
    Err(Stop::new("/dev/null of this host is not the null device"))
}

/// A user namespace with these maps, kept by a descriptor only.
fn user_namespace(map: &IdMap, single: &SingleThreaded) -> Result<OwnedFd, Stop> {
    match single.clone_into(ns::USER)? {
        Forked::Child => loop {
            // Until it is killed: its namespace is all that is wanted of it.
            std::thread::park();
        },
        Forked::Parent((pid, pidfd)) => {
            let result = write_maps(pid, &map.uids, &map.gids)
                .and_then(|()| Ok(fd::open_read(Path::new(&format!("/proc/{pid}/ns/user")))?));
            process::signal_pidfd(&pidfd, SIGKILL)?;
            process::wait_pidfd(pidfd.as_fd())?;
            result
        }
    }
}

/// Writes /proc/PID/uid_map and gid_map (user_namespaces(7)).
pub(crate) fn write_maps(pid: i32, uids: &[IdRange], gids: &[IdRange]) -> Result<(), Stop> {
    let text = |ranges: &[IdRange]| -> String {
        ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect()
    };
    fs::write(format!("/proc/{pid}/uid_map"), text(uids))?;
    Ok(fs::write(format!("/proc/{pid}/gid_map"), text(gids))?)
}
