//! The keeper: the one process that owns a cluster. It builds the nodes, serves their remote shell, and when its
//! standard input ends (its test is done, or dead) takes down everything it made.

use super::init::{self, InitRequest};
use super::state::{NodeState, State};
use super::{cgroups, mounts, network, rsh, ssh};
use crate::Result;
use corebox_spec::Failure;
use corebox_sys::fs;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid, setsid};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};

/// What is asked of a keeper; travels as JSON on its command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KeepRequest {
    /// How many nodes besides the controller.
    pub nodes: usize,
    /// An ssh server on each.
    pub ssh: bool,
    /// Each node has its own share of the CPUs.
    pub split_cpus: bool,
    /// Directories to show at the same path on every node.
    pub binds: Vec<PathBuf>,
}

/// A cluster in the keeper's hands.
struct Kept {
    id: String,
    state: State,
    /// Per node the process between us and its init; its standard input is the node's lifeline.
    stages: Vec<Child>,
}

/// Mode `keep REQUEST`: prints the path of the state file once the cluster is up.
pub fn main(args: &[String]) -> Result<ExitCode> {
    let request: KeepRequest = serde_json::from_str(args.first().map_or("", String::as_str))
        .map_err(|e| Failure::new("cannot read the request for a cluster", e))?;
    let _ = setsid(); // Ctrl-C in the terminal is for the test; our order to stop is the end of the pipe
    let user_namespace = !geteuid().is_root();
    if user_namespace {
        become_root_of_a_user_namespace()?;
    }
    let mut kept = prepare(&request, user_namespace)?;
    let built = build(&mut kept, &request);
    if built.is_ok() {
        println!("{}", kept.state.file().display());
        let _ = std::io::stdout().flush();
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
    let removed = take_down(&mut kept);
    built.and(removed).map(|()| ExitCode::SUCCESS)
}

/// The caller's id becomes 0 in a namespace of its own (user_namespaces(7)); needs a single thread.
fn become_root_of_a_user_namespace() -> Result<()> {
    let goal = "cannot make a user namespace for the nodes";
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| {
        Failure::new(goal, format_args!("unshare: {e}"))
            .hint("run as root, or let your administrator allow user namespaces (sysctl user.max_user_namespaces).")
    })?;
    let files = [("setgroups", "deny".into()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))];
    for (file, text) in files {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| Failure::new(goal, e))?;
    }
    Ok(())
}

/// Names of the nodes: the controller, then `n1`….
fn names(count: usize) -> Vec<String> {
    std::iter::once("ctl".into()).chain((1..=count).map(|index| format!("n{index}"))).collect()
}

/// The part of `cpus` that the node with this index has of `nodes`; nodes share CPUs where there are too few.
fn share(cpus: &[usize], index: usize, nodes: usize) -> Vec<usize> {
    let each = (cpus.len() / nodes).max(1);
    cpus.iter().copied().cycle().skip(index * each).take(each).collect()
}

/// The name of what a keeper makes: its pid and start time (clock ticks since boot), which together never come back.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid}-{start}"))
}

/// The directory, the shared files and the cgroups: all that lies on the host.
fn prepare(request: &KeepRequest, user_namespace: bool) -> Result<Kept> {
    let failed = |cause: &dyn std::fmt::Display| Failure::new("cannot prepare a cluster", cause);
    let id = identity(std::process::id()).ok_or_else(|| failed(&"cannot read /proc/self/stat"))?;
    let dir = std::env::temp_dir().join(format!("{}{id}", cgroups::PREFIX));
    std::fs::create_dir(&dir).map_err(|e| failed(&format!("mkdir {}: {e}", dir.display())))?;
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let names = names(request.nodes);
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(|e| failed(&e))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
    let nodes = names.iter().enumerate().map(|(index, name)| NodeState {
        name: name.clone(),
        pid: 0,
        address: network::address(index),
        link: (index > 0).then(|| format!("link{index}")),
        cpus: if request.split_cpus && index > 0 { share(&cpus, index - 1, request.nodes) } else { Vec::new() },
        cgroups: Vec::new(),
    });
    let state = State { dir, program, user_namespace, missing: missing(user_namespace), nodes: nodes.collect() };
    let mut kept = Kept { id, state, stages: Vec::new() };
    if let Err(failure) = furnish(&mut kept, request) {
        let _ = take_down(&mut kept); // the first failure is the one to tell
        return Err(failure);
    }
    Ok(kept)
}

