//! From a profile to instructions, with libseccomp. Where the specification leaves room, as runc does
//! (libcontainer/seccomp/seccomp_linux.go):
//!
//! * a name that libseccomp does not know is passed over, as profiles name calls of many kernels;
//! * a rule with the default action is passed over, as libseccomp refuses it;
//! * several conditions on one argument are alternatives, conditions on different arguments hold together;
//! * the native architecture is always there;
//! * with a default that refuses, calls newer than every call of the profile are ENOSYS ([`super::newer_calls`]).

use super::{Error, Program, newer_calls};
use corebox_sys::libseccomp_ffi::{Comparison, Filter, Libseccomp};
use corebox_sys::seccomp::flag;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

/// Actions that are known, as `corebox oci features` lists them.
pub const ACTIONS: [Action; 9] = [
    Action::ScmpActAllow,
    Action::ScmpActErrno,
    Action::ScmpActKill,
    Action::ScmpActKillProcess,
    Action::ScmpActKillThread,
    Action::ScmpActLog,
    Action::ScmpActNotify,
    Action::ScmpActTrace,
    Action::ScmpActTrap,
];

/// Operators that are known.
pub const OPERATORS: [Operator; 7] = [
    Operator::ScmpCmpEq,
    Operator::ScmpCmpGe,
    Operator::ScmpCmpGt,
    Operator::ScmpCmpLe,
    Operator::ScmpCmpLt,
    Operator::ScmpCmpMaskedEq,
    Operator::ScmpCmpNe,
];

/// Flags that are known.
pub const FLAGS: [Flag; 4] = [
    Flag::SeccompFilterFlagLog,
    Flag::SeccompFilterFlagSpecAllow,
    Flag::SeccompFilterFlagTsync,
    Flag::SeccompFilterFlagWaitKillableRecv,
];

/// Architectures that are known (the installed libseccomp may know fewer).
pub fn architectures() -> [Arch; 17] {
    use Arch::*;
    [
        ScmpArchAarch64,
        ScmpArchArm,
        ScmpArchMips,
        ScmpArchMips64,
        ScmpArchMips64n32,
        ScmpArchMipsel,
        ScmpArchMipsel64,
        ScmpArchMipsel64n32,
        ScmpArchPpc,
        ScmpArchPpc64,
        ScmpArchPpc64le,
        ScmpArchRiscv64,
        ScmpArchS390,
        ScmpArchS390x,
        ScmpArchX32,
        ScmpArchX86,
        ScmpArchX86_64,
    ]
}

/// EPERM: what a refusal says that names no errno.
const EPERM: u32 = 1;
/// Largest errno that a filter can return (the kernel's MAX_ERRNO).
const MAX_ERRNO: u32 = 4095;
/// From so many names on a binary tree is smaller work than a list (libseccomp 2.5 spoils trees without rules).
const TREE_FROM: usize = 32;

/// Compiles a profile.
///
/// # Errors
/// A profile that cannot be, by the word that is wrong; no libseccomp on this host; what libseccomp says.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, Error> {
    let flags = check(profile)?;
    let library = Libseccomp::load().map_err(Error::NoLibrary)?;
    compile_for(profile, &library, &[library.native()], flags)
}

/// As [`compile`], for given architectures besides those that the profile names; the native one only if among them.
pub(super) fn compile_for(
    profile: &LinuxSeccomp,
    library: &Libseccomp,
    base: &[u32],
    flags: u32,
) -> Result<Program, Error> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let filter = library.filter(default)?;
    let mut tokens = base.to_vec();
    for arch in profile.architectures().iter().flatten().filter(|arch| **arch != Arch::ScmpArchNative) {
        if !tokens.contains(&(*arch as u32)) {
            tokens.push(*arch as u32);
        }
    }
    for token in &tokens {
        filter.add_architecture(*token, name_of(*token))?;
    }
    if !tokens.contains(&library.native()) {
        filter.remove_architecture(library.native())?;
    }
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    if rules.iter().map(|rule| rule.names().len()).sum::<usize>() > TREE_FROM {
        filter.as_tree()?;
    }
    for rule in rules {
        let answer = action(rule.action(), rule.errno_ret());
        if answer != default {
            add(&filter, library, rule, answer)?;
        }
    }
    let mut instructions = filter.instructions()?;
    if let Some(prologue) = newer_calls::prologue(profile, library, &tokens) {
        instructions.splice(0..0, prologue);
    }
    Ok(Program { instructions, flags })
}

