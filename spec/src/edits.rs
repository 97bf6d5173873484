//! Contributions of the leaf crates (images, net, rdma-passthrough) to a container; `runtime::plan` merges them once.

use serde::{Deserialize, Serialize};

/// Who contributed something, as `corebox explain` and `--plan` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin(pub String);

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountKind {
    /// A recursive bind of a host path.
    Bind {
        /// Host path.
        source: String,
    },
    /// A tmpfs.
    Tmpfs {
        /// Size limit in bytes; `None`: the kernel's default (half of the memory).
        size: Option<u64>,
        /// Mode of its root, e.g. 0o1777.
        mode: u32,
    },
    /// A generated read-only file with this content.
    File {
        /// The bytes, as text.
        content: String,
    },
}

/// One mount in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub target: String,
    /// What goes there.
    pub kind: MountKind,
    /// Read-only.
    pub read_only: bool,
    /// Device nodes work on it (never for images; for `/dev/infiniband` binds it must be true).
    pub devices: bool,
    /// Who asked for it.
    pub origin: Origin,
}

/// One environment variable of the container's processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvEdit {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// Who set it.
    pub origin: Origin,
}

/// Everything one contributor adds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edits {
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Variables; a later one of the same name wins.
    pub env: Vec<EnvEdit>,
    /// Whether the locked-memory limit must be raised as far as we may (RDMA).
    pub raise_memlock: bool,
    /// What of the fabric must work inside.
    #[serde(default)]
    pub fabric: Option<crate::FabricCheck>,
}
