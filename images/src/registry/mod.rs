//! Images from and to OCI registries (OCI distribution-spec, docker registry API v2).
//!
//! ```text
//! pull: address ─ client (manifest) ─ lease ─ client (layers → layer_file) ─ import ─ store
//! push: store ─ export (tar) ─ client
//! ```

mod address;
mod client;
mod credentials;
mod error;
mod layer_file;
mod login;
mod pull;
mod push;
mod resolve;
mod signatures;

pub(crate) use layer_file::sweep as sweep_layers;
pub use login::{LoginRequest, login, logout};
pub use pull::{PullRequest, pull};
pub use push::{Compress, PushRequest, Pushed, push};

use std::time::Duration;

/// What happens while an image is fetched, for whoever shows it.
#[derive(Clone, Copy, Debug)]
pub enum PullEvent<'a> {
    /// It was found.
    Found {
        /// `host/path:tag`.
        place: &'a str,
        /// Digest of the manifest.
        digest: &'a str,
    },
    /// The download begins.
    Download {
        /// Layers to fetch.
        layers: usize,
        /// Their bytes.
        bytes: u64,
        /// Bytes of them that an earlier try left.
        present: u64,
    },
    /// So many more bytes have arrived.
    Received(u64),
    /// So many bytes that had arrived are worth nothing.
    Lost(u64),
    /// A request failed and will be sent again.
    Again {
        /// What was asked for.
        what: &'a str,
        /// Why it failed.
        cause: &'a str,
        /// The wait before the next try.
        delay: Duration,
    },
    /// Another process is fetching this image; we wait for it.
    Waiting {
        /// Its host.
        host: &'a str,
        /// Its user.
        user: &'a str,
        /// Bytes it has.
        done: u64,
        /// Bytes it wants.
        of: u64,
    },
    /// All layers are here; the image file is being written.
    Writing,
    /// So many more bytes of files are in the image.
    Written(u64),
    /// A layer of so many bytes is in the registry.
    Sent(u64),
}
