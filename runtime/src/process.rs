//! One process of a container: what it is ([`ProcessPlan`]), and how a forked child of init becomes it.

use crate::message::{self, Report};
use crate::seccomp::Program;
use corebox_spec::{Failure, IdSet, exit};
use corebox_sys::control::Socket;
use corebox_sys::{Errno, Result, affinity, fd, process, signal};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, RawFd};

/// A process to start in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Names it in events; unique in its container.
    pub id: u32,
    /// Program and arguments; a program without `/` is searched in `PATH` of `env`, inside the container.
    pub argv: Vec<String>,
    /// The complete environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Working directory in the container.
    pub cwd: String,
    /// CPUs to bind to; `None`: those of the container.
    pub cpus: Option<IdSet>,
    /// NUMA nodes that its memory comes from; `None`: any.
    pub mems: Option<IdSet>,
    /// What becomes its standard input, output and error: 0, 1, 2 of the caller, or descriptors kept at create.
    pub stdio: [RawFd; 3],
    /// Further descriptors it inherits under the same numbers; each must have been kept at create.
    pub keep_fds: Vec<RawFd>,
    /// Resource limits: (resource of getrlimit(2), soft, hard).
    pub rlimits: Vec<(process::Resource, u64, u64)>,
    /// Its place among sessions and process groups.
    pub group: Grouping,
}

/// Whether the terminal's signals reach a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grouping {
    /// In the caller's process group: as if started without a container.
    #[default]
    Caller,
    /// In a process group of its own: signals come by [`crate::Container::signal`], to the whole group.
    OwnGroup,
    /// In a session of its own, without controlling terminal; signals as with `OwnGroup`.
    OwnSession,
}

impl ProcessPlan {
    /// A process with the caller's stdio, in `/`, with an empty environment.
    pub fn new(id: u32, argv: Vec<String>) -> Self {
        Self {
            id,
            argv,
            env: Vec::new(),
            cwd: "/".to_owned(),
            cpus: None,
            mems: None,
            stdio: [0, 1, 2],
            keep_fds: Vec::new(),
            rlimits: Vec::new(),
            group: Grouping::Caller,
        }
    }

    /// Descriptors that must have been kept at create, and that init closes once the process has them.
    pub(crate) fn handed_over(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.stdio.iter().filter(|fd| **fd > 2).chain(&self.keep_fds).copied()
    }
}

/// Becomes the program of `plan`: bind, read back, report, exec. Never returns.
///
/// The filters come last: what they refuse is refused to the program, not to us. `ignored` are the signals that were ignored when corebox started and stay so, as nohup(1) wants.
pub(crate) fn become_program(plan: &ProcessPlan, socket: &Socket, filters: &[Program], ignored: &[i32]) -> ! {
    let failed = |error, doing, step| Failure::new(goal(plan), error).during(doing, step);
    let failure = match prepare(plan, socket, ignored) {
        Err(error) => failed(error, "preparing the process", "process"),
        Ok(()) => match filters.iter().try_for_each(|filter| filter.install().map(drop)) {
            Err(error) => failed(error, "installing the system call filter", "seccomp"),
            Ok(()) => execute(plan),
        },
    };
    let code = failure.code;
    message::report(socket, &Report::ExecFailed { id: plan.id, failure: message::shortened(failure) });
    process::exit_now(code)
}

fn goal(plan: &ProcessPlan) -> String {
    format!("cannot run `{}`", plan.argv.first().map_or("", String::as_str))
}

fn prepare(plan: &ProcessPlan, socket: &Socket, ignored: &[i32]) -> Result<()> {
    match plan.group {
        Grouping::Caller => {}
        Grouping::OwnGroup => process::new_group()?,
        Grouping::OwnSession => process::new_session()?,
    }
    if let Some(cpus) = &plan.cpus {
        affinity::set_cpus(&cpus.iter().collect::<Vec<u32>>())?;
    }
    if let Some(nodes) = &plan.mems {
        affinity::set_memory_nodes(&nodes.iter().collect::<Vec<u32>>())?;
    }
    for (resource, soft, hard) in &plan.rlimits {
        process::set_limit(0, *resource, *soft, *hard)?;
    }
    process::change_directory(&plan.cwd)?;
    process::directory_is_inside(&plan.cwd)?;
    place_descriptors(plan)?;
    let cpus = affinity::cpus()?.into_iter().collect();
    let mems = affinity::memory_nodes()?.into_iter().collect();
    message::report(socket, &Report::Started { id: plan.id, cpus, mems });
    signal::unblock_all(ignored)
}

/// Copies first, then places: a source may have the number of another's place.
fn place_descriptors(plan: &ProcessPlan) -> Result<()> {
    let mut copies = Vec::with_capacity(3);
    for (from, to) in plan.stdio.into_iter().zip(0..) {
        if from != to {
            copies.push((fd::copy_above(from, 3)?, to));
        }
    }
    for (copy, to) in &copies {
        fd::place(copy.as_raw_fd(), *to)?;
    }
    for kept in &plan.keep_fds {
        fd::set_cloexec(fd::borrow(*kept)?, false)?;
    }
    Ok(())
}

/// execve(2), with the search of execvp(3) inside the container; returns only with the reason why not.
fn execute(plan: &ProcessPlan) -> Failure {
    let Some(program) = plan.argv.first().filter(|p| !p.is_empty()) else {
        return Failure::new(goal(plan), "no program is named").code(exit::NOT_FOUND);
    };
    let failed =
        |cause: String, code: u8| Failure::new(goal(plan), cause).during("executing the program", "exec").code(code);
    if program.contains('/') {
        let error = process::exec(program, &plan.argv, &plan.env);
        let failure = failed(error.to_string(), code_of(error.errno));
        return match explain(program, error.errno) {
            Some(hint) => failure.hint(hint),
            None => failure,
        };
    }
    let path = plan.env.iter().find_map(|edit| edit.strip_prefix("PATH=")).unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let mut found = None;
    for directory in path.split(':') {
        let candidate = if directory.is_empty() { format!("./{program}") } else { format!("{directory}/{program}") };
        let error = process::exec(&candidate, &plan.argv, &plan.env);
        let exists = std::fs::symlink_metadata(&candidate).is_ok();
        if exists && !matches!(error.errno, Errno::ENOTDIR) && found.is_none() {
            found = Some((candidate, error));
        }
    }
    match found {
        None => failed(format!("`{program}` is in no directory of PATH in the container: {path}"), exit::NOT_FOUND)
            .hint("is it installed in the image? A program of the host is not visible inside."),
        Some((candidate, error)) => {
            let failure = failed(error.to_string(), exit::NOT_EXECUTABLE);
            explain(&candidate, error.errno).map_or(failure.clone(), |hint| failure.hint(hint))
        }
    }
}

/// As a shell's: what is not there is 127, what is there and does not run is 126.
fn code_of(errno: Errno) -> u8 {
    if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) { exit::NOT_FOUND } else { exit::NOT_EXECUTABLE }
}

fn explain(program: &str, errno: Errno) -> Option<String> {
    match errno {
        Errno::ENOENT if std::fs::metadata(program).is_ok() => {
            Some(format!("{program} is there; its interpreter (`#!` line) or dynamic loader is not in the image."))
        }
        Errno::ENOENT => Some("a program of the host is not visible inside; `--volume` binds one.".to_owned()),
        Errno::EACCES => Some(format!("{program} has no execute permission for you, or is a directory.")),
        Errno::ENOEXEC => {
            Some(format!("{program} is no program of this machine's architecture, or a script without `#!`."))
        }
        _ => None,
    }
}
