//! Making, entering, freezing, emptying and removing cgroups.

use super::{Group, Groups, Settings};
use crate::cgroup::remove_directory;
use crate::step::Stop;
use corebox_sys::signal::SIGKILL;
use corebox_sys::{Errno, Error, Result, fs, process};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

/// Makes the directories and writes the limits.
pub(crate) fn create(groups: &mut Groups, settings: &Settings) -> std::result::Result<(), Stop> {
    let lenient = groups.lenient;
    for (index, group) in groups.directories.iter_mut().enumerate() {
        match make(group, groups.unified) {
            Err(error) if lenient && not_ours(&error) && !settings.need(index) => group.path.clear(),
            other => other?,
        }
    }
    groups.directories.retain(|group| !group.path.as_os_str().is_empty() || settings.any());
    write_settings(groups, settings)?;
    settings.restrict_devices(groups)
}

/// Writes the limits into directories that are there.
pub(crate) fn write_settings(groups: &Groups, settings: &Settings) -> std::result::Result<(), Stop> {
    for setting in &settings.files {
        let Some(group) = groups.directories.get(setting.group) else { continue };
        let file = group.path.join(&setting.file);
        match fs::write(&file, &setting.value) {
            // Writing what is not there would be making it, which version 1 forbids with EACCES.
            Err(error) if setting.optional && (error.errno == Errno::EOPNOTSUPP || !file.exists()) => {}
            Err(error) if !file.exists() => {
                return Err(Stop::new(format!("limit `{}`: {error}", setting.name))
                    .hint("the controller is not enabled for this cgroup, or the kernel does not have it."));
            }
            Err(error) => {
                return Err(Stop::new(format!("limit `{}`: {error} (value {:?})", setting.name, setting.value)));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn not_ours(error: &Error) -> bool {
    matches!(error.errno, Errno::EACCES | Errno::EPERM | Errno::EROFS)
}

/// Makes one directory and those above it.
fn make(group: &mut Group, unified: bool) -> Result<()> {
    let below = group.path.strip_prefix(&group.mount).unwrap_or(Path::new("")).to_owned();
    let mut here = group.mount.clone();
    let mut tries = 0;
    let mut parts = below.components();
    while let Some(part) = parts.next() {
        let parent = here.clone();
        here.push(part);
        if unified {
            hand_down(&parent);
        }
        match std::fs::create_dir(&here) {
            Ok(()) => {
                group.made_from.get_or_insert_with(|| here.clone());
                if group.controllers.iter().any(|c| c == "cpuset") {
                    inherit_cpuset(&parent, &here)?;
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // A container that ended just now took the empty directory above with it: from the start.
            Err(error) if error.kind() == ErrorKind::NotFound && tries < 100 => {
                tries += 1;
                here = group.mount.clone();
                parts = below.components();
            }
            Err(error) => return Err(Error::io("create cgroup", here.display(), &error)),
        }
    }
    Ok(())
}

/// Lets children of a version 2 cgroup have its controllers. One that cannot be handed down is missed by the limit
/// that needs it, not here.
fn hand_down(parent: &Path) {
    let words = |file: &str| fs::read_to_string(parent.join(file)).unwrap_or_default();
    let (available, enabled) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    for controller in available.split_whitespace().filter(|c| !enabled.split_whitespace().any(|e| e == *c)) {
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A new version 1 cpuset is empty, and an empty one takes no process.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(child.join(file))?.trim().is_empty() {
            fs::write(child.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Moves a process into all of them.
pub(crate) fn attach(groups: &Groups, pid: i32) -> Result<()> {
    for group in groups.directories.iter().filter(|group| !group.path.as_os_str().is_empty()) {
        match fs::write(group.path.join("cgroup.procs"), pid.to_string()) {
            Err(error) if groups.lenient && (not_ours(&error) || error.errno == Errno::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// The pids of all processes in them and in those below.
pub(crate) fn members(groups: &Groups) -> Vec<i32> {
    let mut found = Vec::new();
    if let Some(group) = groups.any() {
        collect(&group.path, &mut found);
    }
    found
}

fn collect(directory: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
}

/// Kills all members with this signal; with SIGKILL until none is left, for at most ten seconds.
pub(crate) fn kill_all(groups: &Groups, signal: i32) -> Result<()> {
    if signal != SIGKILL {
        return members(groups).into_iter().try_for_each(|pid| process::kill(pid, signal));
    }
    let Some(group) = groups.any() else { return Ok(()) };
    let start = Instant::now();
    loop {
        if !groups.unified || fs::write(group.path.join("cgroup.kill"), "1").is_err() {
            members(groups).into_iter().filter(|pid| *pid > 0).try_for_each(|pid| process::kill(pid, signal))?;
        }
        // A frozen process of version 1 dies when it is thawed.
        let _ = set_frozen(groups, false);
        if members(groups).is_empty() {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(10) {
            return Err(Error::new("kill the processes of cgroup", group.path.display(), Errno::ETIMEDOUT));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Stops or continues all members.
pub(crate) fn set_frozen(groups: &Groups, frozen: bool) -> Result<()> {
    let Some(group) = groups.with("freezer").and_then(|index| groups.directories.get(index)) else {
        return Err(Error::new("freeze", "the container: it has no freezer cgroup", Errno::EOPNOTSUPP));
    };
    if groups.unified {
        return fs::write(group.path.join("cgroup.freeze"), if frozen { "1" } else { "0" });
    }
    let (file, wanted) = (group.path.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" });
    let start = Instant::now();
    loop {
        // Freezing may have to be asked for again: a fork during it can escape (cgroup-v1/freezer-subsystem.rst).
        fs::write(&file, wanted)?;
        if fs::read_to_string(&file)?.trim() == wanted {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(5) {
            return Err(Error::new("freeze", file.display(), Errno::ETIMEDOUT));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether they are stopped.
pub(crate) fn is_frozen(groups: &Groups) -> bool {
    let Some(group) = groups.with("freezer").and_then(|index| groups.directories.get(index)) else { return false };
    if groups.unified {
        let text = fs::read_to_string(group.path.join("cgroup.events")).unwrap_or_default();
        return text.lines().any(|line| line == "frozen 1");
    }
    fs::read_to_string(group.path.join("freezer.state")).is_ok_and(|text| text.trim() != "THAWED")
}

/// Removes them, with what the container made below and the empty ones above that were made for it.
pub(crate) fn remove(groups: &Groups) {
    for group in groups.directories.iter().filter(|group| group.path != group.mount) {
        remove_below(&group.path);
        remove_directory(&group.path);
        let Some(first) = &group.made_from else { continue };
        let mut above = group.path.parent();
        // One that holds another's cgroup or process stays (EBUSY).
        while let Some(directory) = above.filter(|d| d.starts_with(first) && std::fs::remove_dir(d).is_ok()) {
            above = directory.parent();
        }
    }
}

fn remove_below(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// Version 1 takes a memory limit only below that of memory and swap together: the one that moves away goes first.
pub(crate) fn order_for_update(groups: &Groups, settings: &mut Settings) {
    let at = |name: &str| settings.files.iter().position(|s| s.file == name);
    let (Some(limit), Some(both)) = (at("memory.limit_in_bytes"), at("memory.memsw.limit_in_bytes")) else { return };
    let Some(group) = groups.directories.get(settings.files[limit].group) else { return };
    let number = |text: &str| text.trim().parse::<i64>().map_or(i64::MAX, |n| if n < 0 { i64::MAX } else { n });
    let now = fs::read_to_string(group.path.join("memory.memsw.limit_in_bytes")).map_or(i64::MAX, |text| number(&text));
    if number(&settings.files[limit].value) > now {
        settings.files.swap(limit, both);
    }
}
