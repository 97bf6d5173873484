//! Addresses, routes and neighbours of interfaces (rtnetlink(7)).

use crate::netlink::{Create, Netlink};
use corebox_spec::network::Mac;
use corebox_sys::{Errno, Result};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Gives an interface an address; IPv6 without duplicate address detection, which would keep it unusable for a second
/// (RFC 4862): where the address comes from, nobody else gets it.
///
/// # Errors
/// EEXIST when it is there, EACCES where IPv6 is turned off for the interface.
pub fn add(netlink: &mut Netlink, index: u32, address: IpNet) -> Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    if let IpNet::V4(net) = address
        && net.prefix_len() < 31
    {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    if address.addr().is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    netlink.change(RouteNetlinkMessage::NewAddress(message), Create::New, "add address", &address.to_string())
}

/// The addresses of one interface, or of all.
///
/// # Errors
/// What the kernel answers.
pub fn list(netlink: &mut Netlink, index: Option<u32>) -> Result<Vec<(u32, IpNet)>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), "list addresses")?;
    let read = |message: RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        // On a point-to-point link, Local is the own address and Address the other end's; IPv6 has only Address.
        let local = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let any = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let net = IpNet::new(local.or(any)?, message.header.prefix_len).ok()?;
        Some((message.header.index, net))
    };
    let all = answers.into_iter().filter_map(read);
    Ok(all.filter(|(of, _)| index.is_none_or(|index| index == *of)).collect())
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// By which router.
    pub via: Option<IpAddr>,
    /// The router is on the link though no address of the interface says so.
    pub on_link: bool,
    /// By which interface.
    pub index: u32,
    /// The source address to prefer.
    pub source: Option<IpAddr>,
    /// Its priority (metric); the lowest wins.
    pub priority: Option<u32>,
    /// Marked as made by corebox ([`PROTOCOL`]).
    pub ours: bool,
}

/// Who made a route (rtnetlink(7), rtm_protocol): a number that nobody has claimed in iproute2's rt_protos.
pub const PROTOCOL: u8 = 203;

/// The network that holds all addresses of the same family.
pub fn everything(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    }
}

impl Route {
    /// To a network, directly by an interface.
    pub fn to(to: IpNet, index: u32) -> Self {
        Self { to, via: None, on_link: false, index, source: None, priority: None, ours: false }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.to.addr());
        message.header.destination_prefix_length = self.to.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = if self.ours { RouteProtocol::from(PROTOCOL) } else { RouteProtocol::Static };
        message.header.scope = if self.via.is_some() { RouteScope::Universe } else { RouteScope::Link };
        message.header.kind = RouteType::Unicast;
        if self.on_link {
            message.header.flags = RouteFlags::Onlink;
        }
        if self.to.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::from(self.to.network())));
        }
        message.attributes.push(RouteAttribute::Oif(self.index));
        message.attributes.extend(self.via.map(|via| RouteAttribute::Gateway(RouteAddress::from(via))));
        message.attributes.extend(self.priority.map(RouteAttribute::Priority));
        message.attributes.extend(self.source.map(|ip| RouteAttribute::PrefSource(RouteAddress::from(ip))));
        message
    }

    /// Adds it.
    ///
    /// # Errors
    /// EEXIST when there is one, ENETUNREACH for a router that cannot be reached.
    pub fn add(&self, netlink: &mut Netlink) -> Result<()> {
        let object = self.describe();
        netlink.change(RouteNetlinkMessage::NewRoute(self.message()), Create::New, "add route", &object)
    }

    /// Adds it in place of one that a dying container's interface still has: the kernel ends namespaces in the background.
    ///
    /// # Errors
    /// As [`Self::add`], without EEXIST.
    pub fn put(&self, netlink: &mut Netlink) -> Result<()> {
        let object = self.describe();
        netlink.change(RouteNetlinkMessage::NewRoute(self.message()), Create::OrReplace, "set route", &object)
    }

    /// Removes it; one that is gone is no error.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(&self, netlink: &mut Netlink) -> Result<()> {
        let object = self.describe();
        let removed =
            netlink.change(RouteNetlinkMessage::DelRoute(self.message()), Create::No, "remove route", &object);
        match removed {
            Err(error) if matches!(error.errno, Errno::ESRCH | Errno::ENODEV) => Ok(()),
            other => other,
        }
    }

    fn describe(&self) -> String {
        match self.via {
            Some(via) => format!("to {} by {via}", self.to),
            None => format!("to {}", self.to),
        }
    }
}

/// By which interface and router the host reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface.
    pub index: u32,
    /// The router; `None`: it is on the link.
    pub via: Option<IpAddr>,
    /// The host's own address there.
    pub source: Option<IpAddr>,
}

/// Asks the kernel for the way to an address (`ip route get`).
///
/// # Errors
/// ENETUNREACH when there is none.
pub fn way_to(netlink: &mut Netlink, to: IpAddr) -> Result<Way> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    let call = "find the way to";
    let answer = netlink.get(RouteNetlinkMessage::GetRoute(message), call, &to.to_string())?;
    let RouteNetlinkMessage::NewRoute(message) = answer else {
        return Err(corebox_sys::Error::new(call, to, Errno::EPROTO));
    };
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let mut way = Way { index: 0, via: None, source: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.index = *index,
            RouteAttribute::Gateway(address) => way.via = ip(address),
            RouteAttribute::PrefSource(address) => way.source = ip(address),
            _ => {}
        }
    }
    Ok(way)
}

/// Says for good which MAC address a neighbour has, so that nobody asks.
///
/// # Errors
/// What the kernel answers.
pub fn set_neighbour(netlink: &mut Netlink, index: u32, ip: IpAddr, mac: Mac) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    let address = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes.push(NeighbourAttribute::Destination(address));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    netlink.change(RouteNetlinkMessage::NewNeighbour(message), Create::OrReplace, "set neighbour", &ip.to_string())
}
