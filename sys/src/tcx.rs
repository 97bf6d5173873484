//! eBPF programs of traffic control, and links that attach them to interfaces (bpf(2), TCX of Linux 6.6).
//!
//! A link detaches when its descriptor is closed, be it by SIGKILL: nothing has to be cleaned up.

use crate::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// One instruction: struct bpf_insn of linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Source register in the upper, destination register in the lower four bits (little endian machines).
    pub registers: u8,
    /// Offset of a jump or of a memory access.
    pub offset: i16,
    /// Constant.
    pub immediate: i32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
/// Packets that arrive at an interface, before the network stack sees them.
const BPF_TCX_INGRESS: u32 = 46;
/// bpf_fib_lookup(2) is for programs under a licence that goes with the GPL, which MIT does.
const LICENCE: &std::ffi::CStr = c"Dual MIT/GPL";
/// What the verifier says, at most.
const LOG_SIZE: usize = 16 << 10;

/// The part of union bpf_attr for BPF_PROG_LOAD that is used; what follows counts as zero.
#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part of union bpf_attr for BPF_LINK_CREATE.
#[repr(C)]
struct LinkAttributes {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// A verified program.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// A program at work at an interface, as long as this lives.
#[derive(Debug)]
pub struct Link(#[allow(dead_code)] OwnedFd);

impl Program {
    /// Has the kernel verify and compile a program for packets that arrive at an interface.
    ///
    /// # Errors
    /// EPERM without CAP_BPF and CAP_NET_ADMIN in the initial user namespace; EINVAL or EACCES with the last words of the
    /// verifier.
    pub fn for_ingress(name: &str, instructions: &[Instruction]) -> Result<Self> {
        let mut log = vec![0u8; LOG_SIZE];
        match load(name, instructions, None) {
            Ok(fd) => Ok(Self(fd)),
            Err(error) if matches!(error.errno, nix::errno::Errno::EPERM | nix::errno::Errno::ENOSYS) => Err(error),
            // Once more for the reasons: a log slows loading down, and is not wanted where all is well.
            Err(_) => load(name, instructions, Some(&mut log)).map(Self).map_err(|error| {
                let text = String::from_utf8_lossy(&log);
                let words: Vec<&str> = text.trim_end_matches('\0').lines().rev().take(3).collect();
                let words: Vec<&str> = words.into_iter().rev().collect();
                Error::new("load eBPF program", format!("{name} ({})", words.join("; ")), error.errno)
            }),
        }
    }

    /// Attaches it to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// EINVAL before Linux 6.6.
    pub fn attach(&self, index: u32) -> Result<Link> {
        let attributes = LinkAttributes {
            prog_fd: self.0.as_fd().as_raw_fd() as u32,
            target_ifindex: index,
            attach_type: BPF_TCX_INGRESS,
            flags: 0,
            relative_fd: 0,
            pad: 0,
            expected_revision: 0,
        };
        let (pointer, size) = (&raw const attributes, size_of::<LinkAttributes>());
        // SAFETY: the kernel reads `size` bytes of plain numbers.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, pointer, size) };
        crate::mount::owned("attach eBPF program to interface", index, fd).map(Link)
    }
}

fn load(name: &str, instructions: &[Instruction], log: Option<&mut [u8]>) -> Result<OwnedFd> {
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    let attributes = LoadAttributes {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: LICENCE.as_ptr() as u64,
        log_level: u32::from(log.is_some()),
        log_size: log.as_ref().map_or(0, |log| log.len() as u32),
        log_buf: log.map_or(0, |log| log.as_mut_ptr() as u64),
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: BPF_TCX_INGRESS,
    };
    let (pointer, size) = (&raw const attributes, size_of::<LoadAttributes>());
    // SAFETY: the kernel reads `size` bytes of plain numbers, the instructions and the licence they point to, and writes at
    // most `log_size` bytes to the log; all of them outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, pointer, size) };
    crate::mount::owned("load eBPF program", name, fd)
}
