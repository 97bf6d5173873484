//! Signals as readable events (signalfd(2)).

use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};

/// Numbers that callers name.
pub use libc::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGWINCH,
};

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// The kernel sent it (SI_KERNEL): for the terminal's signals that means the whole foreground group has it.
    pub from_kernel: bool,
    /// The sender's pid, if a process sent it.
    pub sender: u32,
}

/// All signals that can be blocked, blocked and readable.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks every signal in the calling thread and opens the descriptor that reports them. Threads and children
    /// inherit the blocking: see [`unblock_all`].
    ///
    /// # Errors
    /// What sigprocmask(2) and signalfd(2) say.
    pub fn block_all() -> Result<Self> {
        let mut set = SigSet::all();
        // Raised by our own faults: blocked, they would kill us without the right report.
        for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP, Signal::SIGABRT]
        {
            set.remove(fault);
        }
        set.thread_set_mask().map_err(|e| Error::new("block", "signals", e))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        SignalFd::with_flags(&set, flags).map(Self).map_err(|e| Error::new("open", "a signal descriptor", e))
    }

    /// The next one that arrived, if any.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn next(&self) -> Result<Option<Arrived>> {
        match self.0.read_signal() {
            Ok(None) | Err(Errno::EINTR) => Ok(None),
            Ok(Some(info)) => Ok(Some(Arrived {
                signal: info.ssi_signo as i32,
                from_kernel: info.ssi_code == libc::SI_KERNEL,
                sender: info.ssi_pid,
            })),
            Err(e) => Err(Error::new("read", "the signal descriptor", e)),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Unblocks every signal and gives each its default action, but for those that `keep_ignored` names: what a program
/// expects when it starts. (An ignored signal stays ignored over exec, execve(2); nohup lives by that.)
///
/// # Errors
/// What sigprocmask(2) says.
pub fn unblock_all(keep_ignored: &[i32]) -> Result<()> {
    for number in 1..=64 {
        if keep_ignored.contains(&number) {
            continue;
        }
        // SAFETY: SIG_DFL is no function of ours; numbers that cannot be set (SIGKILL, those of libc) give EINVAL.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    SigSet::empty().thread_set_mask().map_err(|e| Error::new("unblock", "signals", e))
}

/// The signals among `candidates` that are ignored now.
pub fn ignored(candidates: &[i32]) -> Vec<i32> {
    let is_ignored = |number: i32| {
        // SAFETY: an all-zero sigaction is valid.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: writes one sigaction; null: nothing is changed.
        let result = unsafe { libc::sigaction(number, std::ptr::null(), &raw mut old) };
        result == 0 && old.sa_sigaction == libc::SIG_IGN
    };
    candidates.iter().copied().filter(|number| is_ignored(*number)).collect()
}

/// The number of a signal by its name (`TERM`, `SIGTERM`, in any case), its number, or `SIGRTMIN+N`.
pub fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Ok(signal) = full.parse::<Signal>() {
        return Some(signal as i32);
    }
    let offset =
        |prefix: &str| full.strip_prefix(prefix).map(|rest| if rest.is_empty() { Ok(0) } else { rest.parse::<i32>() });
    let (from_first, from_last) = (offset("SIGRTMIN"), offset("SIGRTMAX"));
    let number = match (from_first, from_last) {
        (Some(Ok(n)), _) => libc::SIGRTMIN() + n,
        (_, Some(Ok(n))) => libc::SIGRTMAX() + n,
        _ => return None,
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
}

/// The name of a signal: `SIGTERM`; `signal 35` for one without.
pub fn name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |s| s.as_str().to_owned())
}
