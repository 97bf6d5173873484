//! The container's network: `host`, `none`, and interfaces of every kind that the kernel has.
//!
//! [`decide`] looks at the host, the site's networks and who asks, and changes nothing; [`reserve`] takes addresses;
//! [`attach`] makes the interfaces, from outside, between the container's clone and its start. What goes wrong in between
//! leaves nothing: interfaces are born in the container's network namespace, programs and rules hang on descriptors, and
//! the rest is written down before it is made ([`state`]) and taken back by whoever comes next ([`sweep`]).
#![forbid(unsafe_code)]

mod address;
pub mod admin;
mod assembler;
mod attach;
mod borrow;
mod cores;
mod edits;
mod error;
mod fast_path;
mod host;
mod lease;
mod link;
mod nat;
mod netlink;
mod nft;
mod plan;
mod pool;
mod routed;
mod shape;
pub mod site;
pub mod site_edit;
mod sriov;
mod state;

pub use attach::{Attached, attach};
pub use error::{Error, Result};
pub use host::node_addresses;
pub use link::{Counters, Link};
pub use plan::{Attachment, InterfacePlan, NetworkPlan, Routed, decide, reserve};
pub use pool::Share;
pub use site_edit::New;

use corebox_sys::netns::NetworkNamespace;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// The loopback interface is the first one of every network namespace (net/core/dev.c).
const LOOPBACK_INDEX: u32 = 1;

/// Brings up `lo` in the calling thread's network namespace.
///
/// # Errors
/// What the kernel answers: EPERM without CAP_NET_ADMIN over the namespace.
pub fn loopback_up() -> corebox_sys::Result<()> {
    link::set_up(&mut netlink::Netlink::open()?, LOOPBACK_INDEX, true, "lo")
}

/// Decides, and unless it is only for `show`ing, takes the addresses.
///
/// # Errors
/// As a failure of starting the container.
pub fn planned(
    spec: &corebox_spec::NetworkSpec,
    container: &str,
    show: bool,
) -> std::result::Result<NetworkPlan, corebox_spec::Failure> {
    let plan = decide(spec).and_then(|mut plan| {
        if !show {
            reserve(&mut plan, container)?;
        }
        Ok(plan)
    });
    plan.map_err(|error| error.into_failure(&format!("cannot start container `{container}`")))
}

/// A stay in the network namespace that a plan joins.
#[derive(Debug)]
pub struct Visit(Option<NetworkNamespace>);

/// Enters the namespace that a plan joins, if it joins one: a child that is made there is born there.
///
/// # Errors
/// What entering it says.
pub fn visit(plan: &NetworkPlan) -> corebox_sys::Result<Visit> {
    let Some(path) = &plan.namespace else { return Ok(Visit(None)) };
    let (home, namespace) = (NetworkNamespace::current()?, NetworkNamespace::open(std::path::Path::new(path))?);
    namespace.enter()?;
    Ok(Visit(Some(home)))
}

impl Visit {
    /// Returns; for the parent only, as the child is where it shall be.
    ///
    /// # Errors
    /// What entering the own namespace says.
    pub fn leave(self) -> corebox_sys::Result<()> {
        self.0.map_or(Ok(()), |home| home.enter())
    }
}

/// Takes back what containers left that are gone; what cannot be taken back yet stays written down.
pub fn sweep() {
    // A store that cannot be read or locked is reported by the next container that needs it, and by `corebox net check`.
    let _ = state::sweep();
}

/// What the sweeper of a container holds to take its network back when corebox itself was killed.
#[derive(Debug)]
pub struct Guard {
    owner: lease::Owner,
    networks: Vec<String>,
    namespace: NetworkNamespace,
}

impl Guard {
    /// For the container whose init is `pid`; `None` where there is nothing to take back.
    ///
    /// # Errors
    /// It is gone.
    pub fn new(plan: &NetworkPlan, pid: i32) -> corebox_sys::Result<Option<Self>> {
        if plan.interfaces.is_empty() {
            return Ok(None);
        }
        let networks = plan.interfaces.iter().map(|interface| interface.network.clone()).collect();
        Ok(Some(Self { owner: lease::Owner::of(pid)?, networks, namespace: NetworkNamespace::of_process(pid)? }))
    }

    /// The descriptor that it must keep.
    pub fn descriptor(&self) -> RawFd {
        self.namespace.as_fd().as_raw_fd()
    }

    /// Takes everything back; the container's processes are dead.
    pub fn run(self) {
        attach::take_apart(&self.owner, &self.namespace);
        for network in &self.networks {
            let _ = lease::Store::of(network).give_back(&self.owner); // that of a dead process is free anyhow
        }
        state::forget(&self.owner);
        drop(self.namespace);
        sweep();
    }
}
