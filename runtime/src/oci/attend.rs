//! A process in the foreground: its terminal is carried to ours, signals to it, until it ends.

use corebox_spec::{Failure, Outcome};
use corebox_sys::process;
use corebox_sys::signal::{self, Signals};
use corebox_sys::terminal::{self, Raw};
use corebox_sys::{Error, control, fd};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// Where the master of a container's terminal arrives.
#[derive(Debug)]
pub(crate) struct Reception {
    ours: OwnedFd,
}

impl Reception {
    /// A pair: what receives, and what the container sends over.
    pub(crate) fn pair() -> Result<(Self, OwnedFd), Error> {
        let (ours, theirs) = control::stream_pair()?;
        Ok((Self { ours }, theirs))
    }
}

/// Serves until the process behind `pidfd`, our child, has ended.
///
/// # Errors
/// What the kernel says about waiting; the process is left alone then.
pub(crate) fn attend(pidfd: &OwnedFd, signals: &Signals, reception: Option<Reception>) -> Result<Outcome, Failure> {
    let lost = |e: Error| Failure::new("cannot wait for the container", e);
    let master = match reception {
        Some(reception) => control::receive_descriptor(&reception.ours).map_err(lost)?.map(File::from),
        None => None,
    };
    let raw = master.as_ref().and_then(|_| fd::copy_above(0, 3).ok()).and_then(|stdin| Raw::set(stdin).ok());
    if let Some(master) = &master {
        copy_size(master);
    }
    let mut relay = Relay { master, input_open: true };
    let outcome = loop {
        let sources = relay.sources();
        let fds: Vec<BorrowedFd<'_>> =
            [pidfd.as_fd(), signals.as_fd()].into_iter().chain(sources.iter().map(|(_, fd)| *fd)).collect();
        let ready = fd::poll_readable(&fds, None).map_err(lost)?;
        let which: Vec<Source> =
            sources.iter().zip(&ready[2..]).filter(|(_, ready)| **ready).map(|((s, _), _)| *s).collect();
        which.into_iter().for_each(|source| relay.carry(source));
        if ready[1] {
            forward(pidfd, signals, relay.master.as_ref()).map_err(lost)?;
        }
        if ready[0] {
            break process::wait_pidfd(pidfd.as_fd()).map(Outcome::from_wait_status).map_err(lost)?;
        }
    };
    relay.drain();
    drop(raw);
    Ok(outcome)
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Terminal,
    Input,
}

#[derive(Debug)]
struct Relay {
    master: Option<File>,
    input_open: bool,
}

impl Relay {
    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let Some(master) = &self.master else { return Vec::new() };
        let mut sources = vec![(Source::Terminal, master.as_fd())];
        if let Some(input) = fd::borrow(0).ok().filter(|_| self.input_open) {
            sources.push((Source::Input, input));
        }
        sources
    }

    fn carry(&mut self, source: Source) {
        let Some(master) = &mut self.master else { return };
        let mut bytes = [0u8; 8192];
        match source {
            Source::Terminal => match master.read(&mut bytes) {
                Ok(length) if length > 0 => {
                    // A reader that closed our output has seen enough.
                    let mut output = std::io::stdout();
                    let _ = output.write_all(&bytes[..length]).and_then(|()| output.flush());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // EIO: nobody has the other side open any more.
                _ => self.master = None,
            },
            Source::Input => match std::io::stdin().read(&mut bytes) {
                Ok(length) if length > 0 => {
                    let _ = master.write_all(&bytes[..length]);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => {
                    // As a user's Ctrl-D.
                    let _ = master.write_all(&[4]);
                    self.input_open = false;
                }
            },
        }
    }

    /// What was written before the end.
    fn drain(&mut self) {
        while let Some(master) = &self.master {
            let ready = fd::poll_readable(&[master.as_fd()], Some(std::time::Duration::ZERO));
            if !ready.is_ok_and(|ready| ready[0]) {
                return;
            }
            self.carry(Source::Terminal);
        }
    }
}

fn copy_size(master: &File) {
    // Without a terminal of our own there is no size to copy.
    if let Ok((rows, columns)) = fd::borrow(0).and_then(terminal::size) {
        let _ = terminal::set_size(master, rows, columns);
    }
}

fn forward(pidfd: &OwnedFd, signals: &Signals, master: Option<&File>) -> Result<(), Error> {
    while let Some(arrived) = signals.next()? {
        match arrived.signal {
            signal::SIGCHLD | signal::SIGPIPE => {}
            signal::SIGWINCH => master.into_iter().for_each(copy_size),
            other => process::signal_pidfd(pidfd, other)?,
        }
    }
    Ok(())
}
