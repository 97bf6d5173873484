//! RDMA netlink (kernel include/uapi/rdma/rdma_netlink.h, drivers/infiniband/core/nldev.c): what sysfs does not say: which
//! devices this network namespace has, the numbers of their nodes, the netns mode. Asking needs no privilege.

use crate::hca::{Inventory, NetnsMode};
use corebox_spec::DeviceNode;
use corebox_sys::{Errno, Error, Result};
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// NETLINK_RDMA.
const FAMILY: isize = 20;
/// RDMA_NL_NLDEV, and its commands.
const NLDEV: u16 = 5;
const GET: u16 = 1;
const PORT_GET: u16 = 5;
const SYS_GET: u16 = 6;
const GET_CHARDEV: u16 = 15;

const DEV_INDEX: u16 = 1;
const DEV_NAME: u16 = 2;
const PORT_INDEX: u16 = 3;
const NDEV_NAME: u16 = 51;
const NETNS_MODE: u16 = 66;
const DEV_PROTOCOL: u16 = 67;
const CHARDEV_TYPE: u16 = 69;
const CHARDEV_NAME: u16 = 70;
const CHARDEV_ABI: u16 = 71;
const CHARDEV: u16 = 72;

const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const DONE: u16 = 3;
const ERROR: u16 = 2;
const HEADER: usize = 16;

type Attributes = Vec<(u16, Vec<u8>)>;

/// Adds what netlink knows to an inventory from sysfs; a kernel without RDMA netlink (EPROTONOSUPPORT) adds nothing.
///
/// # Errors
/// What the kernel says to the question for its devices.
pub fn refine(inventory: &mut Inventory) -> Result<()> {
    let failed = |e: io::Error| Error::io("ask RDMA netlink for", "devices", &e);
    let mut line = match Line::open() {
        Ok(line) => line,
        Err(e) if e.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let system = line.ask(SYS_GET, 0, &[]).unwrap_or_default();
    inventory.netns = system.first().and_then(|answer| number(answer, NETNS_MODE)).map(|mode| match mode {
        0 => NetnsMode::Exclusive,
        _ => NetnsMode::Shared,
    });
    let answers = line.ask(GET, DUMP, &[]).map_err(failed)?;
    let seen: Vec<(u32, String, &Attributes)> =
        answers.iter().filter_map(|a| Some((number(a, DEV_INDEX)?, word(a, DEV_NAME)?, a))).collect();
    for hca in &mut inventory.devices {
        let Some((index, _, answer)) = seen.iter().find(|(_, name, _)| *name == hca.name) else {
            hca.elsewhere = true;
            continue;
        };
        hca.protocol = word(answer, DEV_PROTOCOL).or(hca.protocol.take());
        if let Some(node) = line.chardev(Some(*index), "uverbs") {
            hca.uverbs = Some(node);
        }
        for port in &mut hca.ports {
            let asked = [(DEV_INDEX, index.to_ne_bytes()), (PORT_INDEX, port.number.to_ne_bytes())];
            let answer = line.ask(PORT_GET, 0, &asked.map(|(name, value)| (name, value.to_vec()))).unwrap_or_default();
            port.netdev = answer.first().and_then(|a| word(a, NDEV_NAME)).or(port.netdev.take());
        }
    }
    if let Some(node) = line.chardev(None, "rdma_cm") {
        inventory.rdma_cm = Some(node);
    }
    Ok(())
}

/// A socket and the number of the last question.
struct Line {
    socket: Socket,
    sequence: u32,
}

impl Line {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(FAMILY)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// One question; the answers' attributes.
    fn ask(&mut self, command: u16, flags: u16, attributes: &[(u16, Vec<u8>)]) -> io::Result<Vec<Attributes>> {
        self.sequence += 1;
        self.socket.send(&question(command, flags, self.sequence, attributes), 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                match message {
                    Message::Answer(sequence, attributes) if sequence == self.sequence => {
                        answers.push(attributes);
                        if flags & DUMP == 0 {
                            return Ok(answers);
                        }
                    }
                    Message::End(sequence, 0) if sequence == self.sequence => return Ok(answers),
                    Message::End(sequence, errno) if sequence == self.sequence => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    Message::Answer(..) | Message::End(..) => {}
                }
            }
        }
    }

    /// The character device of this kind; `None`: the kernel has none (for issm and umad often EOPNOTSUPP).
    fn chardev(&mut self, device: Option<u32>, kind: &str) -> Option<DeviceNode> {
        let mut asked = vec![(CHARDEV_TYPE, [kind.as_bytes(), &[0]].concat())];
        asked.extend(device.map(|index| (DEV_INDEX, index.to_ne_bytes().to_vec())));
        let answers = self.ask(GET_CHARDEV, 0, &asked).ok()?;
        let answer = answers.first()?;
        let name = word(answer, CHARDEV_NAME)?;
        let number_ = long(answer, CHARDEV)?;
        Some(DeviceNode {
            path: format!("/dev/infiniband/{name}"),
            number: Some(decoded(number_)),
            abi: long(answer, CHARDEV_ABI).and_then(|abi| u32::try_from(abi).ok()),
        })
    }
}

