//! HCAs at native speed: what the kernel has ([`Inventory`]), which of it for whom ([`select`], [`rails`]), what a container
//! needs for it ([`edits`]), and whether it works there ([`verify`]).
#![forbid(unsafe_code)]

mod expose;
mod hca;
mod netlink;
mod select;
mod sysfs;
pub mod verify;

pub use expose::{check, edits};
pub use hca::{Hca, Inventory, NetnsMode, Port};
pub use select::{Rail, rails, select};

use corebox_spec::{ContainerSpec, Edits, Failure, IdSet, RdmaSelect};
use corebox_sys::Result;
use std::path::Path;

impl Inventory {
    /// The RDMA devices of this machine, by netlink and sysfs.
    ///
    /// # Errors
    /// When directories are there but cannot be read, or the kernel refuses to list its devices.
    pub fn this() -> Result<Self> {
        let mut inventory = sysfs::read(Path::new("/sys"))?;
        netlink::refine(&mut inventory)?;
        Ok(inventory)
    }

    /// Those of a recorded sysfs (the directory that stands for `/sys`).
    ///
    /// # Errors
    /// When directories are there but cannot be read.
    pub fn recorded(sysfs: &Path) -> Result<Self> {
        sysfs::read(sysfs)
    }
}

/// What a container on this machine gets of its HCAs; `numa` are the NUMA nodes of its CPUs.
///
/// # Errors
/// What was asked for is not there; the kernel does not list its devices.
pub fn host_edits(spec: &ContainerSpec, numa: &IdSet) -> std::result::Result<Edits, Failure> {
    if spec.rdma == RdmaSelect::None {
        return Ok(Edits::default());
    }
    let inventory = Inventory::this().map_err(|e| {
        Failure::new("cannot find the RDMA devices of this host", e).hint("`--rdma none` goes without.")
    })?;
    let chosen = select(&inventory, &spec.rdma, numa)?;
    Ok(edits(&inventory, &chosen, spec.fabric))
}
