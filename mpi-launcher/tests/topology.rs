//! Mapping and binding on synthetic machines: what is promised for every one of them, and what exactly some of them get.

#[path = "../../host/tests/machines/mod.rs"]
mod machines;

use corebox_host::Host;
use corebox_mpi::bind::{Binding, bind_all, omp_env, omp_places};
use corebox_mpi::binding_table::{BindingTable, Row};
use corebox_mpi::map::{JobMap, MapNode, MapOptions, map};
use corebox_spec::{BindTo, IdSet, Level, MapBy, RankBy};
use std::collections::{BTreeMap, BTreeSet};

const MAPS: [MapBy; 6] = [
    MapBy::Node,
    MapBy::Slot,
    MapBy::Object(Level::Package),
    MapBy::Object(Level::Numa),
    MapBy::Object(Level::L3),
    MapBy::Object(Level::Core),
];
const RANKINGS: [RankBy; 3] = [RankBy::Map, RankBy::Slot, RankBy::Node];
const BINDINGS: [BindTo; 5] = [BindTo::Core, BindTo::Hwthread, BindTo::Numa, BindTo::Package, BindTo::None];

fn options() -> MapOptions {
    MapOptions {
        ranks: vec![None],
        ppn: None,
        map_by: MapBy::Slot,
        rank_by: RankBy::Map,
        bind_to: BindTo::Core,
        cpus_per_rank: 1,
        oversubscribe: false,
    }
}

fn ids(text: &str) -> IdSet {
    text.parse().unwrap()
}

/// Units of a node, counted without the code under test: allowed threads, or cores with one.
fn unit_objects(node: &MapNode, options: &MapOptions) -> Vec<[Option<u32>; 4]> {
    let allowed = node.topology.cpus.iter().filter(|cpu| node.allowed_cpus.contains(cpu.id));
    let mut seen = BTreeSet::new();
    allowed
        .filter(|cpu| options.bind_to == BindTo::Hwthread || seen.insert(cpu.core))
        .map(|cpu| [Some(cpu.package), Some(cpu.numa), cpu.l3, Some(cpu.core)])
        .collect()
}

/// Ranks that a node holds without sharing; `None` when what was asked for is refused whatever the number of ranks.
fn capacity(node: &MapNode, options: &MapOptions) -> Option<usize> {
    let (units, wanted) = (unit_objects(node, options), options.cpus_per_rank as usize);
    if units.len() < wanted {
        return None;
    }
    let MapBy::Object(level) = options.map_by else { return Some(units.len() / wanted) };
    let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
    for unit in &units {
        let at = [Level::Package, Level::Numa, Level::L3, Level::Core].iter().position(|l| *l == level).unwrap();
        *sizes.entry(unit[at]?).or_default() += 1;
    }
    match sizes.values().map(|size| size / wanted).sum::<usize>() {
        0 if level == Level::Core => Some(units.len() / wanted),
        0 => None,
        n => Some(n),
    }
}

fn check_map(context: &str, nodes: &[MapNode], map: &JobMap, options: &MapOptions) {
    let by_node = map.by_node(nodes.len());
    assert_eq!(by_node.iter().map(Vec::len).sum::<usize>(), map.ranks.len(), "{context}");
    for (rank, placed) in map.ranks.iter().enumerate() {
        assert_eq!(placed.rank as usize, rank, "{context}");
    }
    for (node, ranks) in nodes.iter().zip(&by_node) {
        for (local, placed) in ranks.iter().enumerate() {
            assert_eq!(placed.local_rank as usize, local, "{context}");
        }
        let room = capacity(node, options).unwrap().min(node.slots.unwrap_or(u32::MAX) as usize);
        assert!(
            ranks.len() <= room.min(options.ppn.unwrap_or(u32::MAX) as usize),
            "{context}: {} is too full",
            node.name
        );
    }
    let nodes_in_order: Vec<u32> = map.ranks.iter().map(|placed| placed.node).collect();
    let fills = options.map_by != MapBy::Node;
    if options.rank_by == RankBy::Slot || (options.rank_by == RankBy::Map && fills) {
        assert!(nodes_in_order.is_sorted(), "{context}: {nodes_in_order:?}");
    } else {
        let turns: Vec<(u32, u32)> = map.ranks.iter().map(|placed| (placed.local_rank, placed.node)).collect();
        assert!(turns.is_sorted(), "{context}: {turns:?}");
    }
}

