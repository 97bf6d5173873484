//! The few messages of nf_tables that address translation needs (kernel: include/uapi/linux/netfilter/nf_tables.h;
//! libnftnl's `src/expr/` for the shapes). The crates for it are under the GPL, link C libraries, or run `nft`.

use crate::Result;
use corebox_sys::{Errno, Error};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NLMSG_ERROR: u16 = 2;
/// Both address families in one table.
const NFPROTO_INET: u8 = 1;
/// The table goes when the socket is closed (Linux 5.12).
const NFT_TABLE_F_OWNER: u32 = 2;

/// An attribute of netlink: length, kind, value, padding.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// An attribute that holds attributes.
pub(super) fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, &attributes.concat())
}

/// A text with its terminating zero.
pub(super) fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

/// A number; nf_tables has them in network order.
pub(super) fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// Several changes that are made all or not at all.
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    table: String,
}

impl Batch {
    /// A new table of this name that belongs to the socket.
    pub(super) fn new(table: &str) -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence: 0, table: table.to_owned() };
        batch.message(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, &[]);
        let attributes = [text(1, table), number(2, NFT_TABLE_F_OWNER)];
        batch.message(
            NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE,
            NLM_F_CREATE | NLM_F_ACK,
            NFPROTO_INET,
            0,
            &attributes,
        );
        batch
    }

    /// A chain for address translation at a hook of linux/netfilter.h, in this order of priority.
    pub(super) fn nat_chain(&mut self, name: &str, hook: u32, priority: i32) {
        let hook = nested(4, &[number(1, hook), attribute(2, &priority.to_be_bytes())]);
        let attributes = [text(1, &self.table), text(3, name), hook, text(7, "nat")];
        self.message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN, NLM_F_CREATE, NFPROTO_INET, 0, &attributes);
    }

    /// A rule of expressions at the end of a chain.
    pub(super) fn rule(&mut self, chain: &str, expressions: &[Vec<u8>]) {
        let attributes = [text(1, &self.table), text(2, chain), nested(4, expressions)];
        let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE;
        self.message(kind, NLM_F_CREATE | NLM_F_APPEND, NFPROTO_INET, 0, &attributes);
    }

    /// struct nlmsghdr, struct nfgenmsg, attributes.
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[Vec<u8>]) {
        let body = attributes.concat();
        self.sequence += 1;
        self.bytes.extend((20 + body.len() as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
    }

    /// Sends it all; the socket keeps the table alive.
    pub(super) fn commit(mut self) -> Result<Socket> {
        self.message(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, &[]);
        let io = |call: &'static str| move |e: std::io::Error| Error::io(call, "a netfilter netlink socket", &e);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(io("open"))?;
        socket.bind_auto().map_err(io("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(io("connect"))?;
        socket.send(&self.bytes, 0).map_err(io("send on"))?;
        // One answer: to the table, which asked for it, or to whatever failed first.
        let (answer, _) = socket.recv_from_full().map_err(io("receive from"))?;
        match errors(&answer) {
            None => Ok(socket),
            Some(errno) => Err(Error::new("install nf_tables rules in table", &self.table, errno).into()),
        }
    }
}

/// The first error among the answers; all zero is an acknowledgement.
fn errors(mut answer: &[u8]) -> Option<Errno> {
    while answer.len() >= 20 {
        let length = u32::from_ne_bytes([answer[0], answer[1], answer[2], answer[3]]) as usize;
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        if kind == NLMSG_ERROR && code != 0 {
            return Some(Errno::from_raw(code.wrapping_neg()));
        }
        answer = answer.get(length.max(20).next_multiple_of(4)..)?;
    }
    None
}

/// Expressions: what a rule looks at and does. Registers are 32 bits each from 8 on (NFT_REG32_00), an address has four.
pub(super) mod expression {
    use super::{attribute, nested, number, text};
    use std::net::IpAddr;

    const NFT_REG32_00: u32 = 8;
    const NFT_CMP_EQ: u32 = 0;

    fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
        nested(1, &[text(1, name), nested(2, attributes)])
    }

    fn data(kind: u16, value: &[u8]) -> Vec<u8> {
        nested(kind, &[attribute(1, value)])
    }

    fn compare(value: &[u8]) -> Vec<u8> {
        expression("cmp", &[number(1, NFT_REG32_00), number(2, NFT_CMP_EQ), data(3, value)])
    }

    fn load(base: u32, offset: u32, length: u32) -> Vec<u8> {
        expression("payload", &[number(1, NFT_REG32_00), number(2, base), number(3, offset), number(4, length)])
    }

    fn meta(key: u32) -> Vec<u8> {
        expression("meta", &[number(1, NFT_REG32_00), number(2, key)])
    }

    fn octets(ip: IpAddr) -> Vec<u8> {
        match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        }
    }

    /// `meta nfproto ipv4` (or ipv6).
    pub(crate) fn family_is(v4: bool) -> Vec<Vec<u8>> {
        vec![meta(15), compare(&[if v4 { 2 } else { 10 }])]
    }

    /// `ip saddr IP` or `ip daddr IP`.
    pub(crate) fn address_is(ip: IpAddr, source: bool) -> Vec<Vec<u8>> {
        let (offset, length) = place(ip, source);
        vec![load(1, offset, length), compare(&octets(ip))]
    }

    /// `ip daddr NET`.
    pub(crate) fn destination_in(net: ipnet::IpNet) -> Vec<Vec<u8>> {
        let (offset, length) = place(net.addr(), false);
        let mask = octets(net.netmask());
        let xor = vec![0; mask.len()];
        let and = expression(
            "bitwise",
            &[number(1, NFT_REG32_00), number(2, NFT_REG32_00), number(3, length), data(4, &mask), data(5, &xor)],
        );
        vec![load(1, offset, length), and, compare(&octets(net.network()))]
    }

    fn place(ip: IpAddr, source: bool) -> (u32, u32) {
        match (ip, source) {
            (IpAddr::V4(_), true) => (12, 4),
            (IpAddr::V4(_), false) => (16, 4),
            (IpAddr::V6(_), true) => (8, 16),
            (IpAddr::V6(_), false) => (24, 16),
        }
    }

    /// `fib daddr type local`: an address of the host.
    pub(crate) fn destination_is_local() -> Vec<Vec<u8>> {
        // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR; RTN_LOCAL in the host's order
        let fib = expression("fib", &[number(1, NFT_REG32_00), number(2, 3), number(3, 2)]);
        vec![fib, compare(&2u32.to_ne_bytes())]
    }

    /// `meta l4proto tcp` (or udp), `th dport PORT`.
    pub(crate) fn port_is(udp: bool, port: u16) -> Vec<Vec<u8>> {
        vec![meta(16), compare(&[if udp { 17 } else { 6 }]), load(2, 2, 2), compare(&port.to_be_bytes())]
    }

    /// `dnat to IP:PORT`.
    pub(crate) fn to(ip: IpAddr, port: u16) -> Vec<Vec<u8>> {
        let family = if ip.is_ipv4() { 2 } else { 10 };
        let second = NFT_REG32_00 + 4;
        let set = |register: u32, value: &[u8]| expression("immediate", &[number(1, register), data(2, value)]);
        let nat = [number(1, 1), number(2, family), number(3, NFT_REG32_00), number(5, second)];
        vec![set(NFT_REG32_00, &octets(ip)), set(second, &port.to_be_bytes()), expression("nat", &nat)]
    }

    /// `masquerade`.
    pub(crate) fn masquerade() -> Vec<Vec<u8>> {
        vec![expression("masq", &[])]
    }

    /// `return`.
    pub(crate) fn leave() -> Vec<Vec<u8>> {
        // NFT_REG_VERDICT, NFTA_DATA_VERDICT { NFTA_VERDICT_CODE: NFT_RETURN }
        let verdict = nested(2, &[nested(2, &[attribute(1, &(-5i32).to_be_bytes())])]);
        vec![expression("immediate", &[number(1, 0), verdict])]
    }
}
