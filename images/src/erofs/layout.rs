//! Which inodes there are, what each directory lists, and where each inode goes.

use super::format::{BLOCK, DIRENT, FileType, SLOT};
use super::writer::ErofsError;
use crate::entry::{Meta, show, split};
use crate::tree::{Id, Tree, What};
use std::collections::HashMap;

/// More bytes than this are not put beside the inode: they would leave large gaps, because inline data must not cross
/// into another block.
pub(crate) const MOST_INLINE: usize = 2048;

/// Number of an inode in [`Nodes`]; the root directory is 0.
pub(crate) type Node = u32;

/// An inode to be.
pub(crate) struct Inode<'a> {
    pub what: &'a What,
    pub meta: &'a Meta,
    /// Names that lead here; for a directory its own, its `.` and the `..` of those in it.
    pub links: u32,
    parent: Node,
    /// What a directory holds, by name.
    children: Vec<(&'a [u8], Node)>,
    /// Path of its first name, for messages.
    pub path: &'a [u8],
}

/// All inodes of an image.
pub(crate) struct Nodes<'a> {
    pub list: Vec<Inode<'a>>,
}

impl<'a> Nodes<'a> {
    pub(crate) fn of(tree: &'a Tree) -> Result<Self, ErofsError> {
        let root =
            Inode { what: &What::Directory, meta: tree.root(), links: 2, parent: 0, children: Vec::new(), path: b"" };
        let mut list = vec![root];
        let mut directories: HashMap<&[u8], Node> = HashMap::from([(&b""[..], 0)]);
        let mut known: HashMap<Id, Node> = HashMap::new();
        for (path, id) in tree.names() {
            let (directory, name) = split(path);
            let parent = *directories.get(directory).ok_or_else(|| ErofsError::Orphan(show(path)))?;
            let node = *known.entry(id).or_insert_with(|| {
                let object = tree.object(id);
                list.push(Inode {
                    what: &object.what,
                    meta: &object.meta,
                    links: 0,
                    parent,
                    children: Vec::new(),
                    path,
                });
                (list.len() - 1) as Node
            });
            list[node as usize].links += 1;
            if *list[node as usize].what == What::Directory {
                list[node as usize].links += 1;
                list[parent as usize].links += 1;
                directories.insert(path, node);
            }
            list[parent as usize].children.push((name, node));
        }
        Ok(Self { list })
    }

    /// The order on disk: what one directory holds lies together, as one `ls -l`, one search path or one import
    /// touches it; then what its directories hold.
    pub(crate) fn order(&self) -> Vec<Node> {
        let mut order = vec![0];
        let mut placed = vec![false; self.list.len()];
        placed[0] = true;
        let mut todo = vec![0];
        while let Some(directory) = todo.pop() {
            let children = &self.list[directory as usize].children;
            for &(_, node) in children {
                if !std::mem::replace(&mut placed[node as usize], true) {
                    order.push(node);
                }
            }
            let below = children.iter().rev().map(|&(_, node)| node);
            todo.extend(below.filter(|&node| *self.list[node as usize].what == What::Directory));
        }
        order
    }

    /// What a directory lists.
    pub(crate) fn listing(&self, directory: Node) -> Listing<'a> {
        let inode = &self.list[directory as usize];
        let mut entries: Vec<(&[u8], Node)> = vec![(b".", directory), (b"..", inode.parent)];
        entries.extend(&inode.children);
        // the dots stand where their bytes belong, among the others
        entries.sort_unstable();
        Listing { entries }
    }
}

/// The entries of a directory in the order of their bytes, as the kernel searches them by halving.
pub(crate) struct Listing<'a> {
    entries: Vec<(&'a [u8], Node)>,
}

impl Listing<'_> {
    /// The entries of each block.
    fn blocks(&self) -> impl Iterator<Item = &[(&[u8], Node)]> {
        let mut rest = &self.entries[..];
        std::iter::from_fn(move || {
            let mut room = BLOCK;
            let fits = rest.iter().take_while(|(name, _)| {
                let needs = DIRENT + name.len();
                let fits = needs <= room;
                room -= if fits { needs } else { 0 };
                fits
            });
            let (block, more) = rest.split_at(fits.count());
            rest = more;
            (!block.is_empty()).then_some(block)
        })
    }

    /// Its size: whole blocks, and what the last one holds.
    pub(crate) fn size(&self) -> usize {
        let mut size = 0usize;
        for block in self.blocks() {
            size = size.next_multiple_of(BLOCK) + block.iter().map(|(name, _)| DIRENT + name.len()).sum::<usize>();
        }
        size
    }

    /// Its bytes; `target` tells inode number and type of a node.
    pub(crate) fn encode(&self, target: impl Fn(Node) -> (u64, FileType)) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in self.blocks() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            let mut name_at = block.len() * DIRENT;
            for (name, node) in block {
                let (number, file_type) = target(*node);
                bytes.extend(number.to_le_bytes());
                bytes.extend((name_at as u16).to_le_bytes());
                bytes.extend([file_type as u8, 0]);
                name_at += name.len();
            }
            block.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
        }
        bytes
    }
}

