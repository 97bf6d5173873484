//! Makes what was planned, between clone and start: interfaces into the container's network namespace, their addresses
//! and routes, and the host's side of them.
//!
//! Interfaces are born in the container's namespace under their final names: a crash leaves none on the host. What has
//! to be undone beyond that goes with a descriptor ([`Attached`]) or is written down ([`crate::state`]).

use crate::lease::{Owner, Store};
use crate::link::{self, NewLink};
use crate::netlink::Netlink;
use crate::plan::{Attachment, InterfacePlan, NetworkPlan};
use crate::{Error, Result, address, borrow, cores, nat, routed, shape, sriov, state};
use corebox_spec::network::{IpvlanMode, Mac, MacvlanMode};
use corebox_sys::netns::NetworkNamespace;
use corebox_sys::{Errno, fs};
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVeth, InfoVlan, IpVlanMode, LinkAttribute, MacVlanMode,
};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

/// What is held of a container's network on the host. Its end is the end of programs and rules.
#[derive(Default)]
pub struct Attached {
    /// eBPF at work.
    pub(crate) links: Vec<corebox_sys::tcx::Link>,
    /// Address translation, gone with its socket.
    pub(crate) nat: Vec<nat::Rules>,
    /// The container, as leases and records know it.
    owner: Option<Owner>,
    networks: Vec<String>,
    namespace: Option<NetworkNamespace>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").field("networks", &self.networks).finish_non_exhaustive()
    }
}

/// Both sides of what is being connected.
pub(crate) struct Sides<'a> {
    pub(crate) host: Netlink,
    pub(crate) inside: Netlink,
    pub(crate) namespace: &'a NetworkNamespace,
    /// The container's name.
    pub(crate) container: &'a str,
    /// Of the container's init.
    pub(crate) owner: &'a Owner,
    /// Unique in this kernel as long as the namespace lives: its inode.
    pub(crate) id: u64,
}

/// Connects the container whose init is `pid`. Nothing is left when it fails.
///
/// # Errors
/// What the kernel refuses.
pub fn attach(plan: &NetworkPlan, container: &str, pid: i32) -> Result<Attached> {
    let mut attached = Attached::default();
    if plan.interfaces.is_empty() {
        return Ok(attached);
    }
    let (us, owner) = (Owner::of(corebox_sys::process::id())?, Owner::of(pid)?);
    let namespace = NetworkNamespace::of_process(pid)?;
    attached.owner = Some(owner.clone());
    attached.networks = plan.interfaces.iter().map(|interface| interface.network.clone()).collect();
    let made = (|| {
        let mut sides = Sides {
            host: Netlink::open()?,
            inside: Netlink::open_in(&namespace)?,
            namespace: &namespace,
            container,
            owner: &owner,
            id: inode_of(pid)?,
        };
        allow_ping(&sides)?;
        cores::prepare(plan, &sides)?;
        for (number, interface) in plan.interfaces.iter().enumerate() {
            let addresses: Vec<IpAddr> = interface.addresses.iter().map(ipnet::IpNet::addr).collect();
            Store::of(&interface.network).hand_over(&us, &owner, &addresses)?;
            connect(&mut sides, interface, number, &mut attached)?;
        }
        cores::place(plan, &mut sides)
    })();
    attached.namespace = Some(namespace);
    match made {
        Ok(()) => Ok(attached),
        Err(error) => {
            attached.detach();
            Err(error)
        }
    }
}

fn inode_of(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/net");
    Ok(std::fs::metadata(&path).map_err(|e| corebox_sys::Error::io("look at", &path, &e))?.ino())
}

impl Attached {
    /// Takes back what does not go by itself: borrowed interfaces first, while the namespace still lives.
    pub fn detach(&mut self) {
        self.links.clear();
        self.nat.clear();
        let Some(owner) = self.owner.take() else { return };
        if let Some(namespace) = self.namespace.take() {
            take_apart(&owner, &namespace);
        }
        for network in std::mem::take(&mut self.networks) {
            // A lease of a process that is gone is none.
            let _ = Store::of(&network).give_back(&owner);
        }
        state::forget(&owner);
        crate::sweep();
    }
}

/// Brings borrowed interfaces home and removes the others now: the kernel ends a network namespace in the background, and
/// its interfaces would keep their routes and MAC addresses from the next container until then.
pub(crate) fn take_apart(owner: &Owner, namespace: &NetworkNamespace) {
    borrow::give_back(owner, namespace);
    let Ok(mut inside) = Netlink::open_in(namespace) else { return };
    for link in link::list(&mut inside).unwrap_or_default() {
        if link.kind.is_some() {
            let _ = link::delete(&mut inside, link.index, &link.name); // else it goes with the namespace
        }
    }
}

/// How long the interface of a container that is gone may keep its MAC address from ours.
const BACKGROUND: std::time::Duration = std::time::Duration::from_secs(5);

