//! The words of a step that failed: leaves say what and why ([`Stop`]), the list of steps says when ([`Steps`]).

use corebox_spec::Failure;
use std::fmt::Display;
use std::time::Instant;

/// Why a step stopped, and what cures it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stop {
    cause: String,
    hint: Option<String>,
}

impl Stop {
    pub(crate) fn new(cause: impl Display) -> Self {
        Self { cause: cause.to_string(), hint: None }
    }
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Says first what it is about.
    pub(crate) fn about(mut self, what: &str) -> Self {
        self.cause = format!("{what}: {}", self.cause);
        self
    }
    /// As a failure to reach `goal`.
    pub(crate) fn into_failure(self, goal: String) -> Failure {
        let mut failure = Failure::new(goal, self.cause);
        failure.hint = self.hint;
        failure
    }
    /// As a failure of starting the container `name`.
    pub(crate) fn during(self, container: &str, doing: &str, step: &str) -> Failure {
        let mut failure = Failure::new(goal(container), self.cause).during(doing, step);
        failure.hint = self.hint;
        failure
    }
}

impl From<crate::seccomp::Error> for Stop {
    fn from(error: crate::seccomp::Error) -> Self {
        let stop = Self::new(&error);
        match error.hint() {
            Some(hint) => stop.hint(hint),
            None => stop,
        }
    }
}

impl From<corebox_sys::Error> for Stop {
    fn from(error: corebox_sys::Error) -> Self {
        Self::new(error)
    }
}

impl From<corebox_net::Error> for Stop {
    fn from(error: corebox_net::Error) -> Self {
        let stop = Self::new(&error);
        match error.hint() {
            Some(hint) => stop.hint(hint),
            None => stop,
        }
    }
}

/// The goal of every failure before the container is ready.
pub(crate) fn goal(container: &str) -> String {
    format!("cannot start container `{container}`")
}

/// Runs the steps of one process in order, times them, and gives a failing one its name.
#[derive(Debug)]
pub(crate) struct Steps<'a> {
    container: &'a str,
    /// Another goal than starting the container.
    goal: Option<String>,
    /// Names and durations in microseconds.
    pub(crate) times: Vec<(String, u64)>,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(container: &'a str) -> Self {
        Self { container, goal: None, times: Vec::new() }
    }
    /// Steps towards another goal.
    pub(crate) fn of(goal: String, container: &'a str) -> Self {
        Self { container, goal: Some(goal), times: Vec::new() }
    }
    /// Runs the step `name`, which is `doing` something.
    pub(crate) fn run<T>(
        &mut self,
        name: &str,
        doing: &str,
        step: impl FnOnce() -> Result<T, Stop>,
    ) -> Result<T, Failure> {
        fault::strike(name);
        let start = Instant::now();
        let result = step();
        self.times.push((name.to_owned(), start.elapsed().as_micros() as u64));
        result.map_err(|stop| {
            let mut failure = stop.during(self.container, doing, name);
            if let Some(goal) = &self.goal {
                failure.goal.clone_from(goal);
            }
            failure
        })
    }
}

/// Death at a named step, for the tests of what a crash leaves behind.
mod fault {
    use corebox_sys::process;
    use corebox_sys::signal::SIGKILL;

    /// Names the step before which this process kills itself. Whoever can set it can kill us anyway.
    const VARIABLE: &str = "COREBOX_KILL_AT";

    pub(super) fn strike(step: &str) {
        if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == step) {
            // Nothing may run after it, as after any other SIGKILL.
            let _ = process::kill(process::id(), SIGKILL);
            // Process 1 of a pid namespace cannot kill itself.
            process::exit_now(corebox_spec::exit::SIGNAL_BASE + SIGKILL as u8);
        }
    }
}
