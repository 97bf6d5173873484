//! Reads an image file held in memory (a mapping of it). What it holds is hostile until proven otherwise: every offset
//! is checked, nothing is believed about sizes, and nothing here recurses or loops longer than the file is.

use super::format::{self, BLOCK, DIRENT, Layout, NULL_BLOCK, SLOT, SUPER_OFFSET};
use super::xattrs;
use crate::entry::Time;

/// Why an image, or a part of it, cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No EROFS superblock.
    #[error("it is not an EROFS image")]
    NotErofs,
    /// The superblock's checksum is wrong.
    #[error("the checksum of its superblock is wrong")]
    Checksum,
    /// Features that are not read here, with their bits.
    #[error("it uses features that only the kernel reads (incompatible features {0:#x})")]
    Features(u32),
    /// Something in it contradicts itself or the file's size.
    #[error("it is damaged")]
    Damaged,
    /// No such name in the directory.
    #[error("no such file")]
    NotFound,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The image itself.
    #[error("the image cannot be read: {0}")]
    Image(#[from] ReadError),
    /// The system around it.
    #[error("{0}")]
    System(#[from] corebox_sys::Error),
}

type Result<T> = std::result::Result<T, ReadError>;

/// Number of an inode: its place in units of 32 bytes.
pub type Nid = u64;

/// A block size of 4 KiB.
const BLOCK_BITS: u8 = 12;
/// Largest chunk that the format can tell of: 2^31 blocks.
const CHUNK_BITS_MASK: u32 = 0x1f;
/// Chunk maps may have entries of 8 bytes.
const CHUNK_INDEXES: u32 = 0x20;

/// An image; `B` is its bytes.
#[derive(Debug)]
pub struct Reader<B> {
    bytes: B,
    root: Nid,
    meta: u64,
    time: Time,
    blocks: u32,
    inodes: u64,
}

/// What an inode says.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    /// Its number.
    pub nid: Nid,
    /// Type and permissions, as stat(2) has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names.
    pub links: u32,
    /// Bytes of content.
    pub size: u64,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    layout: Layout,
    /// Block number, device number or chunk format.
    union: u32,
    /// Where extended attributes are, and how many bytes of them.
    xattrs: (u64, u64),
}

impl Inode {
    /// The type's bits (S_IFMT, inode(7)).
    pub fn kind(&self) -> u32 {
        self.mode & 0o170_000
    }
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind() == 0o040_000
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == 0o100_000
    }
    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.kind() == 0o120_000
    }
    /// Device number as the kernel encodes it in 32 bits (new_encode_dev); 0 for what is no device.
    pub fn device(&self) -> u32 {
        if matches!(self.kind(), 0o020_000 | 0o060_000) { self.union } else { 0 }
    }
    /// Where inline data begin.
    fn behind(&self) -> u64 {
        self.xattrs.0 + self.xattrs.1
    }
}

/// A contiguous piece of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent<'a> {
    /// Bytes of the image.
    Bytes(&'a [u8]),
    /// So many zeros.
    Hole(u64),
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// What it leads to.
    pub nid: Nid,
    /// EROFS's number for the file type.
    pub file_type: u8,
    /// Where to go on reading behind it.
    pub next: u64,
}

impl<B: AsRef<[u8]>> Reader<B> {
    /// Looks at the superblock.
    ///
    /// # Errors
    /// No EROFS, a wrong checksum, features of compressed and multi-device images.
    pub fn open(bytes: B) -> Result<Self> {
        let block: &[u8; BLOCK] = bytes.as_ref().first_chunk().ok_or(ReadError::NotErofs)?;
        let field = |at: usize| u32_at(&block[SUPER_OFFSET..], at);
        if field(0) != format::MAGIC {
            return Err(ReadError::NotErofs);
        }
        if field(8) & format::COMPAT_CHECKSUM != 0 {
            let mut without = *block;
            without[SUPER_OFFSET + 4..SUPER_OFFSET + 8].fill(0);
            if field(4) != format::checksum(&without) {
                return Err(ReadError::Checksum);
            }
        }
        let unknown = field(80) & !format::INCOMPAT_CHUNKED;
        if unknown != 0 || block[SUPER_OFFSET + 12] != BLOCK_BITS {
            return Err(ReadError::Features(unknown));
        }
        let root = u16::from_le_bytes([block[SUPER_OFFSET + 14], block[SUPER_OFFSET + 15]]);
        Ok(Self {
            root: root.into(),
            inodes: u64::from(field(16)) | u64::from(field(20)) << 32,
            time: Time { seconds: (u64::from(field(24)) | u64::from(field(28)) << 32) as i64, nanoseconds: field(32) },
            blocks: field(36),
            meta: u64::from(field(40)) * BLOCK as u64,
            bytes,
        })
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        self.root
    }

    /// Blocks of 4 KiB, and inodes, as the superblock counts them.
    pub fn counts(&self) -> (u32, u64) {
        (self.blocks, self.inodes)
    }

