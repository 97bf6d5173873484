//! What was asked of the container's network: the words of `--net`.
//!
//! ```text
//! host | none | netns:PATH | KIND[:OPTION,…] | NETWORK[:OPTION,…]
//! KIND    veth macvlan ipvlan netkit phys sriov (phys and sriov name an interface first: phys:eth1, sriov:eth1,vf=auto)
//! OPTION  parent=IF bridge=BR name=IF address=IP/LEN gateway=IP route=NET[@IP] mac=MAC mtu=N vlan=N dns=IP search=DOMAIN
//!         publish=[IP@]PORT[-PORT_INSIDE][/udp] rate=BITS mode=… vf=N|auto spoofchk=on|off trust=on|off
//!         nat plain bridge private vepa passthru l2 l3 l3s
//! ```

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Longest name of an interface: IFNAMSIZ less the terminating zero (linux/if.h).
pub const MAX_NAME: usize = 15;

/// One `--net`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetArgument {
    /// The host's network.
    Host,
    /// Nothing but a loopback interface.
    None,
    /// A network namespace that somebody prepared.
    Namespace(String),
    /// One more interface in an own network namespace.
    Interface(Box<InterfaceSpec>),
}

/// What kind of interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceKind {
    /// A pair of which one end stays on the host (veth(4)): routed, or with `bridge=` a port of that bridge.
    Veth,
    /// An own MAC address on the wire of its parent.
    Macvlan(MacvlanMode),
    /// An own IP address behind the MAC address of its parent.
    Ipvlan(IpvlanMode),
    /// As veth, with less on the way (Linux 6.7).
    Netkit,
    /// The host's interface itself, as long as the container lives.
    Phys,
    /// A virtual function of an SR-IOV interface.
    Sriov,
    /// One of the site's networks.
    Named(String),
}

/// Who may talk to whom among the macvlans of one parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacvlanMode {
    /// All among each other, inside the kernel.
    #[default]
    Bridge,
    /// Nobody.
    Private,
    /// All, by way of the switch outside (IEEE 802.1Qbg).
    Vepa,
    /// One macvlan takes the whole parent.
    Passthru,
}

/// At which layer an ipvlan works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpvlanMode {
    /// Like a switch, broadcast included.
    #[default]
    L2,
    /// Like a router, without the host's netfilter.
    L3,
    /// Like a router, with the host's netfilter.
    L3s,
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// A port of the host that leads into the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Address of the host; `None`: all.
    pub address: Option<IpAddr>,
    /// Port of the host.
    pub port: u16,
    /// Port in the container.
    pub inside: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// A route of the container besides the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// By which router; `None`: directly on the interface.
    pub via: Option<IpAddr>,
}

/// Settings of a virtual function that only its physical function can make (ip-link(8), `vf`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfSettings {
    /// Which one; `None`: the first free one.
    pub number: Option<u32>,
    /// Refuse frames with other source addresses than its own.
    pub spoofchk: Option<bool>,
    /// Let it ask for promiscuous and multicast modes.
    pub trust: Option<bool>,
}

/// One interface as asked for. What was decided is `net`'s plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceSpec {
    /// What kind.
    pub kind: InterfaceKind,
    /// The network of the site that it belongs to.
    pub network: Option<String>,
    /// The host's interface that it stands on, or that it is.
    pub parent: Option<String>,
    /// The host's bridge (veth).
    pub bridge: Option<String>,
    /// Name inside; `None`: eth0, eth1, ….
    pub name: Option<String>,
    /// Addresses with prefix lengths; empty: one from the network's pool.
    pub addresses: Vec<IpNet>,
    /// Default routers.
    pub gateways: Vec<IpAddr>,
    /// Further routes.
    pub routes: Vec<Route>,
    /// MAC address; `None`: one made of the IP address.
    pub mac: Option<Mac>,
    /// MTU in bytes; `None`: the parent's.
    pub mtu: Option<u32>,
    /// VLAN id (IEEE 802.1Q).
    pub vlan: Option<u16>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domains that short names are looked up in.
    pub search: Vec<String>,
    /// Published ports (veth).
    pub publish: Vec<Publish>,
    /// What the container may send and receive, in bits per second.
    pub rate: Option<u64>,
    /// Hide the container behind the host's address towards the outside (veth).
    pub nat: bool,
    /// Without the fast path (veth).
    pub plain: bool,
    /// The virtual function (sriov).
    pub vf: VfSettings,
}

/// Everything that was asked of one container's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// A prepared network namespace to join.
    pub namespace: Option<String>,
    /// Interfaces in the container's own network namespace, besides loopback.
    pub interfaces: Vec<InterfaceSpec>,
    /// Where the kernel does the work of these interfaces.
    pub cores: NetCores,
    /// CPUs that the container's processes are bound to; `None`: all that corebox may use.
    pub busy: Option<crate::IdSet>,
    /// The address of this node on the network of the nodes, from which its share of a pool follows; `None`: found out.
    pub node: Option<Peer>,
    /// The job's other nodes: their containers must be reachable.
    pub peers: Vec<Peer>,
}

