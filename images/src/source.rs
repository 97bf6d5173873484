//! What a user gave us to import, told by its content, never by its name.

use crate::layer::{Compression, Layer};
use crate::oci::{self, OciError, OciImage};
use corebox_sys::Error;
use nix::errno::Errno;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Why a source is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{0}")]
    File(#[from] Error),
    #[error("{0}: {1}")]
    Oci(String, OciError),
    #[error("{0} is {1}")]
    Kind(String, &'static str),
}

/// A source that can be flattened.
pub(crate) enum Source {
    /// A root directory.
    Directory(PathBuf),
    /// A tar of a root directory.
    Tar(Layer),
    Oci(OciImage),
    /// A squashfs image of another tool.
    Squashfs(PathBuf),
}

impl Source {
    /// Sets how much each layer may have when unpacked.
    pub(crate) fn limit(&mut self, limit: u64) {
        match self {
            Self::Directory(_) | Self::Squashfs(_) => {}
            Self::Tar(layer) => layer.limit = limit,
            Self::Oci(image) => image.layers.iter_mut().for_each(|layer| layer.limit = limit),
        }
    }

    /// Looks at a path and says what it is.
    pub(crate) fn open(path: &Path) -> Result<Self, SourceError> {
        let shown = || path.display().to_string();
        let meta = std::fs::metadata(path).map_err(|error| Error::io("open", path.display(), &error))?;
        if meta.is_dir() {
            let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
            return if is_layout {
                oci::open_directory(path).map(Self::Oci).map_err(|error| SourceError::Oci(shown(), error))
            } else {
                Ok(Self::Directory(path.to_owned()))
            };
        }
        if !meta.is_file() {
            return Err(SourceError::Kind(shown(), "neither a file nor a directory"));
        }
        let head = head_of(path)?;
        if head.starts_with(b"hsqs") {
            return Ok(Self::Squashfs(path.to_owned()));
        }
        refuse_other_formats(path, &head)?;
        if Compression::of(&head) == Compression::None
            && let Some(image) = oci::open_archive(path).map_err(|error| SourceError::Oci(shown(), error))?
        {
            return Ok(Self::Oci(image));
        }
        let label = shown();
        Ok(Self::Tar(Layer {
            file: path.to_owned(),
            offset: 0,
            length: meta.len(),
            digest: None,
            whiteouts: false,
            label,
            limit: u64::MAX,
        }))
    }
}

fn head_of(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |error: std::io::Error| Error::io("read", path.display(), &error);
    let mut head = Vec::new();
    File::open(path).map_err(failed)?.take(512).read_to_end(&mut head).map_err(failed)?;
    match head.is_empty() {
        true => Err(Error::new("read (an empty file)", path.display(), Errno::ENODATA)),
        false => Ok(head),
    }
}

/// Says what a file is when it is something that we know but do not read.
fn refuse_other_formats(path: &Path, head: &[u8]) -> Result<(), SourceError> {
    let is = |what| Err(SourceError::Kind(path.display().to_string(), what));
    match head {
        [b'P', b'K', 3, 4, ..] => is("a zip file, not a tar"),
        [0x7f, b'E', b'L', b'F', ..] => is("a program, not a tar"),
        _ if head.starts_with(b"#!") && head.windows(9).any(|w| w == b"SIF_MAGIC") => {
            is("a SIF image, which cannot be imported yet")
        }
        _ => match Compression::of(head) {
            Compression::Other(_) => is("compressed with xz or bzip2; decompress it first (xz -d, bzip2 -d)"),
            _ => Ok(()),
        },
    }
}
