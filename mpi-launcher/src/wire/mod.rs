//! The wire-up of a job's ranks: each MPI library finds its peers through its node's agent.
//!
//! [`PmiServer`] serves MPICH and its family, [`pmix`] serves Open MPI; both hand a barrier's or fence's data, once per
//! node, to the [`exchange`] between the agents. No protocol knows the transport, and the transport knows no protocol.

pub mod exchange;
mod gather;
mod kvs;
mod mapping;
mod pmi;
mod pmi1;
mod pmi2;
pub mod pmix;
mod shape;
mod tree;
mod wire_up;

pub use mapping::process_mapping;
pub use pmi::{Action, BARRIER_KEY, PmiServer};
pub use shape::{JobShape, ShapeError};
pub use wire_up::{Protocol, WireEvent, WireUp};