/// A node as others know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// The IPv6 link-local address of the same interface.
    pub link_local: Option<Ipv6Addr>,
}

/// `--net-cores`: which CPUs do the kernel's work (softirq, NAPI, RPS) for the container's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetCores {
    /// Whatever the kernel does by itself.
    #[default]
    Kernel,
    /// CPUs that share a cache with those of the container and are not among them.
    Near,
    /// These.
    Cpus(crate::IdSet),
}

impl FromStr for NetCores {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        match text {
            "kernel" => Ok(Self::Kernel),
            "near" => Ok(Self::Near),
            set => match set.parse::<crate::IdSet>() {
                Ok(cpus) if !cpus.is_empty() => Ok(Self::Cpus(cpus)),
                _ => bad(format!("`{set}` is neither `kernel`, `near` nor a set of CPUs such as 0-3,8")),
            },
        }
    }
}

impl NetworkSpec {
    /// Puts the arguments of `--net` together; none is the host's network.
    ///
    /// # Errors
    /// What does not go together: the host's network, or a prepared one, beside anything else.
    pub fn of(arguments: &[NetArgument]) -> Result<(crate::NetMode, Self), BadNetwork> {
        let mut all = Self::default();
        let mut mode = crate::NetMode::Host;
        for argument in arguments {
            match argument {
                NetArgument::Host | NetArgument::Namespace(_) | NetArgument::None if arguments.len() > 1 => {
                    return bad("`host`, `none` and `netns` stand alone; interfaces may be named several times");
                }
                NetArgument::Host => {}
                NetArgument::None => mode = crate::NetMode::None,
                NetArgument::Namespace(path) => all.namespace = Some(path.clone()),
                NetArgument::Interface(interface) => {
                    mode = crate::NetMode::None;
                    all.interfaces.push((**interface).clone());
                }
            }
        }
        Ok((mode, all))
    }
}

/// Why a word of `--net` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadNetwork(String);

fn bad<T>(text: impl Into<String>) -> Result<T, BadNetwork> {
    Err(BadNetwork(text.into()))
}

impl FromStr for NetArgument {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (word, rest) = text.split_once(':').map_or((text, None), |(word, rest)| (word, Some(rest)));
        match (word, rest) {
            ("host", None) => Ok(Self::Host),
            ("none", None) => Ok(Self::None),
            ("host" | "none", Some(_)) => bad(format!("`{word}` takes no options")),
            ("netns", Some(path)) if path.starts_with('/') => Ok(Self::Namespace(path.to_owned())),
            ("netns", _) => bad("`netns` takes the absolute path of a network namespace: netns:/run/netns/NAME"),
            _ => Ok(Self::Interface(Box::new(InterfaceSpec::parse(word, rest.unwrap_or(""))?))),
        }
    }
}

impl InterfaceSpec {
    /// An interface of this kind about which nothing else was said.
    pub fn new(kind: InterfaceKind) -> Self {
        Self {
            kind,
            network: None,
            parent: None,
            bridge: None,
            name: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            routes: Vec::new(),
            mac: None,
            mtu: None,
            vlan: None,
            dns: Vec::new(),
            search: Vec::new(),
            publish: Vec::new(),
            rate: None,
            nat: false,
            plain: false,
            vf: VfSettings::default(),
        }
    }

    fn parse(word: &str, options: &str) -> Result<Self, BadNetwork> {
        let kind = match word {
            "veth" => InterfaceKind::Veth,
            "macvlan" => InterfaceKind::Macvlan(MacvlanMode::default()),
            "ipvlan" => InterfaceKind::Ipvlan(IpvlanMode::default()),
            "netkit" => InterfaceKind::Netkit,
            "phys" => InterfaceKind::Phys,
            "sriov" => InterfaceKind::Sriov,
            name => InterfaceKind::Named(checked_network(name)?),
        };
        let mut words = options.split(',').filter(|word| !word.is_empty());
        let mut spec = Self::new(kind);
        if matches!(spec.kind, InterfaceKind::Phys | InterfaceKind::Sriov) {
            let Some(parent) = words.next().filter(|word| !word.contains('=')) else {
                return bad(format!("`{word}` names an interface of the host first: {word}:eth1"));
            };
            spec.parent = Some(checked_name(parent)?);
        }
        for word in words {
            spec.option(word)?;
        }
        spec.check()
    }

