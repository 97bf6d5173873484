//! Sets the owner and the time of an image's root directory.
//!
//! mksquashfs 4.5 ignores the root directory's entry of a tar stream, and of its options for the root only
//! `-root-mode`: the root then belongs to whoever ran it and carries the time of the import, so that no two imports
//! gave the same bytes. Both are fields of one inode, so they are put right in the finished file. That needs inodes and
//! ids to be stored uncompressed (`-noI`), which costs about 1 % of space and makes stat(2) faster.
//!
//! Layout: kernel Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h (all little-endian).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of metadata in one block, besides its 2-byte header.
const METADATA: u64 = 8192;
/// Bit of a metadata block's header that says it is not compressed.
const UNCOMPRESSED: u16 = 1 << 15;
const NONE: u64 = u64::MAX;

// offsets in the superblock
const NO_IDS: u64 = 26;
const ROOT_INODE: u64 = 32;
const BYTES_USED: u64 = 40;
const ID_TABLE: u64 = 48;
const XATTR_TABLE: u64 = 56;
const INODE_TABLE: u64 = 64;

// offsets in a directory inode, and its two types
const UID_INDEX: u64 = 4;
const GID_INDEX: u64 = 6;
const MTIME: u64 = 8;
const DIRECTORY: u16 = 1;
const LONG_DIRECTORY: u16 = 8;

/// Gives the root directory of a squashfs file this owner and time.
///
/// # Errors
/// What reading and writing say; `InvalidData` if the file is not laid out as mksquashfs does with `-noI`.
pub(crate) fn set_root(path: &Path, uid: u32, gid: u32, mtime: u32) -> io::Result<()> {
    let image = Squashfs { file: OpenOptions::new().read(true).write(true).open(path)? };
    let uid = image.id_index(uid)?;
    let gid = image.id_index(gid)?;
    let inode = image.u64(ROOT_INODE)?;
    let (block, offset) = (image.u64(INODE_TABLE)? + (inode >> 16), inode & 0xffff);
    let place = |field: u64| image.metadata_place(block, offset + field);
    if !matches!(image.u16(place(0)?)?, DIRECTORY | LONG_DIRECTORY) {
        return Err(malformed("the root inode is not a directory"));
    }
    // fields are 2-byte aligned and so are blocks: a field of 2 bytes never lies across two of them
    image.put(place(UID_INDEX)?, &uid.to_le_bytes())?;
    image.put(place(GID_INDEX)?, &gid.to_le_bytes())?;
    let [a, b, c, d] = mtime.to_le_bytes();
    image.put(place(MTIME)?, &[a, b])?;
    image.put(place(MTIME + 2)?, &[c, d])
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected squashfs layout: {what}"))
}

struct Squashfs {
    file: File,
}

impl Squashfs {
    fn bytes<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
    fn u16(&self, at: u64) -> io::Result<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }
    fn u32(&self, at: u64) -> io::Result<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }
    fn u64(&self, at: u64) -> io::Result<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
    fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
    fn add(&self, at: u64, more: u64) -> io::Result<()> {
        self.put(at, &(self.u64(at)? + more).to_le_bytes())
    }

    /// Where byte `offset`, counted from the metadata block at `block`, is in the file.
    fn metadata_place(&self, mut block: u64, mut offset: u64) -> io::Result<u64> {
        loop {
            if self.u16(block)? & UNCOMPRESSED == 0 {
                return Err(malformed("metadata are compressed"));
            }
            if offset < METADATA {
                return Ok(block + 2 + offset);
            }
            block += 2 + METADATA;
            offset -= METADATA;
        }
    }

    /// The index that stands for an id; the id is added to the table if need be.
    fn id_index(&self, id: u32) -> io::Result<u16> {
        let count = self.u16(NO_IDS)?;
        let first_block = self.u64(self.u64(ID_TABLE)?)?;
        for index in 0..count {
            if self.u32(self.metadata_place(first_block, u64::from(index) * 4)?)? == id {
                return Ok(index);
            }
        }
        self.add_id(id, count)?;
        Ok(count)
    }

    /// Appends an id to the last block of the table and moves what follows (the table's index, the extended
    /// attributes) by 4 bytes.
    fn add_id(&self, id: u32, count: u16) -> io::Result<()> {
        const SHIFT: u64 = 4;
        let index = self.u64(ID_TABLE)?;
        let blocks = (u64::from(count) * 4).div_ceil(METADATA);
        if count == 0 || count == u16::MAX || (u64::from(count) * 4).is_multiple_of(METADATA) {
            return Err(malformed("the table of ids is full"));
        }
        let block = self.u64(index + (blocks - 1) * 8)?;
        let length = self.u16(block)? & !UNCOMPRESSED;
        if block + 2 + u64::from(length) != index {
            return Err(malformed("the table of ids is not where it is expected"));
        }
        let end = self.u64(BYTES_USED)?;
        let mut tail = vec![0; end.saturating_sub(index) as usize];
        self.file.read_exact_at(&mut tail, index)?;
        self.put(index, &id.to_le_bytes())?;
        self.put(index + SHIFT, &tail)?;
        self.put(block, &((length + SHIFT as u16) | UNCOMPRESSED).to_le_bytes())?;
        self.put(NO_IDS, &(count + 1).to_le_bytes())?;
        self.add(ID_TABLE, SHIFT)?;
        self.add(BYTES_USED, SHIFT)?;
        // mksquashfs fills the file up to 4 KiB, which block devices want
        self.file.set_len((end + SHIFT).next_multiple_of(4096))?;
        self.move_xattrs(SHIFT)
    }

    /// Adds to the absolute positions that the attribute tables hold.
    fn move_xattrs(&self, shift: u64) -> io::Result<()> {
        let old = self.u64(XATTR_TABLE)?;
        if old == NONE {
            return Ok(());
        }
        let table = old + shift;
        self.put(XATTR_TABLE, &table.to_le_bytes())?;
        // position of the values, number of attribute sets, unused, then positions of the blocks of the sets
        self.add(table, shift)?;
        let blocks = (u64::from(self.u32(table + 8)?) * 16).div_ceil(METADATA);
        (0..blocks).try_for_each(|block| self.add(table + 16 + block * 8, shift))
    }
}
