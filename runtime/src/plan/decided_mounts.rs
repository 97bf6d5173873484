//! Which mounts, in which order: the kernel's own file systems, devices, scratch, identity, edits, what the user asked
//! for, the working directory.

use super::{CGROUP_ORIGIN, PlannedKind, PlannedMount, UserPlan, checked};
use crate::accounts::{group_entry, passwd_entry};
use crate::cgroup::CgroupPlan;
use crate::facts::HostFacts;
use crate::step::Stop;
use corebox_spec::{ContainerSpec, Edits, NetMode, Origin};
use corebox_sys::fs;
use std::path::Path;

/// The origin of what every container has.
const DEFAULT: &str = "default";
/// The group of terminals (`tty`) on every Linux distribution.
const TTY_GROUP: u32 = 5;
/// Where cgroup file systems are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// All mounts of a container.
pub(super) fn plan(
    spec: &ContainerSpec,
    facts: &HostFacts,
    edits: &[Edits],
    user: &UserPlan,
    hostname: &str,
    cgroups: &[CgroupPlan],
) -> Result<Vec<PlannedMount>, Stop> {
    let mut mounts = kernel_mounts(spec, facts, user);
    mounts.extend(own_cgroup_views(spec, facts, cgroups));
    mounts.extend(scratch_mounts());
    mounts.extend(identity_files(spec, facts, user, hostname));
    mounts.extend(edits.iter().flat_map(|e| &e.mounts).map(PlannedMount::from));
    mounts.extend(asked_mounts(spec));
    mounts.into_iter().map(checked).collect()
}

fn mount(target: &str, kind: PlannedKind, origin: &str) -> PlannedMount {
    PlannedMount {
        target: target.to_owned(),
        kind,
        read_only: false,
        devices: false,
        origin: Origin(origin.to_owned()),
    }
}

fn read_only(mut mount: PlannedMount) -> PlannedMount {
    mount.read_only = true;
    mount
}

fn bind(target: &str, source: &str, origin: &str) -> PlannedMount {
    mount(target, PlannedKind::Bind { source: source.to_owned() }, origin)
}

fn kernel_mounts(spec: &ContainerSpec, facts: &HostFacts, user: &UserPlan) -> Vec<PlannedMount> {
    let gid = user.gid_map.iter().any(|r| (r.inside..r.inside.saturating_add(r.count)).contains(&TTY_GROUP));
    let sys = match spec.net {
        // sysfs shows the interfaces of the network namespace it was mounted in.
        NetMode::Host => bind("/sys", "/sys", DEFAULT),
        NetMode::None => mount("/sys", PlannedKind::Sysfs, DEFAULT),
    };
    vec![
        mount("/proc", PlannedKind::Proc, DEFAULT),
        read_only(sys),
        mount("/dev", PlannedKind::Devices { terminal: facts.terminal.clone() }, DEFAULT),
        mount("/dev/pts", PlannedKind::Terminals { gid: gid.then_some(TTY_GROUP) }, DEFAULT),
        mount(
            "/dev/shm",
            PlannedKind::Tmpfs { size: spec.shm_size, mode: 0o1777, if_missing: false },
            if spec.shm_size.is_some() { "--shm-size" } else { DEFAULT },
        ),
        mount("/dev/mqueue", PlannedKind::MessageQueues, DEFAULT),
    ]
}

/// Inside, /proc/self/cgroup says `/` (cgroup namespace): that must be the directory of the own cgroup in
/// /sys/fs/cgroup, or programs would read the limits of the whole machine.
fn own_cgroup_views(spec: &ContainerSpec, facts: &HostFacts, cgroups: &[CgroupPlan]) -> Vec<PlannedMount> {
    let limited = |own: &Path| cgroups.iter().any(|plan| plan.parent == own);
    // A new sysfs comes without the cgroup file systems that are mounted in the host's.
    let host = (spec.net == NetMode::None).then(|| read_only(bind(CGROUP_ROOT, CGROUP_ROOT, CGROUP_ORIGIN)));
    let views = facts
        .hierarchies
        .iter()
        .filter(|h| h.mount.starts_with(CGROUP_ROOT) && (limited(&h.own) || h.own != h.mount))
        // With a limit the cgroup has no name yet: `create` puts the new directory in place of the parent.
        .map(|h| read_only(bind(&h.mount.display().to_string(), &h.own.display().to_string(), CGROUP_ORIGIN)));
    host.filter(|_| !facts.hierarchies.is_empty()).into_iter().chain(views).collect()
}

