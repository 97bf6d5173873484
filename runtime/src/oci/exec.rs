//! `exec`: one more process in a container that runs.

use crate::oci::attend::{Reception, attend};
use crate::oci::create::{open_console, write_pid};
use crate::oci::link::{self, Word};
use crate::oci::plan::process::{self as plan, ProcessPlan};
use crate::oci::program::{self, find_program};
use crate::oci::run::Ran;
use crate::oci::state::{Record, StateDirectory, Status};
use crate::oci::{cgroup, config, terminal};
use crate::seccomp::Program;
use crate::step::{Steps, Stop};
use corebox_spec::{Failure, exit};
use corebox_sys::control::{self, Socket};
use corebox_sys::process::{self, Forked, SingleThreaded, ns};
use corebox_sys::signal::Signals;
use corebox_sys::{Errno, fd, identity};
use oci_spec::runtime::{Capability, Process, Spec, User};
use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// What `exec` is asked for.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// Where states are.
    pub root: PathBuf,
    /// The container's id.
    pub id: String,
    /// A file with the whole process; then the words below are not used.
    pub process: Option<PathBuf>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// A terminal.
    pub tty: bool,
    /// `UID[:GID]`.
    pub user: Option<String>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// Further variables, as `NAME=value`.
    pub env: Vec<String>,
    /// Further capabilities.
    pub capabilities: Vec<String>,
    /// No new privileges.
    pub no_new_privileges: bool,
    /// AppArmor profile.
    pub apparmor: Option<String>,
    /// SELinux label.
    pub process_label: Option<String>,
    /// Takes the pid.
    pub pid_file: Option<PathBuf>,
    /// Takes the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// Do not wait for its end.
    pub detach: bool,
    /// How many descriptors after 2 it inherits.
    pub preserve_fds: u32,
    /// Also in a paused container: it runs when that is resumed.
    pub ignore_paused: bool,
    /// cgroups below the container's, as `[CONTROLLER[,CONTROLLER...]:]PATH`.
    pub cgroups: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// Why it does not run.
pub fn exec(asked: &Exec) -> Result<Ran, Failure> {
    let mut steps = Steps::of(format!("cannot run a process in container `{}`", asked.id), &asked.id);
    let first = 3 + i32::try_from(asked.preserve_fds).unwrap_or(0);
    let single = steps
        .run("check", "checking this process", || Ok((fd::close_on_exec_from(first)?, SingleThreaded::check()?).1))?;
    let (directory, record) = steps.run("state", "looking for the container", || open(asked))?;
    let groups = steps.run("cgroup", "looking for its cgroups", || record.groups.below(&asked.cgroups))?;
    let spec = steps.run("config", "reading the kept config.json", || directory.kept())?;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let (plan, filter) = steps
        .run("plan", "planning", || Ok((plan::from(&wanted(asked, &spec)?)?, crate::oci::plan::filter(profile)?)))?;
    let signals =
        if asked.detach { None } else { Some(steps.run("signals", "watching signals", || Ok(Signals::block_all()?))?) };
    let (reception, console) = steps.run("terminal", "connecting the console", || console(asked, plan.terminal))?;
    let (ours, theirs) = steps.run("socket", "connecting to the process", || Ok(control::pair()?))?;
    let joined =
        steps.run("join", "joining the container", || join(&record, &groups, &plan, &single, &ours, &theirs))?;
    let Forked::Parent((pid, pidfd)) = joined else {
        drop(ours);
        inside(asked, &plan, filter.as_ref(), &theirs, console)
    };
    drop((theirs, console));
    steps.run("limits", "setting resource limits", || {
        program::from_outside(&plan, pid)?;
        asked.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, pid))?;
        Ok(link::say(&ours, &Word::Mapped)?)
    })?;
    let state = record.state(Status::Running);
    let answer =
        steps.run("exec", "waiting for the program", || program::await_exec(&ours, &pidfd, pid, profile, &state))?;
    if let Some(failure) = answer {
        process::wait_pidfd(pidfd.as_fd()).map_err(|e| Failure::new("cannot wait for the process", e))?;
        return Err(failure);
    }
    match signals {
        None => Ok(Ran::Detached),
        Some(signals) => attend(&pidfd, &signals, reception).map(Ran::Ended),
    }
}

