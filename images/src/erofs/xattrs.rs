//! Extended attributes: a header of 12 bytes and entries, right behind the inode (erofs_xattr_ibody_header).

use crate::entry::{ACL_ACCESS, ACL_DEFAULT};

/// Bytes of the header.
pub(crate) const HEADER: usize = 12;
/// Longest value that an entry can tell the length of; Linux's own limit is one more (XATTR_SIZE_MAX).
pub(crate) const LONGEST_VALUE: usize = u16::MAX as usize;
/// Most bytes of attributes that an inode can tell of.
pub(crate) const MOST: usize = HEADER + (u16::MAX as usize - 1) * 4;

/// Prefixes and what they are on disk (EROFS_XATTR_INDEX_…); the longest match comes first.
pub(crate) const PREFIXES: [(u8, &[u8]); 5] =
    [(2, ACL_ACCESS), (3, ACL_DEFAULT), (1, b"user."), (4, b"trusted."), (6, b"security.")];

/// The bytes of these attributes; empty if there are none.
pub(crate) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in xattrs {
        // what has no number here was left out by `Meta::add_xattr`
        let Some((index, prefix)) = PREFIXES.iter().find(|(_, prefix)| name.starts_with(prefix)) else { continue };
        if body.is_empty() {
            body.resize(HEADER, 0);
        }
        let rest = &name[prefix.len()..];
        body.extend([rest.len() as u8, *index]);
        body.extend((value.len() as u16).to_le_bytes());
        body.extend_from_slice(rest);
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    body
}

/// Bytes that [`encode`] will give.
pub(crate) fn length(xattrs: &[(Vec<u8>, Vec<u8>)]) -> usize {
    let entry = |(name, value): &(Vec<u8>, Vec<u8>)| {
        let prefix = PREFIXES.iter().find(|(_, prefix)| name.starts_with(prefix));
        prefix.map_or(0, |(_, prefix)| (4 + name.len() - prefix.len() + value.len()).next_multiple_of(4))
    };
    let entries: usize = xattrs.iter().map(entry).sum();
    if entries == 0 { 0 } else { HEADER + entries }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_told_in_advance() {
        let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        let all =
            [pair("user.a", b"12345"), pair("security.capability", &[7; 20]), pair("system.posix_acl_access", b"x")];
        for count in 0..=3 {
            assert_eq!(encode(&all[..count]).len(), length(&all[..count]), "{count}");
        }
        assert_eq!(encode(&all[..1]), b"\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\x05\0a12345\0\0");
    }
}
