//! `corebox image pull`, `push`, `login` with a real registry (Debian's docker-registry), and between the two a proxy that
//! breaks what tests tell it to break.

mod faults;
mod proxy;
mod pull;
mod push;
mod server;
mod shared_store;
#[path = "../image/sources.rs"]
#[allow(dead_code, reason = "the suite of images uses the rest")]
mod sources;
#[path = "../image/support.rs"]
#[allow(dead_code, reason = "the suite of images uses the rest")]
mod support;
mod trust;
mod users;