    /// Takes one option.
    fn option(&mut self, text: &str) -> Result<(), BadNetwork> {
        let Some((name, value)) = text.split_once('=') else { return self.flag(text) };
        if value.is_empty() {
            return bad(format!("`{name}=` has no value"));
        }
        match name {
            "parent" => self.parent = Some(checked_name(value)?),
            "bridge" => self.bridge = Some(checked_name(value)?),
            "name" => self.name = Some(checked_name(value)?),
            "address" | "ip" => self.addresses.push(address(value)?),
            "gateway" => self.gateways.push(number(name, value)?),
            "route" => self.routes.push(route(value)?),
            "mac" => self.mac = Some(value.parse()?),
            "mtu" => self.mtu = Some(ranged(name, value, 68, 65_535)?),
            "vlan" => self.vlan = Some(ranged(name, value, 1, 4094)? as u16),
            "dns" => self.dns.push(number(name, value)?),
            "search" => self.search.push(domain(value)?),
            "publish" => self.publish.push(value.parse()?),
            "rate" => self.rate = Some(parse_rate(value)?),
            "vf" if value == "auto" => self.vf.number = None,
            "vf" => self.vf.number = Some(ranged(name, value, 0, 65_535)?),
            "spoofchk" => self.vf.spoofchk = Some(switch(name, value)?),
            "trust" => self.vf.trust = Some(switch(name, value)?),
            "mode" => self.flag(value)?,
            _ => {
                return bad(format!(
                    "`{name}` is no option of a network; there are parent, bridge, name, address, gateway, route, mac, mtu, vlan, dns, search, publish, rate, mode, vf, spoofchk, trust, nat and plain"
                ));
            }
        }
        Ok(())
    }

    fn flag(&mut self, word: &str) -> Result<(), BadNetwork> {
        match (&mut self.kind, word) {
            (InterfaceKind::Macvlan(mode), "bridge") => *mode = MacvlanMode::Bridge,
            (InterfaceKind::Macvlan(mode), "private") => *mode = MacvlanMode::Private,
            (InterfaceKind::Macvlan(mode), "vepa") => *mode = MacvlanMode::Vepa,
            (InterfaceKind::Macvlan(mode), "passthru") => *mode = MacvlanMode::Passthru,
            (InterfaceKind::Ipvlan(mode), "l2") => *mode = IpvlanMode::L2,
            (InterfaceKind::Ipvlan(mode), "l3") => *mode = IpvlanMode::L3,
            (InterfaceKind::Ipvlan(mode), "l3s") => *mode = IpvlanMode::L3s,
            (InterfaceKind::Veth | InterfaceKind::Netkit | InterfaceKind::Named(_), "nat") => self.nat = true,
            (InterfaceKind::Veth | InterfaceKind::Netkit | InterfaceKind::Named(_), "plain") => self.plain = true,
            (kind, word) => return bad(format!("`{word}` says nothing about {kind}")),
        }
        Ok(())
    }

    /// What does not go together.
    ///
    /// # Errors
    /// In words.
    pub fn check(self) -> Result<Self, BadNetwork> {
        let kind = &self.kind;
        let named = matches!(kind, InterfaceKind::Named(_));
        let pair = matches!(kind, InterfaceKind::Veth | InterfaceKind::Netkit);
        if self.bridge.is_some() && *kind != InterfaceKind::Veth && !named {
            return bad(format!("`bridge=` is for veth, not for {kind}"));
        }
        if !self.publish.is_empty() && !pair && !named {
            return bad(format!("`publish=` is for veth; {kind} is on the wire with its own address"));
        }
        if (!self.publish.is_empty() || self.nat) && self.bridge.is_some() {
            return bad("`publish=` and `nat` are for a routed veth: who made the bridge translates its addresses");
        }
        let vf = self.vf != VfSettings::default();
        if vf && *kind != InterfaceKind::Sriov && !named {
            return bad(format!("`vf=`, `spoofchk=` and `trust=` are for sriov, not for {kind}"));
        }
        if named && (self.parent.is_some() || self.bridge.is_some() || self.vlan.is_some()) {
            return bad(format!(
                "where the network `{kind}` is plugged in is the site's to say (parent, bridge, vlan)"
            ));
        }
        if self.parent.is_some() && pair {
            return bad(format!("{kind} has no parent; `bridge=` names what it is plugged into"));
        }
        Ok(self)
    }
}

impl fmt::Display for InterfaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Veth => "veth",
            Self::Macvlan(_) => "macvlan",
            Self::Ipvlan(_) => "ipvlan",
            Self::Netkit => "netkit",
            Self::Phys => "phys",
            Self::Sriov => "sriov",
            Self::Named(name) => name,
        })
    }
}

