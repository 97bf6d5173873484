//! What the host's network is: interfaces, addresses, ways. Read once per decision.

use crate::link::Link;
use crate::netlink::Netlink;
use crate::plan::PeerRoute;
use crate::{Error, Result, address, link};
use corebox_spec::network::Peer;
use corebox_sys::fs;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The network namespace that we are in.
pub struct HostNetwork {
    netlink: Netlink,
    links: Vec<Link>,
    addresses: Vec<(u32, IpNet)>,
    /// Whether IPv6 is on.
    pub has_ipv6: bool,
}

/// Somewhere outside, to ask the kernel for its default way (RFC 5737: nobody's).
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
/// MTU of Ethernet, where nothing says otherwise.
const ETHERNET_MTU: u32 = 1500;

impl HostNetwork {
    /// Looks.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn look() -> Result<Self> {
        let mut netlink = Netlink::open()?;
        let links = link::list(&mut netlink)?;
        let addresses = address::list(&mut netlink, None)?;
        let off = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").ok();
        let has_ipv6 = off.is_some_and(|value| value.trim() == "0");
        Ok(Self { netlink, links, addresses, has_ipv6 })
    }

    /// The interface of this name.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`], with those there are.
    pub fn link(&self, name: &str) -> Result<&Link> {
        self.links.iter().find(|link| link.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.links.iter().map(|link| link.name.as_str()).collect();
            Error::UnknownInterface { name: name.to_owned(), there: names.join(", ") }
        })
    }

    /// Who has this address already.
    pub fn holder(&self, ip: IpAddr) -> Option<String> {
        let (index, _) = self.addresses.iter().find(|(_, net)| net.addr() == ip)?;
        let name = self.links.iter().find(|link| link.index == *index).map_or("?", |link| &link.name);
        Some(format!("the host's interface `{name}`"))
    }

    /// The interface that leads outside: that of the default route, else the only one that is up.
    ///
    /// # Errors
    /// There are several, or none.
    pub fn uplink(&mut self) -> Result<&Link> {
        let index = match self.way_to(OUTSIDE) {
            Ok(way) => Some(way.index),
            Err(_) => {
                let up: Vec<u32> = self.candidates().map(|link| link.index).collect();
                if up.len() == 1 { Some(up[0]) } else { None }
            }
        };
        let link = index.and_then(|index| self.links.iter().find(|link| link.index == index));
        link.ok_or_else(|| {
            let names: Vec<&str> = self.candidates().map(|link| link.name.as_str()).collect();
            Error::refused(
                format!(
                    "it is not clear which interface leads outside: there is no default route, and there are {}",
                    if names.is_empty() { "none".into() } else { names.join(", ") }
                ),
                "say it: `parent=IF`.",
            )
        })
    }

    fn candidates(&self) -> impl Iterator<Item = &Link> {
        let has_address = |index: u32| self.addresses.iter().any(|(of, net)| *of == index && is_global(net.addr()));
        self.links.iter().filter(move |link| link.up && link.name != "lo" && has_address(link.index))
    }

    /// The host's own address towards the outside, else its first one, else the loopback address (a host without a net).
    pub fn node_address(&mut self) -> IpAddr {
        let outside = self.way_to(OUTSIDE).ok().and_then(|way| way.source);
        let first = || self.addresses.iter().map(|(_, net)| net.addr()).find(|ip| is_global(*ip));
        outside.or_else(first).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// By which interface and router an address is reached.
    ///
    /// # Errors
    /// ENETUNREACH.
    pub fn way_to(&mut self, to: IpAddr) -> Result<address::Way> {
        Ok(address::way_to(&mut self.netlink, to)?)
    }

    /// The MTU of the interface that leads to an address (our own address: that of its interface).
    pub fn mtu_towards(&mut self, to: IpAddr) -> u32 {
        let own = self.addresses.iter().find(|(_, net)| net.addr() == to).map(|(index, _)| *index);
        let index = own.or_else(|| self.way_to(to).ok().map(|way| way.index));
        let link = self.links.iter().find(|link| Some(link.index) == index && link.name != "lo");
        link.map_or(ETHERNET_MTU, |link| link.mtu)
    }

    /// Refuses a pool that overlaps with what the host has.
    ///
    /// # Errors
    /// [`Error::Overlap`].
    pub fn check_overlap(&self, subnets: &[IpNet]) -> Result<()> {
        for (index, theirs) in &self.addresses {
            let theirs = theirs.trunc();
            if let Some(ours) = subnets.iter().find(|ours| ours.contains(&theirs) || theirs.contains(*ours)) {
                let name = self.links.iter().find(|link| link.index == *index).map_or("?", |link| &link.name);
                return Err(Error::Overlap { ours: *ours, theirs, interface: name.to_owned() });
            }
        }
        Ok(())
    }

    /// Without the fast path the kernel forwards what comes from other nodes, if it is allowed to.
    ///
    /// # Errors
    /// The switch that is off. It is the administrator's: it concerns more than this container.
    pub fn require_forwarding(&self, peers: &[PeerRoute]) -> Result<()> {
        for peer in peers {
            let Some(link) = self.links.iter().find(|link| link.index == peer.index) else { continue };
            // IPv6 has one switch for all interfaces.
            let switch = match peer.block.addr() {
                IpAddr::V4(_) => format!("net/ipv4/conf/{}/forwarding", link.name),
                IpAddr::V6(_) => "net/ipv6/conf/all/forwarding".to_owned(),
            };
            require_switch(&switch, "packets of other nodes are not forwarded to containers")?;
        }
        Ok(())
    }

    /// Address translation needs a host that forwards.
    ///
    /// # Errors
    /// As [`Self::require_forwarding`].
    pub fn require_ip_forward(&self, nat: bool) -> Result<()> {
        let what = if nat { "`nat`" } else { "`publish=`" };
        require_switch("net/ipv4/ip_forward", &format!("{what} needs a host that forwards packets"))
    }
}

fn require_switch(path: &str, why: &str) -> Result<()> {
    let value = fs::read_to_string(Path::new("/proc/sys").join(path))?;
    if value.trim() != "0" {
        return Ok(());
    }
    let name = path.replace('/', ".");
    Err(Error::refused(
        format!("{why}: sysctl {name} is 0"),
        format!("your administrator allows it: sysctl -w {name}=1"),
    ))
}

/// An address that others may know us by.
fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !is_link_local(ip) && !ip.is_unspecified(),
    }
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

/// The addresses of this node that peers may know it by, IPv4 first, each with the link-local one of its interface.
///
/// # Errors
/// What the kernel answers.
pub fn node_addresses() -> Result<Vec<Peer>> {
    let mut host = HostNetwork::look()?;
    let preferred = host.node_address();
    let link_local = |index: u32| {
        host.addresses.iter().find_map(|(of, net)| match net.addr() {
            IpAddr::V6(ip) if *of == index && is_link_local(ip) => Some(ip),
            _ => None,
        })
    };
    let global = host.addresses.iter().filter(|(_, net)| is_global(net.addr()));
    let mut all: Vec<Peer> =
        global.map(|(index, net)| Peer { address: net.addr(), link_local: link_local(*index) }).collect();
    all.sort_by_key(|peer| (peer.address.is_ipv6(), peer.address != preferred));
    Ok(all)
}
