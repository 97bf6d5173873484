//! What `corebox net` shows: networks, leases, counters, and what this kernel has.

use crate::lease::{Lease, Store};
use crate::link::{self, Counters, NewLink};
use crate::netlink::Netlink;
use crate::pool::Share;
use crate::site::{self, Caller, Network, Site};
use crate::state::{self, Thing};
use crate::{Error, Result, fast_path, host, shape};
use corebox_sys::netns::NetworkNamespace;
use corebox_sys::process::{self, ns};
use ipnet::IpNet;
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoNetkit, InfoVlan, IpVlanMode, MacVlanMode, NetkitMode,
};
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr};

/// A network of the site as this node and this caller see it.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// Its name.
    pub name: String,
    /// Its kind of interface.
    pub kind: String,
    /// Its parent or bridge.
    pub parent: Option<String>,
    /// Its addresses.
    pub subnets: Vec<IpNet>,
    /// This node's share of them.
    pub share: Vec<IpNet>,
    /// Containers that the share has room for.
    pub size: u32,
    /// Who may use it: users and `@group`s.
    pub allowed: Vec<String>,
    /// Whether the caller may, and if not, why.
    pub refused: Option<String>,
    /// Where it is written.
    pub place: Option<String>,
    /// Addresses in use on this node.
    pub leases: Vec<Lease>,
}

/// All networks, or the one of this name.
///
/// # Errors
/// A configuration that cannot be read, an unknown name.
pub fn networks(only: Option<&str>) -> Result<Vec<View>> {
    let (site, caller) = (Site::read()?, Caller::this()?);
    let mut names: Vec<String> = site.networks.keys().cloned().collect();
    if !site.networks.contains_key(site::DEFAULT) {
        names.push(site::DEFAULT.to_owned());
    }
    if let Some(name) = only {
        site.network(name)?;
        names.retain(|other| other == name);
    }
    let node = host::node_addresses()?.first().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.address);
    names.into_iter().map(|name| view(&site, &caller, node, name)).collect()
}

fn view(site: &Site, caller: &Caller, node: IpAddr, name: String) -> Result<View> {
    let network = site.network(&name)?;
    let share = Share::new(&network.subnets, node, network.per_node);
    let interface = &network.interface;
    Ok(View {
        kind: interface.kind.to_string(),
        parent: interface.parent.clone().or_else(|| interface.bridge.clone()),
        size: if share.blocks.is_empty() { 0 } else { share.last_slot() },
        share: share.blocks,
        allowed: allowed(&network),
        refused: site.permit(&name, &network, caller, interface).err().map(|error| error.to_string()),
        place: site
            .file
            .as_ref()
            .filter(|_| network.line > 0)
            .map(|file| format!("{}:{}", file.display(), network.line)),
        leases: Store::of(&name).list()?,
        subnets: network.subnets,
        name,
    })
}

fn allowed(network: &Network) -> Vec<String> {
    let groups = network.groups.iter().map(|group| format!("@{group}"));
    let all: Vec<String> = network.users.iter().cloned().chain(groups).collect();
    if all.is_empty() { vec!["root".to_owned()] } else { all }
}

/// What an interface of a container has carried.
#[derive(Clone, Debug, Serialize)]
pub struct InterfaceStats {
    /// The container.
    pub container: String,
    /// The pid of its init.
    pub pid: i32,
    /// Its network.
    pub network: String,
    /// Its name inside.
    pub interface: String,
    /// As the container sees it.
    pub counters: Counters,
}

/// Counters of all containers with interfaces on this node.
///
/// # Errors
/// The kernel's; a container that ends meanwhile is left out.
pub fn stats() -> Result<Vec<InterfaceStats>> {
    let boot = corebox_sys::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let mut all = Vec::new();
    for record in state::all().into_iter().filter(|record| record.owner.lives(boot.trim())) {
        let pid = record.owner.pid;
        let Ok(namespace) = NetworkNamespace::of_process(pid) else { continue };
        let Ok(mut inside) = Netlink::open_in(&namespace) else { continue };
        for thing in record.things {
            let Thing::Interface { name, network, container } = thing else { continue };
            let Some(link) = link::find(&mut inside, &name)? else { continue };
            all.push(InterfaceStats { container, pid, network, interface: name, counters: link.counters });
        }
    }
    all.sort_by(|a, b| (&a.container, a.pid, &a.interface).cmp(&(&b.container, b.pid, &b.interface)));
    Ok(all)
}