/// The kernel's huge_encode_dev: the minor's upper bits follow the major (include/linux/kdev_t.h, new_encode_dev).
fn decoded(number: u64) -> (u32, u32) {
    let number = number as u32;
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

enum Message {
    /// Sequence and attributes.
    Answer(u32, Attributes),
    /// Sequence and errno; 0: all is said.
    End(u32, i32),
}

fn question(command: u16, flags: u16, sequence: u32, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    for (name, value) in attributes {
        bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        bytes.extend(name.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&((NLDEV << 10) | command).to_ne_bytes());
    bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    bytes
}

fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let length = u32_at(bytes, 0) as usize;
        if length < HEADER || length > bytes.len() {
            break;
        }
        let (kind, sequence) = (u16_at(bytes, 4), u32_at(bytes, 8));
        let payload = &bytes[HEADER..length];
        found.push(match kind {
            DONE => Message::End(sequence, 0),
            ERROR if payload.len() >= 4 => Message::End(sequence, (u32_at(payload, 0) as i32).saturating_neg()),
            _ => Message::Answer(sequence, attributes(payload)),
        });
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

fn attributes(mut bytes: &[u8]) -> Attributes {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16_at(bytes, 0));
        if length < 4 || length > bytes.len() {
            break;
        }
        // The two upper bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        found.push((u16_at(bytes, 2) & 0x3fff, bytes[4..length].to_vec()));
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn value(attributes: &Attributes, name: u16) -> Option<&[u8]> {
    attributes.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_slice())
}

/// A number of 1, 2, 4 or 8 bytes.
fn long(attributes: &Attributes, name: u16) -> Option<u64> {
    let mut bytes = value(attributes, name)?.to_vec();
    if bytes.is_empty() || bytes.len() > 8 {
        return None;
    }
    if cfg!(target_endian = "big") {
        bytes.reverse();
    }
    bytes.resize(8, 0);
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

fn number(attributes: &Attributes, name: u16) -> Option<u32> {
    u32::try_from(long(attributes, name)?).ok()
}

fn word(attributes: &Attributes, name: u16) -> Option<String> {
    let text = String::from_utf8_lossy(value(attributes, name)?).trim_end_matches('\0').to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_as_the_kernel_cuts_them() {
        let asked = vec![(DEV_NAME, b"rxe0\0".to_vec()), (DEV_INDEX, 7u32.to_ne_bytes().to_vec())];
        let bytes = [question(GET, 0, 3, &asked), question(GET, 0, 4, &asked[1..])].concat();
        let all = messages(&bytes);
        let Message::Answer(3, first) = &all[0] else { panic!("the first answer") };
        assert_eq!((word(first, DEV_NAME).as_deref(), number(first, DEV_INDEX)), (Some("rxe0"), Some(7)));
        assert_eq!(all.len(), 2);
        // Cut short anywhere: nothing is made up, nothing panics.
        for length in 0..bytes.len() {
            assert!(messages(&bytes[..length]).len() < 2);
        }
    }

    #[test]
    fn device_numbers_are_decoded() {
        assert_eq!(decoded(0xe7c0), (231, 192));
        assert_eq!(decoded((10 << 8) | 0x04 | (1 << 20)), (10, 260));
    }
}
