//! Which rank goes to which node: a pure function of what was asked and of what the nodes are.
//!
//! The words are PRRTE's (prterun(1), "Mapping, Ranking, and Binding"); `docs/design/topology.md` says where we differ and why.
//! Binding ([`crate::bind`]) takes the result and never fails: whatever cannot be had is refused here.

use crate::bind::{Unit, units};
use corebox_host::{Host, Topology};
use corebox_spec::{BindTo, Failure, IdSet, JobSpec, Level, MapBy, RankBy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A job cannot have more ranks: more than the largest machines have cores, and a typing error beyond it costs no memory.
const MAX_RANKS: u64 = 1 << 24;

/// One node, in the order of the allocation.
#[derive(Clone, Copy, Debug)]
pub struct MapNode<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// Slots named by the user or the scheduler; `None`: as many as its cores hold.
    pub slots: Option<u32>,
    /// Its processors.
    pub topology: &'a Topology,
    /// CPUs that are ours.
    pub allowed_cpus: &'a IdSet,
    /// NUMA nodes whose memory is ours.
    pub allowed_mems: &'a IdSet,
}

impl<'a> MapNode<'a> {
    /// A node with the facts its agent reported.
    pub fn new(name: &'a str, slots: Option<u32>, host: &'a Host) -> Self {
        let Host { topology, allowed_cpus, allowed_mems, .. } = host;
        Self { name, slots, topology, allowed_cpus, allowed_mems }
    }
}

/// What of a [`JobSpec`] decides the map and the bindings.
#[derive(Clone, Debug)]
pub struct MapOptions {
    /// Ranks asked for, per program.
    pub ranks: Vec<Option<u32>>,
    /// At most this many ranks on a node.
    pub ppn: Option<u32>,
    /// Mapping.
    pub map_by: MapBy,
    /// Numbering.
    pub rank_by: RankBy,
    /// Binding.
    pub bind_to: BindTo,
    /// Cores (hardware threads with [`BindTo::Hwthread`]) per rank.
    pub cpus_per_rank: u32,
    /// Ranks may share cores.
    pub oversubscribe: bool,
}

impl From<&JobSpec> for MapOptions {
    fn from(spec: &JobSpec) -> Self {
        Self {
            ranks: spec.apps.iter().map(|app| app.ranks).collect(),
            ppn: spec.ppn,
            map_by: spec.map_by,
            rank_by: spec.rank_by,
            bind_to: spec.bind_to,
            cpus_per_rank: spec.cpus_per_rank,
            oversubscribe: spec.oversubscribe,
        }
    }
}

/// Where one rank goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Rank in the job.
    pub rank: u32,
    /// Index of its program.
    pub app: u32,
    /// Index of its node.
    pub node: u32,
    /// Position among the ranks of its node, in rank order.
    pub local_rank: u32,
    /// The object of its node that it was dealt to, with `--map-by` an object: level and number.
    pub object: Option<(Level, u32)>,
}

/// Where every rank goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobMap {
    /// In rank order.
    pub ranks: Vec<Placed>,
}

impl JobMap {
    /// The ranks of each of so many nodes, in the order of their local rank.
    pub fn by_node(&self, nodes: usize) -> Vec<Vec<&Placed>> {
        let mut of = vec![Vec::new(); nodes];
        for placed in &self.ranks {
            if let Some(ranks) = of.get_mut(placed.node as usize) {
                ranks.push(placed);
            }
        }
        of
    }
}

/// Maps a job to its nodes.
///
/// # Errors
/// Whatever was asked for and cannot be had, with the numbers and the flag that changes it.
pub fn map(nodes: &[MapNode], options: &MapOptions) -> Result<JobMap, Failure> {
    refuse_nonsense(nodes, options)?;
    let rooms = nodes.iter().map(|node| Room::of(node, options)).collect::<Result<Vec<_>, _>>()?;
    let apps = ranks_per_app(&rooms, options)?;
    let quotas = quotas(nodes, &rooms, apps.iter().map(|n| u64::from(*n)).sum(), options)?;
    let placements = deal(&rooms, &quotas, &apps, options);
    Ok(numbered(placements, nodes.len(), options.rank_by))
}

