//! Which addresses of a network are this node's: nodes share a subnet without asking each other.
//!
//! A container's address is the subnet, the low bits of the node's own address, and a slot that the node-local lease
//! store hands out. As nodes have different addresses, no two nodes hand out the same one, and from a node's address
//! everybody knows where its containers are.
//!
//! ```text
//! IPv4   | subnet | low bits of the node's address | slot |        10.192.0.0/10, 16 bits, 6 bits
//! IPv6   | subnet | 32 bits of the node's address | 16 bits slot | fdc0:5eb0::/64
//! ```

use crate::{Error, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits of an IPv6 address that a slot has.
const SLOT_BITS_V6: u8 = 16;
/// Bits of an IPv6 address that the node has.
const NODE_BITS_V6: u8 = 32;

/// This node's share of a network's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The whole network, one or two families.
    pub subnets: Vec<IpNet>,
    /// The part of each that belongs to this node.
    pub blocks: Vec<IpNet>,
}

/// What part of `subnet` belongs to the node with this address, with room for `per_node` containers.
pub fn block(subnet: IpNet, node: IpAddr, per_node: u32) -> IpNet {
    match subnet {
        IpNet::V4(net) => {
            let host_bits = 32 - net.prefix_len();
            let slot_bits = slot_bits(per_node).min(host_bits);
            let node_bits = host_bits - slot_bits;
            let id = if node_bits == 0 { 0 } else { low32(node) & (u32::MAX >> (32 - node_bits)) };
            // A shift by all bits is the whole network: nothing of the node is in it.
            let base = u32::from(net.network()) | id.checked_shl(slot_bits.into()).unwrap_or(0);
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(base), 32 - slot_bits))
        }
        IpNet::V6(net) => {
            let host_bits = 128 - net.prefix_len();
            let slot_bits = SLOT_BITS_V6.min(host_bits);
            let node_bits = (host_bits - slot_bits).min(NODE_BITS_V6);
            let mask = if node_bits == 0 { 0 } else { u128::MAX >> (128 - node_bits) };
            let base = u128::from(net.network()) | ((u128::from(low32(node)) & mask) << slot_bits);
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(base), 128 - slot_bits))
        }
    }
}

/// Room for `per_node` containers, the first and the last address of a block left out.
fn slot_bits(per_node: u32) -> u8 {
    (u64::from(per_node) + 2).next_power_of_two().trailing_zeros() as u8
}

fn low32(node: IpAddr) -> u32 {
    match node {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => u128::from(ip) as u32,
    }
}

impl Share {
    /// The share of a node.
    pub fn new(subnets: &[IpNet], node: IpAddr, per_node: u32) -> Self {
        let subnets: Vec<IpNet> = subnets.iter().map(IpNet::trunc).collect();
        Self { blocks: subnets.iter().map(|net| block(*net, node, per_node)).collect(), subnets }
    }

    /// Slots that may be handed out: 1 to this.
    pub fn last_slot(&self) -> u32 {
        let bits = self.blocks.iter().map(|block| block.max_prefix_len() - block.prefix_len()).min().unwrap_or(0);
        ((1u64 << bits.min(16)) - 1).saturating_sub(1) as u32
    }

    /// The addresses of a slot, one per family, without prefix length.
    pub fn addresses(&self, slot: u32) -> Vec<IpAddr> {
        let address = |block: &IpNet| match block {
            IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.network()) + slot)),
            IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from(u128::from(net.network()) + u128::from(slot))),
        };
        self.blocks.iter().map(address).collect()
    }

    /// Refuses peers whose share is the same as ours.
    ///
    /// # Errors
    /// [`Error::SameShare`].
    pub fn check_peers(&self, node: IpAddr, peers: &[IpAddr], per_node: u32) -> Result<()> {
        for (subnet, own) in self.subnets.iter().zip(&self.blocks) {
            if let Some(other) = peers.iter().find(|peer| block(*subnet, **peer, per_node) == *own) {
                return Err(Error::SameShare { one: node, other: *other, subnet: *subnet });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }
    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nodes_have_different_blocks() {
        let share = |node| Share::new(&[net("10.192.0.0/10"), net("fdc0:5eb0::/64")], ip(node), 62);
        let one = share("10.77.0.1");
        // 10.77.0.1 ends in 0.1: 16 bits of the node before 6 of the slot
        assert_eq!(one.blocks, [net("10.192.0.64/26"), net("fdc0:5eb0::a4d:1:0/112")]);
        assert_eq!(one.addresses(1), [ip("10.192.0.65"), ip("fdc0:5eb0::a4d:1:1")]);
        assert_eq!(one.last_slot(), 62);
        assert_ne!(one.blocks, share("10.77.0.2").blocks);
        assert!(one.check_peers(ip("10.77.0.1"), &[ip("10.77.0.2")], 62).is_ok());
    }

    #[test]
    fn a_small_subnet_is_one_block_and_two_nodes_are_told() {
        let share = Share::new(&[net("10.9.8.0/26")], ip("10.77.0.1"), 62);
        assert_eq!(share.blocks, [net("10.9.8.0/26")]);
        assert!(matches!(share.check_peers(ip("10.77.0.1"), &[ip("10.77.0.2")], 62), Err(Error::SameShare { .. })));
        assert_eq!(Share::new(&[net("10.9.8.0/31")], ip("10.77.0.1"), 62).last_slot(), 0);
        assert_eq!(Share::new(&[net("0.0.0.0/0")], ip("10.77.0.1"), u32::MAX).blocks.len(), 1);
    }
}