fn scratch_mounts() -> Vec<PlannedMount> {
    vec![
        mount("/tmp", PlannedKind::Tmpfs { size: None, mode: 0o1777, if_missing: false }, DEFAULT),
        mount("/run", PlannedKind::Tmpfs { size: None, mode: 0o755, if_missing: true }, DEFAULT),
    ]
}

fn identity_files(spec: &ContainerSpec, facts: &HostFacts, user: &UserPlan, hostname: &str) -> Vec<PlannedMount> {
    let file = |target: &str, content: String| read_only(mount(target, PlannedKind::File { content }, "host"));
    let accounts = |target: &str, entry: String| {
        read_only(mount(target, PlannedKind::Accounts { entries: vec![entry] }, "caller's account"))
    };
    let (name, home) = match &facts.account {
        _ if user.uid == 0 => ("root".to_owned(), "/root".to_owned()),
        Some(account) => (account.name.clone(), account.home.clone()),
        None => (format!("user{}", user.uid), "/".to_owned()),
    };
    let group = match &facts.group {
        _ if user.gid == 0 => "root".to_owned(),
        Some(name) => name.clone(),
        None => format!("group{}", user.gid),
    };
    let mut files = vec![
        accounts("/etc/passwd", passwd_entry(&name, user.uid, user.gid, &home)),
        accounts("/etc/group", group_entry(&group, user.gid)),
        file("/etc/hostname", format!("{hostname}\n")),
        hosts(spec, facts, hostname),
    ];
    if spec.net == NetMode::Host && Path::new("/etc/resolv.conf").exists() {
        files.push(read_only(bind("/etc/resolv.conf", "/etc/resolv.conf", "host")));
    }
    files
}

/// The host's /etc/hosts; another name than the host's must resolve too, as programs look up their own.
fn hosts(spec: &ContainerSpec, facts: &HostFacts, hostname: &str) -> PlannedMount {
    let has = Path::new("/etc/hosts").exists();
    if spec.net == NetMode::Host && hostname == facts.hostname && has {
        return read_only(bind("/etc/hosts", "/etc/hosts", "host"));
    }
    let base = match spec.net {
        NetMode::Host => fs::read_to_string("/etc/hosts").unwrap_or_default(),
        NetMode::None => "127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned(),
    };
    read_only(mount(
        "/etc/hosts",
        PlannedKind::File { content: format!("{}\n127.0.0.1\t{hostname}\n", base.trim_end()) },
        "host",
    ))
}

fn asked_mounts(spec: &ContainerSpec) -> Vec<PlannedMount> {
    let tmpfs = spec
        .tmpfs
        .iter()
        .map(|t| mount(&t.target, PlannedKind::Tmpfs { size: t.size, mode: 0o1777, if_missing: false }, "--tmpfs"));
    let binds = spec.binds.iter().map(|b| {
        let bound = bind(&b.target, &b.source, "--volume");
        if b.read_only { read_only(bound) } else { bound }
    });
    // Last, unless a bind brought the directory already: it must not cover what was asked for.
    let inside = |dir: &str| spec.binds.iter().any(|b| Path::new(dir).starts_with(&b.target));
    let cwd = spec.cwd_bind.iter().filter(|dir| !inside(dir)).map(|dir| bind(dir, dir, "working directory"));
    tmpfs.chain(cwd).chain(binds).collect()
}
