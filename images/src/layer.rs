//! One archive of an image: a range of a file, plain or compressed, whose digest may have to be checked.

use crate::entry::{Entry, split};
use crate::tar_reader::{TarError, TarReader};
use crate::tree::{ContentAt, Tree, TreeError};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

/// Why a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("{0}: {1}")]
    Open(String, io::Error),
    #[error("{label}: {compression} is not supported")]
    Compression { label: String, compression: &'static str },
    #[error("{0}: {1}")]
    Tar(String, TarError),
    #[error("{0}: {1}")]
    Tree(String, TreeError),
    #[error("{label}: its content has the digest sha256:{got} instead of sha256:{expected}")]
    Digest { label: String, expected: String, got: String },
}

/// A tar archive in (a part of) a file.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub file: PathBuf,
    pub offset: u64,
    pub length: u64,
    /// Digits of the SHA-256 of the stored bytes, if something told us.
    pub digest: Option<String>,
    /// `.wh.` names hide what lower layers have (OCI image-spec, layer.md); in a plain tar they are just names.
    pub whiteouts: bool,
    /// How messages call it.
    pub label: String,
    /// Bytes that it may have when unpacked: a few kilobytes can unpack to terabytes.
    pub limit: u64,
}

/// Ends in an error instead of giving more bytes than allowed.
pub(crate) struct Bounded<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        match self.left.checked_sub(got as u64) {
            Some(left) => self.left = left,
            None => {
                let limit = corebox_spec::format_size(self.limit);
                return Err(io::Error::other(format!(
                    "unpacked it has more than {limit} (`max-unpacked` in images.toml)"
                )));
            }
        }
        Ok(got)
    }
}

/// A layer's bytes as stored, hashed on the way if that is wanted.
pub(crate) struct Stored {
    inner: io::Take<File>,
    hash: Option<Sha256>,
}

impl Read for Stored {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buf[..got]);
        }
        Ok(got)
    }
}

/// Takes the compression off.
pub(crate) enum Unpacked<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::Decoder<'static, R>>),
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buf),
            Self::Gzip(reader) => reader.read(buf),
            Self::Zstd(reader) => reader.read(buf),
        }
    }
}

impl<R: BufRead> Unpacked<R> {
    fn into_inner(self) -> R {
        match self {
            Self::Plain(reader) => reader,
            Self::Gzip(reader) => reader.into_inner(),
            Self::Zstd(reader) => reader.finish(),
        }
    }
}

/// How a file is compressed, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// One that we do not read.
    Other(&'static str),
}

impl Compression {
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // a skippable frame may come first (zstd's format, as pzstd and seekable writers do)
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz compression"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Other("bzip2 compression"),
            _ => Self::None,
        }
    }
}

/// A layer being read.
pub(crate) type LayerReader = TarReader<Bounded<Unpacked<BufReader<Stored>>>>;

impl Layer {
    fn open(&self) -> Result<LayerReader, LayerError> {
        let failed = |error| LayerError::Open(self.label.clone(), error);
        let mut file = File::open(&self.file).map_err(failed)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        let stored = Stored { inner: file.take(self.length), hash: self.digest.as_ref().map(|_| Sha256::new()) };
        let mut reader = BufReader::with_capacity(1 << 17, stored);
        let head = reader.fill_buf().map_err(failed)?;
        let unpacked = match Compression::of(head) {
            Compression::None => Unpacked::Plain(reader),
            Compression::Gzip => Unpacked::Gzip(Box::new(MultiGzDecoder::new(reader))),
            Compression::Zstd => Unpacked::Zstd(Box::new(zstd::Decoder::with_buffer(reader).map_err(failed)?)),
            Compression::Other(compression) => {
                return Err(LayerError::Compression { label: self.label.clone(), compression });
            }
        };
        let bounded = Bounded { inner: unpacked, left: self.limit, limit: self.limit };
        Ok(TarReader::new(bounded, self.digest.is_some()))
    }

    /// Shows each entry to `visit`, then reads on to the end of the file and checks the digest.
    pub(crate) fn read<E: From<LayerError>>(
        &self,
        mut visit: impl FnMut(u64, crate::entry::Entry, &mut LayerReader) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut tar = self.open()?;
        while let Some((ordinal, entry)) = tar.next().map_err(|error| LayerError::Tar(self.label.clone(), error))? {
            visit(ordinal, entry, &mut tar)?;
        }
        self.check_digest(tar)?;
        Ok(())
    }

    fn check_digest(&self, tar: LayerReader) -> Result<(), LayerError> {
        let failed = |error: io::Error| LayerError::Tar(self.label.clone(), error.into());
        let mut buffered = tar.drain().map_err(failed)?.inner.into_inner();
        // whatever follows the compressed stream belongs to the blob as well
        io::copy(&mut buffered, &mut io::sink()).map_err(failed)?;
        let Some((expected, hash)) = self.digest.clone().zip(buffered.into_inner().hash) else { return Ok(()) };
        let got = hex(&hash.finalize());
        if got == expected { Ok(()) } else { Err(LayerError::Digest { label: self.label.clone(), expected, got }) }
    }

    /// Adds what this layer holds to the tree of the layers below it.
    pub(crate) fn add_to(&self, tree: &mut Tree, index: u32) -> Result<(), LayerError> {
        self.read(|ordinal, entry, _| {
            Self::take_entry(tree, entry, ContentAt { layer: index, ordinal }, self.whiteouts)
                .map_err(|error| LayerError::Tree(self.label.clone(), error))
        })
    }

    /// Adds one entry, or hides what it says is hidden.
    pub(crate) fn take_entry(tree: &mut Tree, entry: Entry, at: ContentAt, whiteouts: bool) -> Result<(), TreeError> {
        if whiteouts && let Some(hidden) = split(&entry.path).1.strip_prefix(b".wh.") {
            let directory = split(&entry.path).0;
            match hidden {
                b".wh..opq" => tree.opaque(directory, at.layer),
                // other names of this form are the bookkeeping of aufs
                _ if hidden.starts_with(b".wh.") || hidden.is_empty() => {}
                _ => tree.whiteout(&crate::entry::join(directory, hidden), at.layer),
            }
            return Ok(());
        }
        tree.put(entry, at)?;
        Ok(())
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // writing to a String cannot fail
        write!(text, "{byte:02x}").ok();
        text
    })
}
