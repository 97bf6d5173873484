//! One object of an image as its source tells it: a path, what it is, and its metadata.

/// Longest name of one path component that Linux and its file systems can hold (NAME_MAX, limits.h).
const NAME_MAX: usize = 255;
/// Longest path that system calls take (PATH_MAX less the NUL).
const PATH_MAX: usize = 4095;

/// A time, counted from 1970; before it `seconds` is negative and the nanoseconds still count forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time {
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Time {
    /// A whole second.
    pub(crate) fn seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }
}

/// Owner, permissions, time and extended attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permission bits with set-uid, set-gid and sticky (07777).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Names with their prefix (`user.`, `security.`, `trusted.`) and values, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    /// A directory that a source implies without naming it.
    pub(crate) fn implied_directory() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: Vec::new() }
    }

    /// Adds an extended attribute if an image can carry it.
    ///
    /// Attributes of overlayfs would be *obeyed* by an overlay on top of the image instead of being shown, so they are
    /// not data. Of `system.` there are POSIX ACLs only.
    pub(crate) fn add_xattr(&mut self, name: &[u8], value: &[u8]) {
        let known = [&b"user."[..], b"security.", b"trusted."].iter().any(|prefix| name.starts_with(prefix))
            || [ACL_ACCESS, ACL_DEFAULT].contains(&name);
        let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        if known && !overlay && !name.contains(&0) {
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            self.xattrs.sort();
        }
    }
}

/// Names of POSIX ACLs (acl(5)) as extended attributes (xattr(7)).
pub(crate) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// A regular file of this many bytes (holes included).
    File {
        size: u64,
    },
    Symlink(Vec<u8>),
    /// Another name of the object at this (normalised) path.
    HardLink(Vec<u8>),
    Device(Device),
    Fifo,
}

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// A block device, not a character device.
    pub block: bool,
    pub major: u32,
    pub minor: u32,
}

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Normalised: no leading slash, no `.` and `..`; empty for the root directory.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub meta: Meta,
}

/// Why a path cannot be put into an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("`{0}` leads out of the image by `..`")]
    Escapes(String),
    #[error("`{0}` has a name longer than {NAME_MAX} bytes or is longer than {PATH_MAX} bytes")]
    TooLong(String),
    #[error("`{0}` holds a NUL byte")]
    Nul(String),
}

/// Brings a path of a source into the form of [`Entry::path`]: absolute ones count from the image's root.
///
/// # Errors
/// `..` is refused anywhere, even where it would stay inside: no honest archiver writes it.
pub(crate) fn normalise(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(PathError::Escapes(show(path))),
            _ if part.len() > NAME_MAX => return Err(PathError::TooLong(show(path))),
            _ if part.contains(&0) => return Err(PathError::Nul(show(path))),
            _ => {}
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    if out.len() > PATH_MAX { Err(PathError::TooLong(show(path))) } else { Ok(out) }
}

/// A path for a message: text, escaped, and not longer than a line or two.
pub(crate) fn show(path: &[u8]) -> String {
    const LIMIT: usize = 160;
    let text = path.escape_ascii().to_string();
    if text.len() <= LIMIT { text } else { format!("{}…", &text[..LIMIT]) }
}

/// Directory and last component of a normalised path that is not the root.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// `directory/name`, where the directory may be the root.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_brought_inside_or_refused() {
        assert_eq!(normalise(b"./usr//bin/./sh/"), Ok(b"usr/bin/sh".to_vec()));
        assert_eq!(normalise(b"/etc/passwd"), Ok(b"etc/passwd".to_vec()));
        assert_eq!(normalise(b"./"), Ok(Vec::new()));
        assert_eq!(normalise(b"..."), Ok(b"...".to_vec()));
        assert!(matches!(normalise(b"../x"), Err(PathError::Escapes(_))));
        assert!(matches!(normalise(b"a/../b"), Err(PathError::Escapes(_))));
        assert!(matches!(normalise(&[b'a'; 256]), Err(PathError::TooLong(_))));
        assert!(normalise(&[b'a'; 255]).is_ok());
        assert!(matches!(normalise("ab/".repeat(1400).as_bytes()), Err(PathError::TooLong(_))));
        assert!(matches!(normalise(b"a\0b"), Err(PathError::Nul(_))));
    }

    #[test]
    fn attributes_that_an_image_cannot_carry_are_left_out() {
        let mut meta = Meta::implied_directory();
        for name in ["user.b", "user.a", "system.nfs4_acl", "trusted.overlay.redirect", "user.a"] {
            meta.add_xattr(name.as_bytes(), b"v");
        }
        assert_eq!(meta.xattrs, [(b"user.a".to_vec(), b"v".to_vec()), (b"user.b".to_vec(), b"v".to_vec())]);
    }
}
