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
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
