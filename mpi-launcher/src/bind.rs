//! Which CPUs and memory nodes each rank gets: a pure function of the map and of what the nodes are.
//!
//! Whatever is bound to, every rank first gets its own cores ([`Unit`]s), so that ranks bound to a NUMA node or a package are
//! as many there as it has cores. [`BindTo`] then says how much around those cores the rank may use.

use crate::map::{JobMap, MapNode, MapOptions, Placed};
use corebox_host::Core;
use corebox_spec::{BindTo, IdSet};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one rank is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// CPUs for sched_setaffinity(2).
    pub cpus: IdSet,
    /// NUMA nodes for set_mempolicy(2): those of the CPUs that have memory for us. Nodes without CPUs (HBM, CXL, GPU memory)
    /// are left out unless the rank is not bound; a rank whose nodes have no memory for us may take from all that is ours,
    /// where the kernel takes the nearest first.
    pub mems: IdSet,
    /// Physical cores ([`corebox_host::Cpu::core`]).
    pub cores: IdSet,
    /// NUMA nodes of the CPUs.
    pub numa: IdSet,
    /// Packages of the CPUs.
    pub package: IdSet,
    /// One CPU per thread of the rank; empty when threads are not bound one by one (`numa`, `package`, `none`).
    pub places: Vec<u32>,
    /// Another rank has one of these cores too (hardware threads, with [`BindTo::Hwthread`]).
    pub shared: bool,
    /// In words: `core 3 (cpu 3)`.
    pub text: String,
}

/// What ranks are counted by: a physical core, represented by its first hardware thread that is ours, or with
/// [`BindTo::Hwthread`] a hardware thread.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) core: Core,
    pub(crate) cpu: u32,
}

/// The units of a node in the order in which they are used: whole cores before those whose other threads belong to somebody
/// else, fast before slow ones, then by number.
pub(crate) fn units(node: &MapNode, bind_to: BindTo) -> Vec<Unit> {
    let mut cores = node.topology.cores(node.allowed_cpus);
    cores.sort_by_key(|core| (!core.whole, core.kind, core.number));
    let threads = |core: &Core| if bind_to == BindTo::Hwthread { core.threads.len() } else { 1 };
    let of_core = |core: Core| -> Vec<Unit> {
        core.threads.iter().take(threads(&core)).map(|cpu| Unit { core: core.clone(), cpu: *cpu }).collect()
    };
    cores.into_iter().flat_map(of_core).collect()
}

/// Binds every rank of a map; the bindings of node `n` are at `n`, in the order of the local ranks.
pub fn bind_all(nodes: &[MapNode], map: &JobMap, options: &MapOptions) -> Vec<Vec<Binding>> {
    nodes.iter().zip(map.by_node(nodes.len())).map(|(node, ranks)| bind(node, &ranks, options)).collect()
}

/// Binds the ranks of one node (`ranks` in the order of the local ranks, as [`JobMap::by_node`] gives them).
pub fn bind(node: &MapNode, ranks: &[&Placed], options: &MapOptions) -> Vec<Binding> {
    let mut pool = Pool::of(node, options);
    let picked: Vec<Vec<usize>> = ranks.iter().map(|placed| pool.pick(placed)).collect();
    // many ranks are bound alike to one NUMA node or package
    let mut wide: BTreeMap<(IdSet, IdSet), Binding> = BTreeMap::new();
    let bound = |units: Vec<usize>| {
        let shared = units.iter().any(|at| pool.uses[*at] > 1);
        let places: Vec<u32> = units.iter().map(|at| pool.units[*at].cpu).collect();
        let own: IdSet = places.iter().copied().collect();
        let mut binding = match options.bind_to {
            BindTo::Core | BindTo::Hwthread => Binding { places, ..extent(node, own, options.bind_to) },
            BindTo::Numa | BindTo::Package | BindTo::None => {
                let around = (node.topology.numa_of(&own), node.topology.packages_of(&own));
                wide.entry(around).or_insert_with(|| extent(node, own, options.bind_to)).clone()
            }
        };
        if shared {
            binding.shared = true;
            binding.text.push_str(", shared");
        }
        binding
    };
    picked.into_iter().map(bound).collect()
}

/// The units of a node and how many ranks have each.
struct Pool {
    units: Vec<Unit>,
    uses: Vec<u32>,
    per_rank: usize,
}

impl Pool {
    fn of(node: &MapNode, options: &MapOptions) -> Self {
        let units = units(node, options.bind_to);
        Self { uses: vec![0; units.len()], units, per_rank: options.cpus_per_rank as usize }
    }

    /// Takes the units of one rank, within the object that it was mapped to if that is large enough.
    ///
    /// Units are reused only when too few are free, which the map allows with `--oversubscribe` only; the least used go first.
    fn pick(&mut self, placed: &Placed) -> Vec<usize> {
        let all = || 0..self.units.len();
        let mut scope: Vec<usize> = match placed.object {
            Some((level, number)) => all().filter(|at| self.units[*at].core.object(level) == Some(number)).collect(),
            None => all().collect(),
        };
        if scope.len() < self.per_rank {
            scope = all().collect();
        }
        scope.sort_by_key(|at| self.uses[*at]);
        let wanted = self.per_rank.min(scope.len());
        // as many as are used no more often than the last one that is needed
        let limit = wanted.checked_sub(1).map_or(0, |last| self.uses[scope[last]]);
        scope.retain(|at| self.uses[*at] <= limit);
        let picked = self.together(&scope, wanted);
        picked.iter().for_each(|at| self.uses[*at] += 1);
        picked
    }

