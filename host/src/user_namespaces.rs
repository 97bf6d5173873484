//! Whether an ordinary user can make user namespaces here.

use crate::{Error, tree::Tree};
use serde::{Deserialize, Serialize};

/// The switches that decide whether user namespaces can be had. `None`: this kernel has no such switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespaces {
    /// `user.max_user_namespaces` (user_namespaces(7)); 0 refuses everybody, root included.
    /// `None`: the kernel has no user namespaces.
    pub max: Option<u64>,
    /// `kernel.unprivileged_userns_clone` of Debian's and Arch's kernels; false refuses ordinary users.
    pub unprivileged_clone: Option<bool>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu 23.10 and later); true lets an ordinary user create one, but
    /// without capabilities in it, unless an AppArmor profile of the program says `userns,`.
    pub apparmor_restricted: Option<bool>,
}

impl UserNamespaces {
    pub(crate) fn read(tree: &Tree) -> Result<Self, Error> {
        let flag = |path: &str| -> Result<Option<bool>, Error> { Ok(tree.number(path)?.map(|n| n != 0)) };
        Ok(Self {
            max: tree.number("/proc/sys/user/max_user_namespaces")?.map(|n| n.try_into().unwrap_or(0)),
            unprivileged_clone: flag("/proc/sys/kernel/unprivileged_userns_clone")?,
            apparmor_restricted: flag("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")?,
        })
    }

    /// Whether an ordinary user gets a user namespace with capabilities in it, as far as these switches say
    /// (a security module or a seccomp filter may still refuse).
    pub fn for_users(&self) -> bool {
        self.max.is_some_and(|max| max > 0)
            && self.unprivileged_clone != Some(false)
            && self.apparmor_restricted != Some(true)
    }
}
