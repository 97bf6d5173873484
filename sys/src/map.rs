//! Files as memory.

use crate::{Error, Result};
use std::os::fd::{AsFd, AsRawFd};

/// A read-only mapping of a whole file (mmap(2)).
#[derive(Debug)]
pub struct Mapping(memmap2::Mmap);

impl Mapping {
    /// Maps a file that nobody changes: an image, which is never written to again once it has its name.
    ///
    /// Who cuts the file off while it is mapped makes this process end by SIGBUS at the next access.
    ///
    /// # Errors
    /// What fstat(2) and mmap(2) say.
    pub fn of(file: impl AsFd, object: impl std::fmt::Display) -> Result<Self> {
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: the bytes are read as bytes only, whatever they are; see above for a file that is cut off.
        let map = unsafe { memmap2::Mmap::map(fd) };
        map.map(Self).map_err(|e| Error::io("map", object, &e))
    }

    /// Asks the kernel to have these bytes in memory soon (madvise(2), MADV_WILLNEED): in one large request instead of
    /// many small ones as they are touched. Does nothing where they are there already, and an error means no more than
    /// that.
    pub fn want(&self, from: usize, length: usize) {
        let length = length.min(self.0.len().saturating_sub(from));
        if length > 0 {
            self.0.advise_range(memmap2::Advice::WillNeed, from, length).ok();
        }
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
