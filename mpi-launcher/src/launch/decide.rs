//! From facts to plans: map, bind, and one [`NodePlan`] per node. Pure; everything that can be refused is refused here.

use crate::bind::{self, Binding};
use crate::map::{self, MapNode, MapOptions, Placed};
use crate::protocol::{NodeFacts, NodePlan, RankPlan, TreePlan};
use crate::wire::exchange::{ARITY, Exchange};
use corebox_runtime::environment;
use corebox_spec::{AppSpec, BindTo, ContainerSpec, Failure, HostSlots, IdSet, ImageFacts, JobSpec};

/// The plans of all nodes, in node order.
///
/// # Errors
/// An impossible map, an image for another architecture, an environment variable without a value.
pub fn decide(
    spec: &JobSpec,
    hosts: &[HostSlots],
    facts: &[NodeFacts],
    image: &ImageFacts,
) -> Result<Vec<NodePlan>, Failure> {
    refuse_foreign_image(spec, hosts, facts, image)?;
    let nodes: Vec<MapNode> =
        hosts.iter().zip(facts).map(|(host, facts)| MapNode::new(&host.host, host.slots, &facts.host)).collect();
    let options = MapOptions::from(spec);
    let map = map::map(&nodes, &options)?;
    let bindings = bind::bind_all(&nodes, &map, &options);
    let placed = map.by_node(nodes.len());
    let rails = rails(spec, facts, &bindings)?;
    let names: Vec<String> = hosts.iter().map(|host| host.host.clone()).collect();
    let layout: Vec<Vec<u32>> = placed.iter().map(|ranks| ranks.iter().map(|placed| placed.rank).collect()).collect();
    let plan = |index: usize| -> Result<NodePlan, Failure> {
        let with_rails = bindings[index].iter().zip(&rails[index]);
        let ranks =
            placed[index].iter().zip(with_rails).map(|(placed, (binding, rail))| rank(spec, placed, binding, rail));
        Ok(NodePlan {
            container: connected(spec, index, hosts, facts)?,
            ranks: ranks.collect::<Result<_, _>>()?,
            layout: layout.clone(),
            apps: map.ranks.iter().map(|placed| placed.app).collect(),
            nodes: names.clone(),
            universe: map.ranks.len() as u32,
            tree: tree(index as u32, facts),
        })
    };
    (0..names.len()).map(plan).collect()
}

/// The container of a node, which knows its own node and the others, if it has interfaces.
fn connected(spec: &JobSpec, index: usize, hosts: &[HostSlots], facts: &[NodeFacts]) -> Result<ContainerSpec, Failure> {
    let mut container = spec.container.clone();
    if container.network.interfaces.is_empty() {
        return Ok(container);
    }
    for (node, (host, facts)) in hosts.iter().zip(facts).enumerate() {
        match facts.network.first() {
            Some(peer) if node == index => container.network.node = Some(*peer),
            Some(peer) => container.network.peers.push(*peer),
            None if hosts.len() == 1 => {}
            None => {
                return Err(Failure::new("cannot connect the containers of the job", "the node has no address")
                    .on(&host.host)
                    .hint("`--net host` needs none of ours."));
            }
        }
    }
    Ok(container)
}

fn refuse_foreign_image(
    spec: &JobSpec,
    hosts: &[HostSlots],
    facts: &[NodeFacts],
    image: &ImageFacts,
) -> Result<(), Failure> {
    let Some(arch) = &image.arch else { return Ok(()) };
    match hosts.iter().zip(facts).find(|(_, facts)| facts.host.arch != *arch) {
        None => Ok(()),
        Some((host, facts)) => {
            let cause = format!("it was made for {arch}, and the node is {}", facts.host.arch);
            Err(Failure::new(format!("cannot run the image `{}`", spec.image), cause)
                .on(&host.host)
                .hint("make the image on a machine of the node's kind, or for it."))
        }
    }
}

fn tree(node: u32, facts: &[NodeFacts]) -> Option<TreePlan> {
    let nodes = facts.len() as u32;
    if nodes < 2 {
        return None;
    }
    let parent = Exchange::parent_of(node, nodes, ARITY);
    Some(TreePlan { parent: parent.map(|parent| facts[parent as usize].addresses.clone()).unwrap_or_default() })
}

/// The HCA of a rank as its name and the variables that tell the communication libraries.
type Told = Option<(String, Vec<(String, String)>)>;

/// The nearest HCA of every rank, per node. A job of which a single rank has none is told nothing: the others could not
/// reach it over theirs.
fn rails(spec: &JobSpec, facts: &[NodeFacts], bindings: &[Vec<Binding>]) -> Result<Vec<Vec<Told>>, Failure> {
    let of_node = |(facts, bindings): (&NodeFacts, &Vec<Binding>)| -> Result<Vec<Told>, Failure> {
        let numa: Vec<IdSet> = bindings.iter().map(|binding| binding.numa.clone()).collect();
        let all = numa.iter().fold(IdSet::default(), |all, one| all.union(one));
        let chosen = corebox_rdma::select(&facts.rdma, &spec.container.rdma, &all)?;
        let rails = corebox_rdma::rails(&facts.rdma, &chosen, &numa);
        Ok(rails.into_iter().map(|rail| rail.map(|rail| (rail.name(), rail.environment()))).collect())
    };
    let told: Vec<Vec<Told>> = facts.iter().zip(bindings).map(of_node).collect::<Result<_, _>>()?;
    let everybody = told.iter().flatten().all(Option::is_some);
    Ok(if everybody { told } else { told.into_iter().map(|ranks| vec![None; ranks.len()]).collect() })
}

fn rank(spec: &JobSpec, placed: &Placed, binding: &Binding, rail: &Told) -> Result<RankPlan, Failure> {
    let app: &AppSpec = &spec.apps[placed.app as usize];
    let asked = environment::asked_for(&app.env, |name| std::env::var(name).ok())
        .map_err(|cause| Failure::new("cannot set the environment of the ranks", cause))?;
    let mut env = bind::omp_env(binding, spec.cpus_per_rank);
    // What the user says wins.
    let said = |name: &str| {
        spec.container.caller_env.iter().chain(&spec.container.env).any(|text| text.split('=').next() == Some(name))
    };
    env.extend(rail.iter().flat_map(|(_, variables)| variables.clone()).filter(|(name, _)| !said(name)));
    let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    env.extend(asked.iter().filter_map(pair));
    Ok(RankPlan {
        rank: placed.rank,
        local_rank: placed.local_rank,
        app: placed.app,
        argv: app.argv.clone(),
        env,
        wdir: app.wdir.clone().or_else(|| spec.wdir.clone()),
        bound: spec.bind_to != BindTo::None,
        hca: rail.as_ref().map(|(name, _)| name.clone()),
        binding: binding.clone(),
    })
}
