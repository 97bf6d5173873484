//! One route netlink socket (rtnetlink(7)): requests that are answered, and dumps.

use corebox_sys::netns::NetworkNamespace;
use corebox_sys::{Errno, Error, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// What a request may find there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// Nothing: EEXIST otherwise.
    New,
    /// It is replaced.
    OrReplace,
    /// Nothing is created; something there is changed.
    No,
}

/// A route netlink socket; it belongs to the network namespace it was opened in, whoever uses it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h: the kernel's reason in words.
const REASON_IN_WORDS: u16 = 1;
/// struct nlmsghdr, which an error repeats before the reason in words.
const HEADER: usize = 16;

impl Netlink {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// What socket(2) says.
    pub fn open() -> Result<Self> {
        let io = |call: &'static str| move |e: std::io::Error| Error::io(call, "a route netlink socket", &e);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(io("open"))?;
        socket.bind_auto().map_err(io("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(io("connect"))?;
        // Without these two an error is only a number; kernels before 4.12 have neither.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens one in another network namespace.
    ///
    /// # Errors
    /// What entering it or socket(2) says.
    pub fn open_in(namespace: &NetworkNamespace) -> Result<Self> {
        namespace.inside(Self::open)?
    }

    /// Sends a change and waits until the kernel has made it. `call` and `object` are for the error.
    ///
    /// # Errors
    /// The kernel's answer, with its words where it has some.
    pub fn change(
        &mut self,
        message: RouteNetlinkMessage,
        create: Create,
        call: &'static str,
        object: &str,
    ) -> Result<()> {
        let flags = match create {
            Create::New => NLM_F_CREATE | NLM_F_EXCL,
            Create::OrReplace => NLM_F_CREATE | NLM_F_REPLACE,
            Create::No => 0,
        };
        self.exchange(message, NLM_F_ACK | flags, call, object).map(drop)
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// ENODEV and the like when it is not there.
    pub fn get(
        &mut self,
        message: RouteNetlinkMessage,
        call: &'static str,
        object: &str,
    ) -> Result<RouteNetlinkMessage> {
        let answers = self.exchange(message, NLM_F_ACK, call, object)?;
        answers.into_iter().next().ok_or_else(|| Error::new(call, object, Errno::EPROTO))
    }

    /// Asks for everything of a kind.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn dump(&mut self, message: RouteNetlinkMessage, call: &'static str) -> Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_DUMP, call, "the kernel's list")
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        call: &'static str,
        object: &str,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let io = |e: std::io::Error| Error::io(call, object, &e);
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(io)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(io)?;
            let mut rest = &datagram[..];
            while rest.len() >= HEADER {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if length < HEADER || length > rest.len() {
                    return Err(Error::new(call, object, Errno::EPROTO));
                }
                let sequence = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
                let this = &rest[..length];
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
                if sequence == self.sequence && take(this, &mut answers, call, object)? {
                    return Ok(answers);
                }
            }
        }
    }
}

/// Takes one message of an answer; whether it was the last one.
fn take(bytes: &[u8], answers: &mut Vec<RouteNetlinkMessage>, call: &'static str, object: &str) -> Result<bool> {
    let parsed = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes);
    match parsed.map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(message)) => answers.push(message),
        Ok(NetlinkPayload::Done(_)) => return Ok(true),
        Ok(NetlinkPayload::Error(error)) => {
            let Some(code) = error.code else { return Ok(true) };
            let object = match in_words(&error.header) {
                Some(words) => format!("{object} (the kernel says: {words})"),
                None => object.to_owned(),
            };
            return Err(Error::new(call, object, Errno::from_raw(code.get().wrapping_neg())));
        }
        // One entry of a list that the packet crate cannot read is not ours to stumble over.
        Ok(_) | Err(_) => {}
    }
    Ok(false)
}

/// The extended acknowledgement (netlink(7), NETLINK_EXT_ACK).
fn in_words(header: &[u8]) -> Option<String> {
    let attributes = NlasIterator::new(header.get(HEADER..)?);
    let text = attributes.flatten().find(|nla| nla.kind() == REASON_IN_WORDS)?;
    let text = String::from_utf8_lossy(text.value()).trim_end_matches('\0').trim().to_owned();
    (!text.is_empty()).then_some(text)
}