/// How much place an inode takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    /// The inode itself.
    pub inode: usize,
    /// Extended attributes and chunk maps, which may cross into other blocks.
    pub body: usize,
    /// Inline data, which may not.
    pub inline: usize,
}

impl Extent {
    /// Whether so many bytes may stand inline behind an inode of this size.
    pub(crate) fn may_inline(&self, bytes: usize) -> bool {
        bytes > 0 && bytes <= MOST_INLINE && self.inode + self.body + bytes <= BLOCK
    }

    fn total(&self) -> usize {
        self.inode + self.body + self.inline
    }
}

/// Gives out places, one after the other, in bytes from the start of the inodes.
pub(crate) struct Places {
    next: usize,
}

impl Places {
    /// The first slot stays empty: programs take inode number 0 for "deleted".
    pub(crate) fn new() -> Self {
        Self { next: SLOT }
    }

    /// The place of the next inode.
    pub(crate) fn take(&mut self, extent: Extent) -> usize {
        let together = if extent.inline > 0 { extent.total() } else { extent.inode };
        // one block is read for it, not two
        if self.next % BLOCK + together > BLOCK {
            self.next = self.next.next_multiple_of(BLOCK);
        }
        let place = self.next;
        self.next = (place + extent.total()).next_multiple_of(SLOT);
        place
    }
}

/// The inode number of a place.
pub(crate) fn number(place: usize) -> u64 {
    (place / SLOT) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Entry, Kind};
    use crate::tree::ContentAt;

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::new();
        for (ordinal, path) in paths.iter().enumerate() {
            let meta = Meta::implied_directory();
            let entry = Entry { path: path.as_bytes().to_vec(), kind: Kind::File { size: 1 }, meta };
            tree.put(entry, ContentAt { layer: 0, ordinal: ordinal as u64 }).unwrap();
        }
        tree
    }

    #[test]
    fn neighbours_are_the_entries_of_one_directory() {
        let tree = tree(&["b/x", "a/y/deep", "a/z", "c"]);
        let nodes = Nodes::of(&tree).unwrap();
        let order = nodes.order();
        let paths: Vec<_> = order.iter().map(|&n| std::str::from_utf8(nodes.list[n as usize].path).unwrap()).collect();
        assert_eq!(paths, ["", "a", "b", "c", "a/y", "a/z", "a/y/deep", "b/x"]);
        let links: Vec<_> = order.iter().map(|&n| nodes.list[n as usize].links).collect();
        assert_eq!(links, [4, 3, 2, 1, 2, 1, 1, 1]);
    }

    #[test]
    fn listings_are_sorted_by_bytes_and_split_into_blocks() {
        let names: Vec<_> = (0..300).map(|n| format!("name-{n:03}{}", "x".repeat(n % 40))).collect();
        let mut paths: Vec<&str> = names.iter().map(String::as_str).collect();
        paths.extend(["!first", "~last"]);
        let tree = tree(&paths);
        let listing = Nodes::of(&tree).unwrap().listing(0);
        let order: Vec<_> = listing.entries.iter().map(|(name, _)| *name).collect();
        assert!(order.is_sorted() && order[0] == b"!first" && order[1] == b"." && order[2] == b"..");
        let bytes = listing.encode(|node| (u64::from(node), FileType::Regular));
        assert_eq!(bytes.len(), listing.size());
        assert!(bytes.len() > 2 * BLOCK);
        for block in bytes.chunks(BLOCK) {
            let first_name = usize::from(u16::from_le_bytes([block[8], block[9]]));
            assert_eq!(first_name % DIRENT, 0);
            assert!(first_name < block.len());
        }
    }

    #[test]
    fn nothing_that_must_stay_together_crosses_a_block() {
        let mut places = Places::new();
        let mut end = 0;
        for n in 0..5000usize {
            let extent = Extent { inode: [32, 64][n % 2], body: (n % 7) * 4, inline: (n * 37) % 1500 };
            let place = places.take(extent);
            assert!(place >= end && place.is_multiple_of(SLOT));
            end = place + extent.total();
            assert_eq!(place / BLOCK, (end - 1) / BLOCK);
        }
    }
}
