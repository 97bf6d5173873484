//! Calls that are newer than a profile.
//!
//! A profile that allows a list and refuses the rest with EPERM would refuse calls that its author could not know, and a
//! C library takes EPERM as an answer where ENOSYS would make it use the older call (glibc and clone3, faccessat2). So
//! every call with a number above all that the profile names is ENOSYS, as runc does (libcontainer/seccomp/patchbpf).

use corebox_sys::libseccomp_ffi::Libseccomp;
use corebox_sys::seccomp::Instruction;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action};

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

const RETURN_ENOSYS: u32 = 0x0005_0000 | 38;
/// Set in the numbers of x32 calls, which share x86-64's architecture for the kernel.
const X32_BIT: u32 = 0x4000_0000;

/// Instructions to put before the filter; `None` where nothing is to be done.
pub(super) fn prologue(profile: &LinuxSeccomp, library: &Libseccomp, tokens: &[u32]) -> Option<Vec<Instruction>> {
    let permissive = matches!(
        profile.default_action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace | Action::ScmpActNotify
    );
    if permissive || profile.default_errno_ret() == Some(38) {
        return None;
    }
    let names = || profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    let last = |token: u32| names().filter_map(|name| library.number_on(token, name)).max();
    let mut program = vec![load(ARCHITECTURE)];
    for token in tokens.iter().filter(|token| **token != Arch::ScmpArchX32 as u32) {
        let Some(newest) = last(*token) else { continue };
        let x32 = (*token == Arch::ScmpArchX86_64 as u32 && tokens.contains(&(Arch::ScmpArchX32 as u32)))
            .then(|| last(Arch::ScmpArchX32 as u32))
            .flatten();
        program.extend(for_architecture(*token, newest, x32));
    }
    (program.len() > 1).then_some(program)
}

/// Falls through to what follows for every call that is not newer.
fn for_architecture(token: u32, newest: u32, newest_x32: Option<u32>) -> Vec<Instruction> {
    let mut body = vec![load(NUMBER)];
    // x32 numbers are large ones for x86-64; those that the profile does not speak of are the filter's to refuse.
    match newest_x32 {
        Some(newest_x32) => body.extend([
            jump(JUMP_AT_LEAST, X32_BIT, 0, 1),
            jump(JUMP_GREATER, newest_x32, 1, 2),
            jump(JUMP_GREATER, newest, 0, 1),
            answer(),
        ]),
        None => body.extend([jump(JUMP_AT_LEAST, X32_BIT, 2, 0), jump(JUMP_GREATER, newest, 0, 1), answer()]),
    }
    // The next architecture's test finds the architecture loaded.
    body.push(load(ARCHITECTURE));
    let mut program = vec![jump(JUMP_EQUAL, token, 0, body.len() as u8)];
    program.append(&mut body);
    program
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn jump(code: u16, value: u32, yes: u8, no: u8) -> Instruction {
    Instruction { code, jt: yes, jf: no, k: value }
}

fn answer() -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: RETURN_ENOSYS }
}
