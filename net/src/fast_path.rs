//! The fast path of a routed veth: two eBPF programs that carry a packet past the host's network stack.
//!
//! ```text
//! container A                    host                                     container B
//!   eth0 ──veth──> [from container: whose is the address?] ──redirect_peer──> eth0      same node
//!                                   │
//!                                   └─redirect_neigh──> uplink ~~~ wire ~~~>            another node
//!   eth0 <──redirect_peer── [to container: is it A's?] <── uplink <~~~
//! ```
//!
//! *From container* asks the kernel's routing table and takes only routes that corebox made, which it knows by their
//! priorities; so the table is the one truth, and everything else (the host itself, the outside, published ports) goes
//! the ordinary way with netfilter and all. *To container* compares the destination with the container's addresses,
//! which are constants in the program. Neither has a map, so neither has state. docs/design/network-fast-path.md has the
//! measurements.

use crate::Result;
use crate::assembler::{Assembler, Width};
use corebox_sys::tcx::{Instruction, Link, Program};
use std::net::IpAddr;

/// Priority (metric) of the route to a container of this host: where `redirect_peer` leads.
pub const LOCAL_PRIORITY: u32 = 0xc0be;
/// Priority of the route to another node's containers: where `redirect_neigh` leads.
pub const REMOTE_PRIORITY: u32 = 0xc0bf;

/// `TCX_NEXT` of linux/bpf.h: go on with the next program or the stack.
const NEXT: i32 = -1;
/// Helpers, by their numbers in linux/bpf.h.
const FIB_LOOKUP: i32 = 69;
const REDIRECT_NEIGH: i32 = 152;
const REDIRECT_PEER: i32 = 155;
/// `BPF_FIB_LOOKUP_DIRECT | BPF_FIB_LOOKUP_SKIP_NEIGH`: the main table, without asking for the neighbour's MAC address.
const LOOKUP_FLAGS: i32 = 1 | 4;
/// Ether types as `skb->protocol` has them, in the packet's byte order.
const IPV4: i32 = 0x0800u16.to_be() as i32;
const IPV6: i32 = 0x86ddu16.to_be() as i32;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
/// Offsets in struct __sk_buff.
const SKB_PROTOCOL: i16 = 16;
const SKB_INGRESS_IFINDEX: i16 = 36;
/// Offsets in an Ethernet frame without a VLAN tag (tags are in the skb beside it).
const IPV4_SOURCE: i32 = 14 + 12;
const IPV4_DESTINATION: i32 = 14 + 16;
const IPV6_SOURCE: i32 = 14 + 8;
const IPV6_DESTINATION: i32 = 14 + 24;
/// struct bpf_fib_lookup on the stack, and offsets in it.
const LOOKUP: i16 = -64;
const LOOKUP_SIZE: i16 = 64;
const FAMILY: i16 = 0;
const IFINDEX: i16 = 8;
/// In: type of service or flow label; out: the route's priority.
const PRIORITY: i16 = 12;
const SOURCE: i16 = 16;
const DESTINATION: i16 = 32;
/// struct bpf_redir_neigh on the stack: family, address of the next hop.
const NEXT_HOP: i16 = -88;
const NEXT_HOP_SIZE: i32 = 20;

/// Why this host has no fast path; `None`: it has one. Found by loading a program, as everything else would be a guess.
pub fn missing() -> Option<String> {
    if cfg!(target_endian = "big") {
        return Some("the fast path is written for little endian machines".to_owned());
    }
    let probe = Program::for_ingress("corebox_from", &from_container()).map(drop);
    probe.err().map(|error| match error.errno {
        corebox_sys::Errno::EPERM => "eBPF needs CAP_BPF in the initial user namespace".to_owned(),
        _ => error.to_string(),
    })
}

/// Attaches the program for what a container sends, at the host's end of its pair.
///
/// # Errors
/// What bpf(2) says.
pub fn attach_from(host_end: u32) -> Result<Link> {
    Ok(Program::for_ingress("corebox_from", &from_container())?.attach(host_end)?)
}

/// Attaches the program for what arrives for a container, at an uplink of the host.
///
/// # Errors
/// What bpf(2) says.
pub fn attach_to(uplink: u32, host_end: u32, addresses: &[IpAddr]) -> Result<Link> {
    Ok(Program::for_ingress("corebox_to", &to_container(host_end, addresses))?.attach(uplink)?)
}

