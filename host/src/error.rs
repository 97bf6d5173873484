//! Why the facts of a machine could not be read.

use std::fmt;

/// A fact could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] corebox_sys::Error),
    /// A file is not what proc(5) or the kernel's ABI documents promise.
    #[error("{path} is not understood: {what}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    pub(crate) fn malformed(path: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self::Malformed { path: path.to_string(), what: what.to_string() }
    }
}
