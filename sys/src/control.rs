//! A pair of connected sockets that keep message boundaries (unix(7), SOCK_SEQPACKET).
//!
//! Several processes may write to the same end: each message arrives whole, with the pid of its sender as the
//! *receiver's* pid namespace numbers it (SCM_CREDENTIALS).

use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, sockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

/// Largest message: far below the smallest send buffer of any distribution (net.core.wmem_default, 208 KiB).
pub const MAX_MESSAGE: usize = 32 * 1024;

/// Connects to a listening socket of this kind (unix(7), SOCK_SEQPACKET) by its path, through `directory` so that the
/// path may be of any length.
///
/// # Errors
/// ECONNREFUSED when nobody listens any more, ENOENT.
pub fn connect(directory: impl AsFd, name: &str) -> Result<Socket> {
    let failed = |e| Error::new("connect to", name, e);
    let socket = seqpacket()?;
    socket::connect(socket.as_raw_fd(), &address(directory, name)?).map_err(failed)?;
    Ok(Socket(socket))
}

/// Makes a listening socket of this kind in `directory`.
///
/// # Errors
/// EADDRINUSE when something of this name is there.
pub fn listen(directory: impl AsFd, name: &str) -> Result<OwnedFd> {
    let failed = |e| Error::new("listen on", name, e);
    let socket = seqpacket()?;
    socket::bind(socket.as_raw_fd(), &address(directory, name)?).map_err(failed)?;
    socket::listen(&socket, Backlog::new(1).map_err(failed)?).map_err(failed)?;
    Ok(socket)
}

/// Takes the first connection of a listening socket; waits for it.
///
/// # Errors
/// What accept4(2) says.
pub fn accept(listener: impl AsFd) -> Result<Socket> {
    loop {
        match socket::accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::new("take a connection of", "the container's socket", e)),
            Ok(number) => return crate::mount::owned("accept", "a connection", number.into()).map(Socket),
        }
    }
}

fn seqpacket() -> Result<OwnedFd> {
    socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| Error::new("create", "a socket", e))
}

fn address(directory: impl AsFd, name: &str) -> Result<UnixAddr> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd());
    UnixAddr::new(path.as_str()).map_err(|e| Error::new("name the socket", name, e))
}

/// Connects to the stream socket at `path`, of any length.
///
/// # Errors
/// What connect(2) says.
pub fn connect_stream(path: &Path) -> Result<OwnedFd> {
    let failed = |e| Error::new("connect to", path.display(), e);
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    // A socket's address has 108 bytes; a path may be longer.
    let parent = crate::fd::open_path(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    socket::connect(socket.as_raw_fd(), &address(&parent, &name)?).map_err(failed)?;
    Ok(socket)
}

/// Sends a descriptor over a connected socket, with bytes that say what it is (SCM_RIGHTS).
///
/// # Errors
/// What sendmsg(2) says.
pub fn pass_descriptor(socket: impl AsFd, descriptor: impl AsFd, words: &[u8]) -> Result<()> {
    let fds = [descriptor.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let parts = [IoSlice::new(words)];
    socket::sendmsg::<()>(socket.as_fd().as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)
        .map(drop)
        .map_err(|e| Error::new("send", "a descriptor", e))
}

/// Receives a descriptor from a connected socket; `None` when the other end closed it without one.
///
/// # Errors
/// What recvmsg(2) says.
pub fn receive_descriptor(socket: impl AsFd) -> Result<Option<OwnedFd>> {
    let mut bytes = [0u8; 256];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = socket::recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)
        .map_err(|e| Error::new("receive", "a descriptor", e))?;
    let found = message.cmsgs().into_iter().flatten().find_map(|c| match c {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    found.map(|number| crate::mount::owned("receive", "a descriptor", number.into())).transpose()
}

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

/// Two connected stream sockets, close-on-exec: for [`pass_descriptor`] and [`receive_descriptor`].
///
/// # Errors
/// What socketpair(2) says.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd)> {
    socket::socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Error::new("create", "a socket pair", e))
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

    /// Sends one message with write(2), which even strict seccomp filters allow. The other end being gone raises SIGPIPE
    /// unless that is ignored or blocked.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub fn put(&self, message: &[u8]) -> Result<()> {
        crate::fd::write_all(&self.0, message, "a message between corebox and the container")
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