const GOAL: &str = "cannot map the ranks to nodes";

fn refuse_nonsense(nodes: &[MapNode], options: &MapOptions) -> Result<(), Failure> {
    let refused = |cause: &str| Err(Failure::new(GOAL, cause));
    if nodes.is_empty() || options.ranks.is_empty() {
        return refused("there is no node or no program");
    }
    if options.ranks.contains(&Some(0)) {
        return refused("-n 0: a program has at least one rank");
    }
    if options.ppn == Some(0) {
        return refused("--ppn 0: a node has at least one rank");
    }
    if options.cpus_per_rank == 0 {
        return refused("--cpus-per-rank 0: a rank has at least one");
    }
    if options.ranks.len() > 1 && options.ranks.contains(&None) {
        return Err(Failure::new(GOAL, "with several programs each one needs its own -n")
            .hint("as in `-n 1 ./master : -n 7 ./worker`"));
    }
    Ok(())
}

/// What a node holds.
struct Room {
    /// Ranks that its cores hold without sharing.
    capacity: u32,
    /// Slots: named, else the capacity.
    slots: u32,
    /// Objects to deal ranks to in turn, with the ranks that each holds; empty when ranks just fill the node.
    objects: Vec<(u32, u32)>,
}

impl Room {
    fn of(node: &MapNode, options: &MapOptions) -> Result<Self, Failure> {
        let units = units(node, options.bind_to);
        let per_rank = options.cpus_per_rank as usize;
        if units.is_empty() {
            return Err(Failure::new(GOAL, "none of its CPUs is ours").on(node.name));
        }
        if units.len() < per_rank && !options.oversubscribe {
            let what = thing(options.bind_to);
            let cause = format!("a rank needs {per_rank} {what}s (--cpus-per-rank) and {} are ours", units.len());
            return Err(Failure::new(GOAL, cause).on(node.name).hint("lower --cpus-per-rank"));
        }
        let objects = objects(node, &units, options)?;
        let capacity = match objects.is_empty() {
            true => units.len() / per_rank,
            false => objects.iter().map(|(_, ranks)| *ranks as usize).sum(),
        } as u32;
        Ok(Self { capacity, slots: node.slots.unwrap_or(capacity), objects })
    }

    /// Ranks that may go here before anything is shared beyond what was asked for.
    fn limit(&self, options: &MapOptions) -> u32 {
        let slots = if options.oversubscribe { self.slots } else { self.slots.min(self.capacity) };
        slots.min(options.ppn.unwrap_or(u32::MAX))
    }
}

/// The objects of the level to map by, in the order in which their first unit would be used.
///
/// `--map-by core` with more CPUs per rank than a core has means what PRRTE's `core:PE=n` means: consecutive cores.
fn objects(node: &MapNode, units: &[Unit], options: &MapOptions) -> Result<Vec<(u32, u32)>, Failure> {
    let MapBy::Object(level) = options.map_by else { return Ok(Vec::new()) };
    let mut order = Vec::new();
    let mut sizes: BTreeMap<u32, u32> = BTreeMap::new();
    for unit in units {
        let Some(object) = unit.core.object(level) else {
            return Err(Failure::new(GOAL, format!("the kernel knows of no {} there", name(level)))
                .on(node.name)
                .hint("use --map-by numa or --map-by package"));
        };
        *sizes.entry(object).or_insert_with(|| {
            order.push(object);
            0
        }) += 1;
    }
    let largest = sizes.values().copied().max().unwrap_or(0);
    if level == Level::Core && largest < options.cpus_per_rank {
        return Ok(Vec::new());
    }
    if largest < options.cpus_per_rank && !options.oversubscribe {
        let (wanted, what, level) = (options.cpus_per_rank, thing(options.bind_to), name(level));
        let cause = format!("a rank needs {wanted} {what}s (--cpus-per-rank) and no {level} has more than {largest}");
        return Err(Failure::new(GOAL, cause).on(node.name).hint("lower --cpus-per-rank or use --map-by slot"));
    }
    let holds = |object: u32| sizes.get(&object).copied().unwrap_or(0) / options.cpus_per_rank;
    Ok(order.into_iter().map(|object| (object, holds(object))).collect())
}

