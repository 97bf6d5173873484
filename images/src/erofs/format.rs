//! The structures on disk, as fs/erofs/erofs_fs.h of the kernel defines them; all numbers are little-endian.

use crate::entry::{Device, Time};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// `BLOCK` is 2 to this.
const BLOCK_BITS: u8 = 12;
/// Where the superblock is.
pub(crate) const SUPER_OFFSET: usize = 1024;
/// EROFS_SUPER_MAGIC_V1.
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
/// The superblock has a checksum.
pub(crate) const COMPAT_CHECKSUM: u32 = 1;
/// Times of inodes are those of modification, not of the inode's change.
const COMPAT_MTIME: u32 = 2;
/// Some inodes are chunk-based.
pub(crate) const INCOMPAT_CHUNKED: u32 = 4;
/// The unit in which inodes are numbered.
pub(crate) const SLOT: usize = 32;
/// Sizes of the two forms of an inode.
pub(crate) const COMPACT: usize = 32;
pub(crate) const EXTENDED: usize = 64;
/// Bytes of a directory entry without its name.
pub(crate) const DIRENT: usize = 12;
/// "No block": a hole, or nothing to point to.
pub(crate) const NULL_BLOCK: u32 = u32::MAX;

/// How an inode's data are laid out (EROFS_INODE_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Contiguous blocks.
    Plain = 0,
    /// Contiguous whole blocks, and the rest right behind the inode, in the inode's block.
    Inline = 2,
    /// Chunks, each anywhere or a hole.
    Chunks = 4,
}

/// File types of directory entries (EROFS_FT_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileType {
    Regular = 1,
    Directory = 2,
    Character = 3,
    Block = 4,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    /// The type's bits in a mode (S_IFMT, inode(7)).
    pub(crate) fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Character => 0o020_000,
            Self::Block => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// What the superblock says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Superblock {
    pub root: u16,
    pub inodes: u64,
    /// Time of compact inodes.
    pub time: Time,
    pub blocks: u32,
    pub meta_block: u32,
    pub chunked: bool,
}

impl Superblock {
    /// The first block of the file.
    pub(crate) fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut out = Fields { bytes: &mut block[SUPER_OFFSET..], at: 0 };
        out.u32(MAGIC);
        out.u32(0); // checksum
        out.u32(COMPAT_CHECKSUM | COMPAT_MTIME);
        out.u8(BLOCK_BITS);
        out.u8(0); // further slots of the superblock
        out.u16(self.root);
        out.u64(self.inodes);
        out.u64(self.time.seconds as u64);
        out.u32(self.time.nanoseconds);
        out.u32(self.blocks);
        out.u32(self.meta_block);
        out.u32(0); // shared extended attributes: none
        out.skip(16 + 16); // uuid and volume name: an image is named by its digest
        out.u32(if self.chunked { INCOMPAT_CHUNKED } else { 0 });
        let sum = checksum(&block);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        block
    }
}

/// The checksum of a superblock whose checksum field is zero: CRC-32C from the superblock to the end of its block,
/// without the final inversion (erofs_superblock_csum_verify, fs/erofs/super.c).
pub(crate) fn checksum(block: &[u8; BLOCK]) -> u32 {
    !crc32c::crc32c(&block[SUPER_OFFSET..])
}

/// An inode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inode {
    pub layout: Layout,
    pub file_type: FileType,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub size: u64,
    pub mtime: Time,
    /// Block number, device number or chunk format.
    pub union: u32,
    /// Bytes of extended attributes that follow.
    pub xattr_bytes: usize,
    /// A number for 32-bit stat(2).
    pub number: u32,
}

impl Inode {
    /// Whether the short form can hold it: it has no time of its own and 16-bit ids.
    pub(crate) fn is_compact(&self, common: Time) -> bool {
        let short = |value: u32| value <= u32::from(u16::MAX);
        self.mtime == common
            && short(self.uid)
            && short(self.gid)
            && short(self.links)
            && self.size <= u64::from(u32::MAX)
    }

    /// Its bytes: [`COMPACT`] or [`EXTENDED`] of them.
    pub(crate) fn encode(&self, compact: bool) -> Vec<u8> {
        let mut bytes = vec![0; if compact { COMPACT } else { EXTENDED }];
        let mut out = Fields { bytes: &mut bytes, at: 0 };
        out.u16(u16::from(!compact) | (self.layout as u16) << 1);
        // counted in units of 4 bytes, the header of 12 bytes as one (erofs_xattr_ibody_size)
        out.u16(if self.xattr_bytes == 0 { 0 } else { ((self.xattr_bytes - 12) / 4 + 1) as u16 });
        out.u16(self.file_type.mode_bits() | self.mode as u16);
        if compact {
            out.u16(self.links as u16);
            out.u32(self.size as u32);
            out.u32(0);
            out.u32(self.union);
            out.u32(self.number);
            out.u16(self.uid as u16);
            out.u16(self.gid as u16);
        } else {
            out.u16(0);
            out.u64(self.size);
            out.u32(self.union);
            out.u32(self.number);
            out.u32(self.uid);
            out.u32(self.gid);
            out.u64(self.mtime.seconds as u64);
            out.u32(self.mtime.nanoseconds);
            out.u32(self.links);
        }
        bytes
    }
}

/// A device number as the kernel stores it in 32 bits (new_encode_dev, linux/kdev_t.h).
pub(crate) fn device_number(device: Device) -> u32 {
    (device.minor & 0xff) | device.major << 8 | (device.minor & !0xff) << 12
}

/// Writes fields one after the other.
struct Fields<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Fields<'_> {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }
    fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_the_kernels() {
        let number = |major, minor| device_number(Device { block: false, major, minor });
        assert_eq!(number(1, 3), 0x103);
        assert_eq!(number(0xfff, 0xf_ffff), 0xffff_ffff);
        assert_eq!(number(8, 0x12345), 0x1230_0845);
    }
}
