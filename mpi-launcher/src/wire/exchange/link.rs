//! One encrypted link: Noise over a non-blocking TCP stream, with whole [`Message`]s on top.
//!
//! On the wire: `u16` length (big endian) and one Noise message, at most 65535 bytes, again and again. The plain texts
//! put together are a stream of `u32` length (little endian) and one message.

use super::message::Message;
use snow::TransportState;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

/// Longest Noise message, and what its tag takes of it (Noise specification, section 3).
const NOISE_MAX: usize = 65535;
const TAG: usize = 16;
/// What is read or written at most before another link has its turn, in Noise messages: no link falls silent because
/// another one has much to say.
const TURN: usize = 16;
/// Longest message we accept from an authenticated peer.
const MESSAGE_MAX: usize = 1 << 30;

/// A link to a neighbour that has proven that it holds the job's secret.
pub(super) struct Link {
    pub(super) peer: u32,
    pub(super) stream: TcpStream,
    noise: TransportState,
    cipher: Vec<u8>,
    plain: Vec<u8>,
    /// Encoded messages, not yet encrypted; of the first one, so many bytes are.
    outgoing: VecDeque<Arc<[u8]>>,
    taken: usize,
    /// One Noise message, partly written.
    sealed: Vec<u8>,
    written: usize,
    pub(super) heard: Instant,
    pub(super) spoke: Instant,
}

/// Why a link ended.
#[derive(Debug)]
pub(super) enum LinkEnd {
    /// The peer closed it.
    Closed,
    /// The kernel says so.
    Io(io::Error),
    /// What came was not encrypted by the peer, or is no message.
    Garbled,
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => write!(f, "the connection was closed"),
            Self::Io(error) => write!(f, "{error}"),
            Self::Garbled => write!(f, "the data was damaged or forged"),
        }
    }
}

impl Link {
    /// A link over a stream whose handshake is done.
    pub(super) fn new(peer: u32, stream: TcpStream, noise: TransportState) -> Self {
        let now = Instant::now();
        let (cipher, plain, outgoing, sealed) = Default::default();
        let (taken, written) = (0, 0);
        Self { peer, stream, noise, cipher, plain, outgoing, taken, sealed, written, heard: now, spoke: now }
    }

    /// Takes over bytes that came with the end of the handshake.
    pub(super) fn preload(&mut self, bytes: &[u8]) {
        self.cipher.extend_from_slice(bytes);
    }

    /// Takes a message over; [`Link::flush`] encrypts and sends it, piece by piece.
    pub(super) fn queue(&mut self, message: Arc<[u8]>) {
        self.outgoing.push_back(message);
        self.spoke = Instant::now();
    }

    /// Whether something waits to be written.
    pub(super) fn has_outgoing(&self) -> bool {
        self.written < self.sealed.len() || !self.outgoing.is_empty()
    }

    /// Writes what the socket takes, for one turn.
    pub(super) fn flush(&mut self) -> Result<(), LinkEnd> {
        for _ in 0..TURN {
            if self.written == self.sealed.len() && !self.seal_next()? {
                return Ok(());
            }
            match self.stream.write(&self.sealed[self.written..]) {
                Ok(0) => return Err(LinkEnd::Closed),
                Ok(count) => {
                    self.written += count;
                    self.spoke = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(LinkEnd::Io(e)),
            }
        }
        Ok(())
    }

    /// Encrypts the next piece; `false` if there is none.
    fn seal_next(&mut self) -> Result<bool, LinkEnd> {
        let Some(message) = self.outgoing.front() else { return Ok(false) };
        let end = message.len().min(self.taken + NOISE_MAX - TAG);
        let piece = &message[self.taken..end];
        let length = piece.len() + TAG;
        self.sealed.clear();
        self.sealed.extend((length as u16).to_be_bytes());
        self.sealed.resize(2 + length, 0);
        self.noise.write_message(piece, &mut self.sealed[2..]).map_err(|_| LinkEnd::Garbled)?;
        self.written = 0;
        self.taken = end;
        if end == message.len() {
            self.outgoing.pop_front();
            self.taken = 0;
        }
        Ok(true)
    }

    /// Reads what is there, for one turn, and appends the whole messages in it. An end after whole messages is reported with them
    /// already appended.
    pub(super) fn read(&mut self, messages: &mut Vec<Message>) -> Result<(), LinkEnd> {
        let mut buffer = [0_u8; 64 << 10];
        let mut end = None;
        for _ in 0..TURN {
            match self.stream.read(&mut buffer) {
                Ok(0) => end = Some(LinkEnd::Closed),
                Ok(count) => {
                    self.heard = Instant::now();
                    self.cipher.extend_from_slice(&buffer[..count]);
                    self.decrypt()?;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => end = Some(LinkEnd::Io(e)),
            }
            break;
        }
        self.decrypt()?;
        self.parse(messages)?;
        end.map_or(Ok(()), Err)
    }

    fn decrypt(&mut self) -> Result<(), LinkEnd> {
        let mut used = 0;
        while let Some((sealed, after)) = take_sealed(&self.cipher, used) {
            let start = self.plain.len();
            self.plain.resize(start + sealed.len(), 0);
            let opened = self.noise.read_message(sealed, &mut self.plain[start..]).map_err(|_| LinkEnd::Garbled)?;
            self.plain.truncate(start + opened);
            used = after;
        }
        self.cipher.drain(..used);
        Ok(())
    }

    fn parse(&mut self, messages: &mut Vec<Message>) -> Result<(), LinkEnd> {
        let mut used = 0;
        while let Some((length, rest)) = self.plain[used..].split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > MESSAGE_MAX {
                return Err(LinkEnd::Garbled);
            }
            let Some(body) = rest.get(..length) else { break };
            messages.push(Message::decode(body).ok_or(LinkEnd::Garbled)?);
            used += 4 + length;
        }
        self.plain.drain(..used);
        Ok(())
    }
}

/// The next whole Noise message from `start`, and where it ends.
pub(super) fn take_sealed(bytes: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.get(start..)?.split_first_chunk::<2>()?;
    let sealed = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    Some((sealed, start + 2 + sealed.len()))
}
