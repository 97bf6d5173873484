//! Sparse files in tar archives: the old GNU form and the pax forms 0.0, 0.1 and 1.0 (GNU tar manual, "Sparse
//! Formats"). All become one map from stored bytes to places in the file.

use crate::tar_reader::{BLOCK, number};
use std::io::{self, Read};

/// More pieces than this is not a file that anyone has: it is an attack on our memory.
const MAX_PIECES: usize = 1 << 20;

/// Why a sparse map is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SparseError {
    #[error("the map of the sparse file is malformed")]
    Malformed,
    #[error("the map of the sparse file has more than {MAX_PIECES} pieces")]
    TooMany,
    #[error("the sparse file's map does not fit its stored bytes")]
    Mismatch,
    #[error("the map of the sparse file: {0}")]
    Io(io::Error),
}

/// The `GNU.sparse.*` records of a pax header.
#[derive(Default)]
pub(crate) struct PaxSparse {
    /// The real name; the header's is a made-up one.
    pub name: Option<Vec<u8>>,
    size: Option<u64>,
    major: Option<u64>,
    numbers: Vec<u64>,
}

impl PaxSparse {
    /// Takes one pax record, if it is about sparse files.
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let parsed = || number(value).ok_or("GNU.sparse record");
        match key {
            b"GNU.sparse.name" => self.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.size = Some(parsed()?),
            b"GNU.sparse.major" => self.major = Some(parsed()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.numbers.push(parsed()?),
            b"GNU.sparse.map" => {
                for text in value.split(|&byte| byte == b',') {
                    self.numbers.push(number(text).ok_or("GNU.sparse record")?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the map stands before the content (format 1.0).
    pub(crate) fn is_in_data(&self) -> bool {
        self.major == Some(1)
    }
}

/// What to read next.
pub(crate) enum Run {
    /// This many zeros (0: the end of the file).
    Zeros(usize),
    /// Up to this many stored bytes.
    Data(usize),
}

/// Pieces of a file that are stored; all else is holes.
pub(crate) struct SparseMap {
    size: u64,
    /// Offset and length, ascending.
    pieces: Vec<(u64, u64)>,
    at: u64,
    index: usize,
}

impl SparseMap {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, pieces: Vec::new(), at: 0, index: 0 }
    }

    /// Length of the file with its holes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), SparseError> {
        let last = self.pieces.last().map_or(0, |&(offset, length)| offset + length);
        let end = offset.checked_add(length).ok_or(SparseError::Malformed)?;
        if offset < last || end > self.size || self.size > i64::MAX as u64 {
            return Err(SparseError::Malformed);
        }
        if self.pieces.len() >= MAX_PIECES {
            return Err(SparseError::TooMany);
        }
        self.pieces.push((offset, length));
        Ok(())
    }

    pub(crate) fn push_gnu(&mut self, part: &tar::GnuSparseHeader) -> Result<(), SparseError> {
        if part.is_empty() {
            return Ok(());
        }
        let offset = part.offset().map_err(|_| SparseError::Malformed)?;
        self.push(offset, part.length().map_err(|_| SparseError::Malformed)?)
    }

    pub(crate) fn push_gnu_bytes(&mut self, part: &[u8]) -> Result<(), SparseError> {
        let mut header = tar::GnuSparseHeader { offset: [0; 12], numbytes: [0; 12] };
        let (offset, length) = part.split_at(12);
        header.offset.copy_from_slice(offset);
        header.numbytes.copy_from_slice(length);
        self.push_gnu(&header)
    }

    /// Formats 0.0 and 0.1: the map is in the pax records. `None`: the file is not sparse.
    pub(crate) fn from_records(pax: &PaxSparse) -> Result<Option<Self>, SparseError> {
        let Some(size) = pax.size else { return Ok(None) };
        let mut map = Self::new(size);
        let (pairs, rest) = pax.numbers.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(SparseError::Malformed);
        }
        pairs.iter().try_for_each(|&[offset, length]| map.push(offset, length))?;
        Ok(Some(map))
    }

    /// Format 1.0: decimal lines before the content, filled up to whole blocks. Also says how many bytes they took.
    pub(crate) fn read_1_0(data: &mut impl Read, pax: &PaxSparse) -> Result<(Self, u64), SparseError> {
        let mut lines = Lines { data, block: [0; BLOCK], next: BLOCK, used: 0 };
        let mut map = Self::new(pax.size.ok_or(SparseError::Malformed)?);
        let pieces = lines.number()?;
        if pieces > MAX_PIECES as u64 {
            return Err(SparseError::TooMany);
        }
        for _ in 0..pieces {
            let offset = lines.number()?;
            let length = lines.number()?;
            map.push(offset, length)?;
        }
        Ok((map, lines.used))
    }

    /// Refuses a map that names more or fewer bytes than are stored.
    pub(crate) fn check(&self, stored: u64) -> Result<(), SparseError> {
        let named: u64 = self.pieces.iter().map(|&(_, length)| length).sum();
        if named == stored { Ok(()) } else { Err(SparseError::Mismatch) }
    }

    /// What comes next, at most `room` bytes of it.
    pub(crate) fn next(&mut self, room: usize) -> Run {
        loop {
            let (start, length) = self.pieces.get(self.index).copied().unwrap_or((self.size, 0));
            if self.at < start {
                let zeros = (start - self.at).min(room as u64);
                self.at += zeros;
                return Run::Zeros(zeros as usize);
            }
            let left = start + length - self.at;
            if left > 0 {
                return Run::Data(left.min(room as u64) as usize);
            }
            if self.index >= self.pieces.len() {
                return Run::Zeros(0);
            }
            self.index += 1;
        }
    }

    /// How many zeros of a hole come next.
    pub(crate) fn hole(&mut self) -> u64 {
        while self.pieces.get(self.index).is_some_and(|&(start, length)| start + length <= self.at) {
            self.index += 1;
        }
        let next = self.pieces.get(self.index).map_or(self.size, |&(start, _)| start);
        next.saturating_sub(self.at)
    }

    /// Notes that this many bytes were read, or passed over in a hole.
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.at += bytes;
    }
}

/// Decimal numbers, one a line, in blocks.
struct Lines<'a, R> {
    data: &'a mut R,
    block: [u8; BLOCK],
    next: usize,
    used: u64,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, SparseError> {
        let mut value: u64 = 0;
        for digits in 0.. {
            if self.next == BLOCK {
                self.data.read_exact(&mut self.block).map_err(SparseError::Io)?;
                self.used += BLOCK as u64;
                self.next = 0;
            }
            let byte = self.block[self.next];
            self.next += 1;
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    value = value.checked_mul(10).and_then(|v| v.checked_add(digit)).ok_or(SparseError::Malformed)?;
                }
                b'\n' if digits > 0 => return Ok(value),
                _ => break,
            }
        }
        Err(SparseError::Malformed)
    }
}
