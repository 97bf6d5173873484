//! Serves an image over FUSE (kernel Documentation/filesystems/fuse.rst), with the protocol by the crate fuser.
//!
//! The image never changes, so the kernel is told to remember everything for ever: names (also those that do not
//! exist), attributes, links, pages. open and opendir are answered once with ENOSYS, after which the kernel does not
//! ask any more (FUSE_NO_OPEN_SUPPORT). What is asked is answered from a mapping of the image, without copying.

use super::reader::{DirEntry, Extent, Inode, Nid, ReadError, Reader, Unusable};
use corebox_sys::Error;
use corebox_sys::map::Mapping;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request, Session, SessionACL,
};
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// For ever.
const ALWAYS: Duration = Duration::from_secs(u64::MAX);
/// More threads than this only wait for each other.
const MOST_THREADS: usize = 8;
/// Requests that the kernel may have on their way for readahead.
const BACKGROUND: u16 = 64;
/// Largest request.
const LARGEST: u32 = 1 << 20;

/// Serves the image in `image` on the mounted FUSE `device` until it is unmounted. The caller's `device` stays open: who
/// waits for an answer learns of an error only when the caller has said why.
///
/// # Errors
/// An image that cannot be read, or a device that cannot be served.
pub(crate) fn serve(image: BorrowedFd<'_>, device: BorrowedFd<'_>) -> Result<(), Unusable> {
    let reader = Reader::open(Mapping::of(image, "the image")?)?;
    let mut config = Config::default();
    // the mount's own options decide who may, not the server
    config.acl = SessionACL::All;
    config.n_threads = Some(std::thread::available_parallelism().map_or(1, usize::from).clamp(2, MOST_THREADS));
    config.clone_fd = true;
    let failed = |error: std::io::Error| Error::io("serve", "/dev/fuse", &error);
    let device = device.try_clone_to_owned().map_err(failed)?;
    let session = Session::from_fd(Server { reader }, device, SessionACL::All, config).map_err(failed)?;
    Ok(session.run().map_err(failed)?)
}

struct Server {
    reader: Reader<Mapping>,
}

impl Server {
    /// FUSE's root is number 1, and 0 means "none".
    fn number(&self, nid: Nid) -> INodeNo {
        INodeNo(if nid == self.reader.root() { 1 } else { nid.saturating_add(2) })
    }

    fn inode(&self, number: INodeNo) -> Result<Inode, ReadError> {
        match number.0 {
            1 => self.reader.inode(self.reader.root()),
            number => self.reader.inode(number.checked_sub(2).ok_or(ReadError::Damaged)?),
        }
    }

    fn attributes(&self, inode: &Inode) -> Result<FileAttr, ReadError> {
        let (seconds, nanoseconds) = inode.mtime;
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let second = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        let time: SystemTime = second.unwrap_or(UNIX_EPOCH) + Duration::from_nanos(nanoseconds.into());
        Ok(FileAttr {
            ino: self.number(inode.nid),
            size: inode.size,
            blocks: inode.size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: kind(inode.kind()).ok_or(ReadError::Damaged)?,
            perm: (inode.mode & 0o7777) as u16,
            nlink: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.device(),
            blksize: 4096,
            flags: 0,
        })
    }

    fn find(&self, parent: INodeNo, name: &[u8]) -> Result<FileAttr, ReadError> {
        let directory = self.inode(parent)?;
        let found = self.reader.lookup(&directory, name)?;
        self.attributes(&self.reader.inode(found.nid)?)
    }

    /// What answers a question about attributes: a length if none are wanted, else the bytes, if they fit.
    fn answer(size: u32, bytes: &[u8], reply: ReplyXattr) {
        match size as usize {
            0 => reply.size(bytes.len() as u32),
            room if room < bytes.len() => reply.error(Errno::ERANGE),
            _ => reply.data(bytes),
        }
    }
}

/// A mode's type.
fn kind(bits: u32) -> Option<FileType> {
    Some(match bits {
        0o100_000 => FileType::RegularFile,
        0o040_000 => FileType::Directory,
        0o120_000 => FileType::Symlink,
        0o020_000 => FileType::CharDevice,
        0o060_000 => FileType::BlockDevice,
        0o010_000 => FileType::NamedPipe,
        0o140_000 => FileType::Socket,
        _ => return None,
    })
}