/// One thing that this host has or has not.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub name: String,
    /// `None`: it works; else why not.
    pub missing: Option<String>,
}

/// Tries everything that `--net` may need in a network namespace of a thread that ends, tests the configuration, and takes
/// back what dead containers left.
///
/// # Errors
/// Not those of what is tried: they are findings.
pub fn check() -> Result<Vec<Finding>> {
    let mut all = vec![Finding { name: "configuration".into(), missing: configuration().err().map(|e| e.to_string()) }];
    let swept = state::sweep().and_then(|()| {
        let names: Vec<String> = networks(None)?.into_iter().map(|view| view.name).collect();
        names.iter().try_for_each(|name| Store::of(name).sweep().map(drop))
    });
    all.push(Finding { name: "leases and records".into(), missing: swept.err().map(|e| e.to_string()) });
    let tried = std::thread::spawn(|| -> Result<Vec<Finding>> {
        process::unshare(ns::NET)?;
        try_kinds()
    });
    match tried.join() {
        Ok(Ok(findings)) => all.extend(findings),
        Ok(Err(error)) => all.push(Finding { name: "interfaces".into(), missing: Some(error.to_string()) }),
        Err(_) => all.push(Finding { name: "interfaces".into(), missing: Some("the test itself failed".into()) }),
    }
    all.push(Finding { name: "fast path".into(), missing: fast_path::missing() });
    let forwards = corebox_sys::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() == "1";
    let missing = (!forwards).then(|| "sysctl net.ipv4.ip_forward is 0".to_owned());
    all.push(Finding { name: "publish= and nat".into(), missing });
    Ok(all)
}

/// Every network stands on something that is there.
fn configuration() -> Result<()> {
    let site = Site::read()?;
    let names: Vec<String> = link::list(&mut Netlink::open()?)?.into_iter().map(|link| link.name).collect();
    for (name, network) in &site.networks {
        let parent = network.interface.parent.as_ref().or(network.interface.bridge.as_ref());
        if let Some(parent) = parent.filter(|parent| !names.contains(parent)) {
            let place =
                site.file.as_ref().map(|file| format!("{}:{}", file.display(), network.line)).unwrap_or_default();
            return Err(Error::Config {
                place,
                reason: format!("network `{name}` stands on `{parent}`, which this host does not have"),
            });
        }
    }
    Ok(())
}

fn try_kinds() -> Result<Vec<Finding>> {
    let mut netlink = Netlink::open()?;
    let peer = NewLink::new("b", InfoKind::Veth).into_peer();
    let pair = NewLink { data: Some(InfoData::Veth(peer)), ..NewLink::new("a", InfoKind::Veth) };
    let made = link::create(&mut netlink, pair).map_err(|e| Error::creating("veth", e));
    let parent = link::find(&mut netlink, "a")?.map(|link| link.index);
    let mut findings = vec![Finding { name: "veth".into(), missing: made.err().map(|e| e.to_string()) }];
    let kinds: [(&str, InfoKind, Option<InfoData>, bool); 5] = [
        ("bridge", InfoKind::Bridge, None, false),
        ("macvlan", InfoKind::MacVlan, Some(InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)])), true),
        ("ipvlan", InfoKind::IpVlan, Some(InfoData::IpVlan(vec![InfoIpVlan::Mode(IpVlanMode::L2)])), true),
        ("vlan", InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(2)])), true),
        ("netkit", InfoKind::Netkit, Some(InfoData::Netkit(vec![InfoNetkit::Mode(NetkitMode::L2)])), false),
    ];
    for (word, kind, data, stands) in kinds {
        let new = NewLink { data, parent: parent.filter(|_| stands), ..NewLink::new("c", kind) };
        let made = link::create(&mut netlink, new);
        if let Some(link) = link::find(&mut netlink, "c")? {
            link::delete(&mut netlink, link.index, "c")?;
        }
        findings.push(Finding { name: word.into(), missing: made.err().map(|e| Error::creating(word, e).to_string()) });
    }
    let limited = parent.map(|index| shape::limit(&mut netlink, index, 1_000_000, "a"));
    findings
        .push(Finding { name: "rate=".into(), missing: limited.and_then(|done| done.err()).map(|e| e.to_string()) });
    Ok(findings)
}
