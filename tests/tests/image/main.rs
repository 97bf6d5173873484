//! `corebox image`, on the real program: what goes in comes out, what is hostile stays out, what is killed leaves
//! nothing behind.

mod archives;
mod bootstrap;
mod faithful;
mod faults;
mod hostile;
mod import;
mod mpi;
mod oci;
mod sources;
mod store;
mod support;
mod upkeep;
