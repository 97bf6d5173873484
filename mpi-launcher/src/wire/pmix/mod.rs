//! PMIx for Open MPI (and others): a server through the host's libpmix, found at run time.

mod acks;
mod environment;
mod ffi;
mod info;
mod library;
mod registration;
mod server;
mod upcalls_ffi;

pub use environment::is_foreign;
pub use library::{Library, VARIABLE as LIBRARY_VARIABLE};
pub use server::{LocalRank, PmixEvent, PmixServer, ServerConfig};