    /// The bytes from `at` on.
    fn get(&self, at: u64, length: u64) -> Result<&[u8]> {
        let range = usize::try_from(at).ok().zip(at.checked_add(length).and_then(|end| usize::try_from(end).ok()));
        range.and_then(|(start, end)| self.bytes.as_ref().get(start..end)).ok_or(ReadError::Damaged)
    }

    /// An inode.
    ///
    /// # Errors
    /// A number that leads nowhere, or an inode that makes no sense.
    pub fn inode(&self, nid: Nid) -> Result<Inode> {
        let place = nid.checked_mul(SLOT as u64).and_then(|offset| self.meta.checked_add(offset));
        let place = place.ok_or(ReadError::Damaged)?;
        let short = self.get(place, format::COMPACT as u64)?;
        let form = u16_at(short, 0);
        let layout = match form >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            4 => Layout::Chunks,
            _ => return Err(ReadError::Damaged),
        };
        let xattr_units = u64::from(u16_at(short, 2));
        let xattr_bytes = if xattr_units == 0 { 0 } else { xattrs::HEADER as u64 + (xattr_units - 1) * 4 };
        let mode = u32::from(u16_at(short, 4));
        if form & 1 == 0 {
            return Ok(Inode {
                nid,
                mode,
                links: u16_at(short, 6).into(),
                size: u32_at(short, 8).into(),
                union: u32_at(short, 16),
                uid: u16_at(short, 24).into(),
                gid: u16_at(short, 26).into(),
                mtime: (self.time.seconds, self.time.nanoseconds),
                layout,
                xattrs: (place + format::COMPACT as u64, xattr_bytes),
            });
        }
        let long = self.get(place, format::EXTENDED as u64)?;
        let wide = |at: usize| u64::from(u32_at(long, at)) | u64::from(u32_at(long, at + 4)) << 32;
        let size = wide(8);
        if size > i64::MAX as u64 {
            return Err(ReadError::Damaged);
        }
        Ok(Inode {
            nid,
            mode,
            size,
            union: u32_at(long, 16),
            uid: u32_at(long, 24),
            gid: u32_at(long, 28),
            mtime: (wide(32) as i64, u32_at(long, 40).min(999_999_999)),
            links: u32_at(long, 44),
            layout,
            xattrs: (place + format::EXTENDED as u64, xattr_bytes),
        })
    }

    /// The contiguous piece of a content that begins at `offset`, which must be below its size.
    ///
    /// # Errors
    /// A place outside of the image.
    pub fn extent(&self, inode: &Inode, offset: u64) -> Result<Extent<'_>> {
        let left = inode.size.checked_sub(offset).filter(|&left| left > 0).ok_or(ReadError::Damaged)?;
        let block = BLOCK as u64;
        match inode.layout {
            Layout::Plain => self.get(u64::from(inode.union) * block + offset, left).map(Extent::Bytes),
            Layout::Inline => {
                let whole = (inode.size.div_ceil(block) - 1) * block;
                if offset < whole {
                    self.get(u64::from(inode.union) * block + offset, whole - offset).map(Extent::Bytes)
                } else {
                    self.get(inode.behind() + (offset - whole), left).map(Extent::Bytes)
                }
            }
            Layout::Chunks => {
                let chunk = block << (inode.union & CHUNK_BITS_MASK);
                let (index, within) = (offset / chunk, offset % chunk);
                let (unit, at) = if inode.union & CHUNK_INDEXES != 0 { (8, 4) } else { (4, 0) };
                let entry = index.checked_mul(unit).and_then(|n| n.checked_add(inode.behind().next_multiple_of(unit)));
                let first = u32_at(self.get(entry.ok_or(ReadError::Damaged)?, unit)?, at);
                let length = left.min(chunk - within);
                if first == NULL_BLOCK {
                    return Ok(Extent::Hole(length));
                }
                self.get(u64::from(first) * block + within, length).map(Extent::Bytes)
            }
        }
    }

    /// At most `length` bytes of a content from `offset` on, given to `take` in pieces; holes are zeros.
    ///
    /// # Errors
    /// As [`Reader::extent`].
    pub fn read(&self, inode: &Inode, offset: u64, length: u64, mut take: impl FnMut(Extent)) -> Result<()> {
        let end = inode.size.min(offset.saturating_add(length));
        let mut at = offset;
        while at < end {
            at += match self.extent(inode, at)? {
                Extent::Bytes(bytes) => {
                    let piece = &bytes[..bytes.len().min((end - at) as usize)];
                    take(Extent::Bytes(piece));
                    piece.len() as u64
                }
                Extent::Hole(zeros) => {
                    let piece = zeros.min(end - at);
                    take(Extent::Hole(piece));
                    piece
                }
            };
        }
        Ok(())
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// One that is none, or too long (PATH_MAX).
    pub fn target(&self, inode: &Inode) -> Result<&[u8]> {
        if !inode.is_symlink() || inode.size >= BLOCK as u64 {
            return Err(ReadError::Damaged);
        }
        match self.extent(inode, 0)? {
            Extent::Bytes(bytes) if bytes.len() as u64 == inode.size && !bytes.contains(&0) => Ok(bytes),
            _ => Err(ReadError::Damaged),
        }
    }

    /// One block of a directory.
    fn directory_block(&self, directory: &Inode, index: u64) -> Result<DirectoryBlock<'_>> {
        let start = index * BLOCK as u64;
        let length = directory.size.saturating_sub(start).min(BLOCK as u64) as usize;
        let Extent::Bytes(bytes) = self.extent(directory, start)? else { return Err(ReadError::Damaged) };
        DirectoryBlock::new(bytes.get(..length).ok_or(ReadError::Damaged)?, start)
    }

    /// Looks a name up in a directory.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], or damage.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<DirEntry<'_>> {
        if !directory.is_directory() {
            return Err(ReadError::Damaged);
        }
        // the last block whose first name is not behind the wanted one
        let (mut low, mut high) = (0, directory.size.div_ceil(BLOCK as u64));
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.directory_block(directory, middle)?;
            if block.entry(0)?.name <= name {
                found = Some(block);
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let block = found.ok_or(ReadError::NotFound)?;
        let (mut low, mut high) = (0, block.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = block.entry(middle)?;
            match entry.name.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(entry),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(ReadError::NotFound)
    }

    /// Shows entries of a directory, `.` and `..` among them, from `position` on (0, or [`DirEntry::next`]), until `see`
    /// says false.
    ///
    /// # Errors
    /// Damage.
    pub fn entries<'a>(
        &'a self,
        directory: &Inode,
        position: u64,
        mut see: impl FnMut(DirEntry<'a>) -> bool,
    ) -> Result<()> {
        if !directory.is_directory() {
            return Err(ReadError::Damaged);
        }
        let mut first = (position % BLOCK as u64) as usize / DIRENT;
        for index in position / BLOCK as u64..directory.size.div_ceil(BLOCK as u64) {
            let block = self.directory_block(directory, index)?;
            for number in first..block.count {
                if !see(block.entry(number)?) {
                    return Ok(());
                }
            }
            first = 0;
        }
        Ok(())
    }

    /// Shows names and values of extended attributes, until `see` says false.
    ///
    /// # Errors
    /// Damage, or attributes that are shared between inodes, which corebox does not write.
    pub fn xattrs(&self, inode: &Inode, mut see: impl FnMut(&[&[u8]; 2], &[u8]) -> bool) -> Result<()> {
        let (place, length) = inode.xattrs;
        let body = self.get(place, length)?;
        if body.len() <= xattrs::HEADER {
            return Ok(());
        }
        if body[4] != 0 {
            return Err(ReadError::Damaged);
        }
        let mut rest = &body[xattrs::HEADER..];
        while let Some((head, tail)) = rest.split_at_checked(4) {
            let (name, value) = (usize::from(head[0]), usize::from(u16_at(head, 2)));
            let bytes = tail.get(..name + value).ok_or(ReadError::Damaged)?;
            let prefix = xattrs::PREFIXES.iter().find(|(index, _)| *index == head[1]).ok_or(ReadError::Damaged)?.1;
            if !see(&[prefix, &bytes[..name]], &bytes[name..]) {
                return Ok(());
            }
            rest = tail.get((name + value).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A block of a directory.
struct DirectoryBlock<'a> {
    bytes: &'a [u8],
    count: usize,
    /// Its offset in the directory.
    start: u64,
}

impl<'a> DirectoryBlock<'a> {
    fn new(bytes: &'a [u8], start: u64) -> Result<Self> {
        // the first name follows the last entry
        let names = bytes.get(8..10).map(|field| usize::from(u16_at(field, 0))).ok_or(ReadError::Damaged)?;
        if names < DIRENT || names > bytes.len() || !names.is_multiple_of(DIRENT) {
            return Err(ReadError::Damaged);
        }
        Ok(Self { bytes, count: names / DIRENT, start })
    }

    /// An entry; `number` is below `count`.
    fn entry(&self, number: usize) -> Result<DirEntry<'a>> {
        let at = number * DIRENT;
        let head = self.bytes.get(at..at + DIRENT).ok_or(ReadError::Damaged)?;
        let name = usize::from(u16_at(head, 8));
        let last = number + 1 >= self.count;
        let end = if last { self.bytes.len() } else { usize::from(u16_at(self.bytes, at + DIRENT + 8)) };
        let name = self.bytes.get(name..end).ok_or(ReadError::Damaged)?;
        let name = if last { name.split(|&byte| byte == 0).next().unwrap_or_default() } else { name };
        if name.is_empty() || name.len() > 255 || name.contains(&0) || name.contains(&b'/') {
            return Err(ReadError::Damaged);
        }
        let nid = u64::from(u32_at(head, 0)) | u64::from(u32_at(head, 4)) << 32;
        let next = if last { self.start + BLOCK as u64 } else { self.start + (at + DIRENT) as u64 };
        Ok(DirEntry { name, nid, file_type: head[10], next })
    }
}

/// A number in bytes that are known to be long enough.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
