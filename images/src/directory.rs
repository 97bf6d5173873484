//! A root directory as a source: one file system, in a fixed order, hard links kept.

use crate::content::DiskFile;
use crate::entry::{Device, Entry, Kind, Meta, Time, join, normalise};
use crate::flatten::Settings;
use crate::flatten::{FlattenError, write_tree};
use crate::inspect::Findings;
use crate::tree::{ContentAt, Tree};
use corebox_sys::Error;
use nix::errno::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{Metadata, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How owners are recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owners {
    /// As the files say.
    Keep,
    /// This uid and gid become root's, as an ordinary user's own tree means them.
    OwnIsRoot { uid: u32, gid: u32 },
}

/// Flattens a directory.
pub(crate) fn flatten_directory(
    root: &Path,
    owners: Owners,
    out: &Path,
    settings: Settings,
    progress: &dyn Fn(u64),
) -> Result<Findings, FlattenError> {
    let mut walk = Walk { root, owners, tree: Tree::new(), files: Vec::new(), links: HashMap::new(), device: 0 };
    let meta = walk.metadata(b"")?;
    walk.device = meta.dev();
    walk.add(b"", &meta)?;
    walk.directory(b"")?;
    let Walk { tree, files, .. } = walk;
    write_tree(&tree, out, settings, progress, |contents| {
        for (ordinal, path) in files.iter().enumerate() {
            let mut file = open(path)?;
            contents.add(ContentAt { layer: 0, ordinal: ordinal as u64 }, &mut file)?;
        }
        Ok(())
    })
}

fn open(path: &Path) -> Result<DiskFile, Error> {
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path)
        .and_then(DiskFile::new)
        .map_err(|error| Error::io("open", path.display(), &error))
}

struct Walk<'a> {
    root: &'a Path,
    owners: Owners,
    tree: Tree,
    /// Regular files; the index is their ordinal.
    files: Vec<PathBuf>,
    /// First names of files that have several, by inode.
    links: HashMap<u64, Vec<u8>>,
    /// The file system of the root: others, mounted on it, are left out.
    device: u64,
}

impl Walk<'_> {
    fn on_disk(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    fn metadata(&self, path: &[u8]) -> Result<Metadata, Error> {
        let path = self.on_disk(path);
        std::fs::symlink_metadata(&path).map_err(|error| Error::io("stat", path.display(), &error))
    }

    /// Adds what is in a directory, and below.
    fn directory(&mut self, directory: &[u8]) -> Result<(), FlattenError> {
        let path = self.on_disk(directory);
        let failed = |error: std::io::Error| Error::io("read directory", path.display(), &error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort();
        for name in names {
            let path = join(directory, name.as_bytes());
            let meta = self.metadata(&path)?;
            self.add(&path, &meta)?;
            // a mount point is kept as an empty directory
            if meta.is_dir() && meta.dev() == self.device {
                self.directory(&path)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &[u8], meta: &Metadata) -> Result<(), FlattenError> {
        let path = normalise(path).map_err(crate::tar_reader::TarError::from)?;
        let Some(kind) = self.kind(&path, meta)? else { return Ok(()) };
        let ordinal = self.files.len() as u64;
        if matches!(kind, Kind::File { .. }) {
            self.files.push(self.on_disk(&path));
        }
        let meta = self.meta(&path, meta)?;
        self.tree.put(Entry { path, kind, meta }, ContentAt { layer: 0, ordinal })?;
        Ok(())
    }

    /// What a file is; `None` for a socket, which means nothing without the process that made it.
    fn kind(&mut self, path: &[u8], meta: &Metadata) -> Result<Option<Kind>, FlattenError> {
        let kind = meta.file_type();
        if kind.is_dir() {
            return Ok(Some(Kind::Directory));
        }
        if kind.is_socket() {
            return Ok(None);
        }
        if meta.nlink() > 1 {
            if let Some(first) = self.links.get(&meta.ino()) {
                return Ok(Some(Kind::HardLink(first.clone())));
            }
            self.links.insert(meta.ino(), path.to_vec());
        }
        if kind.is_symlink() {
            let path = self.on_disk(path);
            let target = std::fs::read_link(&path).map_err(|error| Error::io("readlink", path.display(), &error))?;
            return Ok(Some(Kind::Symlink(target.as_os_str().as_bytes().to_vec())));
        }
        if kind.is_fifo() {
            return Ok(Some(Kind::Fifo));
        }
        if kind.is_file() {
            return Ok(Some(Kind::File { size: meta.len() }));
        }
        let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
        match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) => Ok(Some(Kind::Device(Device { block: kind.is_block_device(), major, minor }))),
            _ => Err(Error::new("stat", self.on_disk(path).display(), Errno::EOVERFLOW).into()),
        }
    }

    fn meta(&self, path: &[u8], meta: &Metadata) -> Result<Meta, Error> {
        let (uid, gid) = match self.owners {
            Owners::OwnIsRoot { uid, gid } => {
                let root_if = |id: u32, own: u32| if id == own { 0 } else { id };
                (root_if(meta.uid(), uid), root_if(meta.gid(), gid))
            }
            Owners::Keep => (meta.uid(), meta.gid()),
        };
        let mtime = Time { seconds: meta.mtime(), nanoseconds: meta.mtime_nsec() as u32 };
        let mut out = Meta { mode: meta.mode() & 0o7777, uid, gid, mtime, xattrs: Vec::new() };
        self.xattrs(path, &mut out)?;
        Ok(out)
    }

    fn xattrs(&self, path: &[u8], meta: &mut Meta) -> Result<(), Error> {
        let path = self.on_disk(path);
        let unsupported = |error: &std::io::Error| error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32);
        let names = match xattr::list(&path) {
            Ok(names) => names,
            Err(error) if unsupported(&error) => return Ok(()),
            Err(error) => return Err(Error::io("listxattr", path.display(), &error)),
        };
        for name in names {
            // the host's SELinux label is the host's business, not the image's
            if name == "security.selinux" {
                continue;
            }
            let value = xattr::get(&path, &name).map_err(|error| Error::io("getxattr", path.display(), &error))?;
            if let Some(value) = value {
                meta.add_xattr(name.as_bytes(), &value);
            }
        }
        Ok(())
    }
}