fn check_bindings(context: &str, node: &MapNode, bindings: &[Binding], options: &MapOptions) {
    let mut used = BTreeSet::new();
    let first_threads: IdSet =
        node.topology.cores(node.allowed_cpus).iter().filter_map(|core| core.threads.iter().min().copied()).collect();
    let wide = !matches!(options.bind_to, BindTo::Core | BindTo::Hwthread);
    for (at, bound) in bindings.iter().enumerate() {
        if wide && at > 0 && bindings[at - 1] == *bound {
            continue;
        }
        let context = format!("{context}: {}", bound.text);
        assert!(!bound.cpus.is_empty() && bound.cpus.is_subset(node.allowed_cpus), "{context}");
        assert!(!bound.mems.is_empty() && bound.mems.is_subset(node.allowed_mems), "{context}");
        assert!(!bound.shared, "{context}");
        assert_eq!(bound.cores, node.topology.cores_of(&bound.cpus), "{context}");
        assert_eq!(bound.numa, node.topology.numa_of(&bound.cpus), "{context}");
        assert_eq!(bound.package, node.topology.packages_of(&bound.cpus), "{context}");
        match options.bind_to {
            BindTo::Core => {
                assert_eq!(bound.cpus.len(), options.cpus_per_rank as usize, "{context}");
                assert_eq!(bound.cores.len(), options.cpus_per_rank as usize, "{context}");
                assert!(bound.cores.iter().all(|core| used.insert(core)), "{context}: a core twice");
                assert!(bound.cpus.is_subset(&first_threads), "{context}: not the first thread");
            }
            BindTo::Hwthread => {
                assert_eq!(bound.cpus.len(), options.cpus_per_rank as usize, "{context}");
                assert!(bound.cpus.iter().all(|cpu| used.insert(cpu)), "{context}: a thread twice");
            }
            BindTo::Numa => {
                let whole = node.topology.select(|cpu| bound.numa.contains(cpu.numa));
                assert_eq!(bound.cpus, whole.intersection(node.allowed_cpus), "{context}");
            }
            BindTo::Package => {
                let whole = node.topology.select(|cpu| bound.package.contains(cpu.package));
                assert_eq!(bound.cpus, whole.intersection(node.allowed_cpus), "{context}");
            }
            BindTo::None => assert_eq!(&bound.cpus, node.allowed_cpus, "{context}"),
        }
        let one_by_one = matches!(options.bind_to, BindTo::Core | BindTo::Hwthread);
        assert_eq!(bound.places.iter().copied().collect::<IdSet>() == bound.cpus, one_by_one, "{context}");
        let distance = bound.numa.difference(&bound.mems);
        assert!(distance.is_empty() || !distance.is_subset(&node.topology.memory_nodes), "{context}: memory is far");
    }
}

/// Every option on these nodes; returns how many jobs were mapped and how many refused.
fn check_all(nodes: &[MapNode], threads: &[u32]) -> (u32, u32) {
    let (mut mapped, mut refused) = (0, 0);
    for (map_by, bind_to) in MAPS.iter().flat_map(|m| BINDINGS.iter().map(move |b| (*m, *b))) {
        for (at, (cpus_per_rank, ppn)) in
            threads.iter().flat_map(|t| [None, Some(1), Some(3)].map(|p| (*t, p))).enumerate()
        {
            let rank_by = RANKINGS[at % 3];
            let base = MapOptions { map_by, bind_to, cpus_per_rank, ppn, rank_by, ..options() };
            let rooms: Option<Vec<usize>> = nodes.iter().map(|node| capacity(node, &base)).collect();
            let limit = |node: &MapNode, room: usize| room.min(node.slots.map_or(room, |n| n as usize));
            let fit: usize = rooms
                .iter()
                .flat_map(|rooms| nodes.iter().zip(rooms))
                .fold(0, |sum, (node, room)| sum + limit(node, *room).min(ppn.map_or(usize::MAX, |n| n as usize)));
            // fewer on large machines: a debug build binds a hundred thousand ranks in some seconds
            let some: &[usize] = if fit > 50 { &[fit + 1] } else { &[2, fit, fit + 1] };
            for ranks in some.iter().filter(|n| **n > 0).map(|n| Some(*n)).chain([None]) {
                let options = MapOptions { ranks: vec![ranks.map(|n| n as u32)], ..base.clone() };
                let context = format!("{} x{} {options:?}", nodes[0].name, nodes.len());
                let default = match ppn {
                    Some(ppn) => nodes.len() * ppn as usize,
                    None => nodes
                        .iter()
                        .zip(rooms.iter().flatten())
                        .map(|(node, room)| node.slots.map_or(*room, |n| n as usize))
                        .sum(),
                };
                let wanted = ranks.unwrap_or(default);
                match map(nodes, &options) {
                    Ok(map) => {
                        assert!(rooms.is_some() && wanted <= fit, "{context}: was accepted");
                        assert_eq!(map.ranks.len(), wanted, "{context}");
                        check_map(&context, nodes, &map, &options);
                        for (node, bindings) in nodes.iter().zip(bind_all(nodes, &map, &options)) {
                            check_bindings(&context, node, &bindings, &options);
                        }
                        mapped += 1;
                    }
                    Err(failure) => {
                        assert!(rooms.is_none() || wanted > fit, "{context}: {failure}");
                        assert!(failure.hint.is_some(), "{context}: {failure}");
                        refused += 1;
                    }
                }
            }
        }
    }
    (mapped, refused)
}

