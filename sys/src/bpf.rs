//! The eBPF program that decides about devices in cgroup version 2 (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE).

use crate::{Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What a process wants to do with a device: the upper half of `access_type` of `struct bpf_cgroup_dev_ctx`.
pub mod access {
    /// Make a node.
    pub const MKNOD: u32 = 1;
    /// Open for reading.
    pub const READ: u32 = 2;
    /// Open for writing.
    pub const WRITE: u32 = 4;
    /// All of them.
    pub const ALL: u32 = 7;
}

/// Block devices, in the lower half of `access_type`.
pub const BLOCK: u32 = 1;
/// Character devices.
pub const CHARACTER: u32 = 2;

/// One question of the program: where all that is given matches, and every wanted access is among `access`, it answers
/// with `allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// The answer.
    pub allow: bool,
    /// [`BLOCK`] or [`CHARACTER`]; `None`: both.
    pub kind: Option<u32>,
    /// Bits of [`access`].
    pub access: u32,
    /// Major number; `None`: any.
    pub major: Option<u32>,
    /// Minor number; `None`: any.
    pub minor: Option<u32>,
}

/// One instruction (linux/bpf.h, `struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const MOVE_IMMEDIATE: u8 = 0xb4;
const AND_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x74;
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x56;
const JUMP_NOT_EQUAL: u8 = 0x5e;
const EXIT: u8 = 0x95;

const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 1;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

/// The rules, first match first; what none matches is denied.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, KIND, SCRATCH, 0, 0),
        instruction(MOVE, WANTED, KIND, 0, 0),
        instruction(AND_IMMEDIATE, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMMEDIATE, WANTED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        instruction(LOAD_WORD, MINOR, SCRATCH, 8, 0),
    ];
    for rule in rules {
        let mut tests = Vec::new();
        tests.extend(rule.kind.map(|kind| (KIND, kind)));
        tests.extend(rule.major.map(|major| (MAJOR, major)));
        tests.extend(rule.minor.map(|minor| (MINOR, minor)));
        let mut block: Vec<Instruction> = tests
            .iter()
            .map(|(register, value)| instruction(JUMP_NOT_EQUAL_IMMEDIATE, *register, 0, 0, *value as i32))
            .collect();
        if rule.access != access::ALL {
            if rule.allow {
                // Allowed if nothing else is wanted.
                block.push(instruction(MOVE, SCRATCH, WANTED, 0, 0));
                block.push(instruction(AND_IMMEDIATE, SCRATCH, 0, 0, rule.access as i32));
                block.push(instruction(JUMP_NOT_EQUAL, SCRATCH, WANTED, 0, 0));
            } else {
                // Denied if any of it is wanted: jump over "nothing of it".
                block.push(instruction(MOVE, SCRATCH, WANTED, 0, 0));
                block.push(instruction(AND_IMMEDIATE, SCRATCH, 0, 0, rule.access as i32));
                block.push(instruction(0x16, SCRATCH, 0, 0, 0));
            }
        }
        block.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, i32::from(rule.allow)));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        // A test that fails goes on behind the block.
        let length = block.len();
        for (index, one) in block.iter_mut().enumerate() {
            if matches!(one.code, JUMP_NOT_EQUAL_IMMEDIATE | JUMP_NOT_EQUAL | 0x16) {
                one.offset = (length - index - 1) as i16;
            }
        }
        code.extend(block);
        if tests.is_empty() && rule.access == access::ALL {
            // It answers whatever is asked, and the verifier refuses instructions that nothing reaches.
            return code;
        }
    }
    code.extend([instruction(MOVE_IMMEDIATE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

/// As BPF_PROG_LOAD reads it, up to `prog_flags`.
#[repr(C)]
#[derive(Debug)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// As BPF_PROG_ATTACH reads it.
#[repr(C)]
#[derive(Debug)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Attaches a program with these rules, first match first, to a version 2 cgroup. It lives as long as the cgroup.
///
/// # Errors
/// What bpf(2) says: EPERM without CAP_SYS_ADMIN, EINVAL from a kernel without CONFIG_CGROUP_BPF.
pub fn attach_device_program(cgroup: impl AsFd, rules: &[DeviceRule]) -> Result<()> {
    let code = program(rules);
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        // Of the kernel's helpers none is used, so the licence does not matter to it.
        license: c"MIT".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the structure has the size told, and points to instructions and a text that outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let program: OwnedFd = crate::mount::owned("load", "the device program of a cgroup", fd)?;
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure has the size told and holds numbers only.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    Errno::result(result).map(drop).map_err(|e| Error::new("attach", "the device program of a cgroup", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers, by interpreting it as the kernel does.
    fn answer(rules: &[DeviceRule], kind: u32, wanted: u32, major: u32, minor: u32) -> u32 {
        let (code, context) = (program(rules), [wanted << 16 | kind, major, minor]);
        let mut registers = [0u32; 11];
        let mut at = 0usize;
        loop {
            let i = code[at];
            let (to, from) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            at += 1;
            match i.code {
                LOAD_WORD => registers[to] = context[i.offset as usize / 4],
                MOVE => registers[to] = registers[from],
                MOVE_IMMEDIATE => registers[to] = i.immediate as u32,
                AND_IMMEDIATE => registers[to] &= i.immediate as u32,
                SHIFT_RIGHT_IMMEDIATE => registers[to] >>= i.immediate,
                JUMP_NOT_EQUAL_IMMEDIATE if registers[to] != i.immediate as u32 => at += i.offset as usize,
                JUMP_NOT_EQUAL if registers[to] != registers[from] => at += i.offset as usize,
                0x16 if registers[to] == i.immediate as u32 => at += i.offset as usize,
                EXIT => return registers[0],
                _ => {}
            }
        }
    }

    #[test]
    fn the_first_match_answers() {
        let rule = |allow, kind, access, major, minor| DeviceRule { allow, kind, access, major, minor };
        let rules = [
            rule(true, Some(CHARACTER), access::ALL, Some(1), Some(3)),
            rule(false, Some(CHARACTER), access::WRITE, Some(5), None),
            rule(true, Some(CHARACTER), access::READ | access::WRITE, Some(5), None),
            rule(true, None, access::MKNOD, None, None),
        ];
        assert_eq!(answer(&rules, CHARACTER, access::ALL, 1, 3), 1);
        assert_eq!(answer(&rules, CHARACTER, access::READ, 1, 4), 0);
        assert_eq!(answer(&rules, CHARACTER, access::READ, 5, 9), 1);
        assert_eq!(answer(&rules, CHARACTER, access::READ | access::WRITE, 5, 9), 0);
        assert_eq!(answer(&rules, BLOCK, access::MKNOD, 8, 0), 1);
        assert_eq!(answer(&rules, BLOCK, access::MKNOD | access::READ, 8, 0), 0);
        let everything = rule(true, None, access::ALL, None, None);
        assert_eq!(answer(&[rules[1], everything, rules[0]], BLOCK, access::ALL, 8, 0), 1);
        assert_eq!(program(&[everything, rules[0]]), program(&[everything]));
    }
}
