//! A node's cgroups: one directory per mounted hierarchy, below the cgroup we were started in.
//!
//! Version 1 hierarchies need one directory each (cgroups(7)); a fresh v1 cpuset is empty and refuses processes
//! until `cpuset.cpus` and `cpuset.mems` are filled in (cpuset(7)).

use super::state::NodeState;
use crate::Result;
use corebox_spec::Failure;
use corebox_sys::fs;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Prefix of the directories we make; the rest is the keeper's pid and start time.
pub const PREFIX: &str = "COREBOX-TEST-";

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub fstype: String,
    /// Super block options that name it: `cpuset`, `cpu,cpuacct`, `name=systemd`; empty for version 2.
    pub controllers: String,
    /// The directory of the cgroup that we are in.
    pub own: PathBuf,
}

/// The mounted hierarchies and where this process is in each, from `/proc/self/mountinfo` and `/proc/self/cgroup`.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let read = |path: &str| fs::read_to_string(path).map_err(|e| Failure::new("cannot look at the cgroups", e));
    let (mounts, membership) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        let tail: Vec<&str> = right.split(' ').collect();
        let (root, mountpoint, fstype) = (fields[3], PathBuf::from(fields[4]), tail[0]);
        if !matches!(fstype, "cgroup" | "cgroup2") || found.iter().any(|h| h.mountpoint == mountpoint) {
            continue;
        }
        let controllers = controllers_of(fstype, tail.get(2).copied().unwrap_or_default());
        let Some(path) = own_path(&membership, &controllers) else { continue };
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let own = mountpoint.join(below.strip_prefix("/").unwrap_or(below));
        found.push(Hierarchy { mountpoint, fstype: fstype.into(), controllers, own });
    }
    Ok(found)
}

/// The super block options that name a hierarchy.
fn controllers_of(fstype: &str, options: &str) -> String {
    if fstype == "cgroup2" {
        return String::new();
    }
    const FLAGS: [&str; 6] = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"];
    let named = options.split(',').filter(|word| !FLAGS.contains(word) && !word.starts_with("release_agent="));
    named.collect::<Vec<_>>().join(",")
}

/// Our path in the hierarchy with these controllers, from the text of `/proc/self/cgroup`.
fn own_path<'a>(membership: &'a str, controllers: &str) -> Option<&'a str> {
    membership.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        (names == controllers).then_some(path)
    })
}

/// Makes the cluster's cgroup and one below it per node; gives each node's directories, one per hierarchy.
pub fn create(id: &str, nodes: &[NodeState]) -> Result<Vec<Vec<PathBuf>>> {
    let mut made = vec![Vec::new(); nodes.len()];
    for hierarchy in hierarchies()? {
        let cluster = hierarchy.own.join(format!("{PREFIX}{id}"));
        make(&cluster)?;
        if hierarchy.fstype == "cgroup2" {
            delegate(&cluster)?;
        }
        for (index, node) in nodes.iter().enumerate() {
            let dir = cluster.join(&node.name);
            make(&dir)?;
            confine(&dir, &node.cpus)?;
            made[index].push(dir);
        }
    }
    Ok(made)
}

/// Makes one cgroup; in a v1 cpuset hierarchy with the CPUs and memory nodes of its parent.
fn make(dir: &Path) -> Result<()> {
    let failed = |e: corebox_sys::Error| Failure::new(format!("cannot make the cgroup {}", dir.display()), e);
    std::fs::create_dir(dir).map_err(|e| failed(corebox_sys::Error::io("mkdir", dir.display(), &e)))?;
    let version_2 = dir.join("cgroup.controllers").exists();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let parent = dir.parent().unwrap_or(dir).join(file);
        if !version_2 && parent.exists() {
            let value = fs::read(&parent).map_err(failed)?;
            fs::write(dir.join(file), value).map_err(failed)?;
        }
    }
    Ok(())
}

/// Gives a cgroup these CPUs only, if it is one of a cpuset hierarchy and any are named.
fn confine(dir: &Path, cpus: &[usize]) -> Result<()> {
    let file = dir.join("cpuset.cpus");
    if cpus.is_empty() || !file.exists() {
        return Ok(());
    }
    let list: Vec<String> = cpus.iter().map(usize::to_string).collect();
    fs::write(&file, list.join(",")).map_err(|e| Failure::new("cannot give the node its CPUs", e))
}

/// Hands every controller that a v2 cgroup has down to its children.
fn delegate(dir: &Path) -> Result<()> {
    let failed = |e| Failure::new(format!("cannot delegate controllers in {}", dir.display()), e);
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).map_err(failed)?;
    let enable: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    if enable.is_empty() {
        return Ok(());
    }
    fs::write(dir.join("cgroup.subtree_control"), enable.join(" ")).map_err(failed)
}

/// A visit of this process to a node's cgroups, so that what it starts is born there.
///
/// Namespaces alone do not do it: setns(2) into a cgroup namespace changes the view, not the membership. The way
/// back uses files opened beforehand, because after entering the node's mount namespace the host's paths are gone.
pub struct Visit {
    home: Vec<File>,
}

impl Visit {
    /// Moves this process into these cgroups.
    pub fn enter(dirs: &[PathBuf]) -> Result<Self> {
        let failed = |dir: &Path, e: &std::io::Error| {
            let cause = corebox_sys::Error::io("write", dir.join("cgroup.procs").display(), e);
            Failure::new("cannot join the node's cgroups", cause)
        };
        let open =
            |dir: &Path| OpenOptions::new().write(true).open(dir.join("cgroup.procs")).map_err(|e| failed(dir, &e));
        let mut home = Vec::new();
        if !dirs.is_empty() {
            for hierarchy in hierarchies()? {
                home.push(open(&hierarchy.own)?);
            }
        }
        for dir in dirs {
            open(dir)?.write_all(b"0").map_err(|e| failed(dir, &e))?;
        }
        Ok(Self { home })
    }

    /// Moves this process back to where it came from.
    pub fn leave(mut self) -> Result<()> {
        for file in &mut self.home {
            file.write_all(b"0").map_err(|e| Failure::new("cannot go back to the own cgroups", e))?;
        }
        Ok(())
    }
}

/// Removes the cluster's cgroups with everything below; gives what could not be removed.
///
/// The kernel keeps a cgroup busy until the last of its dead processes is released, and has no event for that.
pub fn remove(id: &str) -> Vec<PathBuf> {
    let Ok(found) = hierarchies() else { return Vec::new() };
    let dirs = found.iter().map(|h| h.own.join(format!("{PREFIX}{id}")));
    dirs.filter(|dir| {
        dir.exists()
            && crate::wait_until(Duration::from_secs(10), || {
                remove_tree(dir);
                (!dir.exists()).then_some(())
            })
            .is_none()
    })
    .collect()
}

/// Removes a cgroup and those below it, deepest first, as far as they are empty.
fn remove_tree(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir); // still busy: the caller looks again
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hierarchies() {
        assert_eq!(controllers_of("cgroup", "rw,cpu,cpuacct"), "cpu,cpuacct");
        assert_eq!(controllers_of("cgroup", "rw,xattr,name=systemd"), "name=systemd");
        assert_eq!(controllers_of("cgroup2", "rw,nsdelegate"), "");
    }

    #[test]
    fn finds_our_path() {
        let text = "4:memory:/a/b\n3:cpuset:/\n0::/u\n";
        assert_eq!(own_path(text, "memory"), Some("/a/b"));
        assert_eq!(own_path(text, ""), Some("/u"));
        assert_eq!(own_path(text, "pids"), None);
    }
}
