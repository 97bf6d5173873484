//! System call filters: from `linux.seccomp` of a config.json (OCI runtime-spec, config-linux.md, "Seccomp") to a
//! program that the kernel runs.
//!
//! [`compile`] assembles with libseccomp, as runc and crun do, so that a profile means the same here; [`cached`] keeps
//! what was assembled; [`Program::install`] is one system call. [`notify`] hands the listener to the agent that decides
//! for the filtered process.

mod assemble;
mod cache;
mod newer_calls;
pub mod notify;
mod ours;

pub use assemble::{ACTIONS, FLAGS, OPERATORS, architectures, compile};
pub use cache::{Cache, cached};
pub use ours::{check, programs};

use corebox_sys::seccomp::{self, Instruction, flag};
use std::os::fd::OwnedFd;

/// A filter, ready to be installed.
#[derive(Clone)]
pub struct Program {
    instructions: Vec<Instruction>,
    flags: u32,
}

/// Why a profile is no program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It asks for what cannot be, with the word of the profile.
    #[error("seccomp profile: {0}")]
    Profile(String),
    /// libseccomp or the kernel refused.
    #[error("seccomp profile: {0}")]
    System(#[from] corebox_sys::Error),
    /// There is no libseccomp here.
    #[error("a seccomp profile is to be compiled, and {0}")]
    NoLibrary(corebox_sys::Error),
}

impl Error {
    /// What cures it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoLibrary(_) => {
                Some("your administrator installs libseccomp (Debian: `libseccomp2`, Fedora: `libseccomp`).")
            }
            _ => None,
        }
    }
}

impl Program {
    /// Filters this process, and what it starts, from now on. Returns the listener where the profile notifies.
    ///
    /// Without no_new_privs it needs CAP_SYS_ADMIN. The very next system call is filtered already.
    ///
    /// # Errors
    /// What seccomp(2) says.
    pub fn install(&self) -> corebox_sys::Result<Option<OwnedFd>> {
        seccomp::install(&self.instructions, self.flags)
    }

    /// Whether [`Program::install`] returns a listener.
    pub fn notifies(&self) -> bool {
        self.flags & flag::NEW_LISTENER != 0
    }

    /// How many instructions it has.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Whether it has none, which the kernel would refuse.
    pub fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({} instructions, flags {:#x})", self.instructions.len(), self.flags)
    }
}

#[cfg(test)]
mod tests;
