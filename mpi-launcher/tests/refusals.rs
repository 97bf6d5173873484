//! Which rank goes to which of several nodes, and what is refused with which words.

#[path = "../../host/tests/machines/mod.rs"]
mod machines;

use corebox_host::Host;
use corebox_mpi::map::{MapNode, MapOptions, map};
use corebox_spec::{BindTo, Failure, Level, MapBy, RankBy};

fn options(ranks: u32) -> MapOptions {
    MapOptions {
        ranks: vec![Some(ranks)],
        ppn: None,
        map_by: MapBy::Slot,
        rank_by: RankBy::Map,
        bind_to: BindTo::Core,
        cpus_per_rank: 1,
        oversubscribe: false,
    }
}

/// Nodes n01, n02, … of 4 cores with 2 threads, with these slots.
fn layout(slots: &[Option<u32>], options: &MapOptions) -> Result<String, Failure> {
    let host = machines::adjacent().host();
    let names: Vec<String> = (1..=slots.len()).map(|n| format!("n{n:02}")).collect();
    let nodes: Vec<MapNode> = names.iter().zip(slots).map(|(name, slots)| MapNode::new(name, *slots, &host)).collect();
    let map = map(&nodes, options)?;
    let ranks = |ranks: Vec<&corebox_mpi::map::Placed>| {
        ranks.iter().map(|placed| placed.rank.to_string()).collect::<Vec<_>>().join(",")
    };
    Ok(map.by_node(nodes.len()).into_iter().map(ranks).collect::<Vec<_>>().join(" | "))
}

#[test]
fn ranks_go_to_nodes_like_this() {
    let two = [None, None];
    for (slots, options, expected) in [
        (&two[..], options(6), "0,1,2,3 | 4,5"),
        (&two, MapOptions { map_by: MapBy::Node, ..options(6) }, "0,2,4 | 1,3,5"),
        (&two, MapOptions { rank_by: RankBy::Node, ..options(6) }, "0,2,4,5 | 1,3"),
        (&two, MapOptions { map_by: MapBy::Node, rank_by: RankBy::Slot, ..options(6) }, "0,1,2 | 3,4,5"),
        (&two, MapOptions { ranks: vec![None], ..options(1) }, "0,1,2,3 | 4,5,6,7"),
        (
            &two,
            MapOptions { ranks: vec![None], bind_to: BindTo::Hwthread, ..options(1) },
            "0,1,2,3,4,5,6,7 | 8,9,10,11,12,13,14,15",
        ),
        (&two, MapOptions { ranks: vec![None], cpus_per_rank: 2, ..options(1) }, "0,1 | 2,3"),
        (&two, MapOptions { ranks: vec![None], cpus_per_rank: 3, ..options(1) }, "0 | 1"),
        (&two, MapOptions { ranks: vec![None], ppn: Some(2), ..options(1) }, "0,1 | 2,3"),
        (&two, MapOptions { ppn: Some(2), ..options(3) }, "0,1 | 2"),
        (&two, MapOptions { ppn: Some(2), map_by: MapBy::Node, ..options(3) }, "0,2 | 1"),
        (&[Some(1), Some(3)], options(4), "0 | 1,2,3"),
        (&[Some(1), Some(3)], MapOptions { map_by: MapBy::Node, ..options(4) }, "0 | 1,2,3"),
        (&[Some(1), None], MapOptions { ranks: vec![None], ..options(1) }, "0 | 1,2,3,4"),
        (&two, MapOptions { ranks: vec![Some(1), Some(5)], ..options(1) }, "0,1,2,3 | 4,5"),
        (&two, MapOptions { ranks: vec![Some(1), Some(3)], map_by: MapBy::Node, ..options(1) }, "0,2 | 1,3"),
        (&two, MapOptions { ranks: vec![Some(3), Some(3)], rank_by: RankBy::Node, ..options(1) }, "0,1,2,3 | 4,5"),
        (&two, MapOptions { oversubscribe: true, ..options(11) }, "0,1,2,3,4,5 | 6,7,8,9,10"),
        (&two, MapOptions { oversubscribe: true, map_by: MapBy::Node, ..options(9) }, "0,2,4,6,8 | 1,3,5,7"),
        (&two, MapOptions { oversubscribe: true, ..options(2) }, "0,1 | "),
        (&[Some(6)], MapOptions { oversubscribe: true, ranks: vec![None], ..options(1) }, "0,1,2,3,4,5"),
    ] {
        let found = layout(slots, &options).unwrap_or_else(|failure| panic!("{options:?}: {failure}"));
        assert_eq!(found, expected, "{slots:?} {options:?}");
    }
}

#[test]
fn programs_are_numbered_one_after_the_other() {
    let host = machines::adjacent().host();
    let nodes = [MapNode::new("n01", None, &host), MapNode::new("n02", None, &host)];
    let options = MapOptions { ranks: vec![Some(1), Some(2), Some(3)], ..options(1) };
    let apps: Vec<u32> = map(&nodes, &options).unwrap().ranks.iter().map(|placed| placed.app).collect();
    assert_eq!(apps, [0, 1, 1, 2, 2, 2]);
}

