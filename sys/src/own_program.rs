//! The file of the running program, kept from those that we start.
//!
//! A process can reach the program that it, or another process it may trace, executes: /proc/PID/exe leads to the file
//! itself, on the mount it was executed from, wherever the root directory is. Whoever gets at it as a user that may write
//! it can replace it once nobody executes it any more (CVE-2019-5736). So a program that its own user could write goes
//! on as one that nobody can: executed again from a read-only mount that is attached nowhere, or where making that is
//! not for us, from a sealed copy in memory.

use crate::mount::{attr, clone_tree, set_attributes};
use crate::{Error, Result, fd, process};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

const OWN: &str = "/proc/self/exe";
const SEALS: SealFlag =
    SealFlag::F_SEAL_WRITE.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_SEAL);

/// Returns when the program's file cannot be written by us; before that, executes it again with the same arguments,
/// environment and descriptors. To be called before anything else is done; `name` is the name for ps(1), which the kernel
/// would make of a descriptor's number.
///
/// # Errors
/// What stands in the way of both ways.
pub fn protect(name: &str) -> Result<()> {
    if is_protected()? {
        return process::set_name(name);
    }
    let copy = read_only_mount().or_else(|_| sealed_copy())?;
    let text = |word: std::ffi::OsString| CString::new(word.into_vec());
    let arguments: std::result::Result<Vec<CString>, _> = std::env::args_os().map(text).collect();
    let variables = std::env::vars_os().map(|(name, value)| {
        let mut both = name;
        both.push("=");
        both.push(value);
        text(both)
    });
    let variables: std::result::Result<Vec<CString>, _> = variables.collect();
    let failed = |errno| Error::new("execute again", OWN, errno);
    let (Ok(arguments), Ok(variables)) = (arguments, variables) else { return Err(failed(Errno::EINVAL)) };
    match nix::unistd::fexecve(copy.as_fd(), &arguments, &variables) {
        Err(errno) => Err(failed(errno)),
    }
}

fn is_protected() -> Result<bool> {
    match fd::may_write(Path::new(OWN)) {
        Err(error) if matches!(error.errno, Errno::EACCES | Errno::EROFS | Errno::EPERM) => Ok(true),
        Err(error) => Err(error),
        Ok(()) => {
            let seals = fcntl(fd::open_read(Path::new(OWN))?, FcntlArg::F_GET_SEALS).unwrap_or(0);
            Ok(SealFlag::from_bits_truncate(seals).contains(SEALS))
        }
    }
}

/// The same file on a mount of its own, which goes with its last user.
fn read_only_mount() -> Result<OwnedFd> {
    let mount = clone_tree(Path::new(OWN), false)?;
    set_attributes(&mount, attr::RDONLY | attr::NOSUID | attr::NODEV, false, OWN)?;
    Ok(mount)
}

fn sealed_copy() -> Result<OwnedFd> {
    let failed = |e: &std::io::Error| Error::io("copy into memory", OWN, e);
    let mut from = std::fs::File::from(fd::open_read(Path::new(OWN))?);
    let mut copy = std::fs::File::from(fd::sealable_memory_file("corebox")?);
    std::io::copy(&mut from, &mut copy).map_err(|e| failed(&e))?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SEALS)).map_err(|e| Error::new("seal the copy of", OWN, e))?;
    Ok(copy.into())
}