fn open(asked: &Exec) -> Result<(StateDirectory, Record), Stop> {
    let (directory, record) = StateDirectory::open(&asked.root, &asked.id)?;
    match directory.status(&record) {
        Status::Running | Status::Created => Ok((directory, record)),
        Status::Paused if asked.ignore_paused => Ok((directory, record)),
        Status::Paused => Err(Stop::new("it is paused").hint("`resume` continues it.")),
        Status::Stopped => Err(Stop::new("it is stopped: container not running")),
        Status::Creating => Err(Stop::new("it is still being created")),
    }
}

/// The process of config.json, with what was asked for instead.
fn wanted(asked: &Exec, spec: &Spec) -> Result<Process, Stop> {
    if let Some(path) = &asked.process {
        return config::process(path);
    }
    let mut process = spec.process().clone().ok_or_else(|| Stop::new("config.json has no `process`"))?;
    process.set_args(Some(asked.argv.clone())).set_terminal(Some(asked.tty));
    if let Some(cwd) = &asked.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    for variable in &asked.env {
        let name = variable.split('=').next().unwrap_or_default();
        env.retain(|text| text.split('=').next() != Some(name));
        env.push(variable.clone());
    }
    process.set_env(Some(env));
    if asked.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if asked.apparmor.is_some() {
        process.set_apparmor_profile(asked.apparmor.clone());
    }
    if asked.process_label.is_some() {
        process.set_selinux_label(asked.process_label.clone());
    }
    if let Some(text) = &asked.user {
        process.set_user(user(text, process.user())?);
    }
    if !asked.additional_gids.is_empty() {
        let mut user = process.user().clone();
        user.set_additional_gids(Some(asked.additional_gids.clone()));
        process.set_user(user);
    }
    add_capabilities(&mut process, &asked.capabilities)?;
    Ok(process)
}

fn user(text: &str, before: &User) -> Result<User, Stop> {
    let number =
        |part: &str| part.parse::<u32>().map_err(|_| Stop::new(format!("`--user {text}` is not UID or UID:GID")));
    let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let mut user = before.clone();
    user.set_uid(number(uid)?);
    if let Some(gid) = gid {
        user.set_gid(number(gid)?);
    }
    Ok(user)
}