/// The type that a directory entry tells.
fn entry_kind(entry: &DirEntry) -> FileType {
    match entry.file_type {
        2 => FileType::Directory,
        3 => FileType::CharDevice,
        4 => FileType::BlockDevice,
        5 => FileType::NamedPipe,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        _ => FileType::RegularFile,
    }
}

fn errno(error: ReadError) -> Errno {
    match error {
        ReadError::NotFound => Errno::ENOENT,
        _ => Errno::EIO,
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        ];
        for flag in wanted {
            // an older kernel does without
            config.add_capabilities(flag).ok();
        }
        // each is cut to what the kernel allows
        config.set_max_write(LARGEST).ok();
        config.set_max_readahead(LARGEST).or_else(|most| config.set_max_readahead(most)).ok();
        config.set_max_background(BACKGROUND).ok();
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name.as_bytes()) {
            Ok(attributes) => reply.entry(&ALWAYS, &attributes, Generation(0)),
            Err(ReadError::NotFound) => match self.inode(parent).and_then(|inode| self.attributes(&inode)) {
                // number 0: "there is none", to be remembered as well
                Ok(some) => reply.entry(&ALWAYS, &FileAttr { ino: INodeNo(0), ..some }, Generation(0)),
                Err(error) => reply.error(errno(error)),
            },
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inode(number).and_then(|inode| self.attributes(&inode)) {
            Ok(attributes) => reply.attr(&ALWAYS, &attributes),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.inode(number).and_then(|inode| self.reader.target(&inode)) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let wanted = u64::from(size.min(LARGEST));
        let inode = match self.inode(number) {
            Ok(inode) if inode.is_file() => inode,
            _ => return reply.error(Errno::EIO),
        };
        if offset >= inode.size {
            return reply.data(&[]);
        }
        let wanted = wanted.min(inode.size - offset);
        match self.reader.extent(&inode, offset) {
            // nearly always: contiguous, so the kernel copies from the mapping itself
            Ok(Extent::Bytes(bytes)) if bytes.len() as u64 >= wanted => reply.data(&bytes[..wanted as usize]),
            Ok(_) => {
                let mut buffer = Vec::with_capacity(wanted as usize);
                let read = self.reader.read(&inode, offset, wanted, |piece| match piece {
                    Extent::Bytes(bytes) => buffer.extend_from_slice(bytes),
                    Extent::Hole(zeros) => buffer.resize(buffer.len() + zeros as usize, 0),
                });
                match read {
                    Ok(()) => reply.data(&buffer),
                    Err(error) => reply.error(errno(error)),
                }
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let shown = self.inode(number).and_then(|directory| {
            self.reader.entries(&directory, offset, |entry| {
                let name = OsStr::from_bytes(entry.name);
                !reply.add(self.number(entry.nid), entry.next, entry_kind(&entry), name)
            })
        });
        match shown {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mut damage = None;
        let shown = self.inode(number).and_then(|directory| {
            self.reader.entries(&directory, offset, |entry| {
                match self.reader.inode(entry.nid).and_then(|inode| self.attributes(&inode)) {
                    Ok(attributes) => {
                        let name = OsStr::from_bytes(entry.name);
                        !reply.add(attributes.ino, entry.next, name, &ALWAYS, &attributes, Generation(0))
                    }
                    Err(error) => {
                        damage = Some(error);
                        false
                    }
                }
            })
        });
        match damage.map_or(shown, Err) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (blocks, inodes) = self.reader.counts();
        reply.statfs(blocks.into(), 0, 0, inodes, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let mut found = None;
        let shown = self.inode(number).and_then(|inode| {
            self.reader.xattrs(&inode, |[prefix, rest], value| {
                if name.as_bytes().strip_prefix(*prefix) == Some(rest) {
                    found = Some(value.to_vec());
                }
                found.is_none()
            })
        });
        match (shown, found) {
            (Ok(()), Some(value)) => Self::answer(size, &value, reply),
            (Ok(()), None) => reply.error(Errno::ENODATA),
            (Err(error), _) => reply.error(errno(error)),
        }
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let mut names = Vec::new();
        let shown = self.inode(number).and_then(|inode| {
            self.reader.xattrs(&inode, |[prefix, rest], _| {
                names.extend_from_slice(prefix);
                names.extend_from_slice(rest);
                names.push(0);
                true
            })
        });
        match shown {
            Ok(()) => Self::answer(size, &names, reply),
            Err(error) => reply.error(errno(error)),
        }
    }
}
