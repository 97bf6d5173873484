//! The ranks' PMI descriptors: one stream socket pair per rank, the agent's end never blocking.

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

/// The socket pairs, by local rank.
pub struct PmiLines(Vec<Line>);

impl PmiLines {
    /// Makes the socket pairs, before the container.
    ///
    /// # Errors
    /// What socketpair(2) says (EMFILE).
    pub fn open(ranks: usize) -> Result<Self> {
        let line = |_| -> nix::Result<Line> {
            let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
            let flags = OFlag::from_bits_retain(fcntl(&ours, FcntlArg::F_GETFL)?);
            fcntl(&ours, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            Ok(Line { ours: Some(ours), theirs: Some(theirs), unsent: VecDeque::new() })
        };
        let lines: nix::Result<_> = (0..ranks).map(line).collect();
        lines.map(Self).map_err(|e| Error::new("make a socket pair for", "PMI", e))
    }

    /// The rank's descriptor, until [`Self::started`].
    pub fn theirs(&self, local: usize) -> Option<RawFd> {
        self.0.get(local)?.theirs.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Closes our copies of the ranks' ends.
    pub fn started(&mut self) {
        self.0.iter_mut().for_each(|line| line.theirs = None);
    }

    /// For poll(2): local rank, descriptor, whether something waits to be written.
    pub fn descriptors(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, bool)> {
        let open = |(local, line)| Self::descriptor(local, line);
        self.0.iter().enumerate().filter_map(open)
    }

    fn descriptor(local: usize, line: &Line) -> Option<(usize, BorrowedFd<'_>, bool)> {
        line.ours.as_ref().map(|fd| (local, fd.as_fd(), !line.unsent.is_empty()))
    }

    /// Reads what a rank has said; empty: nothing (more), or the rank is gone.
    pub fn read(&mut self, local: usize) -> Vec<u8> {
        let mut bytes = vec![0; 16 << 10];
        let Some(line) = self.0.get_mut(local) else { return Vec::new() };
        let read = line.ours.as_ref().map_or(Err(Errno::EAGAIN), |ours| nix::unistd::read(ours, &mut bytes));
        if !matches!(read, Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR)) {
            line.ours = None; // the container reports how the rank ended
        }
        bytes.truncate(read.unwrap_or(0));
        bytes
    }

    /// Queues bytes for a rank and writes what its socket takes; with no bytes, goes on writing.
    pub fn write(&mut self, local: usize, bytes: &[u8]) {
        let Some(line) = self.0.get_mut(local) else { return };
        line.unsent.extend(bytes);
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

    /// A rank broke the protocol: it sees its descriptor closed.
    pub fn close(&mut self, local: usize) {
        if let Some(line) = self.0.get_mut(local) {
            line.ours = None;
        }
    }
}
