//! Labels of the security modules AppArmor and SELinux: the one a process gets when it executes its program.

use crate::oci::plan::process::ProcessPlan;
use crate::step::Stop;
use corebox_sys::mount::{FsContext, attr, open_kernel_file};
use corebox_sys::{Errno, fd, fs, process};
use std::path::Path;

/// The AppArmor profile that holds without AppArmor, too.
const UNCONFINED: &str = "unconfined";

/// The profile that must be set: refused where the kernel has no AppArmor, or has it switched off.
pub(crate) fn apparmor(asked: Option<&String>) -> Result<Option<String>, Stop> {
    let there = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y");
    wanted(asked.filter(|profile| there || *profile != UNCONFINED), there, "process.apparmorProfile", "AppArmor")
}

/// The label that must be set: refused where the kernel has no SELinux, or has it switched off.
pub(crate) fn selinux(asked: Option<&String>, name: &str) -> Result<Option<String>, Stop> {
    // Registered only where it is on (security/selinux/selinuxfs.c).
    let there = fs::read_to_string("/proc/filesystems").is_ok_and(|text| has_selinux(&text));
    wanted(asked, there, name, "SELinux")
}

fn has_selinux(filesystems: &str) -> bool {
    filesystems.split_whitespace().any(|word| word == "selinuxfs")
}

fn wanted(asked: Option<&String>, there: bool, name: &str, module: &str) -> Result<Option<String>, Stop> {
    match asked.filter(|label| !label.is_empty()) {
        Some(label) if !there => {
            Err(Stop::new(format!("`{name}` is `{label}`, and this kernel has no {module} (or has it switched off)")))
        }
        Some(label) if label.contains(['\0', '\n']) => {
            Err(Stop::new(format!("`{name}` is {label:?}, which is no label of {module}")))
        }
        label => Ok(label.cloned()),
    }
}

/// Has the kernel give this process its labels at the next exec (proc_pid_attr(5)).
///
/// With the credentials of the program already: the kernel takes a label only from those who opened the file. Before
/// no_new_privs, which forbids changes of the AppArmor profile.
pub(crate) fn set_for_exec(plan: &ProcessPlan) -> Result<(), Stop> {
    if plan.apparmor.is_none() && plan.selinux.is_none() {
        return Ok(());
    }
    // Never through a /proc that the image or a mount of the container could have faked (CVE-2019-16884,
    // CVE-2025-52881).
    let proc = FsContext::open("proc")?.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    let write = |name: &str, label: &str, text: &str, key: &str| -> Result<(), Stop> {
        let path = format!("{}/attr/{name}", process::id());
        let about = |e: corebox_sys::Error| {
            let missing = e.errno == Errno::ENOENT;
            let stop = Stop::from(e).about(&format!("`process.{key}` `{label}`"));
            if missing { stop.hint("is the profile loaded (aa-status)?") } else { stop }
        };
        let file = open_kernel_file(&proc, Path::new(&path), true).map_err(about)?;
        fd::write_all(&file, text.as_bytes(), &path).map_err(about)
    };
    if let Some(profile) = &plan.apparmor {
        // `attr/exec` is that of whichever module is first; `attr/apparmor` came with Linux 5.8.
        write("apparmor/exec", profile, &format!("exec {profile}"), "apparmorProfile")?;
    }
    match &plan.selinux {
        Some(label) => write("exec", label, label, "selinuxLabel"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_selinux_among_file_systems() {
        assert!(has_selinux("nodev\tsysfs\nnodev\tselinuxfs\n\text4\n"));
        assert!(!has_selinux("nodev\tsysfs\n\text4\n"));
    }

    #[test]
    fn a_label_needs_its_module() {
        let asked = |text: &str| Some(text.to_owned());
        assert_eq!(wanted(asked("p").as_ref(), true, "n", "M").expect("there"), asked("p"));
        assert_eq!(wanted(asked("").as_ref(), false, "n", "M").expect("nothing is asked"), None);
        assert!(wanted(asked("p").as_ref(), false, "n", "M").is_err());
        assert!(wanted(asked("p\nq").as_ref(), true, "n", "M").is_err());
    }
}
