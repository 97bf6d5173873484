//! What this machine is: processors and memory nodes, what of them is ours, kernel features, cgroups.
//!
//! [`Host`] is plain data. It is read below a root directory, so a recorded sysfs and procfs gives the same facts as the
//! machine it came from; mapping and binding are tested that way (`docs/design/topology.md`).
#![forbid(unsafe_code)]

mod cgroups;
mod error;
mod sysfs;
mod topology;
mod tree;
mod user_namespaces;

pub use cgroups::{CgroupV1, CgroupV2, Cgroups};
pub use error::Error;
pub use topology::{Core, CoreKind, Cpu, Topology};
pub use user_namespaces::UserNamespaces;

use corebox_spec::IdSet;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tree::Tree;

/// The facts of one machine, as the calling process sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Host name of our UTS namespace.
    pub hostname: String,
    /// Random id of this boot: state that names another one is stale.
    pub boot_id: String,
    /// Kernel release as `uname -r` says it.
    pub kernel: String,
    /// Architecture as `uname -m` says it (`x86_64`, `aarch64`).
    pub arch: String,
    /// Memory in bytes (MemTotal: what the kernel manages).
    pub memory: u64,
    /// Processors, caches and NUMA nodes.
    pub topology: Topology,
    /// Online CPUs that we may run on: our affinity, which lies within our cpuset.
    pub allowed_cpus: IdSet,
    /// NUMA nodes with memory that our cpuset allows.
    pub allowed_mems: IdSet,
    /// Whether user namespaces can be had.
    pub user_namespaces: UserNamespaces,
    /// Where our cgroups are.
    pub cgroups: Cgroups,
}

impl Host {
    /// Reads the facts of this machine.
    ///
    /// # Errors
    /// What the kernel says to the first file of procfs or sysfs that must be there and is not readable.
    pub fn this() -> Result<Self, Error> {
        Self::read(Path::new("/"))
    }

    /// Reads the facts below `root`, which holds a `proc` and a `sys`.
    ///
    /// # Errors
    /// As for [`Host::this`], and for files that are not what the kernel's documents promise.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let tree = Tree::at(root);
        let topology = Topology::read(root)?;
        let (allowed_cpus, allowed_mems) = allowed(&tree, &topology)?;
        Ok(Self {
            hostname: tree.required("/proc/sys/kernel/hostname")?,
            boot_id: tree.required("/proc/sys/kernel/random/boot_id")?,
            kernel: tree.required("/proc/sys/kernel/osrelease")?,
            arch: arch(&tree)?,
            memory: memory(&tree)?,
            allowed_cpus,
            allowed_mems,
            user_namespaces: UserNamespaces::read(&tree)?,
            cgroups: Cgroups::read(&tree)?,
            topology,
        })
    }
}

/// What of the machine is ours, from /proc/self/status (proc_pid_status(5)).
///
/// Both lists may name what does not exist: the affinity of a process that never set it covers every *possible* CPU (on many
/// virtual machines far more than are online), and the root cpuset allows every possible memory node.
fn allowed(tree: &Tree, topology: &Topology) -> Result<(IdSet, IdSet), Error> {
    const STATUS: &str = "/proc/self/status";
    let status = tree.required(STATUS)?;
    let field = |name: &str| -> Result<Option<IdSet>, Error> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|text| tree.parsed(STATUS, text.trim())).transpose()
    };
    let cpus =
        field("Cpus_allowed_list")?.ok_or_else(|| Error::malformed(STATUS, "it has no line Cpus_allowed_list"))?;
    // a kernel without CONFIG_CPUSETS has no such line and restricts nothing
    let mems = field("Mems_allowed_list")?.unwrap_or_else(|| topology.memory_nodes.clone());
    let online: IdSet = topology.cpus.iter().map(|cpu| cpu.id).collect();
    Ok((cpus.intersection(&online), mems.intersection(&topology.memory_nodes)))
}

/// `uname -m`. The kernel has it in procfs since 6.1; before, what this program was built for must do, which is the same but
/// for a 32-bit program on a 64-bit kernel.
fn arch(tree: &Tree) -> Result<String, Error> {
    let built_for = match (std::env::consts::ARCH, cfg!(target_endian = "little")) {
        ("powerpc64", true) => "ppc64le",
        ("powerpc64", false) => "ppc64",
        (arch, _) => arch,
    };
    Ok(tree.text("/proc/sys/kernel/arch")?.unwrap_or_else(|| built_for.to_owned()))
}

/// MemTotal of /proc/meminfo (proc_meminfo(5)), whose "kB" are 1024 bytes.
fn memory(tree: &Tree) -> Result<u64, Error> {
    const MEMINFO: &str = "/proc/meminfo";
    let text = tree.required(MEMINFO)?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"));
    let kilobytes = kilobytes.ok_or_else(|| Error::malformed(MEMINFO, "it has no line `MemTotal: N kB`"))?.trim();
    Ok(tree.parsed::<u64>(MEMINFO, kilobytes)?.saturating_mul(1024))
}
