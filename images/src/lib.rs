//! Images: from a directory, an archive or a recipe to one immutable file in a content-addressed store.
//!
//! ```text
//! bootstrap ─ mmdebstrap ─┐ (pipe)      ┌─ erofs ───────────────┐
//! import ─ source ─ layers ┼─ tree ─ flatten ─ squash (mksquashfs) ┴─ store
//!                          └──────── inspect (while it streams)
//! ```
//!
//! [`Store::find`] gives what the runtime needs: the file's path and the facts found when it was made.
#![forbid(unsafe_code)]

mod bootstrap;
mod config;
mod content;
mod directory;
mod docker_archive;
mod entry;
pub mod erofs;
mod export;
mod flatten;
pub mod fuse;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod import;
mod inspect;
mod layer;
mod lease;
pub mod mount;
mod oci;
mod platform;
mod reference;
mod registry;
mod root_inode;
mod source;
mod squash;
mod squash_source;
mod squash_stream;
mod staging;
mod store;
mod tar_reader;
mod tar_sparse;
mod tree;
mod trust;

pub use bootstrap::{BootstrapRequest, bootstrap};
pub use config::{CONFIG_VARIABLE, Config, RegistryConfig};
pub use flatten::Codec;
pub use import::{ImportRequest, import};
pub use reference::{ImageName, Reference, ReferenceError};
pub use registry::{Compress, LoginRequest, PullEvent, PullRequest, PushRequest, Pushed, login, logout, pull, push};
pub use store::{Collected, Image, Listing, Pin, SITE_STORE, STORE_VARIABLE, Store, Usage};
pub use trust::admit;