fn add(filter: &Filter<'_>, library: &Libseccomp, rule: &LinuxSyscall, answer: u32) -> Result<(), Error> {
    let conditions: Vec<(u32, Comparison)> =
        rule.args().iter().flatten().map(|arg| (arg.index() as u32, comparison(arg))).collect();
    let mut indices: Vec<u32> = conditions.iter().map(|(index, _)| *index).collect();
    indices.sort_unstable();
    indices.dedup();
    let together: Vec<Comparison> = conditions.iter().map(|(_, comparison)| *comparison).collect();
    for name in rule.names() {
        let Some(number) = library.number(name) else { continue };
        if indices.len() == together.len() {
            filter.rule(answer, number, &together, name)?;
        } else {
            for one in &together {
                filter.rule(answer, number, std::slice::from_ref(one), name)?;
            }
        }
    }
    Ok(())
}

/// Refuses what the kernel or we could never do, and returns the flags of seccomp(2).
pub(super) fn check(profile: &LinuxSeccomp) -> Result<u32, Error> {
    let refused = |text: String| Err(Error::Profile(text));
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let used = |wanted: Action| rules.iter().any(|rule| rule.action() == wanted);
    if profile.default_action() == Action::ScmpActNotify {
        return refused(
            "SCMP_ACT_NOTIFY cannot be the default action: starting the process would wait for ever".into(),
        );
    }
    for rule in rules {
        if rule.names().is_empty() {
            return refused("a rule names no system call".into());
        }
        // The listener is handed over after the filter is in force, by these.
        if rule.action() == Action::ScmpActNotify && rule.names().iter().any(|n| n == "write" || n == "read") {
            return refused(
                "SCMP_ACT_NOTIFY cannot be used for read and write: the listener is handed over by them".into(),
            );
        }
        if let Some(arg) = rule.args().iter().flatten().find(|arg| arg.index() > 5) {
            return refused(format!("argument {} of {}: calls have arguments 0 to 5", arg.index(), rule.names()[0]));
        }
    }
    let errnos = rules.iter().map(|r| (r.action(), r.errno_ret()));
    for (action, errno) in errnos.chain([(profile.default_action(), profile.default_errno_ret())]) {
        // With other actions it has no meaning, and podman's and docker's profiles write it there.
        if let (Action::ScmpActErrno, Some(number)) = (action, errno.filter(|number| *number > MAX_ERRNO)) {
            return refused(format!("errno {number} is larger than {MAX_ERRNO}"));
        }
    }
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            Flag::SeccompFilterFlagLog => flag::LOG,
            Flag::SeccompFilterFlagTsync => flag::TSYNC,
            Flag::SeccompFilterFlagSpecAllow => flag::SPEC_ALLOW,
            Flag::SeccompFilterFlagWaitKillableRecv => flag::WAIT_KILLABLE_RECV,
        };
    }
    let notifies = used(Action::ScmpActNotify);
    if notifies && profile.listener_path().is_none() {
        return refused("SCMP_ACT_NOTIFY needs listenerPath".into());
    }
    if flags & flag::WAIT_KILLABLE_RECV != 0 && !notifies {
        return refused("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY".into());
    }
    Ok(if notifies { flags | flag::NEW_LISTENER } else { flags })
}

/// The kernel's return value (seccomp.h, `SCMP_ACT_*`).
fn action(action: Action, errno: Option<u32>) -> u32 {
    let data = errno.unwrap_or(EPERM) & 0xffff;
    match action {
        Action::ScmpActErrno => 0x0005_0000 | data,
        Action::ScmpActTrace => 0x7ff0_0000 | data,
        other => u32::from(other),
    }
}

fn comparison(arg: &LinuxSeccompArg) -> Comparison {
    Comparison {
        argument: arg.index() as u32,
        operator: arg.op() as i32,
        value: arg.value(),
        value_two: arg.value_two().unwrap_or(0),
    }
}

fn name_of(token: u32) -> String {
    architectures()
        .into_iter()
        .find(|arch| *arch as u32 == token)
        .map_or(format!("{token:#x}"), |arch| arch.to_string())
}