/// Brings an interface up. A macvlan of a namespace that is ending may still have the MAC address (EADDRINUSE, EBUSY); the
/// kernel has no event for its end that another namespace could wait for.
fn bring_up(sides: &mut Sides<'_>, index: u32, name: &str) -> Result<()> {
    let end = std::time::Instant::now() + BACKGROUND;
    loop {
        match link::set_up(&mut sides.inside, index, true, name) {
            Err(e) if matches!(e.errno, Errno::EADDRINUSE | Errno::EBUSY) && std::time::Instant::now() < end => {
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
            other => return Ok(other?),
        }
    }
}

/// One interface, from nothing to working.
fn connect(sides: &mut Sides<'_>, plan: &InterfacePlan, number: usize, attached: &mut Attached) -> Result<()> {
    let host_name = format!("cb{:x}.{number}", sides.id);
    let (name, network, container) = (plan.name.clone(), plan.network.clone(), sides.container.to_owned());
    state::add(sides.owner, &state::Thing::Interface { name, network, container })?;
    match &plan.attachment {
        Attachment::Bridge(bridge) => bridged(sides, plan, &host_name, bridge)?,
        Attachment::Routed(how) => routed::pair(sides, plan, how, &host_name)?,
        Attachment::Macvlan { parent, mode } => on_wire(sides, plan, parent, macvlan(*mode))?,
        Attachment::Ipvlan { parent, mode } => on_wire(sides, plan, parent, ipvlan(*mode))?,
        Attachment::Phys(name) => borrow::lend(sides, name, plan)?,
        Attachment::VirtualFunction { parent, settings } => sriov::lend(sides, parent, settings, plan)?,
    }
    let index = inside_index(sides, &plan.name)?;
    let index = match (&plan.attachment, plan.vlan) {
        (Attachment::Phys(_) | Attachment::Bridge(_), Some(vlan)) => tagged(sides, plan, index, vlan)?,
        _ => index,
    };
    configure(sides, plan, index)?;
    if let Attachment::Routed(how) = &plan.attachment {
        routed::finish(sides, plan, how, &host_name, index, attached)?;
    }
    if let Some(rate) = plan.rate {
        shape::limit(&mut sides.inside, index, rate, &plan.name)?;
        if let Some(host_end) = link::find(&mut sides.host, &host_name)? {
            shape::limit(&mut sides.host, host_end.index, rate, &host_name)?;
        }
    }
    Ok(())
}

pub(crate) fn inside_index(sides: &mut Sides<'_>, name: &str) -> Result<u32> {
    let link = link::find(&mut sides.inside, name)?;
    let gone = || corebox_sys::Error::new("look up interface in the container", name, Errno::ENODEV);
    Ok(link.ok_or_else(gone)?.index)
}

/// A veth pair with one end in a bridge.
fn bridged(sides: &mut Sides<'_>, plan: &InterfacePlan, host_name: &str, bridge: &str) -> Result<()> {
    let bridge = host_link(sides, bridge)?;
    veth(sides, plan, host_name)?;
    let host_end = host_link(sides, host_name)?;
    link::set(&mut sides.host, host_end, vec![LinkAttribute::Controller(bridge)], "plug into the bridge", host_name)?;
    Ok(link::set_up(&mut sides.host, host_end, true, host_name)?)
}

/// The number of an interface of the host; it may have vanished since the plan.
pub(crate) fn host_link(sides: &mut Sides<'_>, name: &str) -> Result<u32> {
    let found = link::find(&mut sides.host, name)?;
    Ok(found.ok_or_else(|| corebox_sys::Error::new("look up interface", name, Errno::ENODEV))?.index)
}

/// A veth pair: the end with the container's name is born in the container.
pub(crate) fn veth(sides: &mut Sides<'_>, plan: &InterfacePlan, host_name: &str) -> Result<()> {
    let inside = NewLink {
        mac: plan.mac,
        mtu: Some(plan.mtu),
        namespace: Some(sides.namespace),
        ..NewLink::new(&plan.name, InfoKind::Veth)
    };
    let pair = NewLink {
        mtu: Some(plan.mtu),
        data: Some(InfoData::Veth(inside.into_peer())),
        ..NewLink::new(host_name, InfoKind::Veth)
    };
    link::create(&mut sides.host, pair).map_err(|e| Error::creating("veth", e))
}

type Kind = (&'static str, InfoKind, InfoData);

fn macvlan(mode: MacvlanMode) -> Kind {
    let mode = match mode {
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
    };
    ("macvlan", InfoKind::MacVlan, InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]))
}

fn ipvlan(mode: IpvlanMode) -> Kind {
    let mode = match mode {
        IpvlanMode::L2 => IpVlanMode::L2,
        IpvlanMode::L3 => IpVlanMode::L3,
        IpvlanMode::L3s => IpVlanMode::L3S,
    };
    ("ipvlan", InfoKind::IpVlan, InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)]))
}