#[test]
fn objects_are_dealt_in_turn_and_left_out_when_full() {
    let host = machines::odd().host();
    let node = [MapNode::new("n01", None, &host)];
    // three NUMA nodes of three cores, two per rank: one rank each
    let options = MapOptions { map_by: MapBy::Object(Level::Numa), cpus_per_rank: 2, ranks: vec![None], ..options(1) };
    let objects: Vec<_> = map(&node, &options).unwrap().ranks.iter().map(|placed| placed.object).collect();
    assert_eq!(objects, [0, 1, 2].map(|numa| Some((Level::Numa, numa))));
    let host = Host { allowed_cpus: "0,3-8".parse().unwrap(), ..host };
    let node = [MapNode::new("n01", None, &host)];
    let options = MapOptions { cpus_per_rank: 1, ..options };
    let objects: Vec<_> = map(&node, &options).unwrap().ranks.iter().map(|placed| placed.object.unwrap().1).collect();
    assert_eq!(objects, [0, 1, 2, 1, 2, 1, 2]);
}

#[test]
fn what_cannot_be_had_is_refused_with_numbers_and_the_flag() {
    let two = [None, None];
    let sharing = "use -n 8 or more nodes; --oversubscribe lets ranks share physical cores (slow)";
    for (slots, options, cause, hint) in [
        (
            &two[..],
            options(17),
            "17 ranks were asked for and 8 fit: n01 4, n02 4 (one rank per physical core)",
            sharing,
        ),
        (&two, options(0), "-n 0: a program has at least one rank", ""),
        (&two, MapOptions { ppn: Some(0), ..options(1) }, "--ppn 0: a node has at least one rank", ""),
        (&two, MapOptions { cpus_per_rank: 0, ..options(1) }, "--cpus-per-rank 0: a rank has at least one", ""),
        (
            &two,
            MapOptions { ranks: vec![Some(1), None], ..options(1) },
            "with several programs each one needs its own -n",
            "as in `-n 1",
        ),
        (
            &two,
            MapOptions { ppn: Some(2), ..options(5) },
            "5 ranks were asked for and 4 fit: n01 2, n02 2 (one rank per physical core, at most 2 per node by --ppn)",
            "use -n 4 or more nodes; raise --ppn",
        ),
        (
            &two,
            MapOptions { ppn: Some(2), oversubscribe: true, ..options(5) },
            "5 ranks were asked for and 4 fit: n01 2, n02 2 (one rank per physical core, at most 2 per node by --ppn)",
            "use -n 4 or more nodes; raise --ppn",
        ),
        (
            &[Some(1), Some(2)],
            options(4),
            "4 ranks were asked for and 3 fit: n01 1, n02 2 (one rank per physical core, at most the slots named)",
            "use -n 3 or more nodes",
        ),
        (
            &[Some(6)],
            MapOptions { ranks: vec![None], ..options(1) },
            "6 ranks were asked for and 4 fit: n01 4 (one rank per physical core)",
            "--bind-to hwthread gives each rank one hardware thread",
        ),
        (
            &two,
            MapOptions { cpus_per_rank: 2, ..options(5) },
            "5 ranks were asked for and 4 fit: n01 2, n02 2 (one rank per 2 physical cores)",
            "use -n 4",
        ),
        (
            &two,
            MapOptions { cpus_per_rank: 5, ..options(1) },
            "a rank needs 5 physical cores (--cpus-per-rank) and 4 are ours",
            "lower --cpus-per-rank",
        ),
        (
            &two,
            MapOptions { oversubscribe: true, ..options(u32::MAX) },
            "4294967295 ranks were asked for; 16777216 is the limit",
            "",
        ),
        (
            &two,
            MapOptions { cpus_per_rank: 5, oversubscribe: true, ranks: vec![None], ..options(1) },
            "no node has a slot, and no number of ranks was given",
            "give it with -n",
        ),
    ] {
        let failure = layout(slots, &options).expect_err(&format!("{options:?}"));
        assert_eq!(failure.cause, cause, "{options:?}");
        assert!(failure.hint.as_deref().unwrap_or("").contains(hint), "{options:?}: {failure}");
        assert_eq!(failure.code, 125);
    }
}

#[test]
fn a_level_that_is_not_there_or_too_small_is_refused_by_name() {
    let by = |host: &Host, level, cpus_per_rank| {
        let node = [MapNode::new("n01", None, host)];
        map(&node, &MapOptions { map_by: MapBy::Object(level), cpus_per_rank, ..options(1) }).unwrap_err().to_string()
    };
    let failure = by(&machines::phone().host(), Level::L3, 1);
    assert!(failure.contains("on n01") && failure.contains("knows of no level 3 cache"), "{failure}");
    let failure = by(&machines::epyc().host(), Level::L3, 9);
    assert!(failure.contains("9 physical cores") && failure.contains("no level 3 cache has more than 8"), "{failure}");
    let nothing = Host { allowed_cpus: corebox_spec::IdSet::new(), ..machines::laptop().host() };
    let failure = by(&nothing, Level::Core, 1);
    assert!(failure.contains("none of its CPUs is ours"), "{failure}");
}
