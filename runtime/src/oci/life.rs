//! What happens to a container that was created: start, signals, freezing, the end.

use crate::oci::cgroup;
use crate::oci::hooks;
use crate::oci::program;
use crate::oci::state::{self, Record, START, StateDirectory, Status};
use crate::step::Stop;
use corebox_spec::Failure;
use corebox_sys::process;
use corebox_sys::signal::SIGKILL;
use corebox_sys::{Errno, control, fd};
use serde_json::Value;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

fn failed(goal: &'static str, id: &str) -> impl Fn(Stop) -> Failure {
    let goal = format!("cannot {goal} container `{id}`");
    move |stop| stop.into_failure(goal.clone())
}

fn open(goal: &'static str, root: &Path, id: &str) -> Result<(StateDirectory, Record, Status), Failure> {
    let (directory, record) = StateDirectory::open(root, id).map_err(failed(goal, id))?;
    let status = directory.status(&record);
    Ok((directory, record, status))
}

fn refuse(goal: &'static str, id: &str, status: Status) -> Failure {
    let status = format!("{status:?}").to_lowercase();
    // Podman and containerd look for "not running" in what they must not take for an error.
    let words =
        if status == "stopped" { "it is stopped: container not running".to_owned() } else { format!("it is {status}") };
    failed(goal, id)(Stop::new(words))
}

/// Starts the program of a created container. Returns what its `poststart` hooks could not do.
///
/// # Errors
/// A container that is not created, or why the program cannot run.
pub fn start(root: &Path, id: &str) -> Result<Vec<String>, Failure> {
    const GOAL: &str = "start";
    let (directory, record, status) = open(GOAL, root, id)?;
    if status != Status::Created {
        return Err(refuse(GOAL, id, status));
    }
    // Opened before it may end.
    let pid = record.init.map_or(0, |init| init.pid);
    let pidfd = process::open_pid(pid).map_err(|e| failed(GOAL, id)(e.into()))?;
    let socket = control::connect(&directory.fd, START).map_err(|e| failed(GOAL, id)(e.into()))?;
    let spec = directory.kept().map_err(failed(GOAL, id))?;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let answer = program::await_exec(&socket, &pidfd, pid, profile, &record.state(Status::Running));
    // Gone already: `delete` was faster.
    let _ = std::fs::remove_file(directory.path.join(START));
    if let Some(failure) = answer.map_err(failed(GOAL, id))? {
        return Err(failure);
    }
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
    Ok(hooks::run_all("poststart", hooks, &record.state(Status::Running)))
}

/// The state as runtime-spec prints it.
///
/// # Errors
/// A container that does not exist.
pub fn state(root: &Path, id: &str) -> Result<Value, Failure> {
    let (_, record, status) = open("query", root, id)?;
    Ok(record.state(status))
}

/// The states of all containers.
///
/// # Errors
/// A state directory that cannot be read.
pub fn list(root: &Path) -> Result<Vec<Value>, Failure> {
    let all = state::all(root).map_err(|stop| stop.into_failure("cannot list containers".to_owned()))?;
    Ok(all.iter().map(|(directory, record)| record.state(directory.status(record))).collect())
}

