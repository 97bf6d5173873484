//! Writes an image file: contents as they come, the rest at the end.

use super::format::{BLOCK, NULL_BLOCK};
use super::layout::MOST_INLINE;
use super::metadata;
use crate::content::{Content, Piece};
use crate::entry::show;
use crate::tree::{ContentAt, Tree};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Why the image file cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ErofsError {
    #[error("write the image file: {0}")]
    Write(#[from] io::Error),
    #[error("read `{path}`: {error}")]
    Content { path: String, error: io::Error },
    #[error("`{0}` changed its size while it was read")]
    Changed(String),
    #[error("`{0}` has no directory")]
    Orphan(String),
    #[error("`{0}` has extended attributes that are too large (a value above 65,535 bytes, or 262,148 bytes in all)")]
    Attributes(String),
    #[error("the image would be larger than 16 TiB")]
    TooLarge,
}

/// Most memory for contents that are kept to be written beside their inodes.
const INLINE_MEMORY: usize = 64 << 20;
/// Unit in which holes are looked for: 2^[`CHUNK_BITS`] blocks, 1 MiB. Less is not worth a map: programs have pages of
/// zeros, and are read faster when they are contiguous. It does not depend on what the source knows about holes, so that
/// the same files give the same bytes wherever they lay.
const CHUNK_BITS: u8 = 8;

/// Where a file's content is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// To be written beside the inode.
    Inline(Vec<u8>),
    /// Contiguous, from this block on.
    Blocks(u32),
    /// Chunks of 2^bits blocks: the first block of each, or [`NULL_BLOCK`].
    Chunks { bits: u8, map: Vec<u32> },
}

/// An image file being written.
pub(crate) struct ErofsWriter {
    out: BlockFile,
    contents: HashMap<ContentAt, Stored>,
    inline_left: usize,
    chunk: Vec<u8>,
}

impl ErofsWriter {
    /// Starts writing `path` (what is in it is replaced).
    pub(crate) fn start(path: &Path) -> Result<Self, ErofsError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let mut out = BlockFile { file: BufWriter::with_capacity(1 << 20, file), next: 0 };
        // the superblock's place
        out.blocks(&[0; BLOCK])?;
        Ok(Self { out, contents: HashMap::new(), inline_left: INLINE_MEMORY, chunk: Vec::new() })
    }

    /// Writes the content of a regular file of exactly `size` bytes; `see` is shown it as it passes, holes as lengths.
    pub(crate) fn file(
        &mut self,
        at: ContentAt,
        path: &[u8],
        size: u64,
        content: &mut dyn Content,
        see: &mut dyn FnMut(Piece),
    ) -> Result<(), ErofsError> {
        let stored = if size <= MOST_INLINE as u64 && size as usize <= self.inline_left {
            let mut bytes = vec![0; size as usize];
            fill(&mut bytes, path, content)?;
            see(Piece::Bytes(&bytes));
            self.inline_left -= bytes.len();
            Stored::Inline(bytes)
        } else {
            self.chunks(path, size, content, see)?
        };
        if content.read(&mut [0]).is_ok_and(|more| more > 0) {
            return Err(ErofsError::Changed(show(path)));
        }
        self.contents.insert(at, stored);
        Ok(())
    }

    /// Writes a content chunk by chunk; those that hold nothing but zeros are left out.
    fn chunks(
        &mut self,
        path: &[u8],
        size: u64,
        content: &mut dyn Content,
        see: &mut dyn FnMut(Piece),
    ) -> Result<Stored, ErofsError> {
        let bits = CHUNK_BITS;
        let chunk_size = (BLOCK as u64) << bits;
        let first = self.out.next;
        let mut map: Option<Vec<u32>> = None;
        let mut at = 0;
        while at < size {
            let length = chunk_size.min(size - at);
            let hole = content.hole().map_err(|error| ErofsError::Content { path: show(path), error })? >= length;
            let block = if hole {
                content.skip(length);
                see(Piece::Zeros(length));
                NULL_BLOCK
            } else {
                self.chunk.resize(length as usize, 0);
                fill(&mut self.chunk, path, content)?;
                see(Piece::Bytes(&self.chunk));
                if is_zero(&self.chunk) { NULL_BLOCK } else { self.out.blocks(&self.chunk)? }
            };
            match &mut map {
                Some(map) => map.push(block),
                None if block == NULL_BLOCK => {
                    // until here it was contiguous
                    let before = (0..at / chunk_size).map(|n| first + ((n as u32) << bits));
                    map = Some(before.chain([NULL_BLOCK]).collect());
                }
                None => {}
            }
            at += length;
        }
        Ok(match map {
            Some(map) => Stored::Chunks { bits, map },
            None => Stored::Blocks(first),
        })
    }

    /// Writes all else and the superblock. `epoch`: the time of everything; else each has its own.
    pub(crate) fn finish(mut self, tree: &Tree, epoch: Option<u32>) -> Result<(), ErofsError> {
        let superblock = metadata::write(&mut self.out, tree, &self.contents, epoch)?;
        let mut file = self.out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file.write_all(&superblock.block())?)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // long words compare faster than bytes, and most contents differ in the first one
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|&byte| byte == 0)
}

/// Reads exactly so many bytes.
fn fill(buffer: &mut [u8], path: &[u8], content: &mut dyn Content) -> Result<(), ErofsError> {
    content.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ErofsError::Changed(show(path)),
        _ => ErofsError::Content { path: show(path), error },
    })
}

/// The file, in blocks.
pub(crate) struct BlockFile {
    file: BufWriter<File>,
    /// The next block's number.
    pub next: u32,
}

impl BlockFile {
    /// Writes these bytes, filled up to whole blocks, and gives the number of the first one.
    pub(crate) fn blocks(&mut self, bytes: &[u8]) -> Result<u32, ErofsError> {
        let first = self.next;
        let count = bytes.len().div_ceil(BLOCK) as u64;
        // the last number means a hole
        let next = u64::from(first) + count;
        self.next = u32::try_from(next).ok().filter(|&next| next != NULL_BLOCK).ok_or(ErofsError::TooLarge)?;
        self.file.write_all(bytes)?;
        self.file.write_all(&[0; BLOCK][..bytes.len().wrapping_neg() % BLOCK])?;
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_found_wherever_something_else_is() {
        for length in [0, 1, 31, 32, 33, 4096, 4100] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length.saturating_sub(1)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = 1;
                    assert!(!is_zero(&bytes), "{at} of {length}");
                    bytes[at] = 0;
                }
            }
        }
    }
}
