//! `rate=`: a token bucket (tc-tbf(8)) where packets leave an interface.

use crate::netlink::{Create, Netlink};
use crate::{Error, Result};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

/// Attributes of linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel computes times itself and wants no table.
const ETHERNET: u8 = 1;
/// A whole segment of TCP segmentation offload must fit, or the kernel would cut it up.
const SMALLEST_BURST: u64 = 128 << 10;
/// How long a packet may wait: what comes on top is dropped.
const LATENCY_MS: u64 = 50;

/// Limits what leaves an interface to `bits` per second.
///
/// # Errors
/// A kernel without tbf says so.
pub fn limit(netlink: &mut Netlink, index: u32, bits: u64, name: &str) -> Result<()> {
    let mut message = TcMessage::default();
    message.header.index = index as i32;
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(
            options(bits / 8).into_iter().map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value))).collect(),
        ),
    ];
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    netlink.change(message, Create::OrReplace, "limit the rate of interface", name).map_err(|e| {
        if e.errno == corebox_sys::Errno::ENOENT {
            Error::Unsupported { kind: "sch_tbf".into(), cause: e }
        } else {
            e.into()
        }
    })
}

/// struct tc_tbf_qopt, and the rate and burst as 64 and 32 bits.
fn options(bytes_per_second: u64) -> Vec<(u16, Vec<u8>)> {
    // At least what one tick of a 250 Hz clock lets through.
    let burst = SMALLEST_BURST.max(bytes_per_second / 250).min(u32::MAX.into()) as u32;
    let queue = (u64::from(burst) + bytes_per_second * LATENCY_MS / 1000).min(u32::MAX.into()) as u32;
    let rate = bytes_per_second.min(u32::MAX.into()) as u32;
    let mut parameters = rate_specification(rate);
    parameters.extend(rate_specification(0)); // no peak rate
    for number in [queue, 0, 0] {
        parameters.extend(number.to_ne_bytes()); // limit in bytes; buffer and mtu come as TCA_TBF_BURST
    }
    vec![
        (TCA_TBF_PARMS, parameters),
        (TCA_TBF_RATE64, bytes_per_second.to_ne_bytes().to_vec()),
        (TCA_TBF_BURST, burst.to_ne_bytes().to_vec()),
    ]
}

/// struct tc_ratespec.
fn rate_specification(rate: u32) -> Vec<u8> {
    let mut bytes = vec![0, if rate > 0 { ETHERNET } else { 0 }, 0, 0, 0, 0, 0, 0];
    bytes.extend(rate.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_kernels_layout() {
        let all = options(125_000_000);
        assert_eq!(all[0].1.len(), 12 + 12 + 12);
        assert_eq!(all[0].1[8..12], 125_000_000u32.to_ne_bytes());
        assert_eq!(all[2].1, 500_000u32.to_ne_bytes());
        assert_eq!(options(1_250)[2].1, (128u32 << 10).to_ne_bytes());
    }
}
