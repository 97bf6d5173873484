//! Interfaces of the host that a container has for a while: phys, and the virtual functions of SR-IOV.
//!
//! An interface whose network namespace ends goes to the first namespace of the kernel if it is hardware, without its
//! name and addresses, and is destroyed if it is not (kernel: default_device_exit_net). So it is brought home while the
//! namespace is still held; what a crash prevented, [`restore`] mends when it is home.

use crate::attach::{Sides, host_link};
use crate::lease::Owner;
use crate::link::{self, Link};
use crate::netlink::Netlink;
use crate::plan::InterfacePlan;
use crate::state::{self, Borrowed, Thing};
use crate::{Error, Result, address};
use corebox_sys::Errno;
use corebox_sys::netns::NetworkNamespace;
use netlink_packet_route::link::LinkAttribute;
use std::net::IpAddr;

/// Refuses what must not leave the host.
///
/// # Errors
/// [`Error::WrongInterface`].
pub fn check(link: &Link) -> Result<()> {
    let wrong = |what: &str| Err(Error::WrongInterface { name: link.name.clone(), what: what.to_owned() });
    if link.name == "lo" {
        return wrong("is the loopback interface: every namespace has its own");
    }
    if link.controller.is_some() {
        return wrong("belongs to a bridge or bond: take it out first");
    }
    match link.kind.as_deref() {
        Some(kind @ ("bridge" | "bond" | "vxlan" | "wireguard" | "ip6tnl" | "ipip" | "sit")) => {
            wrong(&format!("is a {kind}, not an interface that can be lent"))
        }
        _ => Ok(()),
    }
}

/// Moves an interface into the container, and remembers how it was.
pub(crate) fn lend(sides: &mut Sides<'_>, name: &str, plan: &InterfacePlan) -> Result<()> {
    let index = host_link(sides, name)?;
    let gone = || corebox_sys::Error::new("look up interface", name, Errno::ENODEV);
    let was = link::find_index(&mut sides.host, index)?.ok_or_else(gone)?;
    let addresses = address::list(&mut sides.host, Some(index))?.into_iter().map(|(_, net)| net);
    let borrowed = Borrowed {
        name: name.to_owned(),
        inside: plan.name.clone(),
        mac: was.mac,
        mtu: was.mtu,
        up: was.up,
        addresses: addresses.filter(|net| !is_link_local(net.addr())).collect(),
    };
    state::add(sides.owner, &Thing::Borrowed(borrowed))?;
    link::move_to(&mut sides.host, index, sides.namespace, &plan.name)?;
    let index = crate::attach::inside_index(sides, &plan.name)?;
    let mut change = Vec::new();
    if plan.mtu != was.mtu {
        change.push(LinkAttribute::Mtu(plan.mtu));
    }
    if let Some(mac) = plan.mac.filter(|mac| Some(*mac) != was.mac) {
        change.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    if !change.is_empty() {
        link::set(&mut sides.inside, index, change, "change MTU or MAC address of interface", &plan.name)?;
    }
    Ok(())
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Brings everything home that a container has borrowed. What cannot be brought stays on the list.
pub fn give_back(owner: &Owner, namespace: &NetworkNamespace) {
    for thing in state::of(owner) {
        let Thing::Borrowed(borrowed) = &thing else { continue };
        if bring_home(borrowed, namespace).is_ok() {
            state::drop_things(owner, |other| *other == thing);
        }
    }
}

fn bring_home(borrowed: &Borrowed, namespace: &NetworkNamespace) -> Result<()> {
    let home = NetworkNamespace::current()?;
    let (mut inside, mut outside) = (Netlink::open_in(namespace)?, Netlink::open()?);
    // A VLAN on top was given its name, and it the name with a `u`.
    for name in [format!("{}u", &borrowed.inside[..borrowed.inside.len().min(14)]), borrowed.inside.clone()] {
        let Some(link) = link::find(&mut inside, &name)? else { continue };
        if link.kind.as_deref() == Some("vlan") {
            continue;
        }
        link::set_up(&mut inside, link.index, false, &name)?;
        link::move_to(&mut inside, link.index, &home, &borrowed.name)?;
        break;
    }
    restore(&mut outside, borrowed)
}

/// Makes an interface that is home what it was: name, MAC address, MTU, addresses, up.
///
/// # Errors
/// It is not home, or the kernel refuses.
pub fn restore(netlink: &mut Netlink, borrowed: &Borrowed) -> Result<()> {
    let by_name = link::find(netlink, &borrowed.name)?;
    let link = match by_name {
        Some(link) => link,
        None => {
            let same = |link: &Link| link.mac.is_some() && link.mac == borrowed.mac && link.kind.is_none();
            let found = link::list(netlink)?.into_iter().find(same);
            found.ok_or_else(|| corebox_sys::Error::new("find the lent interface", &borrowed.name, Errno::ENODEV))?
        }
    };
    let mut change = Vec::new();
    if link.name != borrowed.name {
        change.push(LinkAttribute::IfName(borrowed.name.clone()));
    }
    if link.mtu != borrowed.mtu {
        change.push(LinkAttribute::Mtu(borrowed.mtu));
    }
    if let Some(mac) = borrowed.mac.filter(|mac| link.mac != Some(*mac)) {
        change.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    if !change.is_empty() {
        link::set(netlink, link.index, change, "restore interface", &borrowed.name)?;
    }
    link::set_up(netlink, link.index, borrowed.up, &borrowed.name)?;
    for net in &borrowed.addresses {
        match address::add(netlink, link.index, *net) {
            Err(error) if error.errno == Errno::EEXIST => {}
            other => other?,
        }
    }
    Ok(())
}
