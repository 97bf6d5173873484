//! Network namespaces (network_namespaces(7)).

use crate::process::ns;
use crate::{Error, Result, fd};
use nix::sched::CloneFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A network namespace that is held open: it lives as long as this does.
#[derive(Debug)]
pub struct NetworkNamespace {
    file: OwnedFd,
    /// For messages.
    name: String,
}

impl NetworkNamespace {
    /// That of the calling thread.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// That of a process.
    ///
    /// # Errors
    /// ENOENT when it is gone, EACCES when it is not ours to look at.
    pub fn of_process(pid: i32) -> Result<Self> {
        Self::open(&Path::new("/proc").join(pid.to_string()).join("ns/net"))
    }

    /// That behind a path, as ip-netns(8) makes them. What else is there is refused by the first use (EINVAL).
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: fd::open_read(path)?, name: path.display().to_string() })
    }

    /// Runs `action` with the calling thread inside, and returns to the namespace it was in. What `action` opens there
    /// (sockets) stays there.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN over its user namespace, EINVAL when it is no network namespace; the result is that of
    /// entering, `action` has its own.
    ///
    /// # Panics
    /// When the way back is barred: going on in a foreign network would be worse.
    pub fn inside<T>(&self, action: impl FnOnce() -> T) -> Result<T> {
        let home = Self::current()?;
        self.enter()?;
        let result = action();
        if let Err(error) = home.enter() {
            panic!("cannot return to the own network namespace: {error}");
        }
        Ok(result)
    }

    /// Moves the calling thread inside, for good (setns(2)).
    ///
    /// # Errors
    /// As [`Self::inside`].
    pub fn enter(&self) -> Result<()> {
        let kind = CloneFlags::from_bits_truncate(ns::NET as i32);
        nix::sched::setns(&self.file, kind).map_err(|e| Error::new("enter network namespace", &self.name, e))
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