/// To every set but the ambient one, as runc.
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<(), Stop> {
    if names.is_empty() {
        return Ok(());
    }
    let mut added: HashSet<Capability> = HashSet::new();
    for name in names {
        let known = identity::capability(name).ok_or_else(|| Stop::new(format!("no capability is called {name}")))?;
        let quoted = format!("\"{known}\"");
        added.insert(config::parse(quoted.as_bytes(), "--cap")?);
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<HashSet<Capability>>| Some(set.iter().flatten().chain(&added).copied().collect());
    let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
    Ok(())
}

fn console(asked: &Exec, terminal: bool) -> Result<(Option<Reception>, Option<OwnedFd>), Stop> {
    match &asked.console_socket {
        None if terminal && !asked.detach => {
            let (ours, theirs) = Reception::pair()?;
            Ok((Some(ours), Some(theirs)))
        }
        path => Ok((None, open_console(terminal, path.as_deref())?)),
    }
}

/// Joins the cgroups and namespaces of the container by a process in between, and returns in its child, our child.
fn join(
    record: &Record,
    groups: &cgroup::Groups,
    plan: &ProcessPlan,
    single: &SingleThreaded,
    ours: &Socket,
    theirs: &Socket,
) -> Result<Forked<(i32, OwnedFd)>, Stop> {
    let init = record.init.ok_or_else(|| Stop::new("it has no first process"))?;
    let target = process::open_pid(init.pid)?;
    // The descriptor may already be that of a later process with this pid.
    if !init.lives() {
        return Err(Stop::new("it is stopped: container not running"));
    }
    let kinds = foreign_namespaces(init.pid)?;
    let Forked::Parent((_, between)) = single.clone_into(0)? else {
        let enter = || -> Result<Forked<(i32, OwnedFd)>, Stop> {
            process::set_dumpable(false)?;
            program::bind(plan.affinity.0.as_ref())?;
            cgroup::attach(groups, process::id())?;
            program::bind(plan.affinity.1.as_ref())?;
            process::join(&target, kinds, format_args!("of container `{}`", record.id))?;
            Ok(single.clone_sibling(0)?)
        };
        match enter() {
            Ok(Forked::Child) => return Ok(Forked::Child),
            Ok(Forked::Parent((pid, _))) => {
                let _ = link::say(theirs, &Word::Pid(pid));
                process::exit_now(0)
            }
            Err(stop) => {
                let _ = link::say(theirs, &Word::Failed(stop.into_failure(String::new())));
                process::exit_now(exit::COREBOX)
            }
        }
    };
    let word = link::hear(ours);
    process::wait_pidfd(between.as_fd())?;
    match word? {
        Some(Word::Pid(pid)) => Ok(Forked::Parent((pid, process::open_pid(pid)?))),
        Some(Word::Failed(failure)) => Err(Stop::new(failure.cause)),
        _ => Err(Stop::new("the process that joins the namespaces ended without a word")),
    }
}

/// Those of its namespaces that are not ours; a user namespace cannot be joined by who is in it.
fn foreign_namespaces(pid: i32) -> Result<u64, Stop> {
    const KINDS: [(&str, u64); 8] = [
        ("user", ns::USER),
        ("mnt", ns::MOUNT),
        ("pid", ns::PID),
        ("net", ns::NET),
        ("ipc", ns::IPC),
        ("uts", ns::UTS),
        ("cgroup", ns::CGROUP),
        ("time", ns::TIME),
    ];
    let name = |of: &str, kind: &str| std::fs::read_link(format!("/proc/{of}/ns/{kind}"));
    let mut foreign = 0;
    for (kind, flag) in KINDS {
        match name(&pid.to_string(), kind) {
            Ok(theirs) if name("self", kind).is_ok_and(|ours| ours == theirs) => {}
            Ok(_) => foreign |= flag,
            // A kernel without this kind.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(corebox_sys::Error::io("look at the namespaces of process", pid, &e).into()),
        }
    }
    Ok(foreign)
}

/// The child, in the container: becomes the program. Never returns.
fn inside(asked: &Exec, plan: &ProcessPlan, filter: Option<&Program>, socket: &Socket, console: Option<OwnedFd>) -> ! {
    let mut steps = Steps::of(format!("cannot run a process in container `{}`", asked.id), &asked.id);
    let build = || -> Result<PathBuf, Failure> {
        steps.run("process", "becoming a process of the container", || become_member(asked, plan, socket, console))?;
        steps.run("identity", "taking the user's identity", || {
            let early = program::enter_directory(&plan.cwd);
            program::take_identity(plan)?;
            early.or_else(|_| program::enter_directory(&plan.cwd))
        })?;
        let path = find_program(plan)?;
        steps.run("privileges", "dropping privileges", || program::restrict(plan, filter, socket))?;
        Ok(path)
    };
    let failure = match build() {
        Ok(path) => program::execute(&path, plan),
        Err(failure) => failure,
    };
    let code = failure.code;
    let _ = link::say(socket, &Word::Failed(crate::message::shortened(failure)));
    process::exit_now(code)
}

fn become_member(asked: &Exec, plan: &ProcessPlan, socket: &Socket, console: Option<OwnedFd>) -> Result<(), Stop> {
    link::expect(socket, &Word::Mapped)?;
    match identity::become_user(0, 0, true) {
        // A user namespace without root.
        Err(e) if e.errno == Errno::EINVAL => {}
        other => other?,
    }
    process::new_session()?;
    identity::new_session_keyring(&format!("_ses.{}", asked.id))?;
    if let Some(console) = console {
        let root = fd::open_path(Path::new("/"))?;
        let peer = terminal::open(&root, plan, &console)?;
        corebox_sys::terminal::become_terminal(&peer)?;
    }
    Ok(())
}
