//! The shared words of corebox: plain data and parsers.
//!
//! Nothing here does I/O. What was *asked* lives here ([`ContainerSpec`], [`JobSpec`]), as do the
//! types that cross a pipe or a network unchanged ([`Failure`], [`Outcome`]) and the contributions
//! that leaf crates make to a container ([`Edits`]). What was *decided* lives where it is decided.
#![forbid(unsafe_code)]

mod container;
mod edits;
mod failure;
mod hostlist;
mod idset;
mod image;
mod job;
pub mod network;
mod rdma;
mod size;

pub use container::{Bind, ContainerSpec, Limits, NetMode, RootfsMode, Seccomp, Tmpfs};
pub use edits::{Edits, EnvEdit, Mount, MountKind, Origin};
pub use failure::{Failure, Outcome, exit};
pub use hostlist::{HostListError, HostSlots, parse_hostfile, parse_hostlist};
pub use idset::{IdSet, IdSetError};
pub use image::{ImageConfig, ImageFacts, ImageOrigin, MpiFamily, MpiFound};
pub use job::{AppSpec, BindTo, JobSpec, Level, MapBy, OutputMode, PmiChoice, RankBy, RemoteShell};
pub use network::{InterfaceKind, InterfaceSpec, NetArgument, NetworkSpec};
pub use rdma::{DeviceNode, FabricCheck, FabricPolicy, RdmaLimit, RdmaSelect};
pub use size::{SizeError, format_size, parse_duration, parse_size};
