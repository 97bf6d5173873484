//! Id maps of a new user namespace, written from outside; through newuidmap(1) and newgidmap(1) where we may not.

use crate::facts::IdRange;
use crate::oci::sources::write_maps;
use crate::step::Stop;
use corebox_sys::{Errno, fs, user};
use std::process::Command;

/// Maps the ids of a process's user namespace.
pub(crate) fn write(pid: i32, uids: &[IdRange], gids: &[IdRange]) -> Result<(), Stop> {
    let (uid, gid) = user::ids();
    let single = |ranges: &[IdRange], id: u32| matches!(ranges, [one] if one.count == 1 && one.outside == id);
    if uid != 0 && single(uids, uid) && single(gids, gid) {
        // Who maps only the own group must give up setgroups(2) first (user_namespaces(7)).
        fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        return write_maps(pid, uids, gids);
    }
    if uid == 0 {
        return write_maps(pid, uids, gids);
    }
    helper("newuidmap", pid, uids)?;
    helper("newgidmap", pid, gids)
}

fn helper(program: &str, pid: i32, ranges: &[IdRange]) -> Result<(), Stop> {
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for range in ranges {
        command.args([range.inside, range.outside, range.count].map(|n| n.to_string()));
    }
    let output = command.output().map_err(|e| {
        Stop::new(format!("run {program}: {}", Errno::from_raw(e.raw_os_error().unwrap_or(0)))).hint(
            "your administrator installs the package `uidmap`, and gives you ranges in /etc/subuid and /etc/subgid.",
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Stop::new(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        .hint("the ranges in config.json must lie in yours of /etc/subuid and /etc/subgid."))
}
