//! How a link begins: `Noise_NNpsk0`, where both sides prove that they hold the job's secret.
//!
//! The child sends a preamble (magic and its node index), then the first Noise message. The prologue binds job, parent
//! and child, so that reaching the wrong agent, or being a stranger, fails. The first message alone could be replayed
//! by an eavesdropper: a link counts only after the child's `Hello`, encrypted with the session's fresh keys. The
//! parent's `Hello` tells the child that it was taken, and the child's first `Heartbeat` the parent that it knows.

use super::Secret;
use super::link::{Link, LinkEnd, take_sealed};
use super::message::Message;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use snow::{Builder, HandshakeState};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const MAGIC: [u8; 4] = *b"cbx1";
const PREAMBLE: usize = MAGIC.len() + 4;
/// What a caller may send before it has proven anything: preamble, first message, and the sealed `Hello`.
const UNPROVEN_MAX: usize = 512;

/// Who talks about what.
#[derive(Clone)]
pub(super) struct Parties {
    pub(super) job: String,
    pub(super) parent: u32,
    pub(super) child: u32,
}

impl Parties {
    fn prologue(&self) -> Vec<u8> {
        let mut prologue = MAGIC.to_vec();
        prologue.extend(self.parent.to_be_bytes());
        prologue.extend(self.child.to_be_bytes());
        prologue.extend(self.job.as_bytes());
        prologue
    }

    fn state(&self, secret: &Secret, is_parent: bool) -> Result<HandshakeState, snow::Error> {
        let prologue = self.prologue();
        let builder = Builder::new(PATTERN.parse()?).psk(0, secret.bytes())?.prologue(&prologue)?;
        if is_parent { builder.build_responder() } else { builder.build_initiator() }
    }
}

/// Connects to the parent and proves who we are, within `patience` each. Returns what the parent said right after.
///
/// # Errors
/// In words: no connection, or not the agent that we look for.
pub(super) fn call(
    address: SocketAddr,
    parties: &Parties,
    secret: &Secret,
    patience: Duration,
) -> Result<(Link, Vec<Message>), String> {
    let deadline = Instant::now() + patience;
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(|e| e.to_string())?;
    let foreign = |_| "it is not the parent's agent of this job".to_owned();
    let mut state = parties.state(secret, false).map_err(foreign)?;
    let mut first = [0_u8; UNPROVEN_MAX];
    let length = state.write_message(&[], &mut first).map_err(foreign)?;
    let mut opening = MAGIC.to_vec();
    opening.extend(parties.child.to_be_bytes());
    opening.extend((length as u16).to_be_bytes());
    opening.extend(&first[..length]);
    stream.set_nodelay(true).and_then(|()| stream.write_all(&opening)).map_err(|e| e.to_string())?;

    let mut answer = Vec::new();
    let after = loop {
        if let Some((sealed, after)) = take_sealed(&answer, 0) {
            state.read_message(sealed, &mut [0_u8; UNPROVEN_MAX]).map_err(foreign)?;
            break after;
        }
        read_some(&mut stream, &mut answer, deadline)?;
    };
    let noise = state.into_transport_mode().map_err(foreign)?;
    let mut link = Link::new(parties.parent, stream, noise);
    link.preload(&answer[after..]);
    let early = confirm(&mut link, deadline).map_err(|end| end.to_string())?;
    Ok((link, early))
}

/// Sends our `Hello` and waits for the parent's; what already came after it is returned.
fn confirm(link: &mut Link, deadline: Instant) -> Result<Vec<Message>, LinkEnd> {
    link.queue(Message::Hello.encode());
    link.stream.set_nonblocking(true).map_err(LinkEnd::Io)?;
    link.flush()?;
    let mut messages = Vec::new();
    while messages.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkEnd::Io(ErrorKind::TimedOut.into()));
        }
        let mut fds = [PollFd::new(link.stream.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => link.read(&mut messages)?,
            Err(errno) => return Err(LinkEnd::Io(errno.into())),
        }
    }
    if messages.remove(0) != Message::Hello {
        return Err(LinkEnd::Garbled);
    }
    // Tells the parent that its `Hello` came in time.
    link.queue(Message::Heartbeat.encode());
    Ok(messages)
}

fn read_some(stream: &mut TcpStream, into: &mut Vec<u8>, deadline: Instant) -> Result<(), String> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() || into.len() > UNPROVEN_MAX {
        return Err("it did not answer in time".to_owned());
    }
    stream.set_read_timeout(Some(left)).map_err(|e| e.to_string())?;
    let mut buffer = [0_u8; UNPROVEN_MAX];
    match stream.read(&mut buffer) {
        Ok(0) => Err("it closed the connection: it does not know us".to_owned()),
        Ok(count) => {
            into.extend_from_slice(&buffer[..count]);
            Ok(())
        }
        Err(e) if matches!(e.kind(), ErrorKind::Interrupted) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

/// A caller that has not proven anything yet.
pub(super) struct Caller {
    pub(super) stream: TcpStream,
    pub(super) since: Instant,
    received: Vec<u8>,
}

/// How far a caller got.
pub(super) enum Progress {
    /// Wait for more.
    Waiting(Caller),
    /// The keys are agreed; its `Hello` has yet to come.
    Keyed(Box<Link>),
    /// Not one of ours.
    Refused,
}

impl Caller {
    /// A connection just accepted; `None` if the kernel refuses to make it non-blocking.
    pub(super) fn new(stream: TcpStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { stream, since: Instant::now(), received: Vec::new() })
    }

    /// Goes on with what has arrived. `expects` says whether this child is still missing.
    pub(super) fn proceed(
        mut self,
        job: &str,
        parent: u32,
        secret: &Secret,
        expects: impl Fn(u32) -> bool,
    ) -> Progress {
        let mut buffer = [0_u8; UNPROVEN_MAX];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Progress::Refused,
            Ok(count) => self.received.extend_from_slice(&buffer[..count]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Progress::Waiting(self);
            }
            Err(_) => return Progress::Refused,
        }
        let early = self.received.len().min(MAGIC.len());
        if self.received.len() > UNPROVEN_MAX || self.received[..early] != MAGIC[..early] {
            return Progress::Refused;
        }
        let Some((sealed, after)) = take_sealed(&self.received, PREAMBLE) else { return Progress::Waiting(self) };
        let child = self.received[MAGIC.len()..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let Some(child) = child.filter(|child| expects(*child)) else { return Progress::Refused };
        let parties = Parties { job: job.to_owned(), parent, child };
        match answer(&self.stream, sealed, &parties, secret) {
            Some(noise) => {
                let mut link = Link::new(child, self.stream, noise);
                link.preload(&self.received[after..]);
                Progress::Keyed(Box::new(link))
            }
            None => Progress::Refused,
        }
    }
}

/// Checks the first message and sends ours; 50 bytes always fit into a fresh socket's buffer.
fn answer(mut stream: &TcpStream, sealed: &[u8], parties: &Parties, secret: &Secret) -> Option<snow::TransportState> {
    let mut state = parties.state(secret, true).ok()?;
    state.read_message(sealed, &mut [0_u8; UNPROVEN_MAX]).ok()?;
    let mut buffer = [0_u8; UNPROVEN_MAX];
    let length = state.write_message(&[], &mut buffer).ok()?;
    let mut reply = (length as u16).to_be_bytes().to_vec();
    reply.extend(&buffer[..length]);
    stream.write_all(&reply).ok()?;
    state.into_transport_mode().ok()
}
