//! Which HCA for whom: pure functions of the inventory.

use crate::hca::{Hca, Inventory, Port};
use corebox_spec::{Failure, IdSet, RdmaSelect};

/// Distance of a NUMA node from itself, in the units of the firmware's table.
const LOCAL: u32 = 10;
/// What is assumed where the firmware says nothing: a device without a node is as far from all.
const UNKNOWN: u32 = 255;

/// The HCAs that were asked for; `numa` are the NUMA nodes of the CPUs that the container may use.
///
/// # Errors
/// A device that was named is not there, or is of another network namespace; an interface has none; there is no virtual
/// function.
pub fn select<'a>(inventory: &'a Inventory, want: &RdmaSelect, numa: &IdSet) -> Result<Vec<&'a Hca>, Failure> {
    let all = || inventory.devices.iter().filter(|hca| !hca.elsewhere);
    let found: Vec<&Hca> = match want {
        RdmaSelect::All => all().collect(),
        RdmaSelect::None => Vec::new(),
        RdmaSelect::Names(names) => return names.iter().map(|name| named(inventory, name)).collect(),
        RdmaSelect::Netdev(interface) => {
            let has = |hca: &&Hca| hca.ports.iter().any(|port| port.netdev.as_ref() == Some(interface));
            let found: Vec<&Hca> = all().filter(has).collect();
            return if found.is_empty() {
                Err(refuse(inventory, format!("interface {interface} has none")))
            } else {
                Ok(found)
            };
        }
        RdmaSelect::Nearest => {
            let usable = || all().filter(|hca| hca.usable());
            // Of every node its own nearest: a container on two sockets gets an HCA of each.
            let near = |hca: &Hca| {
                numa.iter().map(|node| IdSet::from_iter([node])).any(|node| {
                    let least = usable().map(|other| distance(inventory, other, &node)).min();
                    least == Some(distance(inventory, hca, &node))
                })
            };
            usable().filter(|hca| near(hca)).collect()
        }
        RdmaSelect::Vf => {
            let found: Vec<&Hca> = all().filter(|hca| hca.vf_of.is_some()).collect();
            return if found.is_empty() {
                Err(refuse(inventory, "none is a virtual function".into()))
            } else {
                Ok(found)
            };
        }
    };
    Ok(found)
}

fn named<'a>(inventory: &'a Inventory, name: &str) -> Result<&'a Hca, Failure> {
    match inventory.devices.iter().find(|hca| hca.name == name) {
        Some(hca) if hca.elsewhere => Err(refuse(inventory, format!("{name} is of another network namespace"))),
        Some(hca) => Ok(hca),
        None => Err(refuse(inventory, format!("there is no {name}"))),
    }
}

fn refuse(inventory: &Inventory, cause: String) -> Failure {
    let names: Vec<&str> = inventory.devices.iter().map(|hca| hca.name.as_str()).collect();
    let there = if names.is_empty() {
        "this node has no RDMA device".to_owned()
    } else {
        format!("this node has {}", names.join(", "))
    };
    Failure::new("cannot give the container its RDMA devices", cause)
        .hint(format!("{there}; `corebox rdma ls` lists them."))
}

/// The HCA and port that a rank should use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rail<'a> {
    /// The device.
    pub hca: &'a Hca,
    /// Its port.
    pub port: &'a Port,
}

/// The nearest rail of each rank among the chosen HCAs; the ranks' NUMA nodes are in the order of the local ranks.
///
/// Of equally near ones physical functions go before virtual ones and fast ports before slow ones; what is still equal is
/// dealt out in turn, so that ranks of one NUMA node with two HCAs use both.
pub fn rails<'a>(inventory: &Inventory, chosen: &[&'a Hca], ranks: &[IdSet]) -> Vec<Option<Rail<'a>>> {
    let usable: Vec<Rail<'a>> = chosen
        .iter()
        .copied()
        .filter(|hca| hca.usable())
        .filter_map(|hca| Some(Rail { hca, port: hca.best_port()? }))
        .collect();
    let mut dealt: Vec<usize> = vec![0; usable.len()];
    let mut pick = |numa: &IdSet| {
        let cost = |rail: &Rail| {
            (distance(inventory, rail.hca, numa), rail.hca.vf_of.is_some(), std::cmp::Reverse(rail.port.rate))
        };
        let best = usable.iter().map(cost).min()?;
        let equal = (0..usable.len()).filter(|at| cost(&usable[*at]) == best);
        let at = equal.min_by_key(|at| dealt[*at])?;
        dealt[at] += 1;
        Some(usable[at])
    };
    ranks.iter().map(&mut pick).collect()
}

/// From these NUMA nodes to the device: that of the nearest of them.
fn distance(inventory: &Inventory, hca: &Hca, numa: &IdSet) -> u32 {
    let Some(own) = hca.numa else { return UNKNOWN };
    let known = |node: u32| inventory.distances.get(&node).and_then(|row| row.get(own as usize)).copied();
    let one = |node: u32| known(node).unwrap_or(if node == own { LOCAL } else { 2 * LOCAL });
    numa.iter().map(one).min().unwrap_or(UNKNOWN)
}

impl Rail<'_> {
    /// `mlx5_0:1`.
    pub fn name(&self) -> String {
        format!("{}:{}", self.hca.name, self.port.number)
    }

    /// Variables that tell the communication libraries: UCX (Open MPI, MPICH ch4:ucx), NCCL, and libfabric's provider for
    /// this kind of device (fi_verbs(7), fi_efa(7), fi_psm2(7)).
    pub fn environment(&self) -> Vec<(String, String)> {
        let name = self.hca.name.as_str();
        let mut pairs = vec![
            ("UCX_NET_DEVICES".to_owned(), self.name()),
            // `=`: this name, not all that begin with it (mlx5_1 and mlx5_10).
            ("NCCL_IB_HCA".to_owned(), format!("={}", self.name())),
        ];
        let unit = name.strip_prefix("hfi1_");
        match (self.hca.driver.as_deref(), unit) {
            (Some("efa"), _) => pairs.push(("FI_EFA_IFACE".to_owned(), name.to_owned())),
            (_, Some(unit)) => pairs.push(("HFI_UNIT".to_owned(), unit.to_owned())),
            _ => pairs.push(("FI_VERBS_DEVICE_NAME".to_owned(), name.to_owned())),
        }
        pairs
    }
}
