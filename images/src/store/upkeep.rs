//! Keeping a store in order: names, unused images, leftovers, damage, space.

use super::{Image, Store, digests, names, origins, pins, remove_file, remove_unnamed, unreadable};
use crate::layer::hex;
use crate::lease;
use crate::reference::ImageName;
use crate::registry::sweep_layers;
use crate::staging;
use corebox_spec::Failure;
use corebox_sys::{Error, fs};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What [`Store::gc`] did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Digests of images that were removed.
    pub images: Vec<String>,
    /// Bytes of their files.
    pub image_bytes: u64,
    /// Bytes of layers that interrupted pulls had left.
    pub layer_bytes: u64,
    /// Images without a name that were kept, each with the reason.
    pub kept: Vec<(String, String)>,
}

/// How much a store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The store's directory.
    pub root: PathBuf,
    /// Images.
    pub images: usize,
    /// Bytes of them.
    pub image_bytes: u64,
    /// Bytes of those without a name, which `gc` may remove.
    pub unnamed_bytes: u64,
    /// Bytes of layers that are being pulled or were left.
    pub layer_bytes: u64,
    /// Bytes of other files being written or left.
    pub temporary_bytes: u64,
    /// Bytes that the file system has free for the caller.
    pub free_bytes: u64,
}

impl Store {
    /// Gives an image (of any store that is searched) a further name in the caller's store; a name that is there is moved.
    ///
    /// # Errors
    /// A bad name, no such image, a store that cannot be written to.
    pub fn tag(&self, reference: &str, name: &str) -> Result<Image, Failure> {
        let goal = format!("cannot name image `{reference}` `{name}`");
        let name = ImageName::parse(name).map_err(|error| Failure::new(&goal, error))?;
        // as in `add`: it may be removed at the same time
        for _ in 0..8 {
            let image = self.find(reference)?;
            let failed = |error: Error| unreadable(&goal, error);
            self.prepare().map_err(failed)?;
            self.name(&name, image.hex()).map_err(failed)?;
            if image.path.exists() {
                return self.find(&image.digest);
            }
        }
        Err(Failure::new(goal, "it is being removed again and again"))
    }

    /// Removes from the caller's store the images that have had no name for `older_than` and are in no running job,
    /// layers of interrupted pulls, and other leftovers. With `dry_run` nothing is removed.
    ///
    /// # Errors
    /// A store that cannot be read or written to.
    pub fn gc(&self, older_than: Duration, dry_run: bool) -> Result<Collected, Failure> {
        let goal = "cannot collect garbage";
        let root = self.root();
        let failed = |error: Error| unreadable(goal, error);
        let mut collected = Collected::default();
        if !dry_run {
            staging::sweep(&root.join("tmp"));
            collected.layer_bytes = sweep_layers(&root.join("layers"), true);
            lease::sweep(root).map_err(failed)?;
        }
        let named: HashSet<String> = names(root, goal)?.into_iter().map(|(_, hex)| hex).collect();
        let all = digests(root, goal)?;
        for hex in all.iter().filter(|hex| !named.contains(*hex)) {
            let digest = format!("sha256:{hex}");
            if let Some(reason) = self.reason_to_keep(hex, older_than).map_err(failed)? {
                collected.kept.push((digest, reason));
                continue;
            }
            let bytes = std::fs::metadata(super::blob_path(root, hex)).map_or(0, |meta| meta.len());
            if dry_run || remove_unnamed(root, hex, goal)? {
                collected.images.push(digest);
                collected.image_bytes += bytes;
            }
        }
        if !dry_run {
            for (path, hex) in origins(root, goal)? {
                if !super::blob_path(root, &hex).exists() {
                    remove_file(&path).map_err(failed)?;
                }
            }
        }
        Ok(collected)
    }

    /// Why an image without a name stays.
    fn reason_to_keep(&self, hex: &str, older_than: Duration) -> Result<Option<String>, Error> {
        if let Some(who) = pins::of(self.root(), hex)?.into_iter().next() {
            return Ok(Some(format!("in use by {who}")));
        }
        // its time is that of the last loss of a name
        let facts = super::facts_path(self.root(), hex);
        let since = std::fs::metadata(&facts).and_then(|meta| meta.modified());
        let age = since.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        Ok(age.filter(|age| *age < older_than).map(|_| "it had a name not long ago".to_owned()))
    }

    /// Reads an image's file and compares its digest.
    ///
    /// # Errors
    /// No such image, a file that cannot be read or is damaged.
    pub fn verify(&self, reference: &str) -> Result<Image, Failure> {
        let image = self.find(reference)?;
        let goal = format!("cannot verify image `{reference}`");
        let failed = |error: std::io::Error| {
            Failure::new(&goal, Error::io("read", image.path.display(), &error)).hint("is the disk damaged?")
        };
        let mut hash = Sha256::new();
        let mut file = File::open(&image.path).map_err(failed)?;
        std::io::copy(&mut file, &mut hash).map_err(failed)?;
        let got = format!("sha256:{}", hex(&hash.finalize()));
        if got == image.digest {
            return Ok(image);
        }
        let cause = format!("{} is damaged: its digest is {got}", image.path.display());
        Err(Failure::new(goal, cause).hint(format!("`corebox image rm {}`, then fetch or make it again", image.digest)))
    }

    /// How much each store that is searched holds.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub fn usage(&self) -> Result<Vec<Usage>, Failure> {
        let goal = "cannot tell the use of space";
        self.roots.iter().filter(|root| root.exists()).map(|root| usage(root, goal)).collect()
    }
}

fn usage(root: &Path, goal: &str) -> Result<Usage, Failure> {
    let named: HashSet<String> = names(root, goal)?.into_iter().map(|(_, hex)| hex).collect();
    let mut usage = Usage {
        root: root.to_owned(),
        images: 0,
        image_bytes: 0,
        unnamed_bytes: 0,
        layer_bytes: bytes_in(&root.join("layers")).map_err(|error| unreadable(goal, error))?,
        temporary_bytes: bytes_in(&root.join("tmp")).map_err(|error| unreadable(goal, error))?,
        free_bytes: 0,
    };
    for hex in digests(root, goal)? {
        let bytes = std::fs::metadata(super::blob_path(root, &hex)).map_or(0, |meta| meta.len());
        usage.images += 1;
        usage.image_bytes += bytes;
        usage.unnamed_bytes += if named.contains(&hex) { 0 } else { bytes };
    }
    let free = nix::sys::statvfs::statvfs(root)
        .map_err(|errno| Failure::new(goal, Error::new("statvfs", root.display(), errno)))?;
    usage.free_bytes = free.blocks_available().saturating_mul(free.fragment_size());
    Ok(usage)
}

fn bytes_in(directory: &Path) -> Result<u64, Error> {
    let names = fs::list(directory)?;
    // one that goes meanwhile has no bytes
    Ok(names.iter().filter_map(|name| std::fs::symlink_metadata(directory.join(name)).ok()).map(|m| m.len()).sum())
}
