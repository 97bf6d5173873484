//! `run`: create, start, and unless detached attend and delete.

use crate::oci::attend::{Reception, attend};
use crate::oci::create::{Create, Made, make, open_console};
use crate::oci::state::Status;
use crate::oci::{hooks, life};
use corebox_spec::{Failure, Outcome};
use corebox_sys::signal::Signals;
use oci_spec::runtime::Spec;

/// How a run ended.
#[derive(Debug)]
pub enum Ran {
    /// It goes on without us.
    Detached,
    /// It ended, and is deleted.
    Ended(Outcome),
}

/// Makes a container and starts it at once.
///
/// `times` gets names and microseconds of the steps as soon as the program runs.
///
/// # Errors
/// Why it does not run; nothing is left then.
pub fn run(asked: &Create, detach: bool, times: impl FnOnce(&[(String, u64)])) -> Result<Ran, Failure> {
    let signals = if detach {
        None
    } else {
        Some(Signals::block_all().map_err(|e| Failure::new(crate::step::goal(&asked.id), e))?)
    };
    let mut reception = None;
    let path = asked.console_socket.as_deref();
    let made = make(asked, false, |terminal| match (terminal, path, detach) {
        (true, None, false) => {
            let (ours, theirs) = Reception::pair()?;
            reception = Some(ours);
            Ok(Some(theirs))
        }
        _ => open_console(terminal, path),
    })?;
    let spec = made.directory.kept().map_err(|stop| stop.during(&asked.id, "reading the kept config.json", "exec"))?;
    let result = made.wait_running(&spec);
    times(&made.times);
    if let Err(failure) = result {
        let _ = life::delete(&asked.root, &asked.id, true);
        return Err(failure);
    }
    after_start(&made, &spec);
    let Some(signals) = signals else { return Ok(Ran::Detached) };
    let outcome = attend(&made.pidfd, &signals, reception);
    let said = life::delete(&asked.root, &asked.id, true)?;
    said.iter().for_each(|words| eprintln!("warning: {words}"));
    outcome.map(Ran::Ended)
}

fn after_start(made: &Made, spec: &Spec) {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
    for words in hooks::run_all("poststart", hooks, &made.record.state(Status::Running)) {
        eprintln!("warning: {words}");
    }
}
