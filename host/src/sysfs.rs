//! Reads [`Topology`] from sysfs (kernel: Documentation/admin-guide/cputopology.rst, Documentation/ABI/stable/sysfs-devices-node,
//! Documentation/ABI/testing/sysfs-devices-system-cpu).
//!
//! Every relation is read as the kernel's own list of CPUs (`core_cpus_list`, `package_cpus_list`, `shared_cpu_list`,
//! `nodeN/cpulist`), not computed from ids: `core_id` repeats between packages and dies and is -1 where firmware says nothing,
//! and the lists leave out what is offline. One list settles all of its members, so a file is read once per object and
//! not once per CPU: each read costs microseconds, and a large node would need thousands.

use crate::topology::{CoreKind, Cpu, Topology};
use crate::{Error, tree::Tree};
use corebox_spec::IdSet;
use std::collections::BTreeMap;
use std::path::Path;

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";

/// Caches have no more indexes than this (x86 has four, with an L4 five).
const CACHE_INDEXES: usize = 16;

/// For each CPU the first CPU of the object it is in: a name that two CPUs share if and only if they share the object.
type Groups = BTreeMap<u32, u32>;

impl Topology {
    /// Reads the topology from `root/sys`.
    ///
    /// # Errors
    /// The kernel's, for files that every kernel has; a file that is no CPU list.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let tree = Tree::at(root);
        let online_path = format!("{CPU}/online");
        let online: IdSet = tree.parsed(&online_path, &tree.required(&online_path)?)?;
        let raw = Raw::read(&tree, &online)?;
        let numa = numa_nodes(&tree)?;
        let kinds = kinds(&tree, &online)?;
        let cpus = numbered(&online, &raw, &numa.of_cpu, &kinds);
        Ok(Self { cpus, memory_nodes: numa.with_memory })
    }
}

/// The groups as the kernel lists them.
#[derive(Default)]
struct Raw {
    core: Groups,
    package: Groups,
    /// Level 1 (data), 2 and 3.
    caches: [Groups; 3],
}

impl Raw {
    fn read(tree: &Tree, online: &IdSet) -> Result<Self, Error> {
        let mut raw = Self::default();
        for cpu in online.iter() {
            if !raw.core.contains_key(&cpu) {
                let members = core_members(tree, online, cpu)?;
                join(&mut raw.core, online, cpu, &members);
            }
            if !raw.package.contains_key(&cpu) {
                let members = package_members(tree, online, cpu)?;
                join(&mut raw.package, online, cpu, &members);
            }
            raw.read_caches(tree, online, cpu)?;
        }
        Ok(raw)
    }

    fn read_caches(&mut self, tree: &Tree, online: &IdSet, cpu: u32) -> Result<(), Error> {
        // only what shares its first level with an earlier CPU is sure to share the others too
        if self.caches[0].contains_key(&cpu) {
            return Ok(());
        }
        for index in 0..CACHE_INDEXES {
            let cache = format!("{CPU}/cpu{cpu}/cache/index{index}");
            // machines whose firmware describes no caches (many Arm and virtual ones) have no such directory
            let Some(level) = tree.number(&format!("{cache}/level"))? else { break };
            let Some(groups) = usize::try_from(level - 1).ok().and_then(|at| self.caches.get_mut(at)) else { continue };
            if groups.contains_key(&cpu) || tree.text(&format!("{cache}/type"))?.as_deref() == Some("Instruction") {
                continue;
            }
            if let Some(members) = tree.ids(&[&format!("{cache}/shared_cpu_list")])? {
                join(groups, online, cpu, &members);
            }
        }
        Ok(())
    }
}

/// Puts `cpu` and the online members of its object into one group.
fn join(groups: &mut Groups, online: &IdSet, cpu: u32, members: &IdSet) {
    let members = members.intersection(online);
    let first = members.first().map_or(cpu, |first| first.min(cpu));
    for member in members.iter().chain([cpu]) {
        groups.entry(member).or_insert(first);
    }
}

/// The hardware threads of a CPU's core. `thread_siblings_list` is the name before Linux 5.3.
fn core_members(tree: &Tree, online: &IdSet, cpu: u32) -> Result<IdSet, Error> {
    let directory = format!("{CPU}/cpu{cpu}/topology");
    let lists = [format!("{directory}/core_cpus_list"), format!("{directory}/thread_siblings_list")];
    if let Some(members) = tree.ids(&[&lists[0], &lists[1]])? {
        return Ok(members);
    }
    same_ids(tree, online, cpu, &["physical_package_id", "die_id", "core_id"])
}

/// The CPUs of a CPU's package. `core_siblings_list` is the name before Linux 5.3.
fn package_members(tree: &Tree, online: &IdSet, cpu: u32) -> Result<IdSet, Error> {
    let directory = format!("{CPU}/cpu{cpu}/topology");
    let lists = [format!("{directory}/package_cpus_list"), format!("{directory}/core_siblings_list")];
    match tree.ids(&[&lists[0], &lists[1]])? {
        Some(members) => Ok(members),
        None => {
            let members = same_ids(tree, online, cpu, &["physical_package_id"])?;
            // a machine that says nothing about packages is one package
            Ok(if members.is_empty() { online.clone() } else { members })
        }
    }
}

/// The CPUs whose ids are all equal to those of `cpu`, for kernels that have ids but no lists; empty when the last id, the one
/// that matters, is unknown.
fn same_ids(tree: &Tree, online: &IdSet, cpu: u32, names: &[&str]) -> Result<IdSet, Error> {
    let ids = |cpu: u32| -> Result<Vec<Option<i64>>, Error> {
        names.iter().map(|name| tree.number(&format!("{CPU}/cpu{cpu}/topology/{name}"))).collect()
    };
    let own = ids(cpu)?;
    if own.last().copied().flatten().is_none_or(|id| id < 0) {
        return Ok(IdSet::new());
    }
    let mut members = IdSet::new();
    for other in online.iter() {
        if ids(other)? == own {
            members.insert(other);
        }
    }
    Ok(members)
}

