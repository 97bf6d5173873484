//! PMI-1 and PMI-2 for this node's ranks: one socket pair per rank, served by [`PmiServer`].

use super::wireup::WireEvent;
use crate::wire::{Action, BARRIER_KEY, JobShape, PmiServer};
use corebox_sys::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// One rank's end and ours.
struct Line {
    ours: Option<OwnedFd>,
    theirs: Option<OwnedFd>,
    unsent: VecDeque<u8>,
}

/// The PMI service of this node.
pub struct Pmi1 {
    shape: JobShape,
    server: PmiServer,
    lines: Vec<Line>,
}

impl Pmi1 {
    /// Makes the socket pairs, before the container.
    ///
    /// # Errors
    /// What socketpair(2) says.
    pub fn open(shape: &JobShape) -> Result<Self> {
        let line = |_: &u32| -> Result<Line> {
            let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|e| Error::new("socketpair", "for PMI", e))?;
            let flags = OFlag::from_bits_retain(fcntl(&ours, FcntlArg::F_GETFL).unwrap_or(0));
            fcntl(&ours, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(|e| Error::new("fcntl", "PMI socket", e))?;
            Ok(Line { ours: Some(ours), theirs: Some(theirs), unsent: VecDeque::new() })
        };
        let lines = shape.local_ranks().iter().map(line).collect::<Result<_>>()?;
        Ok(Self { shape: shape.clone(), server: PmiServer::new(shape.clone()), lines })
    }

    /// The rank's descriptor, and the environment that names it.
    pub fn rank(&self, local: usize) -> (RawFd, Vec<(String, String)>) {
        let fd = self.lines[local].theirs.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        (fd, PmiServer::environment(&self.shape, local, fd))
    }

    /// Closes our copies of the ranks' ends.
    pub fn started(&mut self) {
        self.lines.iter_mut().for_each(|line| line.theirs = None);
    }

    /// For poll(2): local rank, descriptor, whether something waits to be written.
    pub fn descriptors(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, bool)> {
        let open = |(local, line)| Self::descriptor(local, line);
        self.lines.iter().enumerate().filter_map(open)
    }

    fn descriptor(local: usize, line: &Line) -> Option<(usize, BorrowedFd<'_>, bool)> {
        line.ours.as_ref().map(|fd| (local, fd.as_fd(), !line.unsent.is_empty()))
    }

    /// Reads and writes what a rank's socket allows.
    pub fn attend(&mut self, local: usize) -> Vec<WireEvent> {
        let mut events = Vec::new();
        let mut buffer = [0; 16 << 10];
        while let Some(ours) = &self.lines[local].ours {
            match nix::unistd::read(ours, &mut buffer) {
                Ok(0) => self.lines[local].ours = None,
                Ok(n) => {
                    let actions = self.server.on_bytes(local, &buffer[..n]);
                    events.extend(self.carry_out(actions));
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => self.lines[local].ours = None, // the rank is gone; its end is reported by the container
            }
        }
        self.write(local);
        events
    }

    /// Every node's pairs are here.
    pub fn gathered(&mut self, parts: &[(u32, Vec<u8>)]) -> Vec<WireEvent> {
        match self.server.barrier_done(parts) {
            Ok(actions) => self.carry_out(actions),
            Err(node) => vec![WireEvent::Broken(format!("node {node} sent malformed PMI pairs"))],
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Vec<WireEvent> {
        let mut events = Vec::new();
        for action in actions {
            match action {
                Action::Reply { local, bytes } => {
                    self.lines[local].unsent.extend(bytes);
                    self.write(local);
                }
                Action::Barrier { blob } => events.push(WireEvent::Gather {
                    key: BARRIER_KEY.to_vec(),
                    participants: self.shape.populated_nodes(),
                    blob,
                }),
                Action::Abort { rank, code, message } => events.push(WireEvent::Abort { rank, code, message }),
                Action::Connected { rank } => events.push(WireEvent::Connected(rank)),
                Action::Finalized { rank } => events.push(WireEvent::Finalized(rank)),
                Action::Violation { rank, message } => {
                    events.push(WireEvent::Broken(format!("rank {rank} broke the PMI protocol: {message}")));
                }
            }
        }
        events
    }

    fn write(&mut self, local: usize) {
        let line = &mut self.lines[local];
        while let Some(ours) = &line.ours {
            let (first, _) = line.unsent.as_slices();
            if first.is_empty() {
                return;
            }
            match nix::unistd::write(ours, first) {
                Ok(n) => drop(line.unsent.drain(..n)),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(_) => line.ours = None,
            }
        }
    }
}