#[test]
fn every_promise_holds_on_every_machine() {
    let (mut mapped, mut refused) = (0, 0);
    for machine in machines::all() {
        let host = machine.host();
        let threads: &[u32] = if host.topology.cpus.len() > 100 { &[1, 20] } else { &[1, 2, 3, 5] };
        let one = [MapNode::new("n1", None, &host)];
        let two = [MapNode::new("n1", None, &host), MapNode::new("n2", Some(3), &host)];
        for nodes in [&one[..], &two[..]] {
            let counts = check_all(nodes, threads);
            (mapped, refused) = (mapped + counts.0, refused + counts.1);
        }
    }
    eprintln!("{mapped} jobs mapped and bound, {refused} refused");
    assert!(mapped > 5000 && refused > 1000, "{mapped} {refused}");
}

#[test]
fn nodes_of_different_kinds_mix() {
    let hosts = [machines::odd().host(), machines::hybrid().host(), machines::holes().host()];
    let nodes: Vec<MapNode> = hosts.iter().map(|host| MapNode::new(&host.hostname, None, host)).collect();
    let (mapped, refused) = check_all(&nodes, &[1, 2, 3]);
    assert!(mapped > 500 && refused > 100, "{mapped} {refused}");
}

#[test]
fn oversubscription_is_even_and_marked() {
    for machine in machines::all() {
        let host = machine.host();
        let node = [MapNode::new("n1", None, &host)];
        for (map_by, bind_to) in MAPS.iter().flat_map(|m| [BindTo::Core, BindTo::Hwthread].map(|b| (*m, b))) {
            let base = MapOptions { map_by, bind_to, oversubscribe: true, ..options() };
            let Some(room) = capacity(&node[0], &base) else { continue };
            for ranks in [room, room + 1, 2 * room, 3 * room + 1] {
                let options = MapOptions { ranks: vec![Some(ranks as u32)], ..base.clone() };
                let map = map(&node, &options).unwrap();
                assert_eq!(map.ranks.len(), ranks);
                let bindings = &bind_all(&node, &map, &options)[0];
                let mut uses: BTreeMap<u32, usize> = BTreeMap::new();
                bindings.iter().for_each(|bound| *uses.entry(bound.cpus.first().unwrap()).or_default() += 1);
                let (least, most) = (uses.values().min().unwrap(), uses.values().max().unwrap());
                assert_eq!(uses.len(), room, "{} {options:?}", machine.name);
                assert!(most - least <= 1, "{} {options:?}: {uses:?}", machine.name);
                for bound in bindings {
                    let expected = uses[&bound.cpus.first().unwrap()] > 1;
                    assert_eq!(bound.shared, expected, "{} {}", machine.name, bound.text);
                }
            }
        }
    }
}

#[test]
fn a_rank_larger_than_its_node_is_possible_when_sharing_is_allowed() {
    let host = machines::adjacent().host();
    let node = [MapNode::new("n1", None, &host)];
    let options = MapOptions { ranks: vec![Some(2)], cpus_per_rank: 6, oversubscribe: true, ..options() };
    let bindings = &bind_all(&node, &map(&node, &options).unwrap(), &options)[0];
    assert!(bindings.iter().all(|bound| bound.cpus == ids("0,2,4,6") && bound.shared));
}

