//! Prompt acknowledgements on the library's connections to its clients.
//!
//! A PMIx client leaves Nagle's algorithm on (no TCP_NODELAY up to 6.x) and ends with two short messages: one that
//! has no answer, then its finalize. The second waits for the acknowledgement of the first, and the server's kernel
//! delays that for 40 ms, since it knows the connection as one of questions and answers. That is a third of the run
//! time of a short Open MPI job. TCP_QUICKACK sends what is delayed, but does not last, so it is set whenever data have
//! arrived: we watch the library's sockets, edge-triggered, without reading from them.

use super::ffi::{TCP_NODELAY, TCP_QUICKACK, set_tcp_option, watch};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use nix::sys::socket::{SockaddrIn, getpeername, getsockname};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// The watched connections of a server.
pub(super) struct Acks {
    epoll: Epoll,
    port: u16,
}

impl Acks {
    /// For the server that listens on this port.
    pub(super) fn new(port: u16) -> nix::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, port })
    }

    /// Readable when [`Acks::push`] has something to do.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Looks for connections that the library has accepted, and watches them.
    ///
    /// Its thread may close one meanwhile, and the number may be another's: options of TCP do nothing to other files,
    /// and to another TCP connection they do no harm.
    pub(super) fn find(&self) {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
        for fd in numbers.filter(|fd| self.is_ours(*fd)) {
            // EEXIST: it is watched already. A closed one has left the set by itself.
            if watch(&self.epoll, fd).is_ok() {
                set_tcp_option(fd, TCP_NODELAY);
                set_tcp_option(fd, TCP_QUICKACK);
            }
        }
    }

    fn is_ours(&self, fd: RawFd) -> bool {
        getsockname::<SockaddrIn>(fd).is_ok_and(|address| address.port() == self.port)
            && getpeername::<SockaddrIn>(fd).is_ok()
    }

    /// Acknowledges what has arrived.
    pub(super) fn push(&self) {
        let mut events = [EpollEvent::empty(); 64];
        while let Ok(count @ 1..) = self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            for event in &events[..count] {
                set_tcp_option(event.data() as RawFd, TCP_QUICKACK);
            }
        }
    }
}

/// The port in a server's address, as `setup_fork` gives it to a rank: `job.1-server.0;tcp4://127.0.0.1:41837`.
pub(super) fn port_in(variables: &[(String, String)]) -> Option<u16> {
    let (_, address) = variables.iter().find(|(name, _)| name.starts_with("PMIX_SERVER_URI"))?;
    address.rsplit_once("tcp4://")?.1.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    #[test]
    fn finds_connections_by_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let acks = Acks::new(port).unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        acks.find();
        assert!(server.nodelay().unwrap() && !client.nodelay().unwrap());
        // Questions and answers, then two messages at once: the second comes without the delay of 40 ms.
        let mut best = u128::MAX;
        for _ in 0..10 {
            for _ in 0..3 {
                client.write_all(b"question").unwrap();
                server.read_exact(&mut [0; 8]).unwrap();
                acks.push();
                server.write_all(b"answer").unwrap();
                client.read_exact(&mut [0; 6]).unwrap();
            }
            let start = Instant::now();
            client.write_all(b"no answer").unwrap();
            client.write_all(b"end").unwrap();
            server.read_exact(&mut [0; 9]).unwrap();
            acks.push();
            server.read_exact(&mut [0; 3]).unwrap();
            best = best.min(start.elapsed().as_millis());
        }
        assert!(best < 30, "{best} ms at best");
    }

    #[test]
    fn reads_the_port() {
        let variables = [("PMIX_SERVER_URI41".to_owned(), "job.1-server.0;tcp4://127.0.0.1:41837".to_owned())];
        assert_eq!(port_in(&variables), Some(41837));
        assert_eq!(port_in(&[]), None);
    }
}
