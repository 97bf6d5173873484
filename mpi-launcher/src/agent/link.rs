//! The agent's end of the stream to the launcher: never blocks, so that one slow reader cannot stall the ranks' wire-up.

use crate::protocol::{self, Decoder, Frame, FromAgent, GREETING, ToAgent};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Above this many unsent bytes the ranks' output is left in their pipes.
const ENOUGH: usize = 4 << 20;

/// The stream to the launcher.
pub struct LauncherLink {
    input: OwnedFd,
    output: OwnedFd,
    decoder: Decoder,
    unsent: VecDeque<u8>,
    heard: Instant,
}

/// The launcher is gone, or speaks rubbish; nobody is left to tell.
#[derive(Debug)]
pub struct LauncherGone;

impl LauncherLink {
    /// Takes standard input and output for the stream and queues the greeting.
    ///
    /// Both descriptors are replaced by /dev/null, so that a library that prints to stdout cannot tear a frame.
    ///
    /// # Errors
    /// What dup2(2) or open(2) say.
    pub fn open() -> io::Result<Self> {
        let (input, output) = (io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?);
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        for fd in [&input, &output] {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        let unsent = GREETING.bytes().collect();
        Ok(Self { input, output, decoder: Decoder::default(), unsent, heard: Instant::now() })
    }

    /// Queues a message.
    pub fn send(&mut self, message: &FromAgent) {
        self.send_raw(&protocol::encode(message));
    }

    /// Queues an encoded frame.
    pub fn send_raw(&mut self, frame: &[u8]) {
        self.unsent.extend(frame);
    }

    /// Whether the launcher is so far behind that output should wait.
    pub fn is_behind(&self) -> bool {
        self.unsent.len() > ENOUGH
    }

    /// Whether bytes wait to be sent.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// How long nothing was heard.
    pub fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Starts the count of [`Self::silence`] anew.
    pub fn forgive(&mut self) {
        self.heard = Instant::now();
    }

    /// For poll(2): where the launcher's bytes come in.
    pub fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// For poll(2): where ours go out.
    pub fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    /// Reads what is there; the frames then come from [`Self::next_frame`].
    ///
    /// # Errors
    /// The stream ended.
    pub fn receive(&mut self) -> Result<(), LauncherGone> {
        let mut buffer = [0; 64 << 10];
        loop {
            match nix::unistd::read(&self.input, &mut buffer) {
                Ok(0) => return Err(LauncherGone),
                Ok(n) => {
                    self.heard = Instant::now();
                    self.decoder.push(&buffer[..n]);
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(LauncherGone),
            }
        }
    }

    /// The next whole frame that was received.
    ///
    /// # Errors
    /// The stream is not ours.
    pub fn next_frame(&mut self) -> Result<Option<Frame<ToAgent>>, LauncherGone> {
        self.decoder.next_frame().map_err(|_| LauncherGone)
    }

    /// Sends as much as the pipe takes.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn flush(&mut self) -> Result<(), LauncherGone> {
        while !self.unsent.is_empty() {
            let (first, _) = self.unsent.as_slices();
            match nix::unistd::write(&self.output, first) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(LauncherGone),
            }
        }
        Ok(())
    }

    /// Blocks until everything is sent, as long as the launcher reads.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn drain(&mut self) -> Result<(), LauncherGone> {
        while self.has_unsent() {
            self.flush()?;
            if self.has_unsent() {
                self.wait(PollFlags::POLLOUT, Duration::from_secs(1));
            }
        }
        Ok(())
    }

    /// Blocks until the next frame; used before there is anything else to attend to.
    ///
    /// # Errors
    /// The stream ended.
    pub fn wait_frame(&mut self) -> Result<Frame<ToAgent>, LauncherGone> {
        loop {
            self.flush()?;
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            self.wait(PollFlags::POLLIN, protocol::HEARTBEAT);
            self.receive()?;
            if self.silence() > protocol::LAUNCHER_PATIENCE {
                return Err(LauncherGone);
            }
        }
    }

    fn wait(&self, flags: PollFlags, time: Duration) {
        let fd = if flags == PollFlags::POLLIN { self.input() } else { self.output() };
        let timeout = PollTimeout::try_from(time.as_millis() as i32).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(fd, flags)], timeout); // EINTR: the caller looks again
    }
}