/// CPUs of each rank on one node.
fn cpus(host: &Host, options: &MapOptions) -> Vec<String> {
    let node = [MapNode::new("n1", None, host)];
    let map = map(&node, options).unwrap_or_else(|failure| panic!("{failure}"));
    bind_all(&node, &map, options)[0].iter().map(|bound| bound.cpus.to_string()).collect()
}

#[test]
fn ranks_get_exactly_these_cpus() {
    let object = MapBy::Object;
    let cases = [
        ("epyc", MapBy::Slot, BindTo::Core, 1, 4, "0 1 2 3"),
        ("epyc", object(Level::Numa), BindTo::Core, 1, 4, "0 16 32 48"),
        ("epyc", object(Level::Package), BindTo::Core, 1, 4, "0 64 1 65"),
        ("epyc", object(Level::L3), BindTo::Core, 1, 3, "0 8 16"),
        ("epyc", MapBy::Slot, BindTo::Core, 4, 3, "0-3 4-7 8-11"),
        ("epyc", object(Level::Core), BindTo::Core, 4, 3, "0-3 4-7 8-11"),
        ("epyc", MapBy::Slot, BindTo::Core, 3, 3, "0-2 3-5 8-10"), // 6 and 7 would tear the third over two L3s
        ("epyc", MapBy::Slot, BindTo::Core, 12, 2, "0-11 16-27"),  // one NUMA node each
        ("epyc", MapBy::Slot, BindTo::Hwthread, 1, 3, "0 128 1"),
        ("epyc", object(Level::Core), BindTo::Hwthread, 1, 3, "0 1 2"),
        ("epyc", object(Level::Core), BindTo::Hwthread, 2, 2, "0,128 1,129"),
        ("epyc", object(Level::Package), BindTo::Numa, 1, 2, "0-15,128-143 64-79,192-207"),
        ("holes", MapBy::Slot, BindTo::Core, 1, 5, "2 3 4 5 9"),
        ("holes", MapBy::Slot, BindTo::Core, 2, 2, "2-3 4-5"),
        ("holes", MapBy::Slot, BindTo::Hwthread, 1, 6, "2 130 3 4 5 9"),
        ("holes", object(Level::L3), BindTo::Core, 1, 3, "2 9 3"),
        ("holes", MapBy::Slot, BindTo::Package, 1, 1, "2-5,9,130"),
        ("hybrid", MapBy::Slot, BindTo::Core, 1, 10, "0 2 4 6 8 10 12 14 16 17"), // P cores first
        ("hybrid", MapBy::Slot, BindTo::Core, 3, 5, "0,2,4 6,8,10 16-18 19-21 12,14,22"), // mixed kinds last
        ("phone", MapBy::Slot, BindTo::Core, 1, 5, "7 4 5 6 0"),
        ("laptop", MapBy::Slot, BindTo::Core, 1, 1, "0"),
        ("adjacent", MapBy::Slot, BindTo::Core, 1, 4, "0 2 4 6"),
        ("adjacent", MapBy::Slot, BindTo::Hwthread, 1, 4, "0 1 2 3"),
        ("interleaved", MapBy::Slot, BindTo::Core, 1, 5, "0 2 4 6 1"),
        ("interleaved", object(Level::Package), BindTo::Core, 1, 4, "0 1 2 5"),
        ("interleaved", MapBy::Slot, BindTo::Core, 4, 2, "0,2,4,6 1,5,7,11"),
        ("dies", MapBy::Slot, BindTo::Core, 3, 2, "0-2 4-6"), // an L3 that spans NUMA nodes
        ("odd", MapBy::Slot, BindTo::Core, 2, 4, "0-1 3-4 6-7 2,5"),
        ("grace", object(Level::Package), BindTo::Core, 1, 3, "0 72 1"),
    ];
    for (name, map_by, bind_to, cpus_per_rank, ranks, expected) in cases {
        let host = machines::all().into_iter().find(|machine| machine.name == name).unwrap().host();
        let options = MapOptions { map_by, bind_to, cpus_per_rank, ranks: vec![Some(ranks)], ..options() };
        assert_eq!(cpus(&host, &options).join(" "), expected, "{name} {options:?}");
    }
}

