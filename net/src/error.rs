//! Why a network cannot be had, and what cures it.

use corebox_sys::{Errno, Error as Kernel};
use ipnet::IpNet;
use std::net::IpAddr;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Every way in which a network is refused or fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel said no.
    #[error("{0}")]
    Kernel(#[from] Kernel),
    /// The kernel does not have this kind of interface.
    #[error("this kernel has no {kind} interfaces ({cause})")]
    Unsupported {
        /// `ipvlan`, `netkit`, …
        kind: String,
        /// What it said.
        cause: Kernel,
    },
    /// Interfaces of the host are not ours to make.
    #[error("{wanted} needs the capability CAP_NET_ADMIN over the host's network, which we do not have")]
    Unprivileged {
        /// The `--net` that was asked for.
        wanted: String,
    },
    /// The site says no.
    #[error("{wanted} is not allowed: {line}")]
    Policy {
        /// The `--net` that was asked for.
        wanted: String,
        /// The line of the policy that says so, with its place.
        line: String,
    },
    /// A network that the site does not have.
    #[error("there is no network `{name}`; {there}")]
    UnknownNetwork {
        /// As asked.
        name: String,
        /// Those there are.
        there: String,
    },
    /// The site's configuration cannot be read.
    #[error("{place}: {reason}")]
    Config {
        /// File and line.
        place: String,
        /// In words.
        reason: String,
    },
    /// An interface of the host that is not there.
    #[error("the host has no interface `{name}`; it has {there}")]
    UnknownInterface {
        /// As asked.
        name: String,
        /// Those there are.
        there: String,
    },
    /// It is there and is something else.
    #[error("`{name}` {what}")]
    WrongInterface {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The address is somebody's.
    #[error("the address {address} is used by {by}")]
    AddressUsed {
        /// Which one.
        address: IpAddr,
        /// By whom.
        by: String,
    },
    /// The network overlaps with one of the host.
    #[error("the network {ours} overlaps with {theirs} of `{interface}`")]
    Overlap {
        /// The pool's.
        ours: IpNet,
        /// The host's.
        theirs: IpNet,
        /// Where it is.
        interface: String,
    },
    /// No address is left.
    #[error("all {size} addresses of this node in network `{network}` are in use")]
    Exhausted {
        /// Its name.
        network: String,
        /// How many there are.
        size: u64,
    },
    /// Two nodes would hand out the same addresses.
    #[error("the nodes {one} and {other} have the same share of {subnet}: it holds too few addresses for them")]
    SameShare {
        /// Address of a node.
        one: IpAddr,
        /// Address of another one.
        other: IpAddr,
        /// The pool.
        subnet: IpNet,
    },
    /// Something that cannot be had, in words.
    #[error("{cause}")]
    Refused {
        /// Why.
        cause: String,
        /// What cures it.
        hint: String,
    },
}

impl Error {
    /// A refusal in words.
    pub fn refused(cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { cause: cause.into(), hint: hint.into() }
    }

    /// What cures it, and who acts.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Kernel(error) if error.errno == Errno::EPERM => "your administrator, or the batch system's plugin, starts it with CAP_NET_ADMIN; `--net host` and `--net none` need nothing.".to_owned(),
            Self::Kernel(error) if error.errno == Errno::ENODEV => "an interface was taken away meanwhile; look with `ip link`.".to_owned(),
            Self::Kernel(error) if error.call == "add address" && matches!(error.errno, Errno::EACCES | Errno::EOPNOTSUPP) => "IPv6 is turned off here (sysctl net.ipv6.conf.*.disable_ipv6, or ipv6.disable=1 at boot): give an IPv4 address.".to_owned(),
            Self::Kernel(_) => return None,
            Self::Unsupported { kind, .. } => format!("your administrator loads the module `{kind}` (or boots a kernel with it); `corebox net check` lists what this kernel has."),
            Self::Unprivileged { .. } => "`--net host` (the default) and `--net none` need nothing; the others need somebody with CAP_NET_ADMIN to start corebox (root, the batch system).".to_owned(),
            Self::Policy { .. } => "ask the administrator of this site; `corebox net ls` shows what you may use.".to_owned(),
            Self::UnknownNetwork { .. } => "`corebox net ls` lists the site's networks; kinds are veth, macvlan, ipvlan, netkit, phys and sriov.".to_owned(),
            Self::Config { .. } => "your administrator corrects it; `corebox net check` tests it.".to_owned(),
            Self::UnknownInterface { .. } => "name one of those; `ip link` tells more about them.".to_owned(),
            Self::WrongInterface { .. } => "choose another one; `ip -d link` tells what each is.".to_owned(),
            Self::AddressUsed { .. } => "choose another address, or none: then a free one is taken.".to_owned(),
            Self::Overlap { .. } => "your administrator gives the network another subnet in /etc/corebox/networks.toml.".to_owned(),
            Self::Exhausted { .. } => "wait for a container to end (`corebox net show` lists who has them), or raise `per_node` of the network.".to_owned(),
            Self::SameShare { .. } => "your administrator gives the network a larger subnet, or a smaller `per_node`.".to_owned(),
            Self::Refused { hint, .. } => hint.clone(),
        })
    }

    /// As a failure of the whole command.
    pub fn into_failure(self, goal: &str) -> corebox_spec::Failure {
        let failure = corebox_spec::Failure::new(goal, &self).during("deciding on the network", "network");
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// An error of creating an interface of a kind: the kernel may not know the kind, or not let us.
    pub(crate) fn creating(kind: &str, cause: Kernel) -> Self {
        match cause.errno {
            Errno::EOPNOTSUPP | Errno::ENODEV if cause.object.contains("Unknown device type") => {
                Self::Unsupported { kind: kind.to_owned(), cause }
            }
            Errno::EOPNOTSUPP => Self::Unsupported { kind: kind.to_owned(), cause },
            Errno::EPERM => Self::Unprivileged { wanted: kind.to_owned() },
            _ => Self::Kernel(cause),
        }
    }
}
