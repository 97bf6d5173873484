//! System call filters: seccomp(2), and the descriptors by which another process decides for a filtered one
//! (seccomp_unotify(2)).

use crate::{Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// One instruction of a filter, as in linux/filter.h.
pub use libc::sock_filter as Instruction;

/// Flags of seccomp(2), SECCOMP_SET_MODE_FILTER.
pub mod flag {
    /// All threads of the process get the filter.
    pub const TSYNC: u32 = 1;
    /// What is not allowed is logged.
    pub const LOG: u32 = 2;
    /// The mitigation of speculative store bypass stays off.
    pub const SPEC_ALLOW: u32 = 4;
    /// The call returns a descriptor for notifications.
    pub const NEW_LISTENER: u32 = 8;
    /// A thread that cannot be synchronised is ESRCH instead of its number; needed for TSYNC with NEW_LISTENER.
    pub const TSYNC_ESRCH: u32 = 16;
    /// Only a fatal signal interrupts a process whose notification was received (kernel 5.19).
    pub const WAIT_KILLABLE_RECV: u32 = 32;
}

/// Filters this process from now on, for ever; a listener where the flags ask for one.
///
/// # Errors
/// What seccomp(2) says: EACCES without no_new_privs and without CAP_SYS_ADMIN, EINVAL for a program that the kernel
/// refuses or flags it does not know.
pub fn install(program: &[Instruction], flags: u32) -> Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| Error::new("install", "a seccomp filter", Errno::E2BIG))?;
    let both = flags & flag::TSYNC != 0 && flags & flag::NEW_LISTENER != 0;
    let flags = if both { flags | flag::TSYNC_ESRCH } else { flags };
    let fprog = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` instructions from `filter` and writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog) };
    let listens = flags & flag::NEW_LISTENER != 0;
    if result > 0 && !listens {
        return Err(Error::new("install", format_args!("a seccomp filter in thread {result}"), Errno::ESRCH));
    }
    if result == 0 && !listens {
        return Ok(None);
    }
    crate::mount::owned("install", "a seccomp filter", result).map(Some)
}

/// Instructions from their bytes in memory order; an incomplete last one is dropped.
pub fn instructions(bytes: &[u8]) -> Vec<Instruction> {
    let one = |b: &[u8]| {
        let (code, k) = (u16::from_ne_bytes([b[0], b[1]]), u32::from_ne_bytes([b[4], b[5], b[6], b[7]]));
        Instruction { code, jt: b[2], jf: b[3], k }
    };
    bytes.chunks_exact(8).map(one).collect()
}

/// The reverse of [`instructions`].
pub fn bytes(program: &[Instruction]) -> Vec<u8> {
    let one = |i: &Instruction| {
        let (code, k) = (i.code.to_ne_bytes(), i.k.to_ne_bytes());
        [code[0], code[1], i.jt, i.jf, k[0], k[1], k[2], k[3]]
    };
    program.iter().flat_map(one).collect()
}

/// Whether the kernel knows an action (SECCOMP_GET_ACTION_AVAIL): a value of SECCOMP_RET_*, without data.
pub fn action_available(action: u32) -> bool {
    // SAFETY: the kernel reads one u32.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    result == 0
}

/// A copy of descriptor `number` of the process behind `pidfd` (pidfd_getfd(2), kernel 5.6).
///
/// # Errors
/// What pidfd_getfd(2) says: EPERM where we may not trace it, EBADF when it has no such descriptor.
pub fn take_descriptor(pidfd: impl AsFd, number: RawFd) -> Result<OwnedFd> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: numbers only.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, fd, number, 0) };
    crate::mount::owned("take descriptor", number, taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    const RETURN: u16 = 0x06;

    #[test]
    fn knows_actions() {
        assert!(action_available(libc::SECCOMP_RET_ALLOW));
        assert!(!action_available(0x7ff1_0000));
    }

    #[test]
    fn refuses_no_program_at_all() {
        assert_eq!(install(&[], 0).unwrap_err().errno, Errno::EINVAL);
        let stop = Instruction { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
        assert_eq!(install(&[stop; 70_000], 0).unwrap_err().errno, Errno::E2BIG);
    }

    #[test]
    fn a_thread_can_filter_itself() {
        // A thread of its own: filters never go away.
        std::thread::spawn(|| {
            process::no_new_privileges().unwrap();
            let load = Instruction { code: 0x20, jt: 0, jf: 0, k: 0 };
            let equal = Instruction { code: 0x15, jt: 0, jf: 1, k: libc::SYS_getppid as u32 };
            let refuse = Instruction { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | 77 };
            let allow = Instruction { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
            assert!(install(&[load, equal, refuse, allow], 0).unwrap().is_none());
            // SAFETY: no arguments. (glibc's getppid() knows no errors.)
            assert_eq!(unsafe { libc::syscall(libc::SYS_getppid) }, -1);
            assert_eq!(Errno::last_raw(), 77);
        })
        .join()
        .unwrap();
    }
}
