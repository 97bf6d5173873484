//! Published ports, and containers behind the host's address: one nf_tables table per container, which belongs to a socket
//! and goes with it, be it by SIGKILL.

use crate::nft::{Batch, expression};
use crate::plan::InterfacePlan;
use crate::{Error, Result};
use corebox_spec::network::Publish;
use corebox_sys::Errno;
use ipnet::IpNet;
use std::net::IpAddr;

/// Hooks of linux/netfilter.h, and the priorities of address translation there (linux/netfilter_ipv4.h).
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

/// The rules of one interface, in force as long as this lives.
pub struct Rules {
    _socket: netlink_sys::Socket,
}

impl Rules {
    /// Installs the rules of an interface of the container with this id. What goes to `inner` keeps its source address.
    ///
    /// # Errors
    /// A kernel without nf_tables or address translation says so.
    pub fn install(id: u64, plan: &InterfacePlan, inner: &[IpNet]) -> Result<Self> {
        let mut batch = Batch::new(&format!("corebox-{id:x}-{}", plan.name));
        batch.nat_chain("arriving", PREROUTING, DESTINATION_NAT);
        batch.nat_chain("local", OUTPUT, DESTINATION_NAT);
        batch.nat_chain("leaving", POSTROUTING, SOURCE_NAT);
        for ip in plan.addresses.iter().map(IpNet::addr) {
            for publish in plan.publish.iter().filter(|p| p.address.is_none_or(|a| a.is_ipv4() == ip.is_ipv4())) {
                let rule = published(ip, publish);
                batch.rule("arriving", &rule);
                batch.rule("local", &rule);
            }
            for net in inner.iter().filter(|net| net.addr().is_ipv4() == ip.is_ipv4()) {
                let from_here = [expression::family_is(ip.is_ipv4()), expression::address_is(ip, true)].concat();
                batch.rule("leaving", &[from_here, expression::destination_in(*net), expression::leave()].concat());
            }
            let from_here = [expression::family_is(ip.is_ipv4()), expression::address_is(ip, true)].concat();
            batch.rule("leaving", &[from_here, expression::masquerade()].concat());
        }
        let committed = batch.commit().map_err(|error| match error {
            Error::Kernel(cause)
                if matches!(cause.errno, Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EPROTONOSUPPORT) =>
            {
                Error::Unsupported { kind: "nf_tables (nft_chain_nat, nft_masq, nft_fib)".into(), cause }
            }
            other => other,
        });
        Ok(Self { _socket: committed? })
    }
}

fn published(ip: IpAddr, publish: &Publish) -> Vec<Vec<u8>> {
    let to_us = match publish.address {
        Some(address) => expression::address_is(address, false),
        None => expression::destination_is_local(),
    };
    [
        expression::family_is(ip.is_ipv4()),
        to_us,
        expression::port_is(publish.udp, publish.port),
        expression::to(ip, publish.inside),
    ]
    .concat()
}
