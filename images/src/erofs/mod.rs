//! EROFS, the read-only file system of Linux that images are (kernel Documentation/filesystems/erofs.rst): written as
//! a stream, read back for FUSE and unpacking. Uncompressed, blocks of 4 KiB.
//!
//! ```text
//! block 0            superblock at byte 1024
//! block 1 …          contents of files, in the order in which the source had them
//! then               directories longer than their place beside the inode, long symbolic links
//! meta_blkaddr …     inodes, each followed by its extended attributes and its inline data
//! ```
//!
//! What a start of a program touches lies together: the inodes of one directory's entries are neighbours, small
//! directories, symbolic links and very small files are in the same block as their inode, and all other contents
//! are contiguous.

pub(crate) mod format;
mod layout;
mod metadata;
mod reader;
mod serve;
mod unpack;
mod writer;
mod xattrs;

pub use reader::{DirEntry, Extent, Inode, Nid, ReadError, Reader, Unusable};
pub(crate) use serve::serve;
pub use unpack::unpack;
pub(crate) use writer::{ErofsError, ErofsWriter};