/// An interface on top of one of the host; with a VLAN, on top of that VLAN, which lives in the container, too.
fn on_wire(sides: &mut Sides<'_>, plan: &InterfacePlan, parent: &str, kind: Kind) -> Result<()> {
    let (word, kind, data) = kind;
    let mut parent = host_link(sides, parent)?;
    if let Some(id) = plan.vlan {
        parent = vlan_of_host(sides, parent, id)?;
    }
    let new = NewLink {
        data: Some(data),
        parent: Some(parent),
        namespace: Some(sides.namespace),
        mac: plan.mac,
        mtu: Some(plan.mtu),
        ..NewLink::new(&plan.name, kind)
    };
    link::create(&mut sides.host, new).map_err(|error| match error.errno {
        Errno::EBUSY => Error::refused(
            format!("{error}: the parent carries interfaces of another kind or mode"),
            "an interface carries either macvlans or ipvlans, and a passthru macvlan stands alone.",
        ),
        _ => Error::creating(word, error),
    })
}

/// The VLAN interface of a parent on the host, made if it is not there; it is removed with the last lease of its network.
fn vlan_of_host(sides: &mut Sides<'_>, parent: u32, id: u16) -> Result<u32> {
    let name = format!("cbv{parent:x}.{id}");
    if link::find(&mut sides.host, &name)?.is_none() {
        let new = NewLink {
            data: Some(InfoData::Vlan(vec![InfoVlan::Id(id)])),
            parent: Some(parent),
            ..NewLink::new(&name, InfoKind::Vlan)
        };
        link::create(&mut sides.host, new).map_err(|e| Error::creating("vlan", e))?;
    }
    state::add(sides.owner, &state::Thing::Vlan { name: name.clone() })?;
    let index = host_link(sides, &name)?;
    link::set_up(&mut sides.host, index, true, &name)?;
    Ok(index)
}

/// A VLAN inside the container on top of what it got; that is renamed, and the VLAN has the name.
fn tagged(sides: &mut Sides<'_>, plan: &InterfacePlan, index: u32, id: u16) -> Result<u32> {
    let under = format!("{}u", &plan.name[..plan.name.len().min(14)]);
    link::set(&mut sides.inside, index, vec![LinkAttribute::IfName(under.clone())], "rename interface", &plan.name)?;
    link::set_up(&mut sides.inside, index, true, &under)?;
    let new = NewLink {
        data: Some(InfoData::Vlan(vec![InfoVlan::Id(id)])),
        parent: Some(index),
        ..NewLink::new(&plan.name, InfoKind::Vlan)
    };
    link::create(&mut sides.inside, new).map_err(|e| Error::creating("vlan", e))?;
    inside_index(sides, &plan.name)
}

/// Addresses, up, routes.
fn configure(sides: &mut Sides<'_>, plan: &InterfacePlan, index: u32) -> Result<()> {
    quiet_ipv6(sides, &plan.name)?;
    for net in &plan.addresses {
        address::add(&mut sides.inside, index, *net)?;
    }
    bring_up(sides, index, &plan.name)?;
    for route in &plan.routes {
        address::Route { via: route.via, ..address::Route::to(route.to, index) }.add(&mut sides.inside)?;
    }
    for via in &plan.gateways {
        address::Route { via: Some(*via), on_link: true, ..address::Route::to(address::everything(*via), index) }
            .add(&mut sides.inside)?;
    }
    Ok(())
}

/// Addresses come from us: no router advertisements, and no second of waiting for duplicates of link-local ones.
fn quiet_ipv6(sides: &Sides<'_>, name: &str) -> Result<()> {
    let directory = format!("/proc/sys/net/ipv6/conf/{name}");
    let written = sides.namespace.inside(|| {
        if !std::path::Path::new(&directory).exists() {
            return Ok(()); // a kernel without IPv6
        }
        fs::write(format!("{directory}/accept_ra"), "0")?;
        fs::write(format!("{directory}/accept_dad"), "0")
    })?;
    Ok(written?)
}

/// Echo requests without a capability, which nobody in the container has (icmp(7), ping_group_range).
fn allow_ping(sides: &Sides<'_>) -> Result<()> {
    let file = "/proc/sys/net/ipv4/ping_group_range";
    Ok(sides.namespace.inside(|| fs::write(file, "0 2147483647"))??)
}

/// The MAC address of an interface of the host's side.
pub(crate) fn mac_of(sides: &mut Sides<'_>, index: u32, name: &str) -> Result<Mac> {
    let link = link::find_index(&mut sides.host, index)?;
    let gone = || corebox_sys::Error::new("look up interface", name, Errno::ENODEV);
    Ok(link.and_then(|link| link.mac).ok_or_else(gone)?)
}

/// What creating a veth says of the other end; used by netkit, too.
pub(crate) fn peer_message(new: NewLink<'_>) -> Option<netlink_packet_route::link::LinkMessage> {
    match new.into_peer() {
        InfoVeth::Peer(message) => Some(message),
        _ => None,
    }
}
