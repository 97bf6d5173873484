//! The container's network.
//!
//! Today: `host` (the host's namespace, nothing to do) and `none` (an own namespace with the loopback interface up).
//! veth, macvlan, ipvlan, physical and SR-IOV interfaces come with the networking issue.
#![forbid(unsafe_code)]

use corebox_sys::{Error, Result};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

/// `RTM_NEWLINK` of linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
/// `NLMSG_ERROR` of linux/netlink.h: also the positive answer, with code 0.
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const FLAGS: u16 = 0x1 | 0x4;
/// The loopback interface is the first one of every network namespace (net/core/dev.c).
const LOOPBACK_INDEX: i32 = 1;
/// `IFF_UP`.
const IFF_UP: u32 = 1;

/// Brings up `lo` in the calling thread's network namespace (rtnetlink(7), `RTM_NEWLINK` with `IFF_UP`).
///
/// # Errors
/// What the kernel answers: EPERM without CAP_NET_ADMIN over the namespace.
pub fn loopback_up() -> Result<()> {
    let io = |call: &'static str| move |e: std::io::Error| Error::io(call, "route netlink socket", &e);
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(io("socket"))?;
    socket.bind_auto().map_err(io("bind"))?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(io("connect"))?;
    socket.send(&set_up_request(LOOPBACK_INDEX), 0).map_err(io("send"))?;
    let (answer, _) = socket.recv_from_full().map_err(io("receive"))?;
    answer_code(&answer).map_err(|errno| Error::new("set up interface", "lo", errno))
}

/// struct nlmsghdr, struct ifinfomsg.
fn set_up_request(index: i32) -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend(1u32.to_ne_bytes()); // sequence
    message.extend(0u32.to_ne_bytes()); // to the kernel
    message.extend([0, 0]); // AF_UNSPEC, padding
    message.extend(0u16.to_ne_bytes()); // type
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // change mask
    message
}

/// The code of an `NLMSG_ERROR` answer: 0 is the acknowledgement.
fn answer_code(answer: &[u8]) -> std::result::Result<(), Errno> {
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw(code.wrapping_neg())),
        _ => Err(Errno::EPROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_answer() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![0; 4];
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(16, 0);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert_eq!(answer_code(&answer(2, 0)), Ok(()));
        assert_eq!(answer_code(&answer(2, -1)), Err(Errno::EPERM));
        assert_eq!(answer_code(&answer(3, 0)), Err(Errno::EPROTO));
        assert_eq!(answer_code(&[1]), Err(Errno::EPROTO));
    }

    #[test]
    fn asks_for_exactly_one_flag() {
        let request = set_up_request(1);
        assert_eq!(request.len(), 32);
        assert_eq!(&request[24..32], [1u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat());
    }
}
