//! A routed pair (veth or netkit): the host is the container's only neighbour, and no bridge, no ARP and no netfilter is
//! on the way between containers.
//!
//! Inside: the address alone (/32, /128) and a default route to a router that exists only as a permanent neighbour
//! entry. On the host: a route to the address, and the container's permanent neighbour entry.

use crate::attach::{Attached, Sides, host_link, mac_of, peer_message, veth};
use crate::fast_path::{self, LOCAL_PRIORITY, REMOTE_PRIORITY};
use crate::link::{self, NewLink};
use crate::plan::{InterfacePlan, Routed};
use crate::{Error, Result, address, nat, state};
use corebox_spec::network::Mac;
use corebox_sys::fs;
use ipnet::IpNet;
use netlink_packet_route::link::{InfoData, InfoKind, InfoNetkit, NetkitMode, NetkitPolicy};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The router as the container sees it: link-local, so it collides with nothing.
const ROUTER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const ROUTER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// Makes the pair.
pub(crate) fn pair(sides: &mut Sides<'_>, plan: &InterfacePlan, how: &Routed, host_name: &str) -> Result<()> {
    if how.netkit { netkit(sides, plan, host_name) } else { veth(sides, plan, host_name) }
}

/// A netkit pair in layer 2 mode, so that it is in all else like a veth.
fn netkit(sides: &mut Sides<'_>, plan: &InterfacePlan, host_name: &str) -> Result<()> {
    let inside = NewLink {
        mac: plan.mac,
        mtu: Some(plan.mtu),
        namespace: Some(sides.namespace),
        ..NewLink::new(&plan.name, InfoKind::Netkit)
    };
    let mut settings = vec![
        InfoNetkit::Mode(NetkitMode::L2),
        InfoNetkit::Policy(NetkitPolicy::Pass),
        InfoNetkit::PeerPolicy(NetkitPolicy::Pass),
    ];
    settings.extend(peer_message(inside).map(InfoNetkit::Peer));
    let pair = NewLink {
        mtu: Some(plan.mtu),
        data: Some(InfoData::Netkit(settings)),
        ..NewLink::new(host_name, InfoKind::Netkit)
    };
    link::create(&mut sides.host, pair).map_err(|e| Error::creating("netkit", e))
}

/// Routes and neighbours on both sides, the way to the other nodes, and the fast path.
pub(crate) fn finish(
    sides: &mut Sides<'_>,
    plan: &InterfacePlan,
    how: &Routed,
    host_name: &str,
    index: u32,
    attached: &mut Attached,
) -> Result<()> {
    let host_end = host_link(sides, host_name)?;
    forward_here(host_name)?;
    link::set_up(&mut sides.host, host_end, true, host_name)?;
    let host_mac = mac_of(sides, host_end, host_name)?;
    let mac = plan.mac.unwrap_or(Mac([0; 6]));
    for net in &plan.addresses {
        let ip = net.addr();
        let router = if ip.is_ipv4() { ROUTER_V4 } else { ROUTER_V6 };
        inside_routes(sides, plan, index, ip, router, host_mac)?;
        address::set_neighbour(&mut sides.host, host_end, ip, mac)?;
        address::Route { priority: Some(LOCAL_PRIORITY), ours: true, ..address::Route::to(IpNet::from(ip), host_end) }
            .put(&mut sides.host)?;
    }
    for peer in &how.peers {
        let route = address::Route {
            via: Some(peer.via),
            priority: Some(REMOTE_PRIORITY),
            ours: true,
            ..address::Route::to(peer.block, peer.index)
        };
        state::add(sides.owner, &state::Thing::PeerRoute(*peer))?;
        match route.add(&mut sides.host) {
            Err(error) if error.errno == corebox_sys::Errno::EEXIST => {} // another job's, and the same
            other => other?,
        }
    }
    if how.plain.is_none() {
        hurry(plan, how, host_end, attached)?;
    }
    if plan.nat {
        let outside_of: Vec<IpNet> = plan.pool.iter().flat_map(|share| share.subnets.clone()).collect();
        attached.nat.push(nat::Rules::install(sides.id, plan, &outside_of)?);
    }
    Ok(())
}

/// The default route, by way of a neighbour that nobody has to ask for.
fn inside_routes(
    sides: &mut Sides<'_>,
    plan: &InterfacePlan,
    index: u32,
    ip: IpAddr,
    router: IpAddr,
    host_mac: Mac,
) -> Result<()> {
    address::set_neighbour(&mut sides.inside, index, router, host_mac)?;
    if plan.gateways.iter().any(|gateway| gateway.is_ipv4() == ip.is_ipv4()) {
        return Ok(()); // asked for another one
    }
    let default =
        address::Route { via: Some(router), on_link: true, ..address::Route::to(address::everything(ip), index) };
    match default.add(&mut sides.inside) {
        Err(error) if error.errno == corebox_sys::Errno::EEXIST => Ok(()), // of an earlier interface: that one is the default
        other => Ok(other?),
    }
}

/// What comes out of the container may be routed on; switches of the interface that is ours, not of the host. For IPv6 that
/// took the switch of the whole host until Linux 6.17 (force_forwarding): before, only the fast path goes further.
fn forward_here(host_name: &str) -> Result<()> {
    for (family, switch) in [("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv6", "force_forwarding")] {
        let path = Path::new("/proc/sys/net").join(family).join("conf").join(host_name).join(switch);
        if path.exists() {
            fs::write(path, "1")?;
        }
    }
    Ok(())
}

/// Attaches the programs of the fast path.
fn hurry(plan: &InterfacePlan, how: &Routed, host_end: u32, attached: &mut Attached) -> Result<()> {
    attached.links.push(fast_path::attach_from(host_end)?);
    let mut uplinks: Vec<u32> = how.peers.iter().map(|peer| peer.index).collect();
    uplinks.sort_unstable();
    uplinks.dedup();
    let addresses: Vec<IpAddr> = plan.addresses.iter().map(IpNet::addr).collect();
    for uplink in uplinks {
        attached.links.push(fast_path::attach_to(uplink, host_end, &addresses)?);
    }
    Ok(())
}
