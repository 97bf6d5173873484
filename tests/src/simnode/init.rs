//! The birth and life of one node: `node` joins its cgroups and makes its namespaces, `init` is its pid 1.

use super::cgroups::{Visit, hierarchies};
use super::{mounts, ssh};
use crate::Result;
use corebox_spec::Failure;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// What the keeper asks of a node; travels as JSON on the command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InitRequest {
    /// Host name.
    pub name: String,
    /// Directories that must stay visible at the same path although `/tmp`, `/run` or `/dev` covers them.
    pub keep: Vec<PathBuf>,
    /// Files bound over others: `/etc/hosts`, the ssh client's configuration.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// The node's cgroups as the host sees them.
    pub cgroups: Vec<PathBuf>,
    /// The CPUs it has; empty: all.
    pub cpus: Vec<usize>,
    /// We are in a user namespace: no cgroups, no device nodes.
    pub user_namespace: bool,
    /// Configuration of the ssh server, if one is wanted.
    pub sshd: Option<PathBuf>,
}

/// Mode `node`: the process between keeper and init. Prints the init's pid (the host's number), then waits for it.
pub fn stage(args: &[String]) -> Result<ExitCode> {
    let request = parse(args)?;
    let goal = format!("cannot make node {}", request.name);
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| Failure::new(&goal, e))?;
    let visit = Visit::enter(&request.cgroups)?;
    restrict_to(&request.cpus)?;
    let mut kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID;
    kinds |= CloneFlags::CLONE_NEWCGROUP; // after joining: its root is where we are now
    unshare(kinds).map_err(|e| Failure::new(&goal, format_args!("unshare: {e}")))?;
    let program = std::env::current_exe().map_err(|e| Failure::new(&goal, e))?;
    let mut init = Command::new(program)
        .arg("init")
        .args(args)
        .spawn()
        .map_err(|e| Failure::new(&goal, format_args!("init: {e}")))?;
    visit.leave()?;
    println!("pid {}", init.id());
    let status = init.wait().map_err(|e| Failure::new(&goal, e))?;
    Ok(ExitCode::from(super::enter::shell_code(status)))
}

/// Mode `init`: pid 1 of the node. Says `ready` when the node is built, and lives until its standard input ends.
pub fn main(args: &[String]) -> Result<ExitCode> {
    let request = parse(args)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().map_err(|e| Failure::new("cannot block SIGCHLD", e))?;
    let known = if request.user_namespace { Vec::new() } else { hierarchies()? };
    mounts::build(&request, &known)?;
    nix::unistd::sethostname(&request.name).map_err(|e| Failure::new("cannot set the host name", e))?;
    std::env::set_current_dir("/").map_err(|e| Failure::new("cannot enter /", e))?;
    println!("ready");
    live(&request, &signals)
}

/// Reaps what has died until the pipe on standard input ends; the first byte on it starts the ssh server.
fn live(request: &InitRequest, signals: &SigSet) -> Result<ExitCode> {
    let goal = "cannot watch the node";
    let children = SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| Failure::new(goal, e))?;
    let mut stdin = std::io::stdin();
    loop {
        let mut watched =
            [PollFd::new(children.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(Failure::new(goal, e)),
        }
        let lifeline = watched[1].any().unwrap_or(false);
        while let Ok(Some(_)) = children.read_signal() {}
        reap();
        if lifeline {
            let mut byte = [0];
            if !matches!(stdin.read(&mut byte), Ok(1)) {
                return Ok(ExitCode::SUCCESS); // the kernel kills all processes of the namespace with us
            }
            if let Some(config) = &request.sshd {
                ssh::start(config)?;
            }
        }
    }
}

/// Takes the status of every child that has ended.
fn reap() {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    while matches!(waitid(Id::All, flags), Ok(status) if status != WaitStatus::StillAlive) {}
}

/// Restricts this process, and what it starts, to these CPUs (all, if none are named); a cpuset does the same for the
/// node's root, but not every cluster has one.
pub fn restrict_to(cpus: &[usize]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cpus.iter()
        .try_for_each(|cpu| set.set(*cpu))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|e| Failure::new(format!("cannot restrict the node to CPUs {cpus:?}"), e))
}

fn parse(args: &[String]) -> Result<InitRequest> {
    let text = args.first().map_or("", String::as_str);
    serde_json::from_str(text).map_err(|e| Failure::new("cannot read the request for a node", e))
}

/// How the keeper starts a node: `node REQUEST` with a pipe as its lifeline and one for its reports.
pub fn command(program: &std::path::Path, request: &InitRequest) -> Result<Command> {
    let text = serde_json::to_string(request).map_err(|e| Failure::new("cannot write the request for a node", e))?;
    let mut command = Command::new(program);
    command.arg("node").arg(text).stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(command)
}
