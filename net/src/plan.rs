//! From what was asked to what is decided: [`NetworkPlan`]. Looks at the host and changes nothing.

use crate::host::HostNetwork;
use crate::pool::Share;
use crate::site::{self, Caller, Network, Site};
use crate::{Error, Result, lease};
use corebox_spec::network::{
    InterfaceKind, InterfaceSpec, IpvlanMode, Mac, MacvlanMode, NetCores, NetworkSpec, Peer, Publish, Route, VfSettings,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The network of one container, decided; [`reserve`] fills in the addresses that come from pools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// A prepared namespace that the container joins.
    pub namespace: Option<String>,
    /// What is put into its own one.
    pub interfaces: Vec<InterfacePlan>,
    /// Where the kernel does the work.
    pub cores: NetCores,
}

/// One interface, decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfacePlan {
    /// Its name inside.
    pub name: String,
    /// The network whose addresses it has.
    pub network: String,
    /// How it is connected.
    pub attachment: Attachment,
    /// Its addresses; from a pool, once they are reserved.
    pub addresses: Vec<IpNet>,
    /// The pool, where the addresses come from one.
    pub pool: Option<Share>,
    /// Its MAC address; `None`: made of the address, or the hardware's own.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// IEEE 802.1Q.
    pub vlan: Option<u16>,
    /// Default routers.
    pub gateways: Vec<IpAddr>,
    /// Further routes.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Hidden behind the host's address.
    pub nat: bool,
    /// Bits per second in each direction.
    pub rate: Option<u64>,
}

/// How an interface is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// A veth pair; the host's end is a port of this bridge.
    Bridge(String),
    /// A pair whose host's end is a router's port of its own.
    Routed(Routed),
    /// On the wire of this interface.
    Macvlan {
        /// Of the host.
        parent: String,
        /// Who talks to whom.
        mode: MacvlanMode,
    },
    /// Behind the MAC address of this interface.
    Ipvlan {
        /// Of the host.
        parent: String,
        /// At which layer.
        mode: IpvlanMode,
    },
    /// The host's interface itself.
    Phys(String),
    /// A virtual function.
    VirtualFunction {
        /// Its physical function.
        parent: String,
        /// What the physical function sets for it.
        settings: VfSettings,
    },
}

/// A routed pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// netkit instead of veth.
    pub netkit: bool,
    /// Why packets take the kernel's ordinary way; `None`: they take the fast path.
    pub plain: Option<String>,
    /// The job's other nodes.
    pub peers: Vec<PeerRoute>,
}

/// Where the containers of another node are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRoute {
    /// Their addresses.
    pub block: IpNet,
    /// The node.
    pub via: IpAddr,
    /// The host's interface that leads there.
    pub index: u32,
}

impl NetworkPlan {
    /// Whether there is anything to do beside loopback.
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty() && self.namespace.is_none()
    }
}

/// Decides for a caller on this host.
///
/// # Errors
/// Every refusal there is: policy, privileges, unknown and unfit interfaces, addresses that are in use, small pools.
pub fn decide(spec: &NetworkSpec) -> Result<NetworkPlan> {
    if spec.interfaces.is_empty() && spec.namespace.is_none() {
        if spec.cores != NetCores::Kernel {
            return Err(Error::refused(
                "--net-cores is about interfaces of the container, and it has none",
                "name one (`--net veth`), or leave it away: the host's interfaces are the administrator's.",
            ));
        }
        return Ok(NetworkPlan::default());
    }
    let (site, caller) = (Site::read()?, Caller::this()?);
    let specs = spec.interfaces.iter().map(|interface| resolved(interface, &site, &caller));
    let specs = specs.collect::<Result<Vec<_>>>()?;
    let privileged = corebox_sys::user::capable(corebox_sys::user::Capability::CAP_NET_ADMIN)?;
    if !privileged {
        let wanted = specs.first().map_or("netns".to_owned(), |(asked, _, _)| asked.kind.to_string());
        return Err(Error::Unprivileged { wanted: format!("`--net {wanted}`") });
    }
    if let Some(path) = &spec.namespace {
        check_namespace(path)?;
        return Ok(NetworkPlan { namespace: Some(path.clone()), ..NetworkPlan::default() });
    }
    let mut host = HostNetwork::look()?;
    let mut interfaces: Vec<InterfacePlan> = Vec::new();
    for (number, (interface, name, network)) in specs.iter().enumerate() {
        let plan = Decision { spec, host: &mut host, network, name, number }.interface(interface)?;
        if interfaces.iter().any(|other| other.name == plan.name) {
            return Err(Error::refused(
                format!("two interfaces are called `{}`", plan.name),
                "give each its own name: --net veth:name=eth5",
            ));
        }
        interfaces.push(plan);
    }
    let busy =
        spec.busy.clone().map_or_else(|| Ok(corebox_sys::affinity::cpus()?.into_iter().collect()), Ok::<_, Error>)?;
    Ok(NetworkPlan { namespace: None, interfaces, cores: crate::cores::choose(&spec.cores, &busy)? })
}

