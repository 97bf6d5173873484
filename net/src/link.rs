//! Interfaces: look up, create, change, move, delete (rtnetlink(7), ip-link(8)).

use crate::netlink::{Create, Netlink};
use corebox_spec::network::Mac;
use corebox_sys::netns::NetworkNamespace;
use corebox_sys::{Errno, Error, Result};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State, Stats64,
};
use std::os::fd::{AsFd, AsRawFd};

/// What the kernel says of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its network namespace.
    pub index: u32,
    /// Its name there.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// MAC address, where it has one.
    pub mac: Option<Mac>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether its carrier is there and it can be used.
    pub operational: bool,
    /// veth, bridge, macvlan, …; `None`: hardware.
    pub kind: Option<String>,
    /// The bridge or bond that it belongs to.
    pub controller: Option<u32>,
    /// Largest segment that it takes for TCP segmentation by itself, in bytes.
    pub tso_max: Option<u32>,
    /// Counters.
    pub counters: Counters,
}

/// Packets and bytes as the host's end or the interface itself has counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Counters {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

impl Link {
    fn read(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            operational: message.header.flags.contains(LinkFlags::Running),
            kind: None,
            controller: None,
            tso_max: None,
            counters: Counters::default(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name.clone(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::OperState(State::Up) => link.operational = true,
                LinkAttribute::TsoMaxSize(size) => link.tso_max = Some(*size),
                LinkAttribute::Stats64(stats) => link.counters = Counters::read(stats),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

impl Counters {
    fn read(stats: &Stats64) -> Self {
        Self {
            rx_packets: stats.rx_packets,
            rx_bytes: stats.rx_bytes,
            rx_errors: stats.rx_errors,
            rx_dropped: stats.rx_dropped,
            tx_packets: stats.tx_packets,
            tx_bytes: stats.tx_bytes,
            tx_errors: stats.tx_errors,
            tx_dropped: stats.tx_dropped,
        }
    }
}

/// A new interface, with where it shall be born.
pub struct NewLink<'a> {
    /// Its name where it is born.
    pub name: &'a str,
    /// Its kind in the kernel's words.
    pub kind: InfoKind,
    /// Its kind's settings.
    pub data: Option<InfoData>,
    /// Index of its parent in the socket's namespace.
    pub parent: Option<u32>,
    /// The namespace it is born in; `None`: the socket's.
    pub namespace: Option<&'a NetworkNamespace>,
    /// Its number; `None`: the next one.
    pub index: Option<u32>,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Option<u32>,
    /// Further attributes.
    pub more: Vec<LinkAttribute>,
}

impl<'a> NewLink<'a> {
    /// One of this kind about which nothing else is said.
    pub fn new(name: &'a str, kind: InfoKind) -> Self {
        Self {
            name,
            kind,
            data: None,
            parent: None,
            namespace: None,
            index: None,
            mac: None,
            mtu: None,
            more: Vec::new(),
        }
    }

    fn attributes(&self) -> Vec<LinkAttribute> {
        let mut all = vec![LinkAttribute::IfName(self.name.to_owned())];
        all.extend(self.mtu.map(LinkAttribute::Mtu));
        all.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        all.extend(self.namespace.map(|ns| LinkAttribute::NetNsFd(ns.as_fd().as_raw_fd())));
        all.extend(self.parent.map(LinkAttribute::Link));
        all.extend(self.more.iter().cloned());
        all
    }

    /// As the other end of a pair.
    pub fn into_peer(self) -> InfoVeth {
        let mut message = LinkMessage::default();
        message.header.index = self.index.unwrap_or(0);
        message.attributes = self.attributes();
        InfoVeth::Peer(message)
    }
}

/// Creates an interface.
///
/// # Errors
/// EEXIST for a name that is taken, EOPNOTSUPP for a kind that the kernel does not have, EPERM.
pub fn create(netlink: &mut Netlink, new: NewLink<'_>) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = new.index.unwrap_or(0);
    message.attributes = new.attributes();
    let object = format!("{} ({})", new.name, new.kind);
    let mut infos = vec![LinkInfo::Kind(new.kind)];
    infos.extend(new.data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(infos));
    netlink.change(RouteNetlinkMessage::NewLink(message), Create::New, "create interface", &object)
}

/// The interface of this name; `None`: there is none.
///
/// # Errors
/// What the kernel answers besides.
pub fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    one(netlink, message, name)
}

/// The interface of this number; `None`: there is none.
///
/// # Errors
/// What the kernel answers besides.
pub fn find_index(netlink: &mut Netlink, index: u32) -> Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    one(netlink, message, &format!("number {index}"))
}

fn one(netlink: &mut Netlink, message: LinkMessage, object: &str) -> Result<Option<Link>> {
    match netlink.get(RouteNetlinkMessage::GetLink(message), "look up interface", object) {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::read(&message))),
        Ok(_) => Err(Error::new("look up interface", object, Errno::EPROTO)),
        Err(error) if error.errno == Errno::ENODEV => Ok(None),
        Err(error) => Err(error),
    }
}

/// All interfaces of the socket's namespace.
///
/// # Errors
/// What the kernel answers.
pub fn list(netlink: &mut Netlink) -> Result<Vec<Link>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), "list interfaces")?;
    let link = |message: RouteNetlinkMessage| match message {
        RouteNetlinkMessage::NewLink(message) => Some(Link::read(&message)),
        _ => None,
    };
    Ok(answers.into_iter().filter_map(link).collect())
}

/// Changes attributes of an interface.
///
/// # Errors
/// What the kernel answers.
pub fn set(
    netlink: &mut Netlink,
    index: u32,
    attributes: Vec<LinkAttribute>,
    call: &'static str,
    name: &str,
) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::SetLink(message), Create::No, call, name)
}

/// Brings it up or takes it down.
///
/// # Errors
/// What the kernel answers.
pub fn set_up(netlink: &mut Netlink, index: u32, up: bool, name: &str) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    let call = if up { "set up interface" } else { "set down interface" };
    netlink.change(RouteNetlinkMessage::SetLink(message), Create::No, call, name)
}

/// Moves it to another network namespace under a name; it comes there down and without addresses.
///
/// # Errors
/// EEXIST when the name is taken there, EINVAL for one that is bound to its namespace.
pub fn move_to(netlink: &mut Netlink, index: u32, namespace: &NetworkNamespace, name: &str) -> Result<()> {
    let attributes =
        vec![LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()), LinkAttribute::IfName(name.to_owned())];
    set(netlink, index, attributes, "move interface to another network namespace", name)
}

/// Removes it; one that is gone is no error.
///
/// # Errors
/// EOPNOTSUPP for hardware.
pub fn delete(netlink: &mut Netlink, index: u32, name: &str) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    match netlink.change(RouteNetlinkMessage::DelLink(message), Create::No, "delete interface", name) {
        Err(error) if error.errno == Errno::ENODEV => Ok(()),
        other => other,
    }
}