fn ranks_per_app(rooms: &[Room], options: &MapOptions) -> Result<Vec<u32>, Failure> {
    let default: u64 = match options.ppn {
        Some(ppn) => rooms.len() as u64 * u64::from(ppn),
        None => rooms.iter().map(|room| u64::from(room.slots)).sum(),
    };
    let wanted = options.ranks.iter().map(|ranks| ranks.map_or(default, u64::from));
    let total: u64 = wanted.clone().sum();
    if total == 0 {
        // a rank needs more CPUs than any node has, which only --oversubscribe lets through
        return Err(Failure::new(GOAL, "no node has a slot, and no number of ranks was given").hint("give it with -n"));
    }
    if total > MAX_RANKS {
        return Err(Failure::new(GOAL, format!("{total} ranks were asked for; {MAX_RANKS} is the limit")));
    }
    Ok(wanted.map(|ranks| ranks as u32).collect())
}

/// How many ranks each node may take at most.
///
/// With `--oversubscribe` what exceeds the slots is spread evenly over the nodes, as PRRTE does, so that no node drowns.
fn quotas(nodes: &[MapNode], rooms: &[Room], total: u64, options: &MapOptions) -> Result<Vec<u32>, Failure> {
    let mut quotas: Vec<u32> = rooms.iter().map(|room| room.limit(options)).collect();
    let mut room: u64 = quotas.iter().map(|n| u64::from(*n)).sum();
    if total <= room {
        return Ok(quotas);
    }
    let most = options.ppn.unwrap_or(u32::MAX);
    let hard: u64 = quotas.len() as u64 * u64::from(most);
    if !options.oversubscribe || total > hard {
        return Err(too_many(nodes, rooms, total, options));
    }
    while room < total {
        for quota in quotas.iter_mut().filter(|quota| **quota < most) {
            if room < total {
                (*quota, room) = (*quota + 1, room + 1);
            }
        }
    }
    Ok(quotas)
}

/// The refusal of more ranks than fit: numbers, reason, and every flag that would change it.
fn too_many(nodes: &[MapNode], rooms: &[Room], total: u64, options: &MapOptions) -> Failure {
    const SHOWN: usize = 8;
    let unlimited = MapOptions { ppn: None, ..options.clone() };
    let fit: u64 = rooms.iter().map(|room| u64::from(room.limit(options))).sum();
    let without_ppn: u64 = rooms.iter().map(|room| u64::from(room.limit(&unlimited))).sum();
    let mut each: Vec<String> = nodes
        .iter()
        .zip(rooms)
        .take(SHOWN)
        .map(|(node, room)| format!("{} {}", node.name, room.limit(options)))
        .collect();
    if nodes.len() > SHOWN {
        each.push(format!("and {} more nodes", nodes.len() - SHOWN));
    }
    let what = thing(options.bind_to);
    let rule = match options.cpus_per_rank {
        1 => format!("one rank per {what}"),
        n => format!("one rank per {n} {what}s"),
    };
    let mut rules = vec![rule];
    if rooms.iter().any(|room| room.slots < room.capacity) {
        rules.push("at most the slots named".into());
    }
    if let Some(ppn) = options.ppn {
        rules.push(format!("at most {ppn} per node by --ppn"));
    }
    let cause = format!("{total} ranks were asked for and {fit} fit: {} ({})", each.join(", "), rules.join(", "));
    let mut cures = vec![format!("use -n {fit} or more nodes")];
    if options.ppn.is_some() && (options.oversubscribe || without_ppn >= total) {
        cures.push("raise --ppn".into());
    }
    if !options.oversubscribe {
        cures.push(format!("--oversubscribe lets ranks share {what}s (slow)"));
        cures.extend(hwthreads_hint(nodes, total, options));
    }
    Failure::new(GOAL, cause).hint(cures.join("; "))
}

/// Whether hardware threads would hold the job.
fn hwthreads_hint(nodes: &[MapNode], total: u64, options: &MapOptions) -> Option<String> {
    let options = MapOptions { bind_to: BindTo::Hwthread, ..options.clone() };
    let rooms: Vec<Room> = nodes.iter().filter_map(|node| Room::of(node, &options).ok()).collect();
    let fit: u64 = rooms.iter().map(|room| u64::from(room.limit(&options))).sum();
    (fit >= total).then(|| "--bind-to hwthread gives each rank one hardware thread".into())
}