/// Sends a signal to the first process, or to all of them.
///
/// # Errors
/// A container that does not run.
pub fn kill(root: &Path, id: &str, signal: i32, all: bool) -> Result<(), Failure> {
    const GOAL: &str = "kill";
    let (_, record, status) = open(GOAL, root, id)?;
    let failed = failed(GOAL, id);
    if all {
        // Also after the first process ended: others may live on in a shared pid namespace.
        return cgroup::kill_all(&record.groups, signal).map_err(|e| failed(e.into()));
    }
    let init = record.init.filter(|_| !matches!(status, Status::Stopped | Status::Creating));
    let Some(init) = init else { return Err(refuse(GOAL, id, status)) };
    let pidfd = process::open_pid(init.pid).map_err(|e| failed(e.into()))?;
    // The descriptor may already be that of a later process with this pid.
    if !init.lives() {
        return Err(refuse(GOAL, id, Status::Stopped));
    }
    process::signal_pidfd(&pidfd, signal).map_err(|e| failed(e.into()))?;
    if signal == SIGKILL && status == Status::Paused {
        cgroup::set_frozen(&record.groups, false).map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

/// Removes a container that ended; with `force` ends it first, and one that does not exist is no error. Returns what its
/// `poststop` hooks could not do.
///
/// # Errors
/// A container that still runs.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<Vec<String>, Failure> {
    const GOAL: &str = "delete";
    let path = root.join(id);
    if force && state::check_id(id).is_ok() && !path.exists() {
        return Ok(Vec::new());
    }
    let (directory, record) = match StateDirectory::open(root, id) {
        // Its maker was killed before it wrote anything.
        Err(_) if force && path.is_dir() => {
            let _ = std::fs::remove_dir_all(&path);
            return Ok(Vec::new());
        }
        other => other.map_err(failed(GOAL, id))?,
    };
    let mut status = directory.status(&record);
    if status == Status::Running && !force {
        // Killed a moment ago, it may not be gone yet: callers do not wait between the two.
        wait_for_end(root, id, Some(Duration::from_millis(100)))?;
        status = directory.status(&record);
    }
    if status != Status::Stopped && !force {
        return Err(refuse(GOAL, id, status));
    }
    end(&record).map_err(failed(GOAL, id))?;
    let state = record.state(Status::Stopped);
    let spec = directory.kept().ok();
    directory.remove(&record.groups, &record);
    let hooks = spec.as_ref().and_then(|s| s.hooks().as_ref()).and_then(|hooks| hooks.poststop().as_ref());
    Ok(hooks::run_all("poststop", hooks, &state))
}

/// Kills what is left of it.
fn end(record: &Record) -> Result<(), Stop> {
    if record.boot != state::boot() {
        return Ok(());
    }
    if let Some(init) = record.init.filter(|init| init.lives()) {
        match process::open_pid(init.pid) {
            Ok(pidfd) if init.lives() => {
                process::signal_pidfd(&pidfd, SIGKILL)?;
                let _ = cgroup::set_frozen(&record.groups, false);
                fd::poll_readable(&[pidfd.as_fd()], Some(Duration::from_secs(10)))?;
            }
            Ok(_) => {}
            Err(e) if e.errno == Errno::ESRCH => {}
            Err(e) => return Err(e.into()),
        }
    }
    if record.init.is_none() && record.maker.lives() && record.maker.pid != process::id() {
        // It cleans up itself when its container is gone; without it nothing comes any more.
        let maker = process::open_pid(record.maker.pid)?;
        process::signal_pidfd(&maker, SIGKILL)?;
        fd::poll_readable(&[maker.as_fd()], Some(Duration::from_secs(10)))?;
    }
    Ok(cgroup::kill_all(&record.groups, SIGKILL)?)
}

/// Stops all processes with the freezer.
///
/// # Errors
/// A container that does not run, or has no freezer cgroup.
pub fn pause(root: &Path, id: &str) -> Result<(), Failure> {
    freeze("pause", root, id, Status::Running, true)
}

/// Continues them.
///
/// # Errors
/// A container that is not paused.
pub fn resume(root: &Path, id: &str) -> Result<(), Failure> {
    freeze("resume", root, id, Status::Paused, false)
}

fn freeze(goal: &'static str, root: &Path, id: &str, from: Status, frozen: bool) -> Result<(), Failure> {
    let (_, record, status) = open(goal, root, id)?;
    if status != from && !(frozen && status == Status::Created) {
        return Err(refuse(goal, id, status));
    }
    cgroup::set_frozen(&record.groups, frozen).map_err(|e| failed(goal, id)(e.into()))
}

/// The pids of a container's processes, as the host numbers them.
///
/// # Errors
/// A container that does not exist.
pub fn processes(root: &Path, id: &str) -> Result<Vec<i32>, Failure> {
    let (_, record, status) = open("list the processes of", root, id)?;
    if status == Status::Stopped {
        return Err(refuse("list the processes of", id, status));
    }
    let mut members = cgroup::members(&record.groups);
    let init = record.init.map(|init| init.pid).filter(|pid| !members.contains(pid));
    // Without a cgroup of its own only the first one is known.
    members.extend(init);
    Ok(members)
}

/// Waits until the first process has ended, at most so long; whether it has.
///
/// # Errors
/// A container that does not exist.
pub fn wait_for_end(root: &Path, id: &str, limit: Option<Duration>) -> Result<bool, Failure> {
    let (_, record, _) = open("wait for", root, id)?;
    let Some(init) = record.init.filter(|init| init.lives()) else { return Ok(true) };
    let failed = failed("wait for", id);
    let pidfd = process::open_pid(init.pid).map_err(|e| failed(e.into()))?;
    fd::poll_readable(&[pidfd.as_fd()], limit).map(|ready| ready[0]).map_err(|e| failed(e.into()))
}
