//! A layer on its way from a registry: `ROOT/layers/HEX,KEY,OWNER,RANDOM`.
//!
//! HEX is the layer's digest, KEY the pull's lease, OWNER the process that writes it (see `staging`). A killed pull's
//! file is adopted by the next one that needs the layer: it holds the lease of the same KEY, or knows that the owner is
//! gone. Were the owner only stopped, it would go on writing the same bytes to the same places.

use crate::layer::hex;
use crate::staging::Owner;
use corebox_sys::{Error, Result, fs};
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Parts of layers that nobody asked for again are removed after this long.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A layer being downloaded, or complete.
#[derive(Debug)]
pub(crate) struct LayerFile {
    path: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
}

impl LayerFile {
    /// Takes over what there is of a layer, or begins it.
    pub(crate) fn claim(directory: &Path, layer: &str, key: &str) -> Result<Self> {
        let own = Owner::own()?;
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|_| Error::new("getrandom for", directory.display(), Errno::EIO))?;
        let path = directory.join(format!("{layer},{key},{own},{:016x}", u64::from_ne_bytes(random)));
        for name in fs::list(directory)? {
            let Some((of, owner_key, owner)) = parts(&name) else { continue };
            let is_ours = owner_key == key || owner.is_gone(&own) == Some(true);
            if of == layer && is_ours && adopt(&directory.join(&name), &path)? {
                return Self::resume(path);
            }
        }
        Self::resume(path)
    }

    /// Opens the file and hashes what it has.
    fn resume(path: PathBuf) -> Result<Self> {
        let failed = |call: &'static str| {
            let shown = path.display().to_string();
            move |error: std::io::Error| Error::io(call, &shown, &error)
        };
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
        let mut file = opened.map_err(failed("open"))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 17];
        let mut length = 0;
        loop {
            let got = file.read(&mut buffer).map_err(failed("read"))?;
            if got == 0 {
                break;
            }
            hash.update(&buffer[..got]);
            length += got as u64;
        }
        Ok(Self { path, file, hash, length })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes there are.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("write", self.path.display(), &error);
        self.file.write_all_at(bytes, self.length).map_err(failed)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what there is.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("truncate", self.path.display(), &error);
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(failed)?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Digits of the digest of what there is.
    pub(crate) fn digest(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// Makes sure that it survives a crash; late errors of a network file system show here.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("fsync", self.path.display(), &error))
    }

    /// Removes it: it was used, or is worth nothing.
    pub(crate) fn remove(self) {
        // what cannot be removed is swept later
        std::fs::remove_file(&self.path).ok();
    }
}

/// Gives a file our name. Of two that try, one succeeds. A file of another user is copied: it may not be written to.
fn adopt(from: &Path, to: &Path) -> Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => {}
        Err(error) if error.errno == Errno::ENOENT => return Ok(false),
        Err(error) if matches!(error.errno, Errno::EPERM | Errno::EACCES) => return Ok(false),
        Err(error) => return Err(error),
    }
    match OpenOptions::new().write(true).open(to) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let failed = |error: std::io::Error| Error::io("copy", to.display(), &error);
            let mut theirs = File::open(to).map_err(failed)?;
            std::fs::remove_file(to).map_err(failed)?;
            let mut ours = OpenOptions::new().write(true).create_new(true).mode(0o644).open(to).map_err(failed)?;
            std::io::copy(&mut theirs, &mut ours).map_err(failed)?;
            Ok(true)
        }
        Err(error) => Err(Error::io("open", to.display(), &error)),
    }
}

/// Layer, key and owner of a file's name.
fn parts(name: &str) -> Option<(&str, &str, Owner)> {
    let (layer, rest) = name.split_once(',')?;
    let (key, rest) = rest.split_once(',')?;
    Some((layer, key, Owner::of_file(rest)?))
}

/// Removes parts of layers that are old, or with `all` those whose pull has certainly ended. Gives the bytes freed.
pub(crate) fn sweep(directory: &Path, all: bool) -> u64 {
    let (Ok(names), Ok(own)) = (fs::list(directory), Owner::own()) else { return 0 };
    let mut freed = 0;
    for name in names {
        let Some((_, _, owner)) = parts(&name) else { continue };
        let path = directory.join(&name);
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let age = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        let old = age.is_some_and(|age| age > KEPT);
        let gone = owner.is_gone(&own);
        if (gone == Some(true) && (all || old)) || (gone.is_none() && old) {
            // another sweeper may be faster
            if std::fs::remove_file(&path).is_ok() {
                freed += meta.len();
            }
        }
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_resumed_by_the_same_pull_only() {
        let directory = std::env::temp_dir().join(format!("corebox-layer-file-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let layer = "a".repeat(64);
        let mut first = LayerFile::claim(&directory, &layer, "key1").unwrap();
        first.append(b"hello ").unwrap();
        // the owner (this process) lives, and the key is another one
        assert_eq!(LayerFile::claim(&directory, &layer, "key2").unwrap().length(), 0);
        let mut next = LayerFile::claim(&directory, &layer, "key1").unwrap();
        assert_eq!(next.length(), 6);
        next.append(b"world").unwrap();
        assert_eq!(next.digest(), hex(&Sha256::digest(b"hello world")));
        assert_eq!(sweep(&directory, true), 0, "a live pull's file was swept");
        next.restart().unwrap();
        assert_eq!((next.length(), next.digest()), (0, hex(&Sha256::digest(b""))));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
