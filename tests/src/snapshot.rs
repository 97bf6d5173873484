//! What a node holds at one moment, so that a test can say what a job left behind.

use crate::{Node, Result};
use corebox_spec::Failure;
use corebox_sys::fs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Processes, mounts, cgroups, interfaces, files, listening sockets, System V objects and namespaces of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// One set of lines per kind of thing.
    things: BTreeMap<String, BTreeSet<String>>,
}

impl Snapshot {
    /// Looks at a node, from inside.
    ///
    /// # Errors
    /// The node cannot be entered.
    pub fn take(node: &Node<'_>) -> Result<Self> {
        let goal = || format!("cannot look at node {}", node.name());
        let output = node
            .command(crate::simnode_program()?)
            .arg("facts")
            .current_dir("/")
            .output()
            .map_err(|e| Failure::new(goal(), e))?;
        serde_json::from_slice(&output.stdout).map_err(|e| {
            Failure::new(goal(), format!("{e}; it said: {}", String::from_utf8_lossy(&output.stderr).trim()))
        })
    }

    /// What `later` has and this has not, one line each: `process 12 sleep 100`, `file /tmp/x`, ….
    pub fn diff(&self, later: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let mut lines = Vec::new();
        for (kind, now) in &later.things {
            let before = self.things.get(kind).unwrap_or(&none);
            lines.extend(now.difference(before).map(|thing| format!("{kind} {thing}")));
        }
        lines
    }

    /// How many there are of a kind: `process`, `mount`, `cgroup`, `interface`, `file`, `listener`, `ipc`, or `user`,
    /// `mnt`, `pid`, `net`, `ipc`, `uts`, `cgroup` with the suffix `-namespace`.
    pub fn count(&self, kind: &str) -> usize {
        self.things.get(kind).map_or(0, BTreeSet::len)
    }

    /// The lines of a kind.
    pub fn lines(&self, kind: &str) -> impl Iterator<Item = &str> {
        self.things.get(kind).into_iter().flatten().map(String::as_str)
    }

    fn add(&mut self, kind: &str, thing: impl Into<String>) {
        self.things.entry(kind.into()).or_default().insert(thing.into());
    }
}

/// Looks at the node this process is in.
pub(crate) fn facts_of_this_node() -> Snapshot {
    let mut found = Snapshot::default();
    processes(&mut found);
    for line in text("/proc/1/mountinfo").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = line.split_once(" - ").map_or("", |(_, tail)| tail);
        found.add("mount", format!("{} {kind}", fields.get(4).unwrap_or(&"")));
    }
    for line in text("/proc/net/dev").lines().skip(2) {
        found.add("interface", line.split(':').next().unwrap_or("").trim());
    }
    sockets(&mut found);
    for kind in ["shm", "sem", "msg"] {
        for line in text(&format!("/proc/sysvipc/{kind}")).lines().skip(1) {
            let id: Vec<&str> = line.split_whitespace().take(2).collect();
            found.add("ipc", format!("{kind} {}", id.join(" ")));
        }
    }
    for dir in ["/tmp", "/run", "/dev", "/dev/shm", "/dev/mqueue"] {
        let device = std::fs::metadata(dir).map_or(0, |meta| meta.dev());
        walk(Path::new(dir), device, &mut |path, _| found.add("file", path.display().to_string()));
    }
    for line in text("/proc/self/mountinfo").lines().filter(|line| line.contains(" - cgroup")) {
        let mountpoint = line.split(' ').nth(4).unwrap_or("/");
        let device = std::fs::metadata(mountpoint).map_or(0, |meta| meta.dev());
        walk(Path::new(mountpoint), device, &mut |path, is_dir| {
            if is_dir {
                found.add("cgroup", path.display().to_string());
            }
        });
    }
    found
}

/// Every process of the node's pid namespace and of those below, but this one; and the namespaces they are in.
fn processes(found: &mut Snapshot) {
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let command = text(&format!("/proc/{pid}/cmdline")).replace('\0', " ");
        let name = text(&format!("/proc/{pid}/comm"));
        if name.is_empty() {
            continue; // it ended while we looked
        }
        found.add("process", format!("{pid} {}", if command.is_empty() { name.trim() } else { command.trim() }));
        for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            if let Ok(link) = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")) {
                found.add(&format!("{kind}-namespace"), link.display().to_string());
            }
        }
    }
}

/// TCP sockets that listen, UDP sockets, and unix sockets that listen (proc(5): flag `__SO_ACCEPTCON`).
fn sockets(found: &mut Snapshot) {
    for (kind, listens) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        for line in text(&format!("/proc/net/{kind}")).lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(3) == Some(&listens) {
                found.add("listener", format!("{kind} {}", fields[1]));
            }
        }
    }
    for line in text("/proc/net/unix").lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(3) == Some(&"00010000") {
            found.add("listener", format!("unix {}", fields.get(7).unwrap_or(&"(unnamed)")));
        }
    }
}

/// Calls `seen` for everything below `dir` on the same file system, with whether it is a directory.
fn walk(dir: &Path, device: u64, seen: &mut impl FnMut(&Path, bool)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
        seen(&path, meta.is_dir());
        if meta.is_dir() && std::fs::symlink_metadata(&path).is_ok_and(|below| below.dev() == device) {
            walk(&path, device, seen);
        }
    }
}

fn text(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