/// Sends what is for other containers on its way.
fn from_container() -> Vec<Instruction> {
    let mut a = Assembler::default();
    a.copy(6, 1).load(Width::Word, 7, 6, SKB_PROTOCOL);
    for offset in (0..LOOKUP_SIZE).step_by(8) {
        a.store_constant(Width::Double, 10, LOOKUP + offset, 0);
    }
    a.load(Width::Word, 8, 6, SKB_INGRESS_IFINDEX).store(Width::Word, 10, LOOKUP + IFINDEX, 8);
    a.if_equal(7, IPV6, "ipv6").unless_equal(7, IPV4, "next");
    a.store_constant(Width::Byte, 10, LOOKUP + FAMILY, AF_INET);
    keep_words(&mut a, IPV4_SOURCE, LOOKUP + SOURCE, 1);
    keep_words(&mut a, IPV4_DESTINATION, LOOKUP + DESTINATION, 1);
    a.set(9, AF_INET).jump("lookup");
    a.label("ipv6").store_constant(Width::Byte, 10, LOOKUP + FAMILY, AF_INET6);
    keep_words(&mut a, IPV6_SOURCE, LOOKUP + SOURCE, 4);
    keep_words(&mut a, IPV6_DESTINATION, LOOKUP + DESTINATION, 4);
    a.set(9, AF_INET6);
    a.label("lookup").copy(1, 6).copy(2, 10).add(2, LOOKUP.into()).set(3, LOOKUP_SIZE.into());
    a.set(4, LOOKUP_FLAGS).call(FIB_LOOKUP).unless_equal(0, 0, "next");
    a.load(Width::Word, 7, 10, LOOKUP + PRIORITY).load(Width::Word, 8, 10, LOOKUP + IFINDEX);
    a.unless_equal(7, LOCAL_PRIORITY as i32, "remote");
    a.copy(1, 8).set(2, 0).call(REDIRECT_PEER).exit();
    a.label("remote").unless_equal(7, REMOTE_PRIORITY as i32, "next");
    // The lookup has put the next hop where the destination was.
    a.store(Width::Word, 10, NEXT_HOP, 9);
    for word in 0..4 {
        a.load(Width::Word, 1, 10, LOOKUP + DESTINATION + 4 * word).store(Width::Word, 10, NEXT_HOP + 4 + 4 * word, 1);
    }
    a.copy(1, 8).copy(2, 10).add(2, NEXT_HOP.into()).set(3, NEXT_HOP_SIZE).set(4, 0).call(REDIRECT_NEIGH).exit();
    a.label("next").set(0, NEXT).exit();
    a.finish()
}

/// Copies 32-bit words of the packet to the stack, in the packet's byte order.
fn keep_words(a: &mut Assembler, from: i32, to: i16, count: i16) {
    for word in 0..count {
        a.packet_word(from + 4 * i32::from(word)).swap(0).store(Width::Word, 10, to + 4 * word, 0);
    }
}

/// Hands over what is for these addresses.
fn to_container(host_end: u32, addresses: &[IpAddr]) -> Vec<Instruction> {
    let mut a = Assembler::default();
    a.copy(6, 1).load(Width::Word, 7, 6, SKB_PROTOCOL);
    let v4 = addresses.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(u32::from(*ip)),
        IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().find_map(|ip| match ip {
        IpAddr::V6(ip) => Some(u128::from(*ip)),
        IpAddr::V4(_) => None,
    });
    if let Some(ip) = v4 {
        a.unless_equal(7, IPV4, "not ipv4").packet_word(IPV4_DESTINATION).unless_equal(0, ip as i32, "next");
        a.set(1, host_end as i32).set(2, 0).call(REDIRECT_PEER).exit();
        a.label("not ipv4");
    }
    if let Some(ip) = v6 {
        a.unless_equal(7, IPV6, "next");
        for word in 0..4 {
            let part = (ip >> (96 - 32 * word)) as u32;
            a.packet_word(IPV6_DESTINATION + 4 * word).unless_equal(0, part as i32, "next");
        }
        a.set(1, host_end as i32).set(2, 0).call(REDIRECT_PEER).exit();
    }
    a.label("next").set(0, NEXT).exit();
    a.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's verifier is the judge; it needs rights that a test may not have.
    #[test]
    fn the_verifier_takes_both_programs() {
        let all = ["10.192.0.65".parse().unwrap(), "fdc0:5eb0::a4d:1:1".parse().unwrap()];
        for addresses in [&all[..], &all[..1], &all[1..]] {
            for (name, code) in [("from", from_container()), ("to", to_container(7, addresses))] {
                match Program::for_ingress(name, &code) {
                    Ok(_) => {}
                    Err(e) if matches!(e.errno, corebox_sys::Errno::EPERM | corebox_sys::Errno::ENOSYS) => {
                        eprintln!("SKIP the_verifier_takes_both_programs: {e}");
                        return;
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }
}
