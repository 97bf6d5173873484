//! How a process inside becomes the program of its [`ProcessPlan`]: identity, privileges, limits, exec.

use crate::oci::label;
use crate::oci::link::{self, Word};
use crate::oci::plan::process::ProcessPlan;
use crate::seccomp::{Program, notify};
use crate::step::Stop;
use corebox_spec::{Failure, exit};
use corebox_sys::control::Socket;
use corebox_sys::identity::{self, CapSet};
use corebox_sys::process;
use corebox_sys::user::Capability;
use corebox_sys::{Errno, affinity, fd, fs, scheduling, signal};
use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What only somebody outside may do for a process: limits that its user namespace could not raise.
pub(crate) fn from_outside(plan: &ProcessPlan, pid: i32) -> Result<(), Stop> {
    for (resource, soft, hard) in &plan.rlimits {
        process::set_limit(pid, *resource, *soft, *hard)?;
    }
    if let Some(score) = plan.oom_score {
        match fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
            // Lowering takes CAP_SYS_RESOURCE, which an ordinary user's runtime does not have: as runc, go on.
            Err(e) if e.errno == Errno::EACCES && corebox_sys::user::ids().0 != 0 => {}
            other => other?,
        }
    }
    if let Some((class, priority)) = plan.io_priority {
        scheduling::set_io_priority(pid, class, priority)?;
    }
    if let Some(policy) = plan.policy {
        scheduling::set_policy(pid, policy)?;
    }
    Ok(())
}

/// Binds this process to CPUs, if any are said.
pub(crate) fn bind(cpus: Option<&corebox_spec::IdSet>) -> Result<(), Stop> {
    match cpus {
        Some(cpus) => Ok(affinity::set_cpus(&cpus.iter().collect::<Vec<u32>>())?),
        None => Ok(()),
    }
}

/// Takes the user's ids but keeps what may be needed until [`drop_privileges`].
pub(crate) fn take_identity(plan: &ProcessPlan) -> Result<(), Stop> {
    identity::set_umask(plan.umask.unwrap_or(0o022));
    set_groups(plan)?;
    identity::bound_capabilities(&plan.capabilities.bounding)?;
    identity::become_user(plan.uid, plan.gid, true)?;
    // Becoming an ordinary user cleared the effective set.
    let permitted = identity::capabilities(CapSet::Permitted)?;
    Ok(identity::set_capabilities(CapSet::Effective, &permitted)?)
}

/// Where a user namespace denies setgroups(2) the groups stay as they are, which is right only if none are asked for.
fn set_groups(plan: &ProcessPlan) -> Result<(), Stop> {
    let denied = fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
    if !denied {
        return Ok(identity::set_groups(&plan.groups)?);
    }
    if plan.groups.is_empty() {
        return Ok(());
    }
    Err(Stop::new("`process.user.additionalGids`: this user namespace denies setting groups"))
}

/// The last privileged steps before the exec: labels, capabilities, no_new_privs, and the filter of system calls, which
/// needs one of both. What a filter forbids is forbidden from then on, to us too.
pub(crate) fn restrict(plan: &ProcessPlan, filter: Option<&Program>, socket: &Socket) -> Result<(), Stop> {
    signal::unblock_all(&[])?;
    label::set_for_exec(plan)?;
    if plan.no_new_privileges {
        process::no_new_privileges()?;
        drop_privileges(plan)?;
        return install(filter, socket);
    }
    install(filter, socket)?;
    drop_privileges(plan)
}

fn install(filter: Option<&Program>, socket: &Socket) -> Result<(), Stop> {
    let Some(filter) = filter else { return Ok(()) };
    let Some(listener) = filter.install()? else { return Ok(()) };
    link::say(socket, &Word::Listener(listener.as_raw_fd()))?;
    // Until the other side has taken the descriptor out of us. Only read(2): see `crate::seccomp::notify`.
    Ok(fd::read_byte(socket)?)
}

/// On the other side: waits until a process has become its program, and serves its filter on the way. Returns why it has
/// not.
pub(crate) fn await_exec(
    socket: &Socket,
    pidfd: &OwnedFd,
    pid: i32,
    profile: Option<&LinuxSeccomp>,
    state: &Value,
) -> Result<Option<Failure>, Stop> {
    loop {
        match link::hear(socket)? {
            Some(Word::Failed(failure)) => return Ok(Some(failure)),
            Some(Word::Listener(number)) => hand_over(number, pidfd, pid, profile, state, socket)?,
            Some(_) => {}
            None => return Ok(None),
        }
    }
}

/// On the other side: takes the listener out of the process behind `pidfd` and sends it to its agent.
fn hand_over(
    listener: i32,
    pidfd: &OwnedFd,
    pid: i32,
    profile: Option<&LinuxSeccomp>,
    state: &Value,
    socket: &Socket,
) -> Result<(), Stop> {
    let taken = corebox_sys::seccomp::take_descriptor(pidfd, listener)?;
    if let Some(profile) = profile {
        let state = crate::oci::state::of_specification(state)?;
        notify::send(profile, &taken, pid, state).map_err(|e| Stop::from(e).about("`linux.seccomp.listenerPath`"))?;
    }
    Ok(link::say(socket, &Word::Ready)?)
}

