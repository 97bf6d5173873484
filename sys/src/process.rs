//! Processes: creation, identity, end.

use crate::mount::c_string;
use crate::{Error, Result, fs};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Namespaces to create, as flags of clone3(2).
pub mod ns {
    /// Mounts.
    pub const MOUNT: u64 = 0x0002_0000;
    /// Clocks. Not for clone3(2), whose flags have no room for it: [`super::unshare`], and the next exec enters it.
    pub const TIME: u64 = 0x80;
    /// The view of the cgroup tree.
    pub const CGROUP: u64 = 0x0200_0000;
    /// Host name.
    pub const UTS: u64 = 0x0400_0000;
    /// System V IPC and POSIX message queues.
    pub const IPC: u64 = 0x0800_0000;
    /// Users and capabilities.
    pub const USER: u64 = 0x1000_0000;
    /// Process ids.
    pub const PID: u64 = 0x2000_0000;
    /// Network.
    pub const NET: u64 = 0x4000_0000;
}

/// Flag of clone3(2) that `libc` declares with the wrong width.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Proof that this process has one thread, so that a forked child is a whole program: locks of other threads would
/// stay locked in it for ever (fork(2), async-signal-safety).
///
/// Cannot be sent to another thread; a thread started later makes it a lie, so do not keep it longer than needed.
#[derive(Debug)]
pub struct SingleThreaded(std::marker::PhantomData<*const ()>);

/// Which of the two processes returned.
#[derive(Debug)]
pub enum Forked<T> {
    /// In the new process.
    Child,
    /// In the old one, with what identifies the new one.
    Parent(T),
}

impl SingleThreaded {
    /// Checks it.
    ///
    /// # Errors
    /// EBUSY when there are more threads; what reading /proc says.
    pub fn check() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).map(str::trim);
        match threads {
            Some("1") => Ok(Self(std::marker::PhantomData)),
            other => {
                let object = format!("this process, which has {} threads", other.unwrap_or("?"));
                Err(Error::new("fork", object, Errno::EBUSY))
            }
        }
    }

    /// Creates a child in new namespaces (see [`ns`]), and a pidfd for it (clone3(2)).
    ///
    /// # Errors
    /// What clone3(2) says: EPERM or ENOSPC where user namespaces are not for us.
    pub fn clone_into(&self, namespaces: u64) -> Result<Forked<(i32, OwnedFd)>> {
        self.clone_with(namespaces, libc::SIGCHLD as u64, None)
    }

    /// As [`SingleThreaded::clone_into`], in the version 2 cgroup that `cgroup` is open on (CLONE_INTO_CGROUP): it
    /// never was anywhere else.
    ///
    /// # Errors
    /// As above; EACCES, EBUSY or EOPNOTSUPP where the cgroup takes no process.
    pub fn clone_into_cgroup(&self, namespaces: u64, cgroup: BorrowedFd<'_>) -> Result<Forked<(i32, OwnedFd)>> {
        self.clone_with(namespaces, libc::SIGCHLD as u64, Some(cgroup))
    }

    /// As [`SingleThreaded::clone_into`], as a child of our parent (CLONE_PARENT): it is told apart from us only by the
    /// namespaces that we joined before.
    ///
    /// # Errors
    /// As above.
    pub fn clone_sibling(&self, namespaces: u64) -> Result<Forked<(i32, OwnedFd)>> {
        // With CLONE_PARENT the new process takes over our exit signal, and clone3(2) wants to hear of none.
        self.clone_with(namespaces | libc::CLONE_PARENT as u64, 0, None)
    }

    fn clone_with(
        &self,
        flags: u64,
        exit_signal: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Forked<(i32, OwnedFd)>> {
        let mut pidfd: RawFd = -1;
        // SAFETY: an all-zero clone_args is valid.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = flags | libc::CLONE_PIDFD as u64;
        args.exit_signal = exit_signal;
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        args.pidfd = &raw mut pidfd as u64;
        // SAFETY: like fork(2) (no shared memory, no new stack), in a process with one thread; the pidfd is written
        // to a local variable.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
        match pid {
            0 => Ok(Forked::Child),
            pid if pid > 0 => {
                // SAFETY: the kernel just made this descriptor for us.
                Ok(Forked::Parent((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })))
            }
            _ => Err(Error::last("create", "a process in new namespaces")),
        }
    }

    /// fork(2); the parent gets the child's pid.
    ///
    /// # Errors
    /// EAGAIN at a limit of processes.
    pub fn fork(&self) -> Result<Forked<i32>> {
        // SAFETY: one thread, so the child is a whole program.
        match unsafe { nix::unistd::fork() } {
            Ok(nix::unistd::ForkResult::Child) => Ok(Forked::Child),
            Ok(nix::unistd::ForkResult::Parent { child }) => Ok(Forked::Parent(child.as_raw())),
            Err(e) => Err(Error::new("fork", "a process", e)),
        }
    }
}

