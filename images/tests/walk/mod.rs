//! Reads everything that an image file says, as the FUSE server and the unpacker do. Used by the fuzz target as well.

use corebox_images::erofs::{Extent, Inode, Reader};
use std::collections::HashSet;

/// Pieces of content and inodes looked at: a hostile image may say that it has more than anybody can read.
const MOST: usize = 2000;

/// What was found: inodes, and bytes of content.
pub fn walk(bytes: &[u8]) -> Option<(usize, u64)> {
    let reader = Reader::open(bytes).ok()?;
    let mut todo = vec![reader.root()];
    let mut seen = HashSet::new();
    let mut content = 0;
    while let Some(nid) = todo.pop() {
        if seen.len() >= MOST || !seen.insert(nid) {
            continue;
        }
        let Ok(inode) = reader.inode(nid) else { continue };
        let _ = reader.xattrs(&inode, |_, _| true);
        if inode.is_symlink() {
            let _ = reader.target(&inode);
        }
        if inode.is_directory() {
            list(&reader, &inode, &mut todo);
        }
        if inode.is_file() {
            content += read(&reader, &inode);
        }
    }
    Some((seen.len(), content))
}

/// Goes through a directory twice: in order, resuming at every entry, and by looking each name up.
fn list(reader: &Reader<&[u8]>, directory: &Inode, todo: &mut Vec<u64>) {
    let mut names = Vec::new();
    let mut position = 0;
    while names.len() < MOST {
        let mut next = None;
        let listed = reader.entries(directory, position, |entry| {
            next = Some(entry.next);
            names.push(entry.name.to_vec());
            todo.push(entry.nid);
            false
        });
        match (listed, next) {
            (Ok(()), Some(next)) => {
                assert!(next > position, "reading a directory does not go on");
                position = next;
            }
            _ => break,
        }
    }
    for name in names.iter().map(Vec::as_slice).chain([&b""[..], b"no such name", b"\xff"]) {
        let _ = reader.lookup(directory, name);
    }
}

/// Reads the start, the end and what is between, as far as it goes.
fn read(reader: &Reader<&[u8]>, inode: &Inode) -> u64 {
    let mut got = 0;
    let mut at = 0;
    for _ in 0..MOST {
        if at >= inode.size {
            break;
        }
        let Ok(extent) = reader.extent(inode, at) else { break };
        let length = match extent {
            Extent::Bytes(bytes) => bytes.len() as u64,
            Extent::Hole(zeros) => zeros,
        };
        assert!(length > 0 && at + length <= inode.size, "a piece that is none");
        at += length;
        got += length;
    }
    let _ = reader.read(inode, inode.size.saturating_sub(5000), 1 << 20, |_| {});
    got
}
