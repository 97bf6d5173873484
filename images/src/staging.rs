//! Files on their way into a store. They live in `ROOT/tmp` under a name that says whose they are, so that what a
//! killed process left can be told from what a live one is writing, without any lock: flock(2) is unreliable or slow on
//! NFS and Lustre, link(2) and rename(2) are not.

use corebox_sys::{Error, Result, fs};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A leftover of another host is swept when nothing was written to it for this long.
const FOREIGN_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A temporary file of this process; removed when dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Makes an empty file in `directory` (the store's `tmp`).
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|_| Error::new("getrandom for", directory.display(), Errno::EIO))?;
        let name = format!("{},{:016x}", Owner::own()?, u64::from_ne_bytes(random));
        let path = directory.join(name);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        made.map_err(|error| Error::io("create", path.display(), &error))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts this content into the file and makes sure that it is on the disk.
    pub(crate) fn write(&self, content: &[u8]) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("write", self.path.display(), &error);
        let mut file = OpenOptions::new().write(true).open(&self.path).map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        // the umask of whoever fills a shared store must not hide it from the others
        file.set_permissions(PermissionsExt::from_mode(0o644)).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    /// Moves the file to its place, replacing what is there.
    pub(crate) fn rename_to(self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target)?;
        sync_directory_of(target)
    }

    /// Gives the file this further name, if nothing has that name yet.
    pub(crate) fn link_to(&self, target: &Path) -> Result<()> {
        match std::fs::hard_link(&self.path, target) {
            Ok(()) => sync_directory_of(target),
            // content-addressed: who was faster wrote the same bytes
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(Error::io("link", target.display(), &error)),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // it may have been renamed or never written; what cannot be removed is swept later
        std::fs::remove_file(&self.path).ok();
    }
}

fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = path.parent().unwrap_or(path);
    let failed = |error: std::io::Error| Error::io("fsync", directory.display(), &error);
    match File::open(directory).map_err(failed)?.sync_all() {
        // some network file systems do not offer it for directories
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(()),
        result => result.map_err(failed),
    }
}

/// Removes what processes left that are certainly gone.
pub(crate) fn sweep(directory: &Path) {
    let (Ok(entries), Ok(own)) = (std::fs::read_dir(directory), Owner::own()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(Owner::of_file) else { continue };
        let age = || {
            entry
                .metadata()
                .and_then(|meta| meta.modified())
                .ok()
                .and_then(|at| SystemTime::now().duration_since(at).ok())
        };
        let gone = match owner.is_gone(&own) {
            Some(gone) => gone,
            None => age().is_some_and(|age| age > FOREIGN_AGE),
        };
        if gone {
            // another sweeper may be faster
            std::fs::remove_file(entry.path()).ok();
        }
    }
}

/// The process that writes a temporary file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) host: String,
    /// First digits of the boot id: a process id means nothing after a reboot.
    boot: String,
    /// Number of the pid namespace: a process id means nothing in another one.
    namespace: u64,
    pub(crate) pid: u32,
    /// Start time in clock ticks since boot (field 22 of proc_pid_stat(5)): process ids are used again.
    start: u64,
}

impl Owner {
    pub(crate) fn own() -> Result<Self> {
        let host = nix::unistd::gethostname()
            .map_err(|errno| Error::new("gethostname", "this host", errno))?
            .to_string_lossy()
            .replace([',', '/'], "-");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let path = "/proc/self/ns/pid";
        let link = std::fs::read_link(path).map_err(|error| Error::io("readlink", path, &error))?;
        let digits: String = link.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
        let pid = std::process::id();
        Ok(Self {
            host: host.chars().take(64).collect(),
            boot: boot.chars().take(8).collect(),
            namespace: digits.parse().unwrap_or_default(),
            pid,
            start: start_time(pid).unwrap_or_default(),
        })
    }

    pub(crate) fn of_file(name: &str) -> Option<Self> {
        let mut parts = name.split(',');
        let owner = Self {
            host: parts.next()?.to_owned(),
            boot: parts.next()?.to_owned(),
            namespace: parts.next()?.parse().ok()?,
            pid: parts.next()?.parse().ok()?,
            start: parts.next()?.parse().ok()?,
        };
        Some(owner)
    }

    /// Whether the process has certainly ended; `None` if that cannot be told from here.
    pub(crate) fn is_gone(&self, here: &Self) -> Option<bool> {
        if self.host != here.host {
            return None;
        }
        if self.boot != here.boot {
            return Some(true);
        }
        if self.namespace != here.namespace {
            return None;
        }
        Some(start_time(self.pid) != Some(self.start))
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{},{},{},{}", self.host, self.boot, self.namespace, self.pid, self.start)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // the program's name (field 2) is in parentheses and may hold anything
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    std::str::from_utf8(&stat[after_name..]).ok()?.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_told_apart() {
        let own = Owner::own().unwrap();
        let again = Owner::of_file(&format!("{own},0123")).unwrap();
        assert_eq!(again, own);
        assert_eq!(again.is_gone(&own), Some(false));
        assert_eq!(Owner { start: own.start + 1, ..again }.is_gone(&own), Some(true));
        let parse = |text: &str| Owner::of_file(text).unwrap();
        let Owner { host, boot, namespace, pid, start } = &own;
        assert_eq!(parse(&format!("{host},otherboo,{namespace},{pid},{start},0")).is_gone(&own), Some(true));
        assert_eq!(parse(&format!("{host},{boot},1,{pid},{start},0")).is_gone(&own), None);
        assert_eq!(parse(&format!("other,{boot},{namespace},{pid},{start},0")).is_gone(&own), None);
        assert!(Owner::of_file("README").is_none());
    }
}
