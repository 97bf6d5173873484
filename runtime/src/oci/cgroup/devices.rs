//! Which device nodes a container may use: files of version 1, an eBPF program in version 2.

use super::Groups;
use crate::step::Stop;
use corebox_sys::{Errno, bpf, fd, fs};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// One rule; a later one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    kind: Kind,
    /// `None`: any.
    major: Option<u32>,
    minor: Option<u32>,
    /// Bits of [`bpf::access`].
    access: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    All,
    Block,
    Character,
}

/// What every container may use (runtime-spec config-linux.md, "Default Devices"), and mknod of anything, which is
/// harmless without the right to open it: as runc.
const DEFAULTS: [(Kind, Option<u32>, Option<u32>, u32); 11] = [
    (Kind::Character, None, None, bpf::access::MKNOD),
    (Kind::Block, None, None, bpf::access::MKNOD),
    (Kind::Character, Some(1), Some(3), bpf::access::ALL),
    (Kind::Character, Some(1), Some(5), bpf::access::ALL),
    (Kind::Character, Some(1), Some(7), bpf::access::ALL),
    (Kind::Character, Some(1), Some(8), bpf::access::ALL),
    (Kind::Character, Some(1), Some(9), bpf::access::ALL),
    (Kind::Character, Some(5), Some(0), bpf::access::ALL),
    (Kind::Character, Some(5), Some(1), bpf::access::ALL),
    (Kind::Character, Some(5), Some(2), bpf::access::ALL),
    (Kind::Character, Some(136), None, bpf::access::ALL),
];

/// The asked rules and the defaults after them.
pub(super) fn rules(asked: Option<&Vec<LinuxDeviceCgroup>>) -> Result<Vec<Rule>, Stop> {
    let Some(asked) = asked.filter(|rules| !rules.is_empty()) else { return Ok(Vec::new()) };
    let mut rules = asked.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    rules.extend(DEFAULTS.map(|(kind, major, minor, access)| Rule { allow: true, kind, major, minor, access }));
    Ok(rules)
}

fn rule(asked: &LinuxDeviceCgroup) -> Result<Rule, Stop> {
    let refuse = || Stop::new(format!("`linux.resources.devices`: `{asked}` is no rule"));
    let number = |n: Option<i64>| match n {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| refuse()),
    };
    let mut access = 0;
    for letter in asked.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => bpf::access::READ,
            'w' => bpf::access::WRITE,
            'm' => bpf::access::MKNOD,
            _ => return Err(refuse()),
        };
    }
    let kind = match asked.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => Kind::All,
        LinuxDeviceType::B => Kind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => Kind::Character,
        LinuxDeviceType::P => return Err(refuse()),
    };
    Ok(Rule { allow: asked.allow(), kind, major: number(asked.major())?, minor: number(asked.minor())?, access })
}

/// Puts them in force.
pub(super) fn apply(rules: &[Rule], groups: &Groups) -> Result<(), Stop> {
    if rules.is_empty() {
        return Ok(());
    }
    let result = if groups.unified { apply_v2(rules, groups) } else { apply_v1(rules, groups) };
    match result {
        // In a user namespace nobody may; mknod is refused there anyway.
        Err(error) if groups.lenient && matches!(error.errno, Errno::EPERM | Errno::EACCES | Errno::ENOENT) => Ok(()),
        other => Ok(other?),
    }
}

fn apply_v1(rules: &[Rule], groups: &Groups) -> corebox_sys::Result<()> {
    let Some(group) = groups.with("devices").map(|index| &groups.directories[index]) else { return Ok(()) };
    for rule in rules {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        fs::write(group.path.join(file), rule.text())?;
    }
    Ok(())
}

fn apply_v2(rules: &[Rule], groups: &Groups) -> corebox_sys::Result<()> {
    let Some(group) = groups.directories.first() else { return Ok(()) };
    let directory = fd::open_read(&group.path)?;
    bpf::attach_device_program(&directory, &program(rules))
}

impl Rule {
    /// As devices.allow and devices.deny take it.
    fn text(&self) -> String {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            // For `a` the kernel ignores numbers and access: it is everything.
            Kind::All => return "a".to_owned(),
            Kind::Block => 'b',
            Kind::Character => 'c',
        };
        let letters = [(bpf::access::READ, 'r'), (bpf::access::WRITE, 'w'), (bpf::access::MKNOD, 'm')];
        let access: String = letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, c)| *c).collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// The same rules as a program: the last one that matches decides, so it is asked first; none: denied.
fn program(rules: &[Rule]) -> Vec<bpf::DeviceRule> {
    let one = |rule: &Rule| bpf::DeviceRule {
        allow: rule.allow,
        kind: match rule.kind {
            Kind::All => None,
            Kind::Block => Some(bpf::BLOCK),
            Kind::Character => Some(bpf::CHARACTER),
        },
        access: rule.access,
        major: rule.major,
        minor: rule.minor,
    };
    rules.iter().rev().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_rules_as_the_kernel_reads_them() {
        let everything: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow":false,"access":"rwm"}"#).unwrap();
        let disk: LinuxDeviceCgroup =
            serde_json::from_str(r#"{"allow":true,"type":"b","major":8,"minor":-1,"access":"rm"}"#).unwrap();
        let rules = rules(Some(&vec![everything, disk])).unwrap();
        let texts: Vec<String> = rules.iter().take(3).map(Rule::text).collect();
        assert_eq!(texts, ["a", "b 8:* rm", "c *:* m"]);
        assert!(!rules[0].allow && rules[1].allow);
        let wrong: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow":true,"access":"x"}"#).unwrap();
        assert!(super::rules(Some(&vec![wrong])).is_err());
    }
}