impl FromStr for Mac {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let wrong = || BadNetwork(format!("`{text}` is no MAC address such as 02:00:00:00:00:01"));
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return bad(format!(
                "`{text}` is no address of one station: its first byte must be even, and not all zero"
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = BadNetwork;

    fn try_from(text: String) -> Result<Self, BadNetwork> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl FromStr for Publish {
    type Err = BadNetwork;

    /// `[IP@]PORT[-PORT_INSIDE][/udp|/tcp]`.
    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (ports, udp) = match text.rsplit_once('/') {
            Some((ports, "udp")) => (ports, true),
            Some((ports, "tcp")) => (ports, false),
            Some((_, other)) => return bad(format!("`{other}` is no protocol: tcp or udp")),
            None => (text, false),
        };
        let (address, ports) = match ports.rsplit_once('@') {
            Some((address, ports)) => (Some(number("publish", address)?), ports),
            None => (None, ports),
        };
        let (outside, inside) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text| ranged("publish", text, 1, 65_535).map(|port| port as u16);
        Ok(Self { address, port: port(outside)?, inside: port(inside)?, udp })
    }
}

/// Refuses what the kernel refuses as the name of an interface (dev_valid_name), and what would break a path or a list.
///
/// # Errors
/// In words.
pub fn checked_name(name: &str) -> Result<String, BadNetwork> {
    if name.len() > MAX_NAME {
        return bad(format!(
            "`{name}` is too long for the name of an interface: {} characters, {MAX_NAME} are allowed",
            name.len()
        ));
    }
    let good = !name.is_empty()
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if good {
        Ok(name.to_owned())
    } else {
        bad(format!("`{name}` is no name of an interface (letters, digits, `-`, `_`, `.`)"))
    }
}

/// The name of a site's network is also that of a file.
fn checked_network(name: &str) -> Result<String, BadNetwork> {
    let good = !name.is_empty()
        && name.len() <= 64
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if good {
        Ok(name.to_owned())
    } else {
        bad(format!(
            "`{name}` is neither a kind of network (host, none, veth, macvlan, ipvlan, netkit, phys, sriov, netns) nor a name"
        ))
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, BadNetwork> {
    value.parse().map_err(|_| BadNetwork(format!("{name}: `{value}` is no address")))
}

fn ranged(name: &str, value: &str, low: u32, high: u32) -> Result<u32, BadNetwork> {
    let wrong = || BadNetwork(format!("{name}: `{value}` is no number from {low} to {high}"));
    value.parse().ok().filter(|n| (low..=high).contains(n)).ok_or_else(wrong)
}

fn switch(name: &str, value: &str) -> Result<bool, BadNetwork> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => bad(format!("{name}: `{value}` is neither `on` nor `off`")),
    }
}

/// An address of one station with its prefix length, such as 10.1.2.3/24.
fn address(value: &str) -> Result<IpNet, BadNetwork> {
    let Ok(net) = value.parse::<IpNet>() else {
        return bad(format!("address: `{value}` is no address with a prefix length, such as 10.1.2.3/24"));
    };
    let ip = net.addr();
    let whole = net.prefix_len() == net.max_prefix_len();
    let useless = ip.is_unspecified() || ip.is_multicast() || ip.is_loopback();
    let borders =
        net.addr().is_ipv4() && net.prefix_len() < 31 && !whole && (ip == net.network() || ip == net.broadcast());
    if useless || borders {
        return bad(format!("address: {ip} is not the address of a station in {}", net.trunc()));
    }
    Ok(net)
}

fn route(value: &str) -> Result<Route, BadNetwork> {
    let (to, via) = value.split_once('@').map_or((value, None), |(to, via)| (to, Some(via)));
    let Ok(to) = to.parse::<IpNet>() else {
        return bad(format!("route: `{to}` is no network, as in route=10.2.0.0/16@10.1.0.1"));
    };
    let via = via.map(|via| number::<IpAddr>("route", via)).transpose()?;
    if via.is_some_and(|via| via.is_ipv4() != to.addr().is_ipv4()) {
        return bad(format!("route: `{value}` mixes IPv4 and IPv6"));
    }
    Ok(Route { to: to.trunc(), via })
}

fn domain(value: &str) -> Result<String, BadNetwork> {
    let good = value.len() <= 253 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if good { Ok(value.to_owned()) } else { bad(format!("search: `{value}` is no domain")) }
}

/// Bits per second with a decimal suffix: `10g`, `250m`, `64k`, with or without `bit`.
///
/// # Errors
/// In words.
pub fn parse_rate(text: &str) -> Result<u64, BadNetwork> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix("bit").unwrap_or(&lower);
    let (digits, factor) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1_000),
        Some(b'm') => (&lower[..lower.len() - 1], 1_000_000),
        Some(b'g') => (&lower[..lower.len() - 1], 1_000_000_000),
        _ => (lower, 1),
    };
    let rate = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|bits| *bits >= 8_000);
    rate.ok_or_else(|| {
        BadNetwork(format!("rate: `{text}` is no number of bits per second such as 10g or 250m (at least 8k)"))
    })
}

#[cfg(test)]
mod tests;
