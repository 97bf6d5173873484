//! Which cgroup hierarchies are mounted where, and where in them we are (cgroups(7), proc_pid_mountinfo(5)).

use crate::{Error, tree::Tree};
use serde::{Deserialize, Serialize};

/// Our place in the cgroup hierarchies. A hybrid machine has v1 controllers and a v2 hierarchy without any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// The v1 hierarchies that are mounted, as /proc/self/cgroup lists them.
    pub v1: Vec<CgroupV1>,
    /// The v2 hierarchy, if it is mounted.
    pub v2: Option<CgroupV2>,
}

/// A mounted cgroup v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupV1 {
    /// Its controllers (`cpu`, `cpuacct`); `name=systemd` for a named hierarchy without controllers.
    pub controllers: Vec<String>,
    /// Mount point.
    pub mount: String,
    /// Our cgroup as /proc/self/cgroup says it (relative to our cgroup namespace).
    pub path: String,
    /// Directory of our cgroup; `None` when it lies outside of what is mounted.
    pub directory: Option<String>,
}

/// The mounted cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupV2 {
    /// Mount point.
    pub mount: String,
    /// Our cgroup as /proc/self/cgroup says it (relative to our cgroup namespace).
    pub path: String,
    /// Directory of our cgroup; `None` when it lies outside of what is mounted.
    pub directory: Option<String>,
    /// Controllers that our cgroup has (`cgroup.controllers`); empty on hybrid machines, where v1 took them.
    pub controllers: Vec<String>,
}

/// A cgroup file system in mountinfo.
struct Mount {
    v2: bool,
    root: String,
    point: String,
    options: Vec<String>,
}

impl Cgroups {
    pub(crate) fn read(tree: &Tree) -> Result<Self, Error> {
        const CGROUP: &str = "/proc/self/cgroup";
        // a kernel without cgroups has no such file
        let Some(own) = tree.text(CGROUP)? else { return Ok(Self::default()) };
        let mounts = mounts(&tree.required("/proc/self/mountinfo")?);
        let mut found = Self::default();
        for line in own.lines() {
            // hierarchy-ID:controller-list:cgroup-path
            let mut parts = line.splitn(3, ':');
            let (Some(id), Some(list), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(Error::malformed(CGROUP, format_args!("`{line}`")));
            };
            let controllers: Vec<String> = list.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
            let v2 = id == "0" && controllers.is_empty();
            let Some(mount) = best(&mounts, v2, &controllers, path) else { continue };
            let (directory, path, point) = (directory(mount, path), path.to_owned(), mount.point.clone());
            if v2 {
                let controllers = match &directory {
                    Some(directory) => tree.text(&format!("{directory}/cgroup.controllers"))?.unwrap_or_default(),
                    None => String::new(),
                };
                let controllers = controllers.split_whitespace().map(str::to_owned).collect();
                found.v2 = Some(CgroupV2 { mount: point, path, directory, controllers });
            } else {
                found.v1.push(CgroupV1 { controllers, mount: point, path, directory });
            }
        }
        Ok(found)
    }

    /// The v1 hierarchy of this controller.
    pub fn v1_of(&self, controller: &str) -> Option<&CgroupV1> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|c| c == controller))
    }

    /// Directory of our cgroup for this controller, in whichever version has it.
    pub fn directory_of(&self, controller: &str) -> Option<&str> {
        let v2 = self.v2.as_ref().filter(|v2| v2.controllers.iter().any(|c| c == controller));
        match (self.v1_of(controller), v2) {
            (Some(v1), _) => v1.directory.as_deref(),
            (None, Some(v2)) => v2.directory.as_deref(),
            (None, None) => None,
        }
    }
}

/// The mount to use for a hierarchy that may be mounted several times: one that shows our cgroup, else any.
fn best<'a>(mounts: &'a [Mount], v2: bool, controllers: &[String], path: &str) -> Option<&'a Mount> {
    let all = || mounts.iter().filter(|m| m.v2 == v2 && controllers.iter().all(|c| m.options.contains(c)));
    all().find(|m| directory(m, path).is_some()).or_else(|| all().next())
}

/// Where cgroup `path` is below the mount, which may show only a part of the hierarchy (as in a Docker container without
/// cgroup namespace). A path that climbs out (`/../x`: we are outside of our namespace's root) is nowhere.
fn directory(mount: &Mount, path: &str) -> Option<String> {
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let rest = match mount.root.as_str() {
        "/" => path,
        root => path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
    };
    Some(format!("{}{}", mount.point, rest.trim_end_matches('/')))
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

/// `31 23 0:28 ROOT POINT OPTIONS OPTIONAL… - TYPE SOURCE SUPER_OPTIONS`, with any number of optional fields.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
    let v2 = match *right.first()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = right.get(2)?.split(',').map(str::to_owned).collect();
    Some(Mount { v2, root: unescaped(left.get(3)?), point: unescaped(left.get(4)?), options })
}

/// Undoes the octal escapes of mountinfo (`\040` for a blank).
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or("").to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            _ => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_directory_below_a_partial_mount() {
        let mount = |root: &str| Mount { v2: true, root: root.into(), point: "/sys/fs/cgroup".into(), options: vec![] };
        for (root, path, directory_) in [
            ("/", "/", Some("/sys/fs/cgroup")),
            ("/", "/job/step", Some("/sys/fs/cgroup/job/step")),
            ("/docker/ab", "/docker/ab/x", Some("/sys/fs/cgroup/x")),
            ("/docker/ab", "/docker/ab", Some("/sys/fs/cgroup")),
            ("/docker/ab", "/docker/abc", None),
            ("/", "/../other", None),
        ] {
            assert_eq!(directory(&mount(root), path).as_deref(), directory_, "{path} below {root}");
        }
    }

    #[test]
    fn reads_escaped_mount_points_and_optional_fields() {
        let line = r"36 31 0:33 / /mnt/a\040b rw shared:1 master:2 - cgroup cgroup rw,cpu,cpuacct";
        let mount = mount(line).unwrap();
        assert_eq!((mount.point.as_str(), mount.v2), ("/mnt/a b", false));
        assert!(mount.options.contains(&"cpuacct".to_owned()));
        assert!(super::mount("31 23 0:28 / / rw - ext4 /dev/sda rw").is_none());
    }
}
