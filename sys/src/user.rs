//! Who we are.

use crate::{Error, Result};
use nix::unistd::{Gid, Group, Uid, User};

/// Our effective user and group id.
pub fn ids() -> (u32, u32) {
    (Uid::effective().as_raw(), Gid::effective().as_raw())
}

/// An account, as the name service has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// Home directory.
    pub home: String,
}

/// Looks a user up (NSS; may ask the network). `None`: unknown.
///
/// # Errors
/// What getpwuid_r(3) says.
pub fn account(uid: u32) -> Result<Option<Account>> {
    let user = User::from_uid(Uid::from_raw(uid)).map_err(|e| Error::new("look up user", uid, e))?;
    Ok(user.map(|u| Account { name: u.name, home: u.dir.display().to_string() }))
}

/// The name of a group (NSS; may ask the network). `None`: unknown.
///
/// # Errors
/// What getgrgid_r(3) says.
pub fn group_name(gid: u32) -> Result<Option<String>> {
    let group = Group::from_gid(Gid::from_raw(gid)).map_err(|e| Error::new("look up group", gid, e))?;
    Ok(group.map(|g| g.name))
}

/// Our supplementary groups.
///
/// # Errors
/// What getgroups(2) says.
pub fn supplementary_groups() -> Result<Vec<u32>> {
    let groups = nix::unistd::getgroups().map_err(|e| Error::new("list", "our groups", e))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// Whether we hold a capability, by its number in capabilities(7), in our user namespace.
///
/// # Errors
/// What capget(2) says.
pub fn capable(capability: caps::Capability) -> Result<bool> {
    caps::has_cap(None, caps::CapSet::Effective, capability).map_err(|e| failed("read", &e))
}

/// Drops every capability from every set, the bounding and ambient sets included, for ever.
///
/// # Errors
/// What capset(2) and prctl(2) say.
pub fn drop_capabilities() -> Result<()> {
    use caps::CapSet;
    // The bounding set first: dropping from it needs CAP_SETPCAP, which the last line takes away.
    for capability in caps::runtime::thread_all_supported() {
        caps::drop(None, CapSet::Bounding, capability).map_err(|e| failed("drop", &e))?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(|e| failed("drop", &e))?;
    }
    Ok(())
}

fn failed(call: &'static str, error: &caps::errors::CapsError) -> Error {
    Error::new(call, format!("capabilities ({error})"), nix::errno::Errno::last())
}

pub use caps::Capability;
