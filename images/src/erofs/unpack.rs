//! Unpacks an image into a directory of ours, for containers that run from memory.
//!
//! What the image says cannot lead out of the directory: names hold no slash, nothing that exists is opened or
//! followed, and a directory that is its own descendant is refused.

use super::reader::{Extent, Inode, Nid, ReadError, Reader, Unusable};
use corebox_sys::map::Mapping;
use corebox_sys::{Errno, Error, Result};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Unpacks the image into an empty directory. Device nodes are left out, as nobody could use them on a mount without
/// devices. `owners`: files get the owners they have in the image; else all are the caller's.
///
/// # Errors
/// A damaged image, or what the directory's file system says (ENOSPC).
pub fn unpack(image: BorrowedFd<'_>, target: &Path, owners: bool) -> std::result::Result<(), Unusable> {
    let reader = Reader::open(Mapping::of(image, "the image")?)?;
    let root = reader.inode(reader.root())?;
    let mut unpacking = Unpacking {
        reader: &reader,
        owners,
        directories: vec![(target.to_owned(), root)],
        seen: HashSet::from([root.nid]),
        links: HashMap::new(),
    };
    let mut next = 0;
    while let Some((path, directory)) = unpacking.directories.get(next).cloned() {
        unpacking.fill(&path, &directory)?;
        next += 1;
    }
    // modes that forbid writing, and times, only when nothing more is put in
    for (path, directory) in unpacking.directories.iter().rev() {
        unpacking.dress(path, directory)?;
    }
    Ok(())
}

struct Unpacking<'a> {
    reader: &'a Reader<Mapping>,
    owners: bool,
    /// In the order in which they were made.
    directories: Vec<(PathBuf, Inode)>,
    seen: HashSet<Nid>,
    /// First paths of what has several names.
    links: HashMap<Nid, PathBuf>,
}

impl Unpacking<'_> {
    /// Makes what a directory holds.
    fn fill(&mut self, path: &Path, directory: &Inode) -> std::result::Result<(), Unusable> {
        let mut names: Vec<(&OsStr, Nid)> = Vec::new();
        self.reader.entries(directory, 0, |entry| {
            if entry.name != b"." && entry.name != b".." {
                names.push((OsStr::from_bytes(entry.name), entry.nid));
            }
            true
        })?;
        for (name, nid) in names {
            self.make(path.join(name), &self.reader.inode(nid)?)?;
        }
        Ok(())
    }

    fn make(&mut self, path: PathBuf, inode: &Inode) -> std::result::Result<(), Unusable> {
        let failed = |call: &'static str, error: &std::io::Error| Error::io(call, path.display(), error);
        if inode.is_directory() {
            if !self.seen.insert(inode.nid) {
                return Err(ReadError::Damaged.into());
            }
            std::fs::create_dir(&path).map_err(|error| failed("mkdir", &error))?;
            fs_mode(&path, 0o700)?;
            self.directories.push((path, *inode));
            return Ok(());
        }
        if let Some(first) = self.links.get(&inode.nid) {
            return Ok(std::fs::hard_link(first, &path).map_err(|error| failed("link", &error))?);
        }
        match inode.kind() {
            0o100_000 => self.file(&path, inode)?,
            0o120_000 => {
                let target = OsStr::from_bytes(self.reader.target(inode)?);
                std::os::unix::fs::symlink(target, &path).map_err(|error| failed("symlink", &error))?;
            }
            0o010_000 => nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))
                .map_err(|errno| Error::new("mkfifo", path.display(), errno))?,
            _ => return Ok(()),
        }
        self.dress(&path, inode)?;
        if inode.links > 1 {
            self.links.insert(inode.nid, path);
        }
        Ok(())
    }

    fn file(&self, path: &Path, inode: &Inode) -> std::result::Result<(), Unusable> {
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file: File = opened.map_err(|error| Error::io("create", path.display(), &error))?;
        let mut at = 0;
        let mut written = Ok(());
        self.reader.read(inode, 0, inode.size, |piece| match piece {
            Extent::Bytes(bytes) if written.is_ok() => {
                written = file.write_all_at(bytes, at);
                at += bytes.len() as u64;
            }
            Extent::Bytes(_) => {}
            Extent::Hole(zeros) => at += zeros,
        })?;
        let done = written.and_then(|()| file.set_len(inode.size)).and_then(|()| file.flush());
        Ok(done.map_err(|error| Error::io("write", path.display(), &error))?)
    }

    /// Owner, mode, attributes and time.
    fn dress(&self, path: &Path, inode: &Inode) -> std::result::Result<(), Unusable> {
        if self.owners {
            let owned = std::os::unix::fs::lchown(path, Some(inode.uid), Some(inode.gid));
            owned.map_err(|error| Error::io("chown", path.display(), &error))?;
        }
        if !inode.is_symlink() {
            self.attributes(path, inode)?;
            fs_mode(path, inode.mode & 0o7777)?;
        }
        let (seconds, nanoseconds) = inode.mtime;
        let time = TimeSpec::new(seconds, nanoseconds.into());
        utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| Unusable::System(Error::new("set the time of", path.display(), errno)))
    }

    /// Attributes of users; the others mean something to the system that mounts an image, not to a copy in memory.
    fn attributes(&self, path: &Path, inode: &Inode) -> std::result::Result<(), Unusable> {
        let mut failed = None;
        self.reader.xattrs(inode, |[prefix, rest], value| {
            if *prefix == b"user." {
                let name = [&prefix[..], rest].concat();
                failed = xattr::set(path, OsStr::from_bytes(&name), value).err();
            }
            failed.is_none()
        })?;
        match failed {
            // a tmpfs has them from kernel 6.6 on
            Some(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(()),
            Some(error) => Err(Error::io("setxattr", path.display(), &error).into()),
            None => Ok(()),
        }
    }
}

fn fs_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| Error::io("chmod", path.display(), &error))
}
