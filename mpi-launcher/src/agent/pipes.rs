//! The ranks' standard streams: pipes made before the container, cut into whole lines for the launcher.

use crate::protocol::{self, Stream};
use corebox_sys::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A line longer than this is sent in pieces; lines of other ranks may then come between them.
const LONGEST_LINE: usize = 1 << 20;

/// One output pipe of a rank.
pub struct OutputPipe {
    rank: u32,
    stream: Stream,
    ours: Option<OwnedFd>,
    theirs: Option<OwnedFd>,
    line: Vec<u8>,
}

impl OutputPipe {
    /// Makes the pipe; both ends close on exec.
    ///
    /// # Errors
    /// What pipe2(2) says (EMFILE).
    pub fn open(rank: u32, stream: Stream) -> Result<Self> {
        let (ours, theirs) = pipe()?;
        // a larger pipe means fewer wake-ups; the user's pipe quota may refuse it, and the default works too
        let _ = fcntl(&ours, FcntlArg::F_SETPIPE_SZ(256 << 10));
        nonblocking(&ours)?;
        Ok(Self { rank, stream, ours: Some(ours), theirs: Some(theirs), line: Vec::new() })
    }

    /// The end for the rank.
    pub fn theirs(&self) -> RawFd {
        self.theirs.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Closes our copy of the rank's end once the rank has it, so that its end is seen.
    pub fn started(&mut self) {
        self.theirs = None;
    }

    /// For poll(2), until the rank closed it.
    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.ours.as_ref().map(AsFd::as_fd)
    }

    /// Reads what is there and calls `send` with frames of whole lines; at the end with the rest.
    ///
    /// `buffer` is the caller's, one for all pipes.
    pub fn forward(&mut self, buffer: &mut [u8], mut send: impl FnMut(&[u8])) {
        let Some(ours) = &self.ours else { return };
        match nix::unistd::read(ours, buffer) {
            Ok(n @ 1..) => {
                let whole = buffer[..n].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                if whole > 0 && self.line.is_empty() {
                    send(&protocol::encode_output(self.rank, self.stream, &buffer[..whole]));
                } else if whole > 0 {
                    self.line.extend(&buffer[..whole]);
                    self.flush(&mut send);
                }
                self.line.extend(&buffer[whole..n]);
                if self.line.len() >= LONGEST_LINE {
                    self.flush(&mut send);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => {
                self.flush(&mut send);
                self.ours = None;
            }
        }
    }

    fn flush(&mut self, send: &mut impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            send(&protocol::encode_output(self.rank, self.stream, &self.line));
            self.line.clear();
        }
    }
}

/// Standard input of rank 0.
pub struct InputPipe {
    ours: Option<OwnedFd>,
    theirs: Option<OwnedFd>,
    unwritten: VecDeque<u8>,
    ended: bool,
}

impl InputPipe {
    /// Makes the pipe.
    ///
    /// # Errors
    /// What pipe2(2) says.
    pub fn open() -> Result<Self> {
        let (theirs, ours) = pipe()?;
        nonblocking(&ours)?;
        Ok(Self { ours: Some(ours), theirs: Some(theirs), unwritten: VecDeque::new(), ended: false })
    }

    /// The end for the rank.
    pub fn theirs(&self) -> RawFd {
        self.theirs.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Closes our copy of the rank's end.
    pub fn started(&mut self) {
        self.theirs = None;
    }

    /// Bytes from the launcher.
    pub fn push(&mut self, bytes: &[u8]) {
        self.unwritten.extend(bytes);
    }

    /// The launcher's input ended.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// For poll(2), while something waits to be written.
    pub fn writable(&self) -> Option<BorrowedFd<'_>> {
        self.ours.as_ref().filter(|_| !self.unwritten.is_empty()).map(AsFd::as_fd)
    }

    /// Writes what the rank takes; returns how many bytes the launcher may send anew. A rank that closed its input
    /// swallows the rest, as a closed pipe does.
    pub fn forward(&mut self) -> usize {
        let mut taken = 0;
        while let Some(ours) = &self.ours {
            let (first, _) = self.unwritten.as_slices();
            if first.is_empty() {
                break;
            }
            match nix::unistd::write(ours, first) {
                Ok(n) => {
                    self.unwritten.drain(..n);
                    taken += n;
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => self.ours = None,
            }
        }
        if self.ours.is_none() {
            taken += self.unwritten.len();
            self.unwritten.clear();
        }
        if self.ended && self.unwritten.is_empty() {
            self.ours = None;
        }
        taken
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::new("make a pipe for", "a rank's standard stream", e))
}

fn nonblocking(fd: &OwnedFd) -> Result<()> {
    let set = || -> nix::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
    };
    set().map_err(|e| Error::new("fcntl", "a rank's standard stream", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Decoder, Frame, FromAgent, GREETING};

    /// Writes `pieces` into the rank's end one by one and returns what each one lets through.
    fn through(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut pipe = OutputPipe::open(0, Stream::Out).unwrap();
        let mut decoder = Decoder::default();
        decoder.push(GREETING.as_bytes());
        let mut buffer = vec![0; 4096];
        let mut seen = Vec::new();
        let collect = |decoder: &mut Decoder, seen: &mut Vec<Vec<u8>>| {
            while let Some(Frame::Output { bytes, .. }) = decoder.next_frame::<FromAgent>().unwrap() {
                seen.push(bytes);
            }
        };
        for piece in pieces {
            nix::unistd::write(pipe.theirs.as_ref().unwrap(), piece).unwrap();
            pipe.forward(&mut buffer, |frame| decoder.push(frame));
            collect(&mut decoder, &mut seen);
        }
        pipe.started();
        pipe.forward(&mut buffer, |frame| decoder.push(frame));
        collect(&mut decoder, &mut seen);
        assert!(pipe.readable().is_none());
        seen
    }

    #[test]
    fn lines_are_sent_whole_and_the_rest_at_the_end() {
        let seen = through(&[b"on", b"e\ntw", b"o\nthree\nfo", b"ur"]);
        assert_eq!(seen, [b"one\n".to_vec(), b"two\nthree\n".to_vec(), b"four".to_vec()]);
    }

    #[test]
    fn a_rank_that_closed_its_input_frees_the_window() {
        let mut pipe = InputPipe::open().unwrap();
        pipe.push(&[7; 100_000]);
        let first = pipe.forward();
        assert!(first > 0 && first < 100_000, "a pipe takes 64 KiB, took {first}");
        pipe.started();
        assert_eq!(first + pipe.forward(), 100_000);
    }
}