fn furnish(kept: &mut Kept, request: &KeepRequest) -> Result<()> {
    let failed = |e: corebox_sys::Error| Failure::new("cannot prepare a cluster", e);
    let dir = kept.state.dir.clone();
    let open = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode));
    let pfs = dir.join("pfs");
    fs::create_dir_all(&pfs).map_err(failed)?;
    for (path, mode) in [(&dir, 0o755), (&pfs, 0o1777)] {
        open(path, mode).map_err(|e| failed(corebox_sys::Error::io("chmod", path.display(), &e)))?;
    }
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for node in &kept.state.nodes {
        let _ = writeln!(hosts, "{} {}", node.address, node.name);
    }
    fs::write(dir.join("hosts"), hosts).map_err(failed)?;
    let shell = dir.join("rsh");
    let script =
        format!("#!/bin/sh\nexec '{}' rsh '{}' \"$@\"\n", kept.state.program.display(), kept.state.file().display());
    fs::write(&shell, script).map_err(failed)?;
    open(&shell, 0o755).map_err(|e| failed(corebox_sys::Error::io("chmod", shell.display(), &e)))?;
    if request.ssh {
        ssh::prepare(&dir, &kept.state.nodes)?;
    }
    if !kept.state.user_namespace {
        let made = cgroups::create(&kept.id, &kept.state.nodes)?;
        for (node, dirs) in kept.state.nodes.iter_mut().zip(made) {
            node.cgroups = dirs;
        }
    }
    Ok(())
}

/// What a cluster without root lacks, for the reader.
fn missing(user_namespace: bool) -> Vec<String> {
    let mut list = Vec::new();
    if user_namespace {
        list.push("nodes without root: no cgroups of their own, so no limits on CPUs, memory and processes".into());
        if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            list.push(format!(
                "/dev/fuse cannot be opened ({e}), and the kernel mounts images for root only: let your administrator \
                 run `chmod 0666 /dev/fuse`, or run as root"
            ));
        }
    }
    list
}

/// Starts the nodes, lays the network, starts the servers.
fn build(kept: &mut Kept, request: &KeepRequest) -> Result<()> {
    let mut reports = Vec::new();
    for index in 0..kept.state.nodes.len() {
        let asked = init_request(kept, request, index)?;
        let mut stage = init::command(&kept.state.program, &asked)?
            .spawn()
            .map_err(|e| Failure::new(format!("cannot start node {}", asked.name), e))?;
        reports.extend(stage.stdout.take().map(|out| BufReader::new(out).lines()));
        kept.stages.push(stage);
    }
    for (node, report) in kept.state.nodes.iter_mut().zip(&mut reports) {
        node.pid = await_ready(&node.name, report)?;
    }
    network::connect(&kept.state.nodes)?;
    if request.ssh {
        for (node, stage) in kept.state.nodes.iter().zip(&mut kept.stages) {
            let lifeline = stage.stdin.as_mut().ok_or_else(|| Failure::new("node without a lifeline", &node.name))?;
            lifeline.write_all(b"s").map_err(|e| Failure::new(format!("cannot reach node {}", node.name), e))?;
        }
        kept.state.nodes.iter().try_for_each(ssh::wait_listening)?;
    }
    let socket = kept.state.socket();
    let listener = UnixListener::bind(&socket)
        .and_then(|listener| {
            std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o777))?;
            Ok(listener)
        })
        .map_err(|e| Failure::new("cannot serve the remote shell", e))?;
    kept.state.write()?;
    let state = kept.state.clone();
    std::thread::spawn(move || rsh::serve(&listener, &state));
    Ok(())
}

