//! Who a process becomes: ids, groups, the five capability sets, keyring, security labels.

use crate::{Error, Result};
pub use caps::CapSet;
use caps::{Capability, CapsHashSet};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};

/// Replaces the supplementary groups (setgroups(2)).
///
/// # Errors
/// EPERM where a user namespace denies it.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    let ids: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&ids).map_err(|e| Error::new("set", format_args!("supplementary groups {groups:?}"), e))
}

/// Becomes this user and group, with all real, effective and saved ids. With `keep_capabilities` the permitted set
/// survives the change (PR_SET_KEEPCAPS).
///
/// # Errors
/// EINVAL for an id without a mapping in our user namespace, EPERM.
pub fn become_user(uid: u32, gid: u32, keep_capabilities: bool) -> Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::sys::prctl::set_keepcaps(keep_capabilities).map_err(|e| Error::new("set", "keep-capabilities", e))?;
    nix::unistd::setresgid(group, group, group).map_err(|e| Error::new("become group", gid, e))?;
    nix::unistd::setresuid(user, user, user).map_err(|e| Error::new("become user", uid, e))
}

/// A capability by its name in capabilities(7), with or without `CAP_`, in any case; `None`: no such name.
pub fn capability(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    full.parse().ok()
}

/// The capabilities of a set (see [`CapSet`]) of this process.
///
/// # Errors
/// What capget(2) says.
pub fn capabilities(set: CapSet) -> Result<Vec<Capability>> {
    caps::read(None, set).map(|set| set.into_iter().collect()).map_err(|e| failed("read", &e))
}

/// Every capability that this kernel has.
pub fn all_capabilities() -> Vec<Capability> {
    caps::runtime::thread_all_supported().into_iter().collect()
}

/// Drops every capability that is not in `keep` from the bounding set.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn bound_capabilities(keep: &[Capability]) -> Result<()> {
    for capability in caps::runtime::thread_all_supported() {
        if !keep.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(|e| failed("drop", &e))?;
        }
    }
    Ok(())
}

/// Sets one set (not the bounding one) to exactly these.
///
/// # Errors
/// EPERM for one that we may not have.
pub fn set_capabilities(set: CapSet, capabilities: &[Capability]) -> Result<()> {
    let wanted: CapsHashSet = capabilities.iter().copied().collect();
    caps::set(None, set, &wanted).map_err(|e| failed("set", &e))
}

fn failed(call: &'static str, error: &caps::errors::CapsError) -> Error {
    Error::new(call, format!("capabilities ({error})"), Errno::last())
}

/// Joins a new session keyring of this name (keyctl(2)). A kernel without keyrings, or one that denies them to us, has
/// none to leave either.
///
/// # Errors
/// What keyctl(2) says otherwise, such as EDQUOT.
pub fn new_session_keyring(name: &str) -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let text = crate::mount::c_string("keyctl", name.as_bytes())?;
    // SAFETY: an operation and a NUL-terminated name.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, text.as_ptr()) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => Ok(()),
        Err(e) => Err(Error::new("join", format!("the session keyring {name}"), e)),
    }
}

/// Sets the file mode creation mask.
pub fn set_umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}
