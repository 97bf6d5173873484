//! Processors as data: which CPU is which thread of which core, below which caches, NUMA node and package.

use corebox_spec::{IdSet, Level};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How fast a core is among those of its machine: 0 is the fastest class, as all cores of a uniform machine are.
///
/// Intel's hybrid processors have 0 (P cores) and 1 (E cores), some a 2 (low-power E cores); Arm's DynamIQ up to three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CoreKind(pub u8);

/// One online CPU, as the kernel schedules on it: a hardware thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// The kernel's CPU number, the one of affinity masks.
    pub id: u32,
    /// Core, numbered over the machine in the order of the tree package, NUMA node, L3, L2, core (as hwloc's logical index).
    pub core: u32,
    /// Package, numbered from 0 in the order of their first CPU.
    pub package: u32,
    /// NUMA node: the kernel's number, the one of memory policies. 0 on a machine without NUMA.
    pub numa: u32,
    /// CPUs that share a level 3 cache, numbered over the machine; `None` when the kernel knows of no such cache.
    pub l3: Option<u32>,
    /// The same for level 2.
    pub l2: Option<u32>,
    /// The same for the level 1 data cache.
    pub l1: Option<u32>,
    /// Position among the online hardware threads of its core, in the order of CPU numbers.
    pub smt_index: u32,
    /// Performance class.
    pub kind: CoreKind,
}

/// The processors and memory nodes of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Online CPUs in the order of their numbers.
    pub cpus: Vec<Cpu>,
    /// NUMA nodes that have memory, with or without CPUs (HBM, CXL and GPU memory have none). `0` on a machine without NUMA.
    pub memory_nodes: IdSet,
}

/// A physical core of which something is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Its number ([`Cpu::core`]).
    pub number: u32,
    /// Its hardware threads that we may use, in the order of their numbers; never empty.
    pub threads: Vec<u32>,
    /// Whether all of its online hardware threads are ours; else somebody else may run on the others.
    pub whole: bool,
    /// Package.
    pub package: u32,
    /// NUMA node.
    pub numa: u32,
    /// L3, if there is one.
    pub l3: Option<u32>,
    /// Performance class.
    pub kind: CoreKind,
}

impl Core {
    /// The object of this level that the core is in: a package, NUMA node, L3 or core number.
    pub fn object(&self, level: Level) -> Option<u32> {
        match level {
            Level::Package => Some(self.package),
            Level::Numa => Some(self.numa),
            Level::L3 => self.l3,
            Level::Core => Some(self.number),
        }
    }
}

impl Topology {
    /// The CPU with this number, if it is online.
    pub fn cpu(&self, id: u32) -> Option<&Cpu> {
        self.cpus.binary_search_by_key(&id, |cpu| cpu.id).ok().map(|at| &self.cpus[at])
    }

    /// The cores of which at least one hardware thread is in `allowed`, in the order of their numbers.
    pub fn cores(&self, allowed: &IdSet) -> Vec<Core> {
        let mut cores: BTreeMap<u32, (Core, usize)> = BTreeMap::new();
        for cpu in &self.cpus {
            let (core, online) = cores.entry(cpu.core).or_insert_with(|| (Core::of(cpu), 0));
            *online += 1;
            if allowed.contains(cpu.id) {
                core.threads.push(cpu.id);
            }
        }
        let ours = cores.into_values().filter(|(core, _)| !core.threads.is_empty());
        ours.map(|(core, online)| Core { whole: core.threads.len() == online, ..core }).collect()
    }

    /// The CPUs for which `wanted` holds.
    pub fn select(&self, wanted: impl Fn(&Cpu) -> bool) -> IdSet {
        self.cpus.iter().filter(|cpu| wanted(cpu)).map(|cpu| cpu.id).collect()
    }

    /// The NUMA nodes of these CPUs.
    pub fn numa_of(&self, cpus: &IdSet) -> IdSet {
        self.objects(cpus, |cpu| Some(cpu.numa))
    }

    /// The packages of these CPUs.
    pub fn packages_of(&self, cpus: &IdSet) -> IdSet {
        self.objects(cpus, |cpu| Some(cpu.package))
    }

    /// The cores of these CPUs.
    pub fn cores_of(&self, cpus: &IdSet) -> IdSet {
        self.objects(cpus, |cpu| Some(cpu.core))
    }

    /// The objects that `object` names for these CPUs.
    fn objects(&self, cpus: &IdSet, object: impl Fn(&Cpu) -> Option<u32>) -> IdSet {
        cpus.iter().filter_map(|id| object(self.cpu(id)?)).collect()
    }

    /// Where these CPUs are, as Open MPI compares the places of two ranks through PMIx (`PMIX_LOCALITY_STRING`):
    /// `hwloc:SK0:L30:L20:L10:CR0:HT0:NM0`. `None` for no CPU of this machine.
    ///
    /// The form is PRRTE's `prte_hwloc_base_get_locality_string`: the types from the top of the tree to the bottom, each with
    /// the logical indexes of the objects that the CPUs touch, NUMA nodes last (hwloc 2 keeps them beside the tree).
    pub fn locality(&self, cpus: &IdSet) -> Option<String> {
        let threads = self.thread_indexes();
        let levels = [
            ("SK", self.packages_of(cpus)),
            ("L3", self.objects(cpus, |cpu| cpu.l3)),
            ("L2", self.objects(cpus, |cpu| cpu.l2)),
            ("L1", self.objects(cpus, |cpu| cpu.l1)),
            ("CR", self.cores_of(cpus)),
            ("HT", self.objects(cpus, |cpu| threads.get(&cpu.id).copied())),
            ("NM", self.numa_of(cpus)),
        ];
        let parts: Vec<String> =
            levels.iter().filter(|(_, set)| !set.is_empty()).map(|(name, set)| format!("{name}{set}")).collect();
        (!parts.is_empty()).then(|| format!("hwloc:{}", parts.join(":")))
    }

    /// hwloc's logical index of each hardware thread: counted core by core.
    fn thread_indexes(&self) -> BTreeMap<u32, u32> {
        let mut order: Vec<&Cpu> = self.cpus.iter().collect();
        order.sort_by_key(|cpu| (cpu.core, cpu.smt_index));
        order.iter().zip(0..).map(|(cpu, index)| (cpu.id, index)).collect()
    }
}

impl Core {
    fn of(cpu: &Cpu) -> Self {
        Self {
            number: cpu.core,
            threads: Vec::new(),
            whole: false,
            package: cpu.package,
            numa: cpu.numa,
            l3: cpu.l3,
            kind: cpu.kind,
        }
    }
}
