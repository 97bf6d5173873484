//! What is known about an image without mounting it.

use serde::{Deserialize, Serialize};

/// An MPI implementation family, as far as launching is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MpiFamily {
    /// Open MPI: PMIx.
    OpenMpi,
    /// MPICH and its ABI-compatible derivatives other than the ones below: PMI-1.
    Mpich,
    /// Intel MPI: PMI-1 (and others).
    IntelMpi,
    /// MVAPICH: PMI-1.
    Mvapich,
}

impl MpiFamily {
    /// The name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "Open MPI",
            Self::Mpich => "MPICH",
            Self::IntelMpi => "Intel MPI",
            Self::Mvapich => "MVAPICH",
        }
    }
}

/// One MPI library found in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MpiFound {
    /// Which implementation.
    pub family: MpiFamily,
    /// Its version as the library says it (`4.1.4`); empty when it does not say.
    pub version: String,
    /// Path of the shared library in the image.
    pub library: String,
}

/// Process defaults of an OCI image config (image-spec, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Cmd.
    pub cmd: Vec<String>,
    /// WorkingDir.
    pub working_dir: Option<String>,
    /// User, recorded; jobs always run as the caller.
    pub user: Option<String>,
}

/// The image of a registry that an image file was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOrigin {
    /// `host/path:tag` (or `@digest`) as it was resolved.
    pub reference: String,
    /// `sha256:…` of the manifest of this machine's image; what `@digest` pins.
    pub manifest: String,
    /// Platform of that manifest (`linux/amd64/v3`), if an index said it.
    pub platform: Option<String>,
    /// Who signed it, in the words of the policy, as far as signatures were checked.
    #[serde(default)]
    pub signers: Vec<String>,
}

/// Facts recorded when an image enters the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// `sha256:…` of the image file.
    pub digest: String,
    /// Size of the image file in bytes.
    pub size: u64,
    /// Machine architecture as `uname -m` says it (`x86_64`, `aarch64`), from the ELF header of the image's programs;
    /// `None` when it holds no ELF program.
    pub arch: Option<String>,
    /// MPI libraries found by looking into it.
    pub mpi: Vec<MpiFound>,
    /// Where it came from, as the user said it.
    pub source: String,
    /// Unix time of the import in seconds.
    pub created: u64,
    /// Process defaults.
    pub config: ImageConfig,
    /// The image of a registry it was made from; `None` for other sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<ImageOrigin>,
}
