//! Many ranks on many nodes: allocate, agents, map, bind, wire up, stdio, reaping.
//!
//! [`launch::run`] is the launcher, one line per stage; [`agent::run`] is what it starts once per node.
//! Mapping and binding are pure functions over recorded or real topologies.
#![deny(unsafe_code)] // `wire/pmix/{ffi,upcalls_ffi}.rs` are the FFI files and allow it for themselves

pub mod agent;
pub mod bind;
pub mod binding_table;
pub mod launch;
pub mod map;
pub mod protocol;
pub mod wire;
