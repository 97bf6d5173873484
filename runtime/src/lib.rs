//! One container on one node.
//!
//! [`plan`] decides, refuses what must be refused and touches nothing; [`Container::create`] acts: `create.rs` holds the
//! parent's ordered steps, `init.rs` those of the child, which stays as process 1 of the container, forks the
//! processes that [`Container::start`] names and reaps them. Two processes, no daemon, no file on disk.
#![forbid(unsafe_code)]

mod accounts;
mod cgroup;
mod container;
mod create;
mod devices;
pub mod environment;
mod facts;
mod init;
mod message;
mod mountpoints;
mod mounts;
pub mod oci;
mod plan;
mod process;
mod reaper;
mod rootfs;
pub mod seccomp;
mod step;
mod sweeper;

pub use container::{Container, Event};
pub use facts::HostFacts;
pub use plan::{ContainerPlan, ImageSource, PlannedKind, PlannedMount, RootMethod, plan};
pub use process::{Grouping, ProcessPlan};
