//! A pair of connected sockets that keep message boundaries (unix(7), SOCK_SEQPACKET).
//!
//! Several processes may write to the same end: each message arrives whole, with the pid of its sender as the
//! *receiver's* pid namespace numbers it (SCM_CREDENTIALS).

use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, sockopt};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Largest message: far below the smallest send buffer of any distribution (net.core.wmem_default, 208 KiB).
pub const MAX_MESSAGE: usize = 32 * 1024;

/// One end.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// What a receive found.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A message, and its sender's pid in our pid namespace.
    Message(Vec<u8>, i32),
    /// Nothing now.
    Nothing,
    /// Every process that held the other end is gone, or closed it.
    End,
}

/// Two connected ends, close-on-exec; the first one learns the senders' pids.
///
/// # Errors
/// What socketpair(2) says.
pub fn pair() -> Result<(Socket, Socket)> {
    let (ours, theirs) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Error::new("create", "a socket pair", e))?;
    socket::setsockopt(&ours, sockopt::PassCred, &true).map_err(|e| Error::new("set SO_PASSCRED of", "a socket", e))?;
    Ok((Socket(ours), Socket(theirs)))
}

impl Socket {
    /// Sends one message of at most [`MAX_MESSAGE`] bytes. With `wait` false: `Ok(false)` when it would block.
    ///
    /// # Errors
    /// EPIPE when the other end is gone (no SIGPIPE is raised), EMSGSIZE.
    pub fn send(&self, message: &[u8], wait: bool) -> Result<bool> {
        if message.len() > MAX_MESSAGE {
            return Err(Error::new("send", "a message to the container", Errno::EMSGSIZE));
        }
        let flags = MsgFlags::MSG_NOSIGNAL | if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            match socket::sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(message)], &[], flags, None) {
                Ok(_) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !wait => return Ok(false),
                Err(e) => return Err(Error::new("send", "a message between corebox and the container", e)),
            }
        }
    }

    /// Takes the next message; with `wait` false it never blocks.
    ///
    /// # Errors
    /// What recvmsg(2) says.
    pub fn receive(&self, wait: bool) -> Result<Received> {
        let mut bytes = vec![0u8; MAX_MESSAGE];
        let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        let (length, sender) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match socket::recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(message) => {
                    let pid = message.cmsgs().into_iter().flatten().find_map(|c| match c {
                        ControlMessageOwned::ScmCredentials(c) => Some(c.pid()),
                        _ => None,
                    });
                    break (message.bytes, pid.unwrap_or(0));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Received::Nothing),
                // A peer that died with our message unread resets the connection: that is its end all the same.
                Err(Errno::ECONNRESET) => return Ok(Received::End),
                Err(e) => return Err(Error::new("receive", "a message between corebox and the container", e)),
            }
        };
        bytes.truncate(length);
        Ok(if length == 0 { Received::End } else { Received::Message(bytes, sender) })
    }

    /// Waits until a message can be sent or one can be received: (may send, may receive).
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn wait_either(&self) -> Result<(bool, bool)> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut set = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
        match poll(&mut set, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {
                let found = set[0].revents().unwrap_or(PollFlags::empty());
                Ok((found.intersects(!PollFlags::POLLIN), found.contains(PollFlags::POLLIN)))
            }
            Err(e) => Err(Error::new("poll", "the container's socket", e)),
        }
    }
}

/// Connects to the socket that listens at `path` (SOCK_STREAM), and sends `bytes` with a descriptor (SCM_RIGHTS).
///
/// # Errors
/// What connect(2) and sendmsg(2) say.
pub fn send_descriptor(path: &std::path::Path, bytes: &[u8], fd: impl AsFd) -> Result<()> {
    let failed = |errno| Error::new("send a descriptor to", path.display(), errno);
    let address = socket::UnixAddr::new(path).map_err(failed)?;
    let connection =
        socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    socket::connect(connection.as_raw_fd(), &address).map_err(failed)?;
    let number = [fd.as_fd().as_raw_fd()];
    let mut sent = 0;
    while sent < bytes.len() {
        // The descriptor goes with the first byte.
        let rights = [socket::ControlMessage::ScmRights(&number)];
        let rights = if sent == 0 { &rights[..] } else { &[] };
        let rest = [IoSlice::new(&bytes[sent..])];
        match socket::sendmsg::<()>(connection.as_raw_fd(), &rest, rights, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(length) => sent += length,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_boundaries_names_senders_and_ends() {
        let (ours, theirs) = pair().unwrap();
        assert_eq!(ours.receive(false).unwrap(), Received::Nothing);
        assert!(theirs.send(b"one", true).unwrap());
        assert!(theirs.send(b"two", true).unwrap());
        let pid = std::process::id() as i32;
        assert_eq!(ours.receive(true).unwrap(), Received::Message(b"one".to_vec(), pid));
        assert_eq!(ours.receive(true).unwrap(), Received::Message(b"two".to_vec(), pid));
        drop(theirs);
        assert_eq!(ours.receive(false).unwrap(), Received::End);
        assert_eq!(ours.send(b"x", true).unwrap_err().errno, Errno::EPIPE);
    }

    #[test]
    fn does_not_block_when_told() {
        let (ours, theirs) = pair().unwrap();
        let message = vec![7u8; MAX_MESSAGE];
        let mut sent = 0;
        while ours.send(&message, false).unwrap() {
            sent += 1;
        }
        assert!(sent > 0);
        assert_eq!(theirs.receive(false).unwrap(), Received::Message(message, 0));
    }
}