/// A rank before it has a number.
struct Placement {
    node: u32,
    object: Option<(Level, u32)>,
}

/// Deals the ranks of each program, a later program going on where the one before stopped.
fn deal(rooms: &[Room], quotas: &[u32], apps: &[u32], options: &MapOptions) -> Vec<Vec<Placement>> {
    let mut left = quotas.to_vec();
    let mut dealers: Vec<Dealer> = rooms.iter().map(Dealer::of).collect();
    let mut next = 0;
    let mut place = || {
        // the quotas hold every rank, so there is a node with room
        let node = (0..left.len()).map(|step| (next + step) % left.len()).find(|node| left[*node] > 0)?;
        left[node] -= 1;
        next = if options.map_by == MapBy::Node { node + 1 } else { node };
        let object = match options.map_by {
            MapBy::Object(level) => dealers[node].next().map(|number| (level, number)),
            MapBy::Node | MapBy::Slot => None,
        };
        Some(Placement { node: node as u32, object })
    };
    apps.iter().map(|ranks| (0..*ranks).filter_map(|_| place()).collect()).collect()
}

/// Deals ranks to the objects of one node in turn, leaving out those that are full until all are.
struct Dealer {
    /// Number, ranks that it holds, ranks that it still takes in this round.
    objects: Vec<(u32, u32, u32)>,
    next: usize,
}

impl Dealer {
    fn of(room: &Room) -> Self {
        // an object too small for one rank takes one when cores may be shared
        let nothing_fits = room.capacity == 0;
        let objects = room.objects.iter().map(|(number, holds)| (*number, (*holds).max(nothing_fits.into())));
        Self { objects: objects.map(|(number, holds)| (number, holds, holds)).collect(), next: 0 }
    }

    fn next(&mut self) -> Option<u32> {
        if self.objects.iter().all(|(.., left)| *left == 0) {
            self.objects.iter_mut().for_each(|(_, holds, left)| *left = *holds);
            self.next = 0;
        }
        let count = self.objects.len();
        let at = (0..count).map(|step| (self.next + step) % count).find(|at| self.objects[*at].2 > 0)?;
        self.objects[at].2 -= 1;
        self.next = at + 1;
        Some(self.objects[at].0)
    }
}

/// Gives the numbers: program by program, within a program as `--rank-by` says, on a node in rank order.
fn numbered(apps: Vec<Vec<Placement>>, nodes: usize, rank_by: RankBy) -> JobMap {
    let mut local = vec![0u32; nodes];
    let mut ranks = Vec::new();
    for (app, mut placements) in (0u32..).zip(apps) {
        match rank_by {
            RankBy::Map => {}
            RankBy::Slot => placements.sort_by_key(|placement| placement.node),
            RankBy::Node => round_robin(&mut placements, nodes),
        }
        for Placement { node, object } in placements {
            let local_rank = local[node as usize];
            local[node as usize] += 1;
            ranks.push(Placed { rank: ranks.len() as u32, app, node, local_rank, object });
        }
    }
    JobMap { ranks }
}

/// Orders placements so that each node gets its n-th one before any gets its next.
fn round_robin(placements: &mut Vec<Placement>, nodes: usize) {
    let mut turns = vec![0u32; nodes];
    let mut keyed: Vec<(u32, Placement)> = Vec::with_capacity(placements.len());
    for placement in placements.drain(..) {
        let turn = &mut turns[placement.node as usize];
        *turn += 1;
        keyed.push((*turn, placement));
    }
    keyed.sort_by_key(|(turn, placement)| (*turn, placement.node));
    placements.extend(keyed.into_iter().map(|(_, placement)| placement));
}

/// What a rank gets, in words.
fn thing(bind_to: BindTo) -> &'static str {
    match bind_to {
        BindTo::Hwthread => "hardware thread",
        BindTo::Core | BindTo::Numa | BindTo::Package | BindTo::None => "physical core",
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Package => "package",
        Level::Numa => "NUMA node",
        Level::L3 => "level 3 cache",
        Level::Core => "core",
    }
}
