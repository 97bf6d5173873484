//! Bringing a program into a node: all its namespaces and all its cgroups.
//!
//! `exec` (outside) joins and starts `inner`, which becomes the program. setns(2) with a pid namespace only concerns
//! children, therefore two processes; `exec` passes signals on and ends exactly as the program ended.

use super::cgroups::Visit;
use super::state::{NodeState, State};
use crate::Result;
use corebox_spec::{Failure, exit};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{AccessFlags, Gid, Pid, Uid, User, access, chdir, setgid, setgroups, setuid};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};

/// Signals that `exec` hands to the program (those a user or a test sends; the kernel's own reach it directly).
const FORWARDED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// Mode `exec STATE NODE [--user UID] [--login] -- CMD…`.
pub fn exec(args: &[String]) -> Result<ExitCode> {
    let usage = || Failure::new("cannot read the command line of `exec`", "see `corebox-simnode help`").code(2);
    let split = args.iter().position(|word| word == "--").ok_or_else(usage)?;
    let [state, node, options @ ..] = &args[..split] else { return Err(usage()) };
    let user = match options.iter().position(|word| word == "--user") {
        Some(at) => Some(options.get(at + 1).ok_or_else(usage)?.as_str()),
        None => None,
    };
    let login = options.iter().any(|word| word == "--login");
    let state = State::read(state)?;
    let node = state.node(node)?;
    let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let signals = block(&FORWARDED)?;
    let visit = Visit::enter(&node.cgroups)?;
    super::init::restrict_to(&node.cpus)?;
    join(&state, node)?;
    let mut inner = Command::new(&state.program);
    inner.arg("inner").arg(user.unwrap_or("-"));
    inner.arg(if login { Path::new("-") } else { &cwd }).args(&args[split + 1..]);
    let child = inner.spawn().map_err(|e| dead(node, &format!("cannot start a process there: {e}")))?;
    visit.leave()?;
    follow(child, &signals)
}

/// Joins the node's namespaces; the pid namespace holds for children only.
fn join(state: &State, node: &NodeState) -> Result<()> {
    let kinds = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let own_user = std::fs::read_link("/proc/self/ns/user").ok();
    let mut files = Vec::new();
    for (name, flag) in kinds {
        let path = format!("/proc/{}/ns/{name}", node.pid);
        if name == "user" && (!state.user_namespace || std::fs::read_link(&path).ok() == own_user) {
            continue;
        }
        files.push((name, flag, File::open(&path).map_err(|e| dead(node, &format!("open {path}: {e}")))?));
    }
    for (name, flag, file) in files {
        setns(file, flag).map_err(|e| dead(node, &format!("setns {name}: {e}")))?;
    }
    Ok(())
}

/// What a remote shell says of a node that cannot be entered.
fn dead(node: &NodeState, cause: &str) -> Failure {
    Failure::new(format!("cannot reach node {}", node.name), cause)
        .hint("its init is gone: the node is dead.")
        .code(255)
}

/// Blocks these signals and SIGCHLD, to be read as events.
fn block(list: &[Signal]) -> Result<SigSet> {
    let mut signals: SigSet = list.iter().copied().collect();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().map_err(|e| Failure::new("cannot block signals", e))?;
    Ok(signals)
}

/// Passes signals to the program until it ends, then ends the same way.
fn follow(mut child: Child, signals: &SigSet) -> Result<ExitCode> {
    let failed = |cause: &dyn std::fmt::Display| Failure::new("cannot wait for the program", cause);
    let events = SignalFd::new(signals).map_err(|e| failed(&e))?;
    let pid = Pid::from_raw(child.id() as i32);
    loop {
        if let Some(status) = child.try_wait().map_err(|e| failed(&e))? {
            return Ok(end_like(status));
        }
        let Ok(Some(event)) = events.read_signal() else { continue };
        let signal = Signal::try_from(event.ssi_signo as i32).map_err(|e| failed(&e))?;
        // A terminal's signal (positive code) already went to the whole foreground group, the program included.
        if signal != Signal::SIGCHLD && event.ssi_code <= 0 {
            let _ = kill(pid, signal); // gone already: the loop finds out
        }
    }
}

/// Ends this process as `status` tells: same code, or same signal (without a second core file).
fn end_like(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal().and_then(|number| Signal::try_from(number).ok()) {
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
        let _ = SigSet::empty().thread_set_mask();
        let _ = raise(signal);
        let _ = raise(signal); // the first SIGSEGV only takes away the handler Rust's runtime has for stack overflows
    }
    ExitCode::from(shell_code(status))
}

/// The exit code a shell shows for this status.
pub fn shell_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => exit::SIGNAL_BASE.wrapping_add(signal as u8),
        (None, None) => exit::COREBOX,
    }
}

/// Mode `inner UID|- CWD|- CMD…`: in the node, becomes the program. `-` as directory means a login as ssh gives it.
pub fn inner(args: &[String]) -> Result<ExitCode> {
    let [user, cwd, program, words @ ..] = args else {
        return Err(Failure::new("nothing to run", "no program given").code(2));
    };
    let mut command = Command::new(program);
    command.args(words);
    let uid = match user.as_str() {
        "-" => None,
        number => Some(number.parse().map_err(|_| Failure::new(format!("bad user id `{number}`"), "not a number"))?),
    };
    if cwd == "-" {
        login(&mut command, uid.unwrap_or(0));
    } else if chdir(Path::new(cwd)).is_err() {
        let _ = chdir("/"); // the caller's directory does not exist on the node
    }
    if let Some(uid) = uid {
        become_user(uid)?;
    }
    // After the change of user, which resets it; ties the program to its `exec` outside.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| Failure::new("cannot tie to the parent", e))?;
    SigSet::empty().thread_set_mask().map_err(|e| Failure::new("cannot unblock signals", e))?;
    let error = command.exec();
    let code = if error.kind() == std::io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::NOT_EXECUTABLE };
    Err(Failure::new(format!("cannot execute `{program}`"), error).code(code))
}

/// The environment and directory of a non-login ssh session: nothing of the caller's comes along.
fn login(command: &mut Command, uid: u32) {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let (name, home) = user.map_or((uid.to_string(), "/".into()), |user| (user.name, user.dir));
    // As ssh does with a home that cannot be entered; in a user namespace "root" cannot enter the real root's.
    let home = if access(&home, AccessFlags::X_OK).is_ok() { home } else { "/".into() };
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", &home).env("USER", &name).env("LOGNAME", &name).env("SHELL", "/bin/sh");
    command.current_dir(home);
}

/// Becomes an ordinary user with its own primary group and no others.
fn become_user(uid: u32) -> Result<()> {
    let gid = User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or(Gid::from_raw(uid), |user| user.gid);
    setgroups(&[gid])
        .and_then(|()| setgid(gid))
        .and_then(|()| setuid(Uid::from_raw(uid)))
        .map_err(|e| Failure::new(format!("cannot become user {uid}"), e))
}