    /// The first `wanted` of the free units that lie as close together as can be had: cores of one kind below one L3, in one
    /// NUMA node, in one package; then of mixed kinds. Whole cores first.
    fn together(&self, free: &[usize], wanted: usize) -> Vec<usize> {
        if wanted == 1 {
            return free[..1].to_vec(); // equally used ones are in the order of `units`: whole and fast ones first
        }
        for whole in [true, false] {
            let fit: Vec<usize> = free.iter().copied().filter(|at| self.units[*at].core.whole || !whole).collect();
            for domain in DOMAINS {
                let keys: Vec<Key> = fit.iter().map(|at| domain(&self.units[*at].core)).collect();
                for (first, key) in keys.iter().enumerate() {
                    if keys[..first].contains(key) {
                        continue;
                    }
                    let members = fit.iter().zip(&keys).filter(|(_, other)| *other == key).map(|(at, _)| *at);
                    let group: Vec<usize> = members.take(wanted).collect();
                    if group.len() == wanted {
                        return group;
                    }
                }
            }
        }
        free.iter().copied().take(wanted).collect()
    }
}

/// Names a part of a machine: kind, package, NUMA node, L3. (An L3 may span NUMA nodes, so it counts within its node.)
type Key = [Option<u32>; 4];

/// Parts of a machine from the smallest to the whole.
const DOMAINS: [fn(&Core) -> Key; 8] = [
    |core| [kind(core), Some(core.package), Some(core.numa), core.l3],
    |core| [kind(core), Some(core.package), Some(core.numa), None],
    |core| [kind(core), Some(core.package), None, None],
    |core| [kind(core), None, None, None],
    |core| [None, Some(core.package), Some(core.numa), core.l3],
    |core| [None, Some(core.package), Some(core.numa), None],
    |core| [None, Some(core.package), None, None],
    |_| [None; 4],
];

fn kind(core: &Core) -> Option<u32> {
    Some(core.kind.0.into())
}

/// What a rank that has these CPUs to itself may use.
fn extent(node: &MapNode, own: IdSet, bind_to: BindTo) -> Binding {
    let topology = node.topology;
    let around = |cpus: IdSet| cpus.intersection(node.allowed_cpus);
    let (numa, package) = (topology.numa_of(&own), topology.packages_of(&own));
    let cpus = match bind_to {
        BindTo::Core | BindTo::Hwthread => own,
        BindTo::Numa => around(topology.select(|cpu| numa.contains(cpu.numa))),
        BindTo::Package => around(topology.select(|cpu| package.contains(cpu.package))),
        BindTo::None => node.allowed_cpus.clone(),
    };
    let mut extent = Binding {
        mems: memory(node, &cpus, bind_to),
        cores: topology.cores_of(&cpus),
        numa: topology.numa_of(&cpus),
        package: topology.packages_of(&cpus),
        cpus,
        ..Binding::default()
    };
    extent.text = text(&extent, bind_to);
    extent
}

fn memory(node: &MapNode, cpus: &IdSet, bind_to: BindTo) -> IdSet {
    let ours = node.topology.memory_nodes.intersection(node.allowed_mems);
    let near = node.topology.numa_of(cpus).intersection(&ours);
    if bind_to == BindTo::None || near.is_empty() { ours } else { near }
}

fn text(binding: &Binding, bind_to: BindTo) -> String {
    let named = |word: &str, set: &IdSet| format!("{word}{} {set}", if set.len() == 1 { "" } else { "s" });
    let cpus = named("cpu", &binding.cpus);
    match bind_to {
        BindTo::Core => format!("{} ({cpus})", named("core", &binding.cores)),
        BindTo::Hwthread => format!("{cpus} ({})", named("core", &binding.cores)),
        BindTo::Numa => format!("{} ({cpus})", named("numa", &binding.numa)),
        BindTo::Package => format!("{} ({cpus})", named("package", &binding.package)),
        BindTo::None => format!("not bound ({cpus})"),
    }
}

/// OMP_PLACES for the threads of a rank: `{0},{1}`; `None` when they are not bound one by one, where places would pile up the
/// threads of all ranks on the same CPUs.
pub fn omp_places(binding: &Binding) -> Option<String> {
    let places: Vec<String> = binding.places.iter().map(|cpu| format!("{{{cpu}}}")).collect();
    (!places.is_empty()).then(|| places.join(","))
}

/// The OpenMP variables of a rank with several CPUs: OMP_NUM_THREADS and, where threads are bound one by one, OMP_PLACES.
/// Empty with one CPU per rank: then the affinity alone tells OpenMP what it needs.
pub fn omp_env(binding: &Binding, cpus_per_rank: u32) -> Vec<(String, String)> {
    if cpus_per_rank < 2 {
        return Vec::new();
    }
    let places = omp_places(binding).map(|places| ("OMP_PLACES".to_owned(), places));
    [("OMP_NUM_THREADS".to_owned(), cpus_per_rank.to_string())].into_iter().chain(places).collect()
}