/// An interface with what its network says of it, the network's name, and the network; refused if the site says no.
fn resolved(asked: &InterfaceSpec, site: &Site, caller: &Caller) -> Result<(InterfaceSpec, String, Network)> {
    let name = match &asked.kind {
        InterfaceKind::Named(name) => name.clone(),
        _ => site::DEFAULT.to_owned(),
    };
    let network = site.network(&name)?;
    site.permit(&name, &network, caller, asked)?;
    let mut spec = asked.clone();
    if matches!(asked.kind, InterfaceKind::Named(_)) {
        spec = over(&network.interface, asked);
        spec.rate = spec.rate.or(network.max_rate);
    }
    let spec =
        spec.check().map_err(|e| Error::refused(e.to_string(), "`corebox run --help` lists what `--net` takes."))?;
    Ok((spec, name, network))
}

/// What was asked for, over what the network says.
fn over(network: &InterfaceSpec, asked: &InterfaceSpec) -> InterfaceSpec {
    let or = |asked: &Vec<IpAddr>, site: &Vec<IpAddr>| if asked.is_empty() { site.clone() } else { asked.clone() };
    InterfaceSpec {
        kind: network.kind.clone(),
        network: network.network.clone(),
        // Where it is plugged in is the site's to say: the policy is about that.
        parent: network.parent.clone(),
        bridge: network.bridge.clone(),
        vlan: network.vlan,
        name: asked.name.clone().or_else(|| network.name.clone()),
        addresses: asked.addresses.clone(),
        gateways: or(&asked.gateways, &network.gateways),
        routes: network.routes.iter().chain(&asked.routes).copied().collect(),
        mac: asked.mac,
        mtu: asked.mtu.or(network.mtu),
        dns: or(&asked.dns, &network.dns),
        search: if asked.search.is_empty() { network.search.clone() } else { asked.search.clone() },
        publish: asked.publish.clone(),
        rate: asked.rate.or(network.rate),
        nat: asked.nat || network.nat,
        plain: asked.plain || network.plain,
        vf: VfSettings { number: asked.vf.number.or(network.vf.number), ..network.vf },
    }
}

fn check_namespace(path: &str) -> Result<()> {
    let namespace = corebox_sys::netns::NetworkNamespace::open(std::path::Path::new(path))?;
    namespace.inside(|| ()).map_err(|e| match e.errno {
        corebox_sys::Errno::EINVAL => Error::refused(
            format!("`{path}` is no network namespace"),
            "`ip netns add NAME` makes one at /run/netns/NAME; /proc/PID/ns/net is that of a process.",
        ),
        _ => e.into(),
    })
}

/// What one interface is decided with.
struct Decision<'a> {
    spec: &'a NetworkSpec,
    host: &'a mut HostNetwork,
    network: &'a Network,
    name: &'a str,
    number: usize,
}

