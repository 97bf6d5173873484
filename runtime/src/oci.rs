//! The same runtime with the OCI's words (runtime-spec 1.2): a bundle's config.json instead of an image, and commands
//! that come and go instead of a parent that stays.
//!
//! [`plan`](mod@plan) decides and refuses; `create.rs` holds the parent's ordered steps, `init.rs` those of the child, which
//! becomes the container's program. Between commands a container is a directory below the state root (`state.rs`).

mod attend;
mod cgroup;
mod cgroup_mount;
mod config;
mod create;
mod describe;
mod exec;
mod hooks;
mod id_maps;
mod init;
mod join;
mod label;
mod life;
mod link;
mod plan;
mod program;
mod resources;
mod rootfs;
mod run;
mod sources;
mod state;
mod terminal;

pub use create::{Create, Made, create};
pub use describe::{default_config, features};
pub use exec::{Exec, exec};
pub use life::{delete, kill, list, pause, processes, resume, start, state, wait_for_end};
pub use resources::{stats, update};
pub use run::{Ran, run};
pub use state::{OCI_VERSION, Status, default_root};