/// Moves the calling process into new namespaces (unshare(2)).
///
/// # Errors
/// What unshare(2) says.
pub fn unshare(namespaces: u64) -> Result<()> {
    // SAFETY: flags only; none of them touches memory.
    let result = unsafe { libc::unshare(namespaces as i32) };
    if result < 0 { Err(Error::last("unshare", "namespaces")) } else { Ok(()) }
}

/// Joins the namespaces of these kinds (see [`ns`]) that `fd` is open on: one namespace file, or the pidfd of a process
/// for several of its namespaces at once (setns(2)). A pid namespace holds for children only.
///
/// # Errors
/// What setns(2) says: EINVAL for a namespace of another kind or a user namespace that we are in already.
pub fn join(fd: impl AsFd, namespaces: u64, object: impl std::fmt::Display) -> Result<()> {
    // SAFETY: a descriptor and flags.
    let result = unsafe { libc::setns(fd.as_fd().as_raw_fd(), namespaces as i32) };
    if result < 0 { Err(Error::last("join the namespace", object)) } else { Ok(()) }
}

/// Ends this process at once, without running anything else (_exit(2)).
pub fn exit_now(code: u8) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code.into()) }
}

/// When a process started, in clock ticks after boot: field 22 of /proc/PID/stat, counted after the command's closing
/// parenthesis (proc_pid_stat(5)). With the pid it names a process for good.
///
/// # Errors
/// ESRCH when it is gone.
pub fn start_time(pid: i32) -> Result<u64> {
    stat_field(pid, 19).and_then(|text| text.parse().ok()).ok_or_else(|| gone(pid))
}

/// Whether this very process lives: one that ended and was not waited for does not.
pub fn exists_since(pid: i32, start: u64) -> bool {
    start_time(pid).is_ok_and(|found| found == start)
        && !matches!(stat_field(pid, 0).as_deref(), Some("Z" | "X") | None)
}

/// A field after the command's closing parenthesis, counted from 0.
fn stat_field(pid: i32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(index).map(str::to_owned)
}

fn gone(pid: i32) -> Error {
    Error::new("read the start time of process", pid, Errno::ESRCH)
}

/// The name of a process, as [`set_name`] or its last exec set it.
pub fn name_of(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim_end().to_owned())
}

/// This process's id.
pub fn id() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// A descriptor for a process.
///
/// # Errors
/// ESRCH when it is gone.
pub fn open_pid(pid: i32) -> Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    crate::mount::owned("open process", pid, fd)
}

/// Sends a signal to the process of a pidfd; one that is gone is no error.
///
/// # Errors
/// What pidfd_send_signal(2) says.
pub fn signal_pidfd(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let (fd, info) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a descriptor, a number, and null for "as kill(2) does".
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(Error::new("signal the process with", format_args!("signal {signal}"), e)),
    }
}

/// kill(2): a process, `-pid` for its group, or -1 for all we may signal; one that is gone is no error.
///
/// # Errors
/// What kill(2) says.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: numbers only.
    let result = unsafe { libc::kill(pid, signal) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(Error::new("signal process", format_args!("{pid} with {signal}"), e)),
    }
}

/// Waits for the end of our child behind a pidfd and reaps it; the status is as of wait(2).
///
/// # Errors
/// ECHILD when it is no child of ours or was reaped already.
pub fn wait_pidfd(pidfd: BorrowedFd<'_>) -> Result<i32> {
    loop {
        match nix::sys::wait::waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::new("wait for", "a child process", e)),
            Ok(WaitStatus::Exited(_, code)) => return Ok((code & 0xff) << 8),
            Ok(WaitStatus::Signaled(_, signal, core)) => return Ok(signal as i32 | if core { 0x80 } else { 0 }),
            Ok(other) => return Err(Error::new("wait for", format!("a child: {other:?}"), Errno::EPROTO)),
        }
    }
}

/// Waits for the end of one child and reaps it; the status is as of wait(2).
///
/// # Errors
/// What waitpid(2) says.
pub fn wait(pid: i32) -> Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: writes one int.
        let result = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        match Errno::result(result) {
            Ok(_) => return Ok(status),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::new("wait for process", pid, e)),
        }
    }
}

/// Reaps one ended child, if there is one: its pid and its status as of wait(2).
///
/// # Errors
/// What waitpid(2) says; no children is no error.
pub fn reap() -> Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match Errno::result(pid) {
        Ok(0) | Err(Errno::ECHILD) => Ok(None),
        Ok(pid) => Ok(Some((pid, status))),
        Err(e) => Err(Error::new("wait for", "child processes", e)),
    }
}

/// Sets no_new_privs: no exec gives privileges any more, for ever (prctl(2), PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// What prctl(2) says.
pub fn no_new_privileges() -> Result<()> {
    nix::sys::prctl::set_no_new_privs().map_err(|e| Error::new("set", "no_new_privs", e))
}

/// Makes us the reaper of orphans below us (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// What prctl(2) says.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| Error::new("become", "a reaper of orphans", e))
}

