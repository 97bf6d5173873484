//! A regular file's bytes on their way into an image, with what is known about its holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

/// A file's bytes.
pub(crate) trait Content: Read {
    /// How many bytes from here on are known to be zeros that are stored nowhere.
    fn hole(&mut self) -> io::Result<u64> {
        Ok(0)
    }
    /// Goes on behind so many bytes of a hole.
    fn skip(&mut self, _bytes: u64) {}
}

impl Content for io::Empty {}

/// What passes through.
pub(crate) enum Piece<'a> {
    Bytes(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

/// A file of a source directory.
pub(crate) struct DiskFile {
    file: File,
    size: u64,
    at: u64,
    /// Whether it takes less room than its size: only such files are asked for holes.
    sparse: bool,
}

impl DiskFile {
    /// Takes an open file, from its start.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { file, size: meta.len(), at: 0, sparse: meta.blocks() * 512 < meta.len() })
    }
}

impl Read for DiskFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buf)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Content for DiskFile {
    fn hole(&mut self) -> io::Result<u64> {
        if !self.sparse || self.at >= self.size {
            return Ok(0);
        }
        let whence = nix::unistd::Whence::SeekData;
        let data = match nix::unistd::lseek(&self.file, self.at as i64, whence) {
            Ok(data) => data as u64,
            // no data from here to the end (lseek(2))
            Err(nix::errno::Errno::ENXIO) => self.size,
            Err(errno) => return Err(errno.into()),
        };
        self.file.seek(SeekFrom::Start(self.at))?;
        Ok(data.min(self.size) - self.at)
    }

    fn skip(&mut self, bytes: u64) {
        self.at += bytes;
        // a seek to where a hole ends cannot fail; if it did, the size would not be right at the end
        self.file.seek(SeekFrom::Start(self.at)).ok();
    }
}
