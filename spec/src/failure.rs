//! How something ended: [`Outcome`], and the error chain [`Failure`] that crosses a pipe or a network unchanged.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Exit codes of corebox itself (the command's own status passes through unchanged).
pub mod exit {
    /// corebox failed before or beside the command.
    pub const COREBOX: u8 = 125;
    /// The command was found but could not be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The command was not found.
    pub const NOT_FOUND: u8 = 127;
    /// Added to the number of the signal that ended the command.
    pub const SIGNAL_BASE: u8 = 128;
}

/// One error, said once: what was wanted, where it stopped, why, and what cures it.
///
/// Printed as
///
/// ```text
/// error: cannot start container `lammps-42` on n03
///   while: mounting the image (step `rootfs`)
///   cause: mount overlay on /run/x: EPERM (Operation not permitted)
///
/// hint: kernel 5.10 does not allow overlay inside a user namespace (5.11 does).
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What could not be done, without a full stop: ``cannot start container `x` ``.
    pub goal: String,
    /// The node it happened on, if that is another one than the reader sits on.
    pub node: Option<String>,
    /// What was going on, and the step's name as `--timing` and the docs call it.
    pub step: Option<(String, String)>,
    /// Object and errno, in the words of the layer that saw it.
    pub cause: String,
    /// What cures it, and who acts (you, or your administrator).
    pub hint: Option<String>,
    /// The exit code of the whole command.
    pub code: u8,
}

impl Failure {
    /// A failure of corebox (exit code 125).
    pub fn new(goal: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self { goal: goal.into(), node: None, step: None, cause: cause.to_string(), hint: None, code: exit::COREBOX }
    }
    /// Adds what was going on and the step's short name.
    #[must_use]
    pub fn during(mut self, doing: impl Into<String>, step: impl Into<String>) -> Self {
        self.step = Some((doing.into(), step.into()));
        self
    }
    /// Adds the cure.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Names the node.
    #[must_use]
    pub fn on(mut self, node: impl Into<String>) -> Self {
        self.node = Some(node.into());
        self
    }
    /// Sets the exit code.
    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.goal)?;
        if let Some(node) = &self.node {
            write!(f, " on {node}")?;
        }
        if let Some((doing, step)) = &self.step {
            write!(f, "\n  while: {doing} (step `{step}`)")?;
        }
        write!(f, "\n  cause: {}", self.cause.replace('\n', "\n         "))?;
        if let Some(hint) = &self.hint {
            write!(f, "\n\nhint: {}", hint.replace('\n', "\n      "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It called exit with this code.
    Exited(u8),
    /// A signal ended it; the flag says whether the kernel wrote a core file.
    Signaled {
        /// Signal number.
        signal: i32,
        /// WCOREDUMP of wait(2).
        core: bool,
    },
}

impl Outcome {
    /// Reads a status of waitpid(2) that is an end (not a stop or a continue).
    pub fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8 & 0xff) as u8),
            signal => Self::Signaled { signal, core: status & 0x80 != 0 },
        }
    }
    /// The exit code a shell would show: the own one, or 128 + signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled { signal, .. } => exit::SIGNAL_BASE.wrapping_add(signal as u8),
        }
    }
    /// Whether it exited with 0.
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_the_design() {
        let failure =
            Failure::new("cannot start container `lammps-42`", "mount overlay on /x: EPERM (Operation not permitted)")
                .on("n03")
                .during("mounting the image", "rootfs")
                .hint("kernel 5.10 does not allow it.\n`--rootfs fuse` works here.");
        assert_eq!(
            failure.to_string(),
            "error: cannot start container `lammps-42` on n03\n  while: mounting the image (step `rootfs`)\n  \
             cause: mount overlay on /x: EPERM (Operation not permitted)\n\n\
             hint: kernel 5.10 does not allow it.\n      `--rootfs fuse` works here."
        );
    }

    #[test]
    fn reads_wait_statuses() {
        assert_eq!(Outcome::from_wait_status(3 << 8).code(), 3);
        assert_eq!(Outcome::from_wait_status(11 | 0x80), Outcome::Signaled { signal: 11, core: true });
        assert_eq!(Outcome::from_wait_status(9).code(), 137);
        assert!(Outcome::from_wait_status(0).success());
    }
}
