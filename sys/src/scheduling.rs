//! When a process gets a CPU and a disk, and which kernel it believes to see: sched_setattr(2), ioprio_set(2),
//! personality(2), set_mempolicy(2).

use crate::{Error, Result};
use nix::errno::Errno;

/// A scheduling policy with its parameters, as `struct sched_attr` of sched_setattr(2) has them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Set by [`set_policy`].
    pub size: u32,
    /// SCHED_OTHER 0, FIFO 1, RR 2, BATCH 3, IDLE 5, DEADLINE 6.
    pub policy: u32,
    /// SCHED_FLAG_….
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, nanoseconds.
    pub runtime: u64,
    /// As `runtime`.
    pub deadline: u64,
    /// As `runtime`.
    pub period: u64,
    /// Utilization clamps; unused.
    pub utilization_min: u32,
    /// As above.
    pub utilization_max: u32,
}

/// Size of the first version of `struct sched_attr`, without the utilization clamps.
const FIRST_VERSION: u32 = 48;

/// Sets the policy of a process.
///
/// # Errors
/// EPERM for a real-time policy without CAP_SYS_NICE, EINVAL.
pub fn set_policy(pid: i32, policy: Policy) -> Result<()> {
    let policy = Policy { size: FIRST_VERSION, ..policy };
    // SAFETY: reads as many bytes as the structure says.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const policy, 0) };
    if result < 0 { Err(Error::last("set the scheduling policy of process", pid)) } else { Ok(()) }
}

/// Sets the I/O class (1 real-time, 2 best effort, 3 idle) and priority (0 to 7) of a process.
///
/// # Errors
/// EPERM for the real-time class without CAP_SYS_ADMIN.
pub fn set_io_priority(pid: i32, class: u32, priority: u32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, class << 13 | priority) };
    if result < 0 { Err(Error::last("set the I/O priority of process", pid)) } else { Ok(()) }
}

/// PER_LINUX and PER_LINUX32 of personality(2).
pub const LINUX: u64 = 0;
/// As [`LINUX`]: uname(2) says that the machine has 32 bits.
pub const LINUX32: u64 = 8;

/// Sets the execution domain of this process.
///
/// # Errors
/// What personality(2) says.
pub fn set_personality(domain: u64) -> Result<()> {
    // SAFETY: a number only.
    let result = unsafe { libc::personality(domain as libc::c_ulong) };
    if result < 0 { Err(Error::last("set", "the personality")) } else { Ok(()) }
}

/// Sets the memory policy of this process: an MPOL_ number with its flags, and nodes (set_mempolicy(2)).
///
/// # Errors
/// EINVAL for nodes that are not allowed or not with this mode.
pub fn set_memory_policy(mode: i32, nodes: &[u32]) -> Result<()> {
    let mut mask = [0u64; 16];
    for node in nodes {
        let Some(word) = mask.get_mut(*node as usize / 64) else {
            return Err(Error::new("set the memory policy to node", node, Errno::EINVAL));
        };
        *word |= 1 << (node % 64);
    }
    let (at, bits) = if nodes.is_empty() { (std::ptr::null(), 0) } else { (mask.as_ptr(), mask.len() * 64) };
    // SAFETY: the kernel reads the bits told.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, at, bits) };
    if result < 0 { Err(Error::last("set the memory policy to", format_args!("mode {mode}"))) } else { Ok(()) }
}