impl Decision<'_> {
    fn interface(mut self, asked: &InterfaceSpec) -> Result<InterfacePlan> {
        let node = self.spec.node.map_or_else(|| self.host.node_address(), |peer| peer.address);
        let pool = self.pool(asked, node)?;
        let (attachment, parent_mtu) = self.attachment(asked, pool.as_ref(), node)?;
        let mtu = asked.mtu.unwrap_or(parent_mtu);
        if mtu > parent_mtu && !matches!(attachment, Attachment::Phys(_) | Attachment::VirtualFunction { .. }) {
            return Err(Error::refused(
                format!("mtu={mtu} is more than the {parent_mtu} of what it stands on"),
                "leave it away: the parent's is taken.",
            ));
        }
        if mtu < 1280 && (asked.addresses.iter().any(|net| net.addr().is_ipv6())) {
            return Err(Error::refused(format!("mtu={mtu} is too small for IPv6"), "IPv6 needs 1280 (RFC 8200)."));
        }
        self.check_publish(asked)?;
        Ok(InterfacePlan {
            name: asked.name.clone().unwrap_or_else(|| format!("eth{}", self.number)),
            network: self.name.to_owned(),
            addresses: asked.addresses.clone(),
            mac: asked.mac,
            vlan: asked.vlan,
            gateways: asked.gateways.clone(),
            routes: asked.routes.clone(),
            dns: asked.dns.clone(),
            search: asked.search.clone(),
            publish: asked.publish.clone(),
            nat: asked.nat || !asked.publish.is_empty(),
            rate: asked.rate,
            pool,
            attachment,
            mtu,
        })
    }

    /// The pool, unless addresses were named.
    fn pool(&self, asked: &InterfaceSpec, node: IpAddr) -> Result<Option<Share>> {
        if !asked.addresses.is_empty() {
            if let Some(peer) = self.spec.peers.first() {
                return Err(Error::refused(
                    format!("one address for several nodes ({node}, {}, …)", peer.address),
                    "leave `address=` away: every node's container gets its own.",
                ));
            }
            let outside = |net: &&IpNet| !self.network.subnets.iter().any(|subnet| subnet.contains(*net));
            if let Some(net) = asked.addresses.iter().find(outside).filter(|_| self.network.line > 0) {
                let subnets: Vec<String> = self.network.subnets.iter().map(IpNet::to_string).collect();
                return Err(Error::refused(
                    format!("{net} is not in network `{}` ({})", self.name, subnets.join(", ")),
                    "leave `address=` away: a free one is taken.",
                ));
            }
            let host = |net: &IpNet| self.host.holder(net.addr()).map(|by| (net.addr(), by));
            return match asked.addresses.iter().find_map(host) {
                Some((address, by)) => Err(Error::AddressUsed { address, by }),
                None => Ok(None),
            };
        }
        let mut subnets = self.network.subnets.clone();
        if self.network.line == 0 && !self.host.has_ipv6 {
            subnets.retain(|net| net.addr().is_ipv4()); // the built-in network has both families where the host has
        }
        if let Some(net) = subnets.iter().find(|net| net.addr().is_ipv6() && !self.host.has_ipv6) {
            return Err(Error::refused(
                format!("the network {net} needs IPv6, which is turned off here"),
                "sysctl net.ipv6.conf.all.disable_ipv6=0",
            ));
        }
        if subnets.is_empty() {
            return Ok(None);
        }
        let share = Share::new(&subnets, node, self.network.per_node);
        let peers: Vec<IpAddr> = self.spec.peers.iter().map(|peer| peer.address).collect();
        share.check_peers(node, &peers, self.network.per_node)?;
        Ok(Some(share))
    }

    /// How it is connected, and the MTU of what it stands on.
    fn attachment(&mut self, asked: &InterfaceSpec, pool: Option<&Share>, node: IpAddr) -> Result<(Attachment, u32)> {
        match &asked.kind {
            InterfaceKind::Veth if asked.bridge.is_some() => {
                let bridge = self.host.link(asked.bridge.as_deref().unwrap_or(""))?;
                if bridge.kind.as_deref() != Some("bridge") {
                    return Err(Error::WrongInterface { name: bridge.name.clone(), what: "is no bridge".into() });
                }
                Ok((Attachment::Bridge(bridge.name.clone()), bridge.mtu))
            }
            InterfaceKind::Veth | InterfaceKind::Netkit => self.routed(asked, pool, node),
            InterfaceKind::Macvlan(mode) => {
                let (parent, mtu) = self.parent(asked)?;
                Ok((Attachment::Macvlan { parent, mode: *mode }, mtu))
            }
            InterfaceKind::Ipvlan(mode) => {
                let (parent, mtu) = self.parent(asked)?;
                Ok((Attachment::Ipvlan { parent, mode: *mode }, mtu))
            }
            InterfaceKind::Phys => {
                let link = self.host.link(asked.parent.as_deref().unwrap_or(""))?.clone();
                crate::borrow::check(&link)?;
                Ok((Attachment::Phys(link.name.clone()), link.mtu))
            }
            InterfaceKind::Sriov => {
                let link = self.host.link(asked.parent.as_deref().unwrap_or(""))?.clone();
                crate::sriov::check(&link.name, &asked.vf)?;
                Ok((Attachment::VirtualFunction { parent: link.name.clone(), settings: asked.vf }, link.mtu))
            }
            InterfaceKind::Named(name) => {
                Err(Error::refused(format!("network `{name}` names a network"), "give it a kind."))
            }
        }
    }

    /// `parent=`, or the interface of the default route, or the only one there is.
    fn parent(&mut self, asked: &InterfaceSpec) -> Result<(String, u32)> {
        let link = match &asked.parent {
            Some(name) => self.host.link(name)?.clone(),
            None => self.host.uplink()?.clone(),
        };
        if link.name == "lo" {
            return Err(Error::WrongInterface {
                name: link.name,
                what: "is the loopback interface: nothing can stand on it".into(),
            });
        }
        if !link.up {
            return Err(Error::WrongInterface { name: link.name, what: "is down".into() });
        }
        Ok((link.name.clone(), link.mtu))
    }

    fn routed(&mut self, asked: &InterfaceSpec, pool: Option<&Share>, node: IpAddr) -> Result<(Attachment, u32)> {
        if asked.vlan.is_some() {
            return Err(Error::refused(
                "a routed veth has no VLAN",
                "`macvlan:vlan=N` has, or `veth:bridge=BR,vlan=N`.",
            ));
        }
        if let (Some(share), true) = (pool, self.network.line == 0) {
            self.host.check_overlap(&share.subnets)?;
        }
        let netkit = asked.kind == InterfaceKind::Netkit;
        let mut peers = Vec::new();
        for peer in &self.spec.peers {
            peers.extend(self.peer_routes(*peer, pool)?);
        }
        let plain = match asked.plain {
            true => Some("asked for".to_owned()),
            false => crate::fast_path::missing(),
        };
        if plain.is_some() && !peers.is_empty() {
            self.host.require_forwarding(&peers)?;
        }
        let uplink = self.spec.peers.first().map_or(node, |peer| peer.address);
        let mtu = self.host.mtu_towards(uplink);
        Ok((Attachment::Routed(Routed { netkit, plain, peers }), mtu))
    }

    /// The ways to a peer's blocks: IPv4 by its address, IPv6 by its address or the link-local one beside it.
    fn peer_routes(&mut self, peer: Peer, pool: Option<&Share>) -> Result<Vec<PeerRoute>> {
        let Some(share) = pool else { return Ok(Vec::new()) };
        let way = self.host.way_to(peer.address)?;
        if let Some(router) = way.via {
            return Err(Error::refused(
                format!(
                    "the node {} is behind the router {router}, which does not know the containers' addresses",
                    peer.address
                ),
                "`--net macvlan` or a network of the site that both nodes are on works there.",
            ));
        }
        let mut routes = Vec::new();
        for subnet in &share.subnets {
            let via = match (subnet, peer.address, peer.link_local) {
                (IpNet::V4(_), IpAddr::V4(_), _) | (IpNet::V6(_), IpAddr::V6(_), _) => peer.address,
                (IpNet::V6(_), IpAddr::V4(_), Some(link_local)) => link_local.into(),
                _ => continue,
            };
            let block = crate::pool::block(*subnet, peer.address, self.network.per_node);
            routes.push(PeerRoute { block, via, index: way.index });
        }
        Ok(routes)
    }

    fn check_publish(&mut self, asked: &InterfaceSpec) -> Result<()> {
        if asked.publish.is_empty() && !asked.nat {
            return Ok(());
        }
        if let Some(address) = asked.publish.iter().filter_map(|p| p.address).find(|ip| self.host.holder(*ip).is_none())
        {
            return Err(Error::refused(
                format!("publish: {address} is no address of this host"),
                "leave it away: all are taken.",
            ));
        }
        self.host.require_ip_forward(asked.publish.is_empty())
    }
}

