//! What the server tells its library, and through it the ranks, about the job.
//!
//! `NODE_MAP` and `PROC_MAP` alone would do for Open MPI 4.1 and 5. But as soon as a rank has `PROC_DATA`, the library
//! derives nothing for it any more: then `LOCAL_RANK` and `NODE_RANK` must be there, and `RANK` first.

use super::ffi::Functions;
use super::info::{Infos, c_string, key};
use super::server::{LocalRank, ServerConfig};
use crate::wire::JobShape;

/// The job's description.
pub(super) fn job_infos(functions: &Functions, config: &ServerConfig) -> Infos {
    let shape = &config.shape;
    let mut infos = Infos::default();
    infos.text(key::NSPACE, shape.name());
    infos.text(key::JOBID, shape.name());
    infos.uint32(key::UNIV_SIZE, shape.universe());
    infos.uint32(key::JOB_SIZE, shape.size());
    infos.uint32(key::MAX_PROCS, shape.universe());
    infos.uint32(key::NUM_NODES, shape.nodes());
    infos.flag(key::SPAWNED, false);
    add_maps(&mut infos, functions, config);
    let apps = Apps::of(shape);
    add_apps(&mut infos, &apps.apps);
    add_this_node(&mut infos, config);
    for (rank, number_in_app) in (0..).zip(apps.number_in_app) {
        infos.infos(key::PROC_DATA, rank_infos(config, rank, number_in_app));
    }
    infos
}

/// Node names and ranks, in the library's short form where that is text, else plain.
fn add_maps(infos: &mut Infos, functions: &Functions, config: &ServerConfig) {
    let nodes = config.hostnames.join(",");
    let ranks = |ranks: &Vec<u32>| ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let ranks = config.shape.ranks_of_node().iter().map(ranks).collect::<Vec<_>>().join(";");
    for (key, text, ppn) in [(key::NODE_MAP, nodes, false), (key::PROC_MAP, ranks, true)] {
        let text = c_string(&text);
        let plain = || [b"raw:", text.as_bytes_with_nul()].concat();
        infos.short_form(key, functions.short_form(&text, ppn).unwrap_or_else(plain));
    }
}

/// The programs of an MPMD job.
struct Apps {
    /// Size and first rank of each.
    apps: Vec<(u32, u32)>,
    /// Each rank's number within its program.
    number_in_app: Vec<u32>,
}

impl Apps {
    fn of(shape: &JobShape) -> Self {
        let (mut apps, mut number_in_app) = (Vec::new(), Vec::new());
        for rank in 0..shape.size() {
            let app = shape.app_of(rank).unwrap_or_default() as usize;
            if apps.len() <= app {
                apps.resize(app + 1, (0, rank));
            }
            if apps[app].0 == 0 {
                apps[app].1 = rank;
            }
            number_in_app.push(apps[app].0);
            apps[app].0 += 1;
        }
        Self { apps, number_in_app }
    }
}

fn add_apps(infos: &mut Infos, apps: &[(u32, u32)]) {
    infos.uint32(key::JOB_NUM_APPS, apps.len() as u32);
    if let [(size, leader)] = apps {
        infos.uint32(key::APP_SIZE, *size);
        infos.rank(key::APPLDR, *leader);
        return;
    }
    for (number, (size, leader)) in (0..).zip(apps) {
        let mut app = Infos::default();
        app.uint32(key::APPNUM, number);
        app.uint32(key::APP_SIZE, *size);
        app.rank(key::APPLDR, *leader);
        infos.infos(key::APP_INFO_ARRAY, app);
    }
}

fn add_this_node(infos: &mut Infos, config: &ServerConfig) {
    let shape = &config.shape;
    let local = shape.local_ranks();
    let peers = local.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let directory = config.tmpdir.to_string_lossy();
    infos.uint32(key::NODEID, shape.node());
    infos.text(key::HOSTNAME, config.hostname(shape.node()));
    infos.uint32(key::NODE_SIZE, local.len() as u32);
    infos.uint32(key::LOCAL_SIZE, local.len() as u32);
    infos.text(key::LOCAL_PEERS, &peers);
    if let Some(leader) = local.iter().min() {
        infos.rank(key::LOCALLDR, *leader);
    }
    infos.text(key::TMPDIR, &directory);
    infos.text(key::NSDIR, &directory);
    infos.text(key::MAPBY, "slot");
    infos.text(key::RANKBY, "slot");
    infos.text(key::BINDTO, "core");
}

fn rank_infos(config: &ServerConfig, rank: u32, number_in_app: u32) -> Infos {
    let shape = &config.shape;
    let (node, local) = (shape.node_of(rank).unwrap_or_default(), shape.local_rank_of(rank).unwrap_or_default());
    let mut infos = Infos::default();
    infos.rank(key::RANK, rank);
    infos.rank(key::GLOBAL_RANK, rank);
    infos.rank(key::APP_RANK, number_in_app);
    infos.uint32(key::APPNUM, shape.app_of(rank).unwrap_or_default());
    infos.uint16(key::LOCAL_RANK, local as u16);
    infos.uint16(key::NODE_RANK, local as u16);
    infos.uint32(key::NODEID, node);
    infos.text(key::HOSTNAME, config.hostname(node));
    infos.uint32(key::REINCARNATION, 0);
    if node == shape.node() {
        infos.text(key::PROCDIR, &config.tmpdir.to_string_lossy());
        if let Some(LocalRank { cpuset, locality, .. }) = config.ranks.get(local as usize) {
            if let Some(cpuset) = cpuset {
                infos.text(key::CPUSET, &format!("hwloc:{cpuset}"));
            }
            if let Some(locality) = locality {
                infos.text(key::LOCALITY_STRING, locality);
            }
        }
    }
    infos
}
