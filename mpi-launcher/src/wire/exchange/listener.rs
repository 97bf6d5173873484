//! Where an agent's children reach it: one dual-stack socket on a port of the kernel's choice.

use corebox_sys::{Error, Result};
use nix::errno::Errno;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, TcpListener};
use std::os::fd::AsRawFd;

/// An agent's listening socket.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    port: u16,
}

impl Listener {
    /// Listens on all addresses, IPv4 and IPv6; IPv4 alone where the kernel has no IPv6.
    pub(super) fn open() -> Result<Self> {
        let call = "listen for agents on";
        let socket = match dual_stack() {
            Ok(socket) => socket,
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                TcpListener::bind("0.0.0.0:0").map_err(|e| Error::io(call, "0.0.0.0", &e))?
            }
            Err(errno) => return Err(Error::new(call, "[::]", errno)),
        };
        socket.set_nonblocking(true).map_err(|e| Error::io(call, "its socket", &e))?;
        let port = socket.local_addr().map_err(|e| Error::io(call, "its socket", &e))?.port();
        Ok(Self { socket, port })
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

/// The standard library cannot switch IPV6_V6ONLY off, which `net.ipv6.bindv6only` may have on.
fn dual_stack() -> nix::Result<TcpListener> {
    let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)))?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(TcpListener::from(fd))
}

/// This host's addresses that another host may reach: of interfaces that are up, IPv4 before IPv6, without loopback and
/// link-local ones. Where there are none, the loopback address: all agents are on this host then.
///
/// # Errors
/// What getifaddrs(3) says.
pub fn local_addresses() -> Result<Vec<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs().map_err(|errno| Error::new("getifaddrs", "this host", errno))?;
    let mut addresses: Vec<IpAddr> = all
        .filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|entry| entry.address.as_ref().and_then(ip_of))
        .filter(|ip| !ip.is_loopback() && !is_link_local(ip))
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    if addresses.is_empty() {
        addresses.push(IpAddr::from([127, 0, 0, 1]));
    }
    Ok(addresses)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// fe80::/10 needs a scope that differs from host to host; 169.254/16 is for hosts without configuration.
fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