/// Sets the five capability sets to what is planned.
fn drop_privileges(plan: &ProcessPlan) -> Result<(), Stop> {
    let sets = &plan.capabilities;
    let within = |wanted: &[Capability], held: &[Capability]| -> Vec<Capability> {
        wanted.iter().copied().filter(|c| held.contains(c)).collect()
    };
    // What we do not have ourselves (in a container around us) cannot be given: as runc, the rest is.
    let held = identity::capabilities(CapSet::Permitted)?;
    let permitted = within(&sets.permitted, &held);
    let inheritable = within(&sets.inheritable, &held);
    identity::set_capabilities(CapSet::Inheritable, &inheritable)?;
    identity::set_capabilities(CapSet::Effective, &within(&sets.effective, &permitted))?;
    identity::set_capabilities(CapSet::Permitted, &permitted)?;
    let ambient: Vec<Capability> = within(&within(&sets.ambient, &permitted), &inheritable);
    identity::set_capabilities(CapSet::Ambient, &ambient)?;
    Ok(())
}

/// Enters the working directory. It must lie inside: a descriptor of the host that slipped through would let a path
/// like /proc/self/fd/7 lead out (CVE-2024-21626).
pub(crate) fn enter_directory(cwd: &Path) -> Result<(), Stop> {
    process::change_directory(&cwd.to_string_lossy())?;
    match std::env::current_dir() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(Stop::new(format!("`process.cwd` {} is not inside the container", cwd.display()))),
    }
}

/// The home directory of the user, for `HOME`, as the container's passwd(5) says.
fn home(plan: &ProcessPlan) -> Option<String> {
    if plan.env.iter().any(|text| text.starts_with("HOME=") && text.len() > 5) {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let fields = |line: &str| -> Option<String> {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse::<u32>().ok()? == plan.uid).then(|| fields.get(5).map(|home| (*home).to_owned()))?
    };
    Some(accounts.lines().find_map(fields).filter(|home| !home.is_empty()).unwrap_or_else(|| "/".to_owned()))
}

/// The file that will be executed, searched in `PATH` inside the container.
///
/// # Errors
/// A failure whose code is 126 or 127, where a shell's would be.
pub(crate) fn find_program(plan: &ProcessPlan) -> Result<PathBuf, Failure> {
    let name = plan.argv.first().map_or("", String::as_str);
    if name.is_empty() {
        return Err(Failure::new("cannot run the program", "config.json has no `process`"));
    }
    let failed = |cause: String, code: u8| {
        Failure::new(format!("cannot run `{name}`"), cause).during("looking for the program", "program").code(code)
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(e) => {
                let code = if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR) {
                    exit::NOT_FOUND
                } else {
                    exit::NOT_EXECUTABLE
                };
                Err(failed(e.to_string(), code))
            }
        };
    }
    let path = plan.env.iter().find_map(|text| text.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(e) => denied = denied.or(Some(e)),
        }
    }
    match denied {
        Some(e) => Err(failed(e.to_string(), exit::NOT_EXECUTABLE)),
        // Podman and Docker look for these words.
        None => Err(failed(format!("exec: \"{name}\": executable file not found in $PATH ({path})"), exit::NOT_FOUND)),
    }
}

/// As execvp(3) where the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn executable(path: &Path) -> corebox_sys::Result<()> {
    let found = std::fs::metadata(path).map_err(|e| corebox_sys::Error::io("execute", path.display(), &e))?;
    if found.is_dir() || found.mode() & 0o111 == 0 {
        return Err(corebox_sys::Error::new("execute", path.display(), Errno::EACCES));
    }
    Ok(())
}

/// execve(2); returns only with the reason why not.
pub(crate) fn execute(program: &Path, plan: &ProcessPlan) -> Failure {
    let mut env = plan.env.clone();
    env.extend(home(plan).map(|home| format!("HOME={home}")));
    if plan.listen > 0 {
        env.retain(|text| !text.starts_with("LISTEN_"));
        env.push(format!("LISTEN_FDS={}", plan.listen));
        env.push(format!("LISTEN_PID={}", process::id()));
    }
    let error = process::exec(&program.to_string_lossy(), &plan.argv, &env);
    let code = if error.errno == Errno::ENOENT { exit::NOT_FOUND } else { exit::NOT_EXECUTABLE };
    let failure = Failure::new(format!("cannot run `{}`", plan.argv[0]), &error)
        .during("executing the program", "exec")
        .code(code);
    match error.errno {
        Errno::ENOENT => failure.hint("its interpreter (`#!` line) or dynamic loader is not in the container."),
        Errno::ENOEXEC => failure.hint("it is no program of this machine's architecture, or a script without `#!`."),
        _ => failure,
    }
}

/// How many sockets our service manager gave us from descriptor 3 on, for the container (sd_listen_fds(3)); zero if the
/// variables are meant for another process.
pub(crate) fn given_sockets() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = number("LISTEN_PID") == u32::try_from(process::id()).ok();
    number("LISTEN_FDS").filter(|_| ours).unwrap_or(0)
}
