//! File descriptors: inheritance, pipes, polling.

use crate::mount::c_string;
use crate::{Error, Result};
use nix::fcntl::{FcntlArg, FdFlag, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Borrows a descriptor by its number; the caller keeps it open meanwhile.
///
/// # Errors
/// EBADF when no file is open under this number.
pub fn borrow<'a>(fd: RawFd) -> Result<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(Error::new("use descriptor", fd, nix::errno::Errno::EBADF));
    }
    // SAFETY: F_GETFD has no memory effect; a closed number gives EBADF.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(Error::last("use descriptor", fd));
    }
    // SAFETY: the number is open (just checked) and not -1. A caller closing it early gets EBADF, never memory faults.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Sets or clears close-on-exec.
///
/// # Errors
/// What fcntl(2) says.
pub fn set_cloexec(fd: impl AsFd, on: bool) -> Result<()> {
    let flag = if on { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    let number = fd.as_fd().as_raw_fd();
    nix::fcntl::fcntl(fd, FcntlArg::F_SETFD(flag)).map(drop).map_err(|e| Error::new("set close-on-exec of", number, e))
}

/// Makes `to` a copy of `from` (dup2(2)), inherited over exec; equal numbers only lose their close-on-exec flag.
///
/// # Errors
/// What dup2(2) says.
pub fn place(from: RawFd, to: RawFd) -> Result<()> {
    if from == to {
        return set_cloexec(borrow(from)?, false);
    }
    // SAFETY: two numbers. What `to` was is closed: callers name only descriptors they own at this moment.
    let result = unsafe { libc::dup2(from, to) };
    if result < 0 { Err(Error::last("duplicate descriptor", format_args!("{from} to {to}"))) } else { Ok(()) }
}

/// A copy of `fd` with a number of at least `minimum`, close-on-exec.
///
/// # Errors
/// What fcntl(2) says.
pub fn copy_above(fd: RawFd, minimum: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC with two numbers.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, minimum) };
    crate::mount::owned("duplicate descriptor", fd, copy.into())
}

/// Closes every descriptor that is not in `keep` (close_range(2)): nothing of the caller is left behind by accident,
/// and readers of the caller's pipes see their end.
///
/// # Errors
/// What close_range(2) says.
pub fn close_all_but(keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = 0u32;
    for next in keep.into_iter().chain([u32::MAX]) {
        if from < next {
            let to = if next == u32::MAX { u32::MAX } else { next - 1 };
            // SAFETY: numbers only. Owners of closed descriptors in this process image do not use them any more:
            // the callers are freshly forked children that keep what they use.
            let result = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
            if result < 0 {
                return Err(Error::last("close descriptors", format_args!("{from} to {to}")));
            }
        }
        from = next.saturating_add(1);
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2)).
///
/// # Errors
/// What close_range(2) says.
pub fn close_on_exec_from(first: RawFd) -> Result<()> {
    let from = u32::try_from(first).unwrap_or(3);
    // SAFETY: numbers only; nothing is closed now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, from, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(Error::last("mark close-on-exec the descriptors from", first)) } else { Ok(()) }
}

/// Waits for one byte (or the end) with read(2).
///
/// # Errors
/// What read(2) says.
pub fn read_byte(fd: impl AsFd) -> Result<()> {
    let mut byte = [0u8; 1];
    loop {
        match nix::unistd::read(&fd, &mut byte) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop).map_err(|e| Error::new("read", "a byte", e)),
        }
    }
}

/// Writes all bytes to an open file.
///
/// # Errors
/// What write(2) says; `object` names the file.
pub fn write_all(fd: &OwnedFd, bytes: &[u8], object: impl std::fmt::Display) -> Result<()> {
    let mut rest = bytes;
    loop {
        match nix::unistd::write(fd, rest) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::new("write", object, e)),
            Ok(length) if length >= rest.len() => return Ok(()),
            Ok(length) => rest = &rest[length..],
        }
    }
}

/// Closes a descriptor by its number, which the caller owns.
///
/// # Errors
/// EBADF when no file is open under this number.
pub fn close(fd: RawFd) -> Result<()> {
    // SAFETY: a number; the caller says that nothing else uses it.
    let result = unsafe { libc::close(fd) };
    if result < 0 { Err(Error::last("close descriptor", fd)) } else { Ok(()) }
}

/// A pipe, both ends close-on-exec: (read, write).
///
/// # Errors
/// What pipe2(2) says.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::new("create", "a pipe", e))
}

/// Opens a path with these flags (always close-on-exec and never as controlling terminal).
///
/// # Errors
/// What open(2) says.
pub fn open(path: &Path, flags: OFlag) -> Result<OwnedFd> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())
        .map_err(|e| Error::new("open", path.display(), e))
}

/// Opens a path for reading.
///
/// # Errors
/// What open(2) says.
pub fn open_read(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_RDONLY)
}