/// Reserves the addresses of a plan for a process, and makes the MAC addresses that follow from them.
///
/// # Errors
/// [`Error::AddressUsed`], [`Error::Exhausted`]; what was taken so far is the owner's until it is gone.
pub fn reserve(plan: &mut NetworkPlan, container: &str) -> Result<()> {
    if plan.interfaces.is_empty() {
        return Ok(());
    }
    let owner = lease::Owner::of(corebox_sys::process::id())?;
    let host = HostNetwork::look()?;
    for interface in &mut plan.interfaces {
        let store = lease::Store::of(&interface.network);
        let asked: Vec<IpAddr> = interface.addresses.iter().map(IpNet::addr).collect();
        let wanted = match &interface.pool {
            Some(share) => lease::Wanted::Any(share),
            None => lease::Wanted::These(&asked),
        };
        let taken = store.take(&wanted, &owner, container, |ip| host.holder(ip))?;
        if let Some(share) = &interface.pool {
            let routed = matches!(interface.attachment, Attachment::Routed(_));
            let nets = taken.iter().zip(&share.subnets).map(|(ip, subnet)| {
                let length = if routed { subnet.max_prefix_len() } else { subnet.prefix_len() };
                IpNet::new(*ip, length).unwrap_or((*ip).into())
            });
            interface.addresses = nets.collect();
        }
        let own = matches!(interface.attachment, Attachment::Ipvlan { .. } | Attachment::Phys(_));
        if interface.mac.is_none() && !own {
            interface.mac = interface.addresses.first().map(|net| mac_of(net.addr()));
        }
    }
    Ok(())
}

/// A locally administered MAC address made of an IP address: as unique as that, and the same the next time.
fn mac_of(ip: IpAddr) -> Mac {
    let (second, low) = match ip {
        IpAddr::V4(ip) => (0xc4, u32::from(ip)),
        IpAddr::V6(ip) => (0xc6, u128::from(ip) as u32 ^ (u128::from(ip) >> 32) as u32),
    };
    let [a, b, c, d] = low.to_be_bytes();
    Mac([0x0a, second, a, b, c, d])
}