#[test]
fn a_whole_core_is_taken_before_half_ones() {
    // of cores 0 and 1 only one thread is ours, of core 2 both
    let host = machines::Fake { name: "halves", allowed_cpus: "0,3-5", ..machines::adjacent() }.host();
    assert_eq!(cpus(&host, &MapOptions { ranks: vec![Some(3)], ..options() }), ["4", "0", "3"]);
    // below the first L3 one whole core and two halves, below the second four whole ones
    let host = machines::Fake { name: "whole", allowed_cpus: "0-2,128,8-11,136-139", ..machines::epyc() }.host();
    let two = MapOptions { ranks: vec![Some(3)], cpus_per_rank: 2, ..options() };
    assert_eq!(cpus(&host, &two), ["8-9", "10-11", "0-1"]);
}

#[test]
fn memory_comes_from_where_the_cpus_are() {
    for (machine, bind_to, ranks, expected) in [
        (machines::epyc(), BindTo::Core, 17, "1"),
        (machines::epyc(), BindTo::Package, 65, "4-7"),
        (machines::grace(), BindTo::Core, 73, "1"),
        (machines::grace(), BindTo::None, 1, "0-2,10"), // not bound: GPU memory too, as without us
        (machines::laptop(), BindTo::Core, 1, "0"),
        (machines::hbm(), BindTo::Core, 1, "0"),
        (machines::hbm(), BindTo::Core, 5, "0,2-3"), // its own node has no memory
        (machines::Fake { name: "mems", allowed_mems: "1", ..machines::grace() }, BindTo::Core, 1, "1"), // not ours
    ] {
        let host = machine.host();
        let node = [MapNode::new("n1", None, &host)];
        let options = MapOptions { bind_to, ranks: vec![Some(ranks)], ..options() };
        let bindings = &bind_all(&node, &map(&node, &options).unwrap(), &options)[0];
        assert_eq!(bindings.last().unwrap().mems, ids(expected), "{} {bind_to:?}", machine.name);
    }
}

#[test]
fn threads_get_places_only_where_they_are_bound_one_by_one() {
    let host = machines::epyc().host();
    let node = [MapNode::new("n1", None, &host)];
    for (bind_to, places, text) in [
        (BindTo::Core, Some("{0},{1}"), "cores 0-1 (cpus 0-1)"),
        (BindTo::Hwthread, Some("{0},{128}"), "cpus 0,128 (core 0)"),
        (BindTo::Numa, None, "numa 0 (cpus 0-15,128-143)"),
        (BindTo::Package, None, "package 0 (cpus 0-63,128-191)"),
        (BindTo::None, None, "not bound (cpus 0-255)"),
    ] {
        let options = MapOptions { bind_to, cpus_per_rank: 2, ranks: vec![Some(1)], ..options() };
        let bound = &bind_all(&node, &map(&node, &options).unwrap(), &options)[0][0];
        assert_eq!((omp_places(bound).as_deref(), bound.text.as_str()), (places, text));
        let names: Vec<String> = omp_env(bound, 2).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = places.map(|places| format!("OMP_PLACES={places}"));
        assert_eq!(names, ["OMP_NUM_THREADS=2".to_owned()].into_iter().chain(expected).collect::<Vec<_>>());
        assert!(omp_env(bound, 1).is_empty());
    }
}

#[test]
fn the_table_reads_well_and_crosses_json() {
    let host = machines::adjacent().host();
    let nodes = [MapNode::new("n01", None, &host), MapNode::new("login", None, &host)];
    let options = MapOptions { ranks: vec![Some(9)], oversubscribe: true, ..options() };
    let map = map(&nodes, &options).unwrap();
    let bindings = bind_all(&nodes, &map, &options);
    let table = BindingTable::new(map.ranks.iter().map(|placed| Row {
        rank: placed.rank,
        node: nodes[placed.node as usize].name.to_owned(),
        binding: bindings[placed.node as usize][placed.local_rank as usize].clone(),
        hca: (placed.rank == 8).then(|| "mlx5_0".to_owned()),
    }));
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "rank  node   core  cpu  numa  hca");
    assert_eq!(lines[1], "   0  n01    0*    0    0     -");
    assert_eq!(lines[2], "   1  n01    1     2    0     -");
    assert_eq!(lines[9], "   8  login  3     6    0     mlx5_0");
    assert_eq!(lines[10], "* shared with another rank");
    let json = serde_json::to_string(&table).unwrap();
    assert_eq!(serde_json::from_str::<BindingTable>(&json).unwrap(), table);
}
