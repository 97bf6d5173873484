//! What a container gets: whole objects, or nothing of them.

use crate::hca::{Hca, Inventory, NetnsMode};
use corebox_spec::{DeviceNode, Edits, FabricCheck, FabricPolicy, Mount, MountKind, Origin};

/// What the container needs for these HCAs: their verbs nodes and `rdma_cm`, bound with devices allowed, other devices of
/// fabrics, and locked memory.
///
/// umad and issm are for subnet management and stay out. sysfs is the host's in a container without its own network.
pub fn edits(inventory: &Inventory, devices: &[&Hca], policy: FabricPolicy) -> Edits {
    let uverbs: Vec<&DeviceNode> = devices.iter().filter_map(|hca| hca.uverbs.as_ref()).collect();
    let others =
        inventory.others.iter().filter(|(kind, _)| kind != "hfi1" || !devices.is_empty()).map(|(_, node)| node);
    let cm = inventory.rdma_cm.as_ref().filter(|_| !uverbs.is_empty());
    let nodes: Vec<&DeviceNode> = uverbs.iter().copied().chain(cm).chain(others).collect();
    let check = (policy != FabricPolicy::Any).then(|| check(inventory, devices, policy));
    Edits {
        mounts: nodes.iter().map(|node| bind(node)).collect(),
        env: Vec::new(),
        raise_memlock: !nodes.is_empty(),
        fabric: check,
    }
}

fn bind(node: &DeviceNode) -> Mount {
    Mount {
        target: node.path.clone(),
        kind: MountKind::Bind { source: node.path.clone() },
        read_only: false,
        devices: true,
        origin: Origin("rdma".into()),
    }
}

/// What to look at inside, and what is wrong already.
pub fn check(inventory: &Inventory, devices: &[&Hca], policy: FabricPolicy) -> FabricCheck {
    let mut nodes: Vec<DeviceNode> = devices.iter().filter_map(|hca| hca.uverbs.clone()).collect();
    nodes.extend(inventory.rdma_cm.clone().filter(|_| !nodes.is_empty()));
    let mut providers: Vec<String> = devices.iter().filter_map(|hca| provider(hca)).map(str::to_owned).collect();
    providers.sort();
    providers.dedup();
    FabricCheck {
        policy,
        nodes,
        devices: devices.iter().map(|hca| hca.name.clone()).collect(),
        providers,
        problems: problems(inventory, devices),
    }
}

/// What can be seen from the host.
fn problems(inventory: &Inventory, devices: &[&Hca]) -> Vec<(String, String)> {
    let mut found: Vec<(String, &str)> = Vec::new();
    let elsewhere: Vec<&str> =
        inventory.devices.iter().filter(|hca| hca.elsewhere).map(|hca| hca.name.as_str()).collect();
    if devices.is_empty() && !elsewhere.is_empty() {
        let mode = if inventory.netns == Some(NetnsMode::Exclusive) { " (netns mode exclusive)" } else { "" };
        found.push((
            format!("{} is of another network namespace{mode}", elsewhere.join(", ")),
            "your administrator can move it: rdma dev set DEVICE netns NAME.",
        ));
    } else if devices.is_empty() {
        found.push((
            "this node has no RDMA device, or none was chosen".into(),
            "`corebox rdma ls` lists them; `dmesg` says why a driver found none.",
        ));
    }
    for hca in devices {
        if hca.uverbs.is_none() {
            found.push((
                format!("{} has no verbs device: the module ib_uverbs is not loaded", hca.name),
                "your administrator can load it: modprobe ib_uverbs.",
            ));
        }
        if hca.best_port().is_none() {
            found.push((port_down(hca), "check the cable, `ip link` (Ethernet) and the subnet manager (InfiniBand)."));
        }
    }
    found.into_iter().map(|(cause, cure)| (cause, cure.to_owned())).collect()
}

fn port_down(hca: &Hca) -> String {
    let states = hca.ports.iter().map(|port| {
        let netdev = port.netdev.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
        format!("port {}{netdev} is {}", port.number, port.state)
    });
    format!("{} has no active port: {}", hca.name, states.collect::<Vec<_>>().join(", "))
}

/// The name of the library of libibverbs for a device (rdma-core, providers/), by its driver; software devices have none in
/// sysfs and are told by their name.
fn provider(hca: &Hca) -> Option<&'static str> {
    const DRIVERS: [(&str, &str); 14] = [
        ("mlx5_core", "mlx5"),
        ("mlx4_core", "mlx4"),
        ("bnxt_en", "bnxt_re"),
        ("bnxt_re", "bnxt_re"),
        ("ice", "irdma"),
        ("i40e", "irdma"),
        ("idpf", "irdma"),
        ("irdma", "irdma"),
        ("efa", "efa"),
        ("hfi1", "hfi1verbs"),
        ("cxgb4", "cxgb4"),
        ("qede", "qedr"),
        ("hns3", "hns"),
        ("ionic", "ionic"),
    ];
    match hca.driver.as_deref() {
        Some(driver) => DRIVERS.iter().find(|(name, _)| *name == driver).map(|(_, provider)| *provider),
        None if hca.name.starts_with("rxe") => Some("rxe"),
        None if hca.name.starts_with("siw") => Some("siw"),
        None => None,
    }
}