/// Opens for reading a file that others may have put there: its name is no link, and a FIFO does not hang us. What it is
/// must be asked of the descriptor.
///
/// # Errors
/// What open(2) says: ELOOP for a link.
pub fn open_no_follow(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK)
}

/// Opens a path for reading and writing (a device).
///
/// # Errors
/// What open(2) says.
pub fn open_read_write(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_RDWR)
}

/// Opens what an O_PATH descriptor stands for, for reading and writing, by its entry in /proc/self/fd of this process.
///
/// # Errors
/// What open(2) says.
pub fn reopen_read_write(place: impl AsFd) -> Result<OwnedFd> {
    open_read_write(Path::new(&format!("/proc/self/fd/{}", place.as_fd().as_raw_fd())))
}

/// Opens a directory or file only as a place (O_PATH).
///
/// # Errors
/// What open(2) says.
pub fn open_path(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_PATH)
}

/// A file in memory (memfd_create(2)), close-on-exec.
///
/// # Errors
/// What memfd_create(2) says.
pub fn memory_file(name: &str) -> Result<OwnedFd> {
    memory_file_with(name, libc::MFD_CLOEXEC)
}

/// As [`memory_file`], one that can be sealed.
///
/// # Errors
/// What memfd_create(2) says.
pub fn sealable_memory_file(name: &str) -> Result<OwnedFd> {
    memory_file_with(name, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
}

fn memory_file_with(name: &str, flags: libc::c_uint) -> Result<OwnedFd> {
    let text = c_string("memfd_create", name.as_bytes())?;
    // SAFETY: a NUL-terminated name and flags.
    let fd = unsafe { libc::memfd_create(text.as_ptr(), flags) };
    crate::mount::owned("memfd_create", name, fd.into())
}

/// Waits until one of the descriptors is readable or hung up, at most `timeout`; returns which are.
///
/// # Errors
/// What poll(2) says (EINTR is retried).
pub fn poll_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Vec<bool>> {
    let mut set: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout = timeout.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX));
    loop {
        match nix::poll::poll(&mut set, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::new("poll", "descriptors", e)),
            Ok(_) => return Ok(set.iter().map(|p| p.revents().is_some_and(|r| !r.is_empty())).collect()),
        }
    }
}

/// Size of an open file in bytes (fstat(2)).
///
/// # Errors
/// What fstat(2) says.
pub fn size(fd: impl AsFd) -> Result<u64> {
    let number = fd.as_fd().as_raw_fd();
    let stat = nix::sys::stat::fstat(fd).map_err(|e| Error::new("stat descriptor", number, e))?;
    Ok(stat.st_size.unsigned_abs())
}

/// Asks the file system of an open file for its statistics, which a server (FUSE, NFS) must answer (fstatfs(2)).
///
/// # Errors
/// What fstatfs(2) says: ENOTCONN when a FUSE server is gone.
pub fn file_system_answers(fd: impl AsFd) -> Result<()> {
    let number = fd.as_fd().as_raw_fd();
    nix::sys::statfs::fstatfs(fd).map(drop).map_err(|e| Error::new("ask the file system of descriptor", number, e))
}

/// Whether it is the character device with these numbers.
pub fn is_device(fd: impl AsFd, major: u64, minor: u64) -> bool {
    let device = |found: nix::sys::stat::FileStat| {
        let kind = nix::sys::stat::SFlag::from_bits_truncate(found.st_mode & libc::S_IFMT);
        kind == nix::sys::stat::SFlag::S_IFCHR && found.st_rdev == nix::sys::stat::makedev(major, minor)
    };
    nix::sys::stat::fstat(fd).is_ok_and(device)
}

/// Whether both are the same character device.
pub fn is_same_device(one: impl AsFd, other: impl AsFd) -> bool {
    use nix::sys::stat::{fstat, major, minor};
    fstat(other).is_ok_and(|found| is_device(one, major(found.st_rdev), minor(found.st_rdev)))
}

/// Whether it is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    nix::unistd::isatty(fd).unwrap_or(false)
}

/// Whether nothing but zero or one link and free access keep us from opening `path` for reading and writing.
pub fn may_read_write(path: &Path) -> Result<()> {
    use nix::unistd::{AccessFlags, eaccess};
    eaccess(path, AccessFlags::R_OK | AccessFlags::W_OK)
        .map_err(|e| Error::new("open for reading and writing", path.display(), e))
}

/// Whether the effective user may write (or create entries in) `path`.
///
/// # Errors
/// What faccessat2(2) says.
pub fn may_write(path: &Path) -> Result<()> {
    use nix::unistd::{AccessFlags, eaccess};
    eaccess(path, AccessFlags::W_OK).map_err(|e| Error::new("write", path.display(), e))
}

/// Opens (or creates, 0644) a file to lock with flock(2); a link in its place is refused.
///
/// # Errors
/// What open(2) says; ELOOP for a link.
pub fn open_lock(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::from_bits_truncate(0o644)).map_err(|e| Error::new("open", path.display(), e))
}
