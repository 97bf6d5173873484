//! What was asked of one container: [`ContainerSpec`].

use crate::{IdSet, NetworkSpec};
use serde::{Deserialize, Serialize};

/// How the image becomes a root directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootfsMode {
    /// Kernel mount where we may, else FUSE.
    #[default]
    Auto,
    /// The kernel's file system (needs root).
    Kernel,
    /// A FUSE server inside the container's user namespace.
    Fuse,
    /// Unpacked into memory.
    Unpack,
}

/// Network of the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetMode {
    /// The host's network namespace: native speed, default.
    #[default]
    Host,
    /// An own network namespace: a loopback interface, up, and the interfaces asked for, if any.
    None,
}

/// Which system calls the container's processes may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// Those that HPC programs use.
    #[default]
    Default,
    /// All.
    None,
    /// Those of a profile: the text of a `linux.seccomp` object of the OCI runtime-spec.
    Profile(String),
}

/// A bind asked for with `-v SRC:DST[:ro]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Path on the host, absolute.
    pub source: String,
    /// Path in the container, absolute.
    pub target: String,
    /// Read-only, recursively.
    pub read_only: bool,
}

/// A tmpfs asked for with `--tmpfs DST[:SIZE]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Path in the container, absolute.
    pub target: String,
    /// Size limit in bytes.
    pub size: Option<u64>,
}

/// Limits enforced by cgroup; each is refused where no cgroup may be created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPUs the container may use.
    pub cpus: Option<IdSet>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// RDMA resources, per HCA.
    #[serde(default)]
    pub rdma: Vec<crate::RdmaLimit>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was asked: one container on one node. What was *decided* is `runtime::ContainerPlan`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Name for messages and cgroups.
    pub name: String,
    /// Map the caller to uid 0 and gid 0 inside instead of keeping the own ids.
    pub as_root: bool,
    /// How the image is mounted.
    pub rootfs: RootfsMode,
    /// A writable tmpfs over the image; the inner option is its size cap in bytes.
    pub writable: Option<Option<u64>>,
    /// Network.
    pub net: NetMode,
    /// What is in the network namespace, or which one it is.
    #[serde(default)]
    pub network: NetworkSpec,
    /// Host name inside; `None`: the host's.
    pub hostname: Option<String>,
    /// Size of /dev/shm in bytes; `None`: half of the memory, as the kernel's default.
    pub shm_size: Option<u64>,
    /// Binds.
    pub binds: Vec<Bind>,
    /// Further tmpfs mounts.
    pub tmpfs: Vec<Tmpfs>,
    /// The caller's directory, bound at the same path; `None`: not wanted, or there is nothing sensible to bind.
    pub cwd_bind: Option<String>,
    /// Working directory of the processes; `None`: `cwd_bind`, else the image's, else `/`.
    #[serde(default)]
    pub wdir: Option<String>,
    /// Variables asked for: `NAME=value`, or `NAME` to take the caller's value.
    pub env: Vec<String>,
    /// Variables of the caller that pass the allow-list and those named in `env`, as `NAME=value`.
    pub caller_env: Vec<String>,
    /// Limits.
    pub limits: Limits,
    /// RDMA devices to expose, of those the host has.
    pub rdma: crate::RdmaSelect,
    /// What happens when they do not work inside.
    #[serde(default)]
    pub fabric: crate::FabricPolicy,
    /// System calls.
    #[serde(default)]
    pub seccomp: Seccomp,
}