/// NUMA nodes.
struct Numa {
    of_cpu: BTreeMap<u32, u32>,
    with_memory: IdSet,
}

fn numa_nodes(tree: &Tree) -> Result<Numa, Error> {
    // a kernel built without NUMA has no such directory; then everything is node 0
    let Some(nodes) = tree.ids(&[&format!("{NODE}/online")])? else {
        return Ok(Numa { of_cpu: BTreeMap::new(), with_memory: [0].into_iter().collect() });
    };
    let mut of_cpu = BTreeMap::new();
    for node in nodes.iter() {
        // empty for nodes that have memory only
        if let Some(cpus) = tree.ids(&[&format!("{NODE}/node{node}/cpulist")])? {
            of_cpu.extend(cpus.iter().map(|cpu| (cpu, node)));
        }
    }
    // `has_normal_memory` is what kernels before 4.14 have
    let with_memory = tree.ids(&[&format!("{NODE}/has_memory"), &format!("{NODE}/has_normal_memory")])?;
    Ok(Numa { of_cpu, with_memory: with_memory.unwrap_or(nodes) })
}

/// Performance classes of hybrid machines; empty for uniform ones.
fn kinds(tree: &Tree, online: &IdSet) -> Result<BTreeMap<u32, CoreKind>, Error> {
    // x86: one perf PMU per kind of core, present on hybrid processors only
    let pmus = ["cpu_core", "cpu_atom", "cpu_lowpower"];
    let mut kinds = BTreeMap::new();
    for (kind, pmu) in (0u8..).zip(pmus) {
        if let Some(cpus) = tree.ids(&[&format!("/sys/devices/{pmu}/cpus")])? {
            kinds.extend(cpus.iter().map(|cpu| (cpu, CoreKind(kind))));
        }
    }
    if !kinds.is_empty() {
        return Ok(kinds);
    }
    // Arm, RISC-V: capacity relative to the fastest core's 1024
    let mut capacities = Vec::new();
    for cpu in online.iter() {
        match tree.number(&format!("{CPU}/cpu{cpu}/cpu_capacity"))? {
            Some(capacity) => capacities.push((cpu, capacity)),
            None => return Ok(BTreeMap::new()),
        }
    }
    Ok(classes(capacities))
}

/// Sorts capacities into classes. Cores of one design differ by a few per cent where firmware reports the best clock of each
/// one (CPPC); that is no reason to scatter ranks, so a class goes down to nine tenths of its fastest member.
fn classes(mut capacities: Vec<(u32, i64)>) -> BTreeMap<u32, CoreKind> {
    capacities.sort_by_key(|(_, capacity)| std::cmp::Reverse(*capacity));
    let (mut kind, mut top) = (0u8, capacities.first().map_or(0, |(_, capacity)| *capacity));
    let mut kinds = BTreeMap::new();
    for (cpu, capacity) in capacities {
        if capacity.saturating_mul(10) < top.saturating_mul(9) {
            (kind, top) = (kind.saturating_add(1), capacity);
        }
        kinds.insert(cpu, CoreKind(kind));
    }
    kinds
}

/// Numbers every object in the order of the tree: package, NUMA node, L3, L2, core, each by its first CPU.
fn numbered(online: &IdSet, raw: &Raw, numa: &BTreeMap<u32, u32>, kinds: &BTreeMap<u32, CoreKind>) -> Vec<Cpu> {
    let mut first_of_node = BTreeMap::new();
    for (cpu, node) in numa {
        first_of_node.entry(*node).or_insert(*cpu);
    }
    let group = |groups: &Groups, cpu: u32| groups.get(&cpu).copied();
    let place = |cpu: u32| {
        let node = numa.get(&cpu).and_then(|node| first_of_node.get(node)).copied();
        let [l1, l2, l3] = [0, 1, 2].map(|at| group(&raw.caches[at], cpu));
        (group(&raw.package, cpu), node, l3, l2, group(&raw.core, cpu), l1, cpu)
    };
    let mut order: Vec<_> = online.iter().map(place).collect();
    order.sort_unstable();
    let [mut packages, mut l3s, mut l2s, mut cores, mut l1s] = std::array::from_fn(|_| Numbers::default());
    let mut cpus: Vec<Cpu> = order
        .into_iter()
        .map(|(package, _, l3, l2, core, l1, id)| Cpu {
            id,
            core: cores.of(core.unwrap_or(id)),
            package: packages.of(package.unwrap_or(0)),
            numa: numa.get(&id).copied().unwrap_or(0),
            l3: l3.map(|key| l3s.of(key)),
            l2: l2.map(|key| l2s.of(key)),
            l1: l1.map(|key| l1s.of(key)),
            smt_index: 0, // counted below, in the order of CPU numbers
            kind: kinds.get(&id).copied().unwrap_or_default(),
        })
        .collect();
    cpus.sort_unstable_by_key(|cpu| cpu.id);
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    for cpu in &mut cpus {
        let next = seen.entry(cpu.core).or_insert(0);
        cpu.smt_index = *next;
        *next += 1;
    }
    cpus
}

/// Numbers keys in the order in which they first appear.
#[derive(Default)]
struct Numbers(BTreeMap<u32, u32>);

impl Numbers {
    fn of(&mut self, key: u32) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(key).or_insert(next)
    }
}