fn init_request(kept: &Kept, request: &KeepRequest, index: usize) -> Result<InitRequest> {
    let (state, node) = (&kept.state, &kept.state.nodes[index]);
    let mut keep = vec![state.dir.clone()];
    // The build directory (`target`, with all profiles), or just the program's own if that lies right in `/tmp`.
    let mut above = state.program.ancestors().skip(1);
    let (profile, target) = (above.next(), above.next());
    let target = target.filter(|dir| !mounts::is_private(dir) && *dir != Path::new("/"));
    keep.extend(target.or(profile).map(Path::to_path_buf));
    keep.extend(request.binds.iter().cloned());
    let mut files = vec![(state.dir.join("hosts"), PathBuf::from("/etc/hosts"))];
    if request.ssh {
        files.push((state.dir.join("ssh/config"), "/etc/ssh/ssh_config".into()));
    }
    let sshd = if request.ssh { Some(ssh::server(&state.dir, node)?) } else { None };
    Ok(InitRequest {
        name: node.name.clone(),
        keep,
        files,
        cgroups: node.cgroups.clone(),
        cpus: node.cpus.clone(),
        user_namespace: state.user_namespace,
        sshd,
    })
}

/// Reads a node's reports up to `ready`; gives its init's pid. The two come from two processes, in any order.
fn await_ready(name: &str, lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<i32> {
    let (mut pid, mut ready) = (None, false);
    for line in lines.map_while(std::result::Result::ok) {
        match line.strip_prefix("pid ") {
            Some(number) => pid = number.parse().ok(),
            None => ready |= line == "ready",
        }
        if let (Some(pid), true) = (pid, ready) {
            return Ok(pid);
        }
    }
    Err(Failure::new(format!("cannot start node {name}"), "its init ended; its reason is above"))
}

/// Kills the nodes and removes what lies on the host.
fn take_down(kept: &mut Kept) -> Result<()> {
    for node in kept.state.nodes.iter().filter(|node| node.pid > 0) {
        let _ = kill(Pid::from_raw(node.pid), Signal::SIGKILL); // gone already, if a test killed it
    }
    for stage in &mut kept.stages {
        drop(stage.stdin.take()); // the lifeline: ends a node that never told its pid
        let _ = stage.wait();
    }
    let mut left = if kept.state.user_namespace { Vec::new() } else { cgroups::remove(&kept.id) };
    if std::fs::remove_dir_all(&kept.state.dir).is_err() {
        left.push(kept.state.dir.clone());
    }
    if left.is_empty() { Ok(()) } else { Err(Failure::new("cannot remove what the cluster left", format!("{left:?}"))) }
}

/// Removes what keepers that were killed themselves (SIGKILL) have left: directories and cgroups named after a process
/// that is no more.
pub(crate) fn sweep_stale() {
    let mut places = vec![std::env::temp_dir()];
    places.extend(cgroups::hierarchies().into_iter().flatten().map(|hierarchy| hierarchy.own));
    let entries = places.iter().flat_map(std::fs::read_dir).flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(cgroups::PREFIX).map(String::from));
    let mut ids: Vec<String> = names.collect();
    ids.sort();
    ids.dedup();
    for id in ids {
        let pid = id.split('-').next().and_then(|number| number.parse().ok());
        if pid.is_some_and(|pid| identity(pid).as_ref() != Some(&id)) {
            cgroups::remove(&id);
            let _ = std::fs::remove_dir_all(std::env::temp_dir().join(format!("{}{id}", cgroups::PREFIX)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_shared_out() {
        assert_eq!([0, 1].map(|index| share(&[0, 1, 4, 5], index, 2)), [vec![0, 1], vec![4, 5]]);
        assert_eq!([0, 1, 2].map(|index| share(&[3, 7], index, 3)), [vec![3], vec![7], vec![3]]);
    }

    #[test]
    fn identities_tell_processes_apart() {
        let own = identity(std::process::id()).expect("there is a /proc");
        assert!(own.starts_with(&format!("{}-", std::process::id())));
        assert_eq!(identity(0), None);
    }
}
