//! What is asked for and cannot be had, found before anything is made. docs/spec-conformance.md has the list.

use super::Namespaces;
use crate::facts::IdRange;
use crate::step::Stop;
use corebox_sys::process::ns;
use oci_spec::runtime::Spec;

/// What of the whole configuration is not for us.
pub(super) fn check(spec: &Spec) -> Result<(), Stop> {
    let version = spec.version();
    if !version.starts_with("1.") {
        return Err(Stop::new(format!("`ociVersion` is `{version}`: corebox understands 1.x")));
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(Stop::new("`linux.netDevices` is not supported"));
    }
    if linux.intel_rdt().is_some() && !std::path::Path::new("/sys/fs/resctrl/schemata").exists() {
        return Err(Stop::new("`linux.intelRdt`: no resctrl file system is mounted on /sys/fs/resctrl"));
    }
    if linux.intel_rdt().is_some() {
        return Err(Stop::new("`linux.intelRdt` is not supported"));
    }
    crate::oci::label::selinux(linux.mount_label().as_ref(), "linux.mountLabel")?;
    Ok(())
}

/// Settings that would reach the host where the namespace that contains them is not asked for.
pub(super) fn check_namespaces(
    spec: &Spec,
    namespaces: &Namespaces,
    uid_map: &[IdRange],
    gid_map: &[IdRange],
) -> Result<(), Stop> {
    let needs = |name: &str, kind: u64, namespace: &str| {
        if namespaces.has(kind) {
            Ok(())
        } else {
            Err(Stop::new(format!(
                "`{name}` is set, and no {namespace} namespace is asked for: it would change the host"
            )))
        }
    };
    if spec.hostname().as_ref().is_some_and(|name| !name.is_empty()) {
        needs("hostname", ns::UTS, "uts")?;
    }
    if spec.domainname().as_ref().is_some_and(|name| !name.is_empty()) {
        needs("domainname", ns::UTS, "uts")?;
    }
    if namespaces.is_new(ns::USER) && (uid_map.is_empty() || gid_map.is_empty()) {
        return Err(Stop::new(
            "a new user namespace needs both `linux.uidMappings` and `linux.gidMappings`: nobody would exist in it",
        ));
    }
    let mapped = !uid_map.is_empty() || !gid_map.is_empty();
    if mapped && !namespaces.has(ns::USER) {
        return Err(Stop::new("`linux.uidMappings` is set, and no user namespace is asked for"));
    }
    let linux = spec.linux().as_ref();
    if linux.is_some_and(|l| l.time_offsets().as_ref().is_some_and(|o| !o.is_empty())) && !namespaces.is_new(ns::TIME) {
        return Err(Stop::new("`linux.timeOffsets` is set, and no new time namespace is asked for"));
    }
    for name in linux.and_then(|l| l.sysctl().as_ref()).into_iter().flatten().map(|(name, _)| name.replace('/', ".")) {
        let (kind, namespace) = sysctl_namespace(&name).ok_or_else(|| {
            Stop::new(format!("`linux.sysctl`: {name} belongs to no namespace: it would change the host"))
        })?;
        needs(&format!("linux.sysctl.{name}"), kind, namespace)?;
    }
    Ok(())
}

/// The namespace that has its own copy of a setting; `None`: the host's.
fn sysctl_namespace(name: &str) -> Option<(u64, &'static str)> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.shm_next_id",
    ];
    if name.split('.').any(str::is_empty) {
        return None;
    }
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        Some((ns::IPC, "ipc"))
    } else if name.starts_with("net.") {
        Some((ns::NET, "network"))
    } else if name == "kernel.domainname" || name == "kernel.hostname" {
        Some((ns::UTS, "uts"))
    } else if name.starts_with("user.") {
        Some((ns::USER, "user"))
    } else {
        None
    }
}
