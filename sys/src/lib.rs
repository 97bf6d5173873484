//! Every unsafe kernel call of corebox, each as a safe function whose error names call, object and errno.
//!
//! Safe wrappers that `nix` already has are used directly where their error is given an object; what nix lacks
//! (the fd-based mount API, clone3, memory policy, …) is here, one call per `unsafe` block.

pub mod affinity;
pub mod bpf;
pub mod control;
mod error;
pub mod fd;
pub mod fs;
pub mod identity;
pub mod libseccomp_ffi;
pub mod loopdev;
pub mod map;
pub mod mount;
pub mod netns;
pub mod own_program;
pub mod place;
pub mod process;
pub mod scheduling;
pub mod seccomp;
pub mod signal;
pub mod tcx;
pub mod terminal;
pub mod user;

pub use error::{Error, Result};
pub use nix::errno::Errno;
