//! What running jobs use: `ROOT/pins/HEX,OWNER,RANDOM`, a small file that says who. One per job, made by its launcher
//! where it may write to the store; it goes with the job, or is seen to be stale.

use super::Image;
use crate::staging::Owner;
use corebox_sys::{Result, fs};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A pin of another node, whose process cannot be looked at, counts for this long.
const FOREIGN_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Keeps an image from being collected; removed when dropped.
#[derive(Debug)]
pub struct Pin(PathBuf);

impl Drop for Pin {
    fn drop(&mut self) {
        // a pin that stays is seen to be stale
        std::fs::remove_file(&self.0).ok();
    }
}

impl Image {
    /// Says in the image's store that `who` uses it. `None` where we may not write: such a store's owner cannot know.
    pub fn pin(&self, who: &str) -> Option<Pin> {
        // ROOT/blobs/sha256/HEX.erofs
        let root = self.path.ancestors().nth(3)?;
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).ok()?;
        let name = format!("{},{},{:016x}", self.hex(), Owner::own().ok()?, u64::from_ne_bytes(random));
        let path = root.join("pins").join(name);
        // not made durable: a job does not outlive the machine, and its start must not wait for a disk
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).ok()?;
        let pin = Pin(path);
        writeln!(file, "{who}").ok()?;
        Some(pin)
    }

    /// The file that says what is known about it.
    pub(crate) fn facts_path(&self) -> PathBuf {
        let root = self.path.ancestors().nth(3).unwrap_or(Path::new("/"));
        super::facts_path(root, self.hex())
    }

    /// Digits of the digest.
    pub(crate) fn hex(&self) -> &str {
        self.digest.trim_start_matches("sha256:")
    }
}

/// Who uses an image; stale pins are removed.
pub(super) fn of(root: &Path, hex: &str) -> Result<Vec<String>> {
    let directory = root.join("pins");
    let own = Owner::own()?;
    let mut users = Vec::new();
    for name in fs::list(&directory)? {
        let Some((of, owner)) = name.split_once(',').filter(|(of, _)| of.len() == 64) else { continue };
        let (path, Some(owner)) = (directory.join(&name), Owner::of_file(owner)) else { continue };
        let age = || {
            let at = std::fs::symlink_metadata(&path).and_then(|meta| meta.modified()).ok();
            at.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default()
        };
        if owner.is_gone(&own).unwrap_or_else(|| age() > FOREIGN_AGE) {
            // another's, in a directory with the sticky bit, stays; it does not count
            std::fs::remove_file(&path).ok();
        } else if of == hex {
            let who = fs::read_to_string(&path).unwrap_or_default();
            // it is there a moment before it says whose it is
            let who = if who.trim().is_empty() { "a job that starts" } else { who.trim() };
            users.push(format!("{who} on {}", owner.host));
        }
    }
    Ok(users)
}
