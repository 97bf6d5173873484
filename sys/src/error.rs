//! The error of a system call: call, object, errno.

use nix::errno::Errno;
use std::fmt;

/// A failed system call: `mount overlay on /x: EPERM (Operation not permitted)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The call, as a user of the manual would look it up, with what it did: `mount overlay on`.
    pub call: &'static str,
    /// Path, pid or name it was about.
    pub object: String,
    /// The kernel's reason.
    pub errno: Errno,
}

/// Result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this errno.
    pub fn new(call: &'static str, object: impl fmt::Display, errno: Errno) -> Self {
        Self { call, object: object.to_string(), errno }
    }
    /// The calling thread's errno.
    pub fn last(call: &'static str, object: impl fmt::Display) -> Self {
        Self::new(call, object, Errno::last())
    }
    /// From an I/O error of the standard library; one without an errno counts as EIO.
    pub fn io(call: &'static str, object: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(call, object, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {:?} ({})", self.call, self.object, self.errno, self.errno.desc())
    }
}

impl std::error::Error for Error {}
