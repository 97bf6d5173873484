//! What this runtime can do (runtime-spec features.md), and a configuration to start from.

use crate::oci::plan::mounts;
use crate::seccomp;
use corebox_sys::{identity, user};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// As `features` prints it.
pub fn features() -> Value {
    let capabilities: Vec<String> = identity::all_capabilities().iter().map(|c| c.to_string()).collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": super::OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mounts::option_names(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::ACTIONS.map(|a| serde_json::to_value(a).unwrap_or_default()),
                "operators": seccomp::OPERATORS.map(|o| serde_json::to_value(o).unwrap_or_default()),
                "archs": seccomp::architectures().map(|a| serde_json::to_value(a).unwrap_or_default()),
                "knownFlags": seccomp::FLAGS.map(|f| serde_json::to_value(f).unwrap_or_default()),
                "supportedFlags": seccomp::FLAGS.map(|f| serde_json::to_value(f).unwrap_or_default()),
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
            "memoryPolicy": {},
            "netDevices": {"enabled": false},
        },
        "annotations": {},
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

/// A configuration that runs a shell in `rootfs`; for an ordinary user with the one user that they have.
pub fn default_config(rootless: bool) -> Spec {
    if !rootless {
        return Spec::default();
    }
    let (uid, gid) = user::ids();
    Spec::rootless(uid, gid)
}
