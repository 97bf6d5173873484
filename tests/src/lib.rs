//! The test harness of corebox: simulated nodes, snapshots of what a node holds, and the rules of skipping.
//!
//! Tests run `corebox` as a program ([`corebox`]), on nodes made by [`Cluster`]. What a machine lacks skips a test
//! with a printed reason ([`skip!`]); it never makes it pass silently. See `docs/design/test-harness.md`.
#![forbid(unsafe_code)]

mod cluster;
mod fixture;
mod job;
mod requirements;
pub mod simnode;
mod snapshot;
pub mod vm;

pub use cluster::{Builder, Cluster, Node};
pub use fixture::fixture_directory;
pub use job::{Ended, Running, Site, require_images};
pub use requirements::{corebox, program, require_programs, require_root, simnode_program, vm_program, wait_until};
pub use snapshot::Snapshot;

/// What the harness returns: a [`corebox_spec::Failure`] says what could not be done and why.
pub type Result<T> = std::result::Result<T, corebox_spec::Failure>;

/// Prints `SKIP <test>: <reason>` to standard error, where `./dev test` finds and counts it.
///
/// The caller returns after it: `skip!("name", "needs {thing}"); return;`
#[macro_export]
macro_rules! skip {
    ($name:expr, $($reason:tt)+) => { eprintln!("SKIP {}: {}", $name, format_args!($($reason)+)) };
}