/// Sets whether others of our user may trace us and look into our /proc entries (PR_SET_DUMPABLE).
///
/// # Errors
/// What prctl(2) says.
pub fn set_dumpable(on: bool) -> Result<()> {
    nix::sys::prctl::set_dumpable(on).map_err(|e| Error::new("set", "dumpable", e))
}

/// Names the calling process for ps(1), at most 15 bytes.
///
/// # Errors
/// What prctl(2) says.
pub fn set_name(name: &str) -> Result<()> {
    nix::sys::prctl::set_name(&c_string("set process name", name.as_bytes())?)
        .map_err(|e| Error::new("set process name", name, e))
}

/// Makes us the leader of a new session, without a controlling terminal.
///
/// # Errors
/// EPERM when we lead a process group.
pub fn new_session() -> Result<()> {
    nix::unistd::setsid().map(drop).map_err(|e| Error::new("create", "a session", e))
}

/// Makes us the leader of a new process group: the terminal's signals go to us only if we are its foreground.
///
/// # Errors
/// What setpgid(2) says.
pub fn new_group() -> Result<()> {
    nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(|e| Error::new("create", "a process group", e))
}

/// Changes the working directory.
///
/// # Errors
/// What chdir(2) says.
pub fn change_directory(path: &str) -> Result<()> {
    nix::unistd::chdir(path).map_err(|e| Error::new("change into directory", path, e))
}

/// Whether the working directory is below the root directory. A descriptor of elsewhere, reached by /proc/self/fd, leads
/// out of it (CVE-2024-21626).
///
/// # Errors
/// ENOENT when it is not below, or was removed.
pub fn directory_is_inside(path: &str) -> Result<()> {
    // getcwd(2) gives "(unreachable)/…" for a directory outside; C libraries make ENOENT of it.
    match nix::unistd::getcwd() {
        Ok(found) if found.is_absolute() => Ok(()),
        Ok(_) | Err(Errno::ENOENT) => Err(Error::new("find below the root directory", path, Errno::ENOENT)),
        Err(e) => Err(Error::new("find", path, e)),
    }
}

/// Sets the host name of our UTS namespace.
///
/// # Errors
/// EINVAL above 64 bytes, EPERM outside our own namespace.
pub fn set_hostname(name: &str) -> Result<()> {
    nix::unistd::sethostname(name).map_err(|e| Error::new("set host name", name, e))
}

/// Sets the NIS domain name of our UTS namespace.
///
/// # Errors
/// As [`set_hostname`].
pub fn set_domainname(name: &str) -> Result<()> {
    // SAFETY: a buffer and its length.
    let result = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    if result < 0 { Err(Error::last("set domain name", name)) } else { Ok(()) }
}

/// The host name.
///
/// # Errors
/// What gethostname(2) says.
pub fn hostname() -> Result<String> {
    let name = nix::unistd::gethostname().map_err(|e| Error::new("read", "the host name", e))?;
    Ok(name.to_string_lossy().into_owned())
}

/// A resource limit, as getrlimit(2) numbers them.
pub type Resource = u32;
/// RLIMIT_MEMLOCK: bytes that may be locked in memory, which RDMA registers.
pub const LOCKED_MEMORY: Resource = libc::RLIMIT_MEMLOCK;

/// Sets soft and hard limit of a process (0: ourselves), prlimit(2); `u64::MAX` is no limit.
///
/// # Errors
/// EPERM for a hard limit above the present one without CAP_SYS_RESOURCE in the initial user namespace.
pub fn set_limit(pid: i32, resource: Resource, soft: u64, hard: u64) -> Result<()> {
    let new = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads one rlimit; null: the old one is not asked for.
    let result = unsafe { libc::prlimit(pid, resource as _, &raw const new, std::ptr::null_mut()) };
    if result < 0 { Err(Error::last("set resource limit", format_args!("{resource} to {soft}"))) } else { Ok(()) }
}

/// Our soft and hard limit; `u64::MAX` is no limit.
///
/// # Errors
/// What getrlimit(2) says.
pub fn limit(resource: Resource) -> Result<(u64, u64)> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit.
    let result = unsafe { libc::prlimit(0, resource as _, std::ptr::null(), &raw mut old) };
    if result < 0 { Err(Error::last("read resource limit", resource)) } else { Ok((old.rlim_cur, old.rlim_max)) }
}

/// Replaces this program (execve(2)); returns only with the error.
pub fn exec(path: &str, argv: &[String], env: &[String]) -> Error {
    let list = |texts: &[String]| -> Result<Vec<CString>> {
        texts.iter().map(|text| c_string("execute", text.as_bytes())).collect()
    };
    let attempt = || -> Result<Errno> {
        let (path, argv, env) = (c_string("execute", path.as_bytes())?, list(argv)?, list(env)?);
        match nix::unistd::execve(&path, &argv, &env) {
            Err(e) => Ok(e),
        }
    };
    match attempt() {
        Ok(errno) => Error::new("execute", path, errno),
        Err(e) => e,
    }
}
