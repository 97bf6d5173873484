//! A process in new and existing namespaces.

use crate::oci::link::{self, Word};
use crate::oci::plan::Plan;
use crate::step::Stop;
use corebox_spec::Failure;
use corebox_sys::control::Socket;
use corebox_sys::process::{self, Forked, SingleThreaded, ns};
use corebox_sys::{Errno, fd};
use std::os::fd::OwnedFd;

/// Clones the container's first process, as our child.
///
/// Existing namespaces are joined by a process in between, so that we stay where we are: all but the user namespace
/// first, while we still have the caller's rights; a pid namespace holds for children only anyway.
pub(crate) fn clone(
    plan: &Plan<'_>,
    single: &SingleThreaded,
    ours: &Socket,
    theirs: &Socket,
) -> Result<Forked<(i32, OwnedFd)>, Stop> {
    // Time has no flag of clone3; the cgroup namespace comes when we are in our cgroup.
    let new = plan.namespaces.new & !(ns::TIME | ns::CGROUP);
    if plan.namespaces.join.is_empty() {
        return single.clone_into(new).map_err(explain);
    }
    let mut files = Vec::with_capacity(plan.namespaces.join.len());
    for (kind, path) in &plan.namespaces.join {
        files.push((*kind, fd::open_read(path)?, path));
    }
    let Forked::Parent((between, pidfd)) = single.clone_into(0)? else {
        let join = || -> Result<Forked<(i32, OwnedFd)>, Stop> {
            for (kind, file, path) in &files {
                process::join(file, *kind, path.display())?;
            }
            single.clone_sibling(new).map_err(explain)
        };
        match join() {
            Ok(Forked::Child) => return Ok(Forked::Child),
            Ok(Forked::Parent((pid, _))) => say_and_exit(theirs, &Word::Pid(pid), 0),
            Err(stop) => {
                let failure = stop.during(plan.id, "joining namespaces", "join");
                say_and_exit(theirs, &Word::Failed(failure), 1)
            }
        }
    };
    let word = link::hear(ours);
    process::wait_pidfd(std::os::fd::AsFd::as_fd(&pidfd))?;
    match word? {
        Some(Word::Pid(pid)) => Ok(Forked::Parent((pid, process::open_pid(pid)?))),
        Some(Word::Failed(Failure { cause, hint, .. })) => Err(match hint {
            Some(hint) => Stop::new(cause).hint(hint),
            None => Stop::new(cause),
        }),
        _ => Err(Stop::new(format!("process {between}, which joins the namespaces, ended without a word"))),
    }
}

fn say_and_exit(socket: &Socket, word: &Word, code: u8) -> ! {
    // Who cannot be told sees that nothing was said.
    let _ = link::say(socket, word);
    process::exit_now(code)
}

fn explain(error: corebox_sys::Error) -> Stop {
    let errno = error.errno;
    let stop = Stop::from(error);
    match errno {
        Errno::EPERM => {
            stop.hint("an ordinary user needs a user namespace in `linux.namespaces`, and a system that allows it.")
        }
        Errno::ENOSPC => {
            stop.hint("your administrator raises sysctl user.max_user_namespaces (and max_mnt_namespaces, …).")
        }
        Errno::EAGAIN => stop.hint("a limit of processes (ulimit -u, pids of the cgroup) is reached."),
        _ => stop,
    }
}
