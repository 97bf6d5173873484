//! The tree that layers add up to: names that point to objects, as directories point to inodes. Only metadata is
//! here; a file's content stays in its source and is named by layer and ordinal.
//!
//! Names are kept in one ordered map of whole paths. A directory sorts before what is in it, and all that is below
//! `a/` is one range, so replacing a directory or hiding it by a whiteout is one range removal.

use crate::entry::{Device, Entry, Kind, Meta, join, show, split};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Links followed while resolving one path before it counts as a loop (the kernel's limit, path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Objects an image may have; a bound on what a hostile archive makes us remember.
const MAX_NAMES: usize = 20_000_000;

/// Why an entry cannot be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("entry `{0}`: its hard link target `{1}` is not in the archive before it")]
    NoTarget(String, String),
    #[error("entry `{0}`: its hard link target `{1}` is a directory")]
    LinkToDirectory(String, String),
    #[error("entry `{0}`: `{1}` is not a directory")]
    NotADirectory(String, String),
    #[error("entry `{0}`: symbolic links in its path form a loop")]
    Loop(String),
    #[error("the root directory cannot be replaced by something else")]
    Root,
    #[error("more than {MAX_NAMES} files")]
    TooMany,
}

/// Index of an object in [`Tree::objects`].
pub(crate) type Id = u32;

/// Where a regular file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ContentAt {
    pub layer: u32,
    pub ordinal: u64,
}

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Directory,
    File { size: u64, at: ContentAt },
    Symlink(Vec<u8>),
    Device(Device),
    Fifo,
}

/// An object: what Unix calls an inode.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub what: What,
    pub meta: Meta,
}

#[derive(Clone, Copy)]
struct Name {
    object: Id,
    /// The layer that put the name here; whiteouts hide names of lower layers only.
    layer: u32,
}

/// Names and objects.
pub(crate) struct Tree {
    names: BTreeMap<Vec<u8>, Name>,
    objects: Vec<Object>,
    root: Meta,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self { names: BTreeMap::new(), objects: Vec::new(), root: Meta::implied_directory() }
    }

    /// Metadata of the root directory.
    pub(crate) fn root(&self) -> &Meta {
        &self.root
    }

    /// All names but the root, each directory before what it holds.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&[u8], Id)> {
        self.names.iter().map(|(path, name)| (&path[..], name.object))
    }

    pub(crate) fn object(&self, id: Id) -> &Object {
        &self.objects[id as usize]
    }

    /// The object of a name.
    pub(crate) fn find(&self, path: &[u8]) -> Option<Id> {
        self.names.get(path).map(|name| name.object)
    }

    /// Adds an entry on top of what is there, as extracting the archive over the tree would: directories merge,
    /// all else is replaced. Symbolic links in the entry's directory are followed inside the image (as Docker,
    /// containerd and umoci do). Gives the path where it went; `None` for the root.
    pub(crate) fn put(&mut self, entry: Entry, at: ContentAt) -> Result<Option<Vec<u8>>, TreeError> {
        if entry.path.is_empty() {
            return match entry.kind {
                Kind::Directory => {
                    self.root = entry.meta;
                    Ok(None)
                }
                _ => Err(TreeError::Root),
            };
        }
        if self.names.len() >= MAX_NAMES {
            return Err(TreeError::TooMany);
        }
        let path = self.place(&entry.path, at.layer)?;
        let what = match entry.kind {
            Kind::HardLink(target) => {
                self.link(&path, &target, at.layer)?;
                return Ok(Some(path));
            }
            Kind::Directory => What::Directory,
            Kind::File { size } => What::File { size, at },
            Kind::Symlink(target) => What::Symlink(target),
            Kind::Device(device) => What::Device(device),
            Kind::Fifo => What::Fifo,
        };
        let merges = what == What::Directory
            && self.find(&path).is_some_and(|id| self.objects[id as usize].what == What::Directory);
        if !merges {
            self.remove(&path);
        }
        self.insert(path.clone(), Object { what, meta: entry.meta }, at.layer);
        Ok(Some(path))
    }

    /// Hides what lower layers have at this path.
    pub(crate) fn whiteout(&mut self, path: &[u8], layer: u32) {
        if let Ok(path) = self.resolve_parent(path) {
            self.hide_below(&path, layer);
            // a directory that this layer itself filled already is a new one of the same name
            if self.names.get(&path).is_some_and(|name| name.layer < layer) && self.children(&path).next().is_none() {
                self.names.remove(&path);
            }
        }
    }

    /// Hides what lower layers have in this directory.
    pub(crate) fn opaque(&mut self, directory: &[u8], layer: u32) {
        if directory.is_empty() {
            let keep: Vec<_> =
                self.names.iter().filter(|(_, name)| name.layer >= layer).map(|(p, _)| p.clone()).collect();
            let all = std::mem::take(&mut self.names);
            self.names = all.into_iter().filter(|(path, _)| is_or_holds_any(path, &keep)).collect();
        } else if let Ok(directory) = self.resolve_parent(directory) {
            self.hide_below(&directory, layer);
        }
    }

    fn hide_below(&mut self, directory: &[u8], layer: u32) {
        let keep: Vec<_> =
            self.children(directory).filter(|(_, name)| name.layer >= layer).map(|(path, _)| path.clone()).collect();
        let gone: Vec<_> = self
            .children(directory)
            .filter(|(path, _)| !is_or_holds_any(path, &keep))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.names.remove(&path);
        }
    }

    /// Everything below a directory.
    fn children(&self, directory: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &Name)> + use<'_> {
        let start = join(directory, b"");
        // `0` is the byte after `/`
        let end = [directory, b"0"].concat();
        self.names.range((Bound::Included(start), Bound::Excluded(end)))
    }

    fn remove(&mut self, path: &[u8]) {
        let gone: Vec<_> = self.children(path).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.names.remove(&path);
        }
        self.names.remove(path);
    }

    fn insert(&mut self, path: Vec<u8>, object: Object, layer: u32) {
        let id = self.objects.len() as Id;
        self.objects.push(object);
        self.names.insert(path, Name { object: id, layer });
    }

    fn link(&mut self, path: &[u8], target: &[u8], layer: u32) -> Result<(), TreeError> {
        let resolved = self.resolve_parent(target)?;
        let object = self.find(&resolved).ok_or_else(|| TreeError::NoTarget(show(path), show(target)))?;
        if self.object(object).what == What::Directory {
            return Err(TreeError::LinkToDirectory(show(path), show(target)));
        }
        if resolved != path {
            self.remove(path);
        }
        self.names.insert(path.to_vec(), Name { object, layer });
        Ok(())
    }

    /// Resolves the directory of a path and creates what is missing of it.
    fn place(&mut self, path: &[u8], layer: u32) -> Result<Vec<u8>, TreeError> {
        let path = self.resolve_parent(path)?;
        let mut end = 0;
        while let Some(slash) = path[end..].iter().position(|&byte| byte == b'/') {
            end += slash;
            if !self.names.contains_key(&path[..end]) {
                let object = Object { what: What::Directory, meta: Meta::implied_directory() };
                self.insert(path[..end].to_vec(), object, layer);
            }
            end += 1;
        }
        Ok(path)
    }

    /// Follows symbolic links in all components of a path but the last, never leaving the image.
    fn resolve_parent(&self, path: &[u8]) -> Result<Vec<u8>, TreeError> {
        let (directory, name) = split(path);
        if directory.is_empty() || self.is_directory(directory) {
            return Ok(path.to_vec());
        }
        let mut done: Vec<u8> = Vec::new();
        let mut todo: Vec<Vec<u8>> = directory.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    done = split(&done).0.to_vec();
                    continue;
                }
                _ => {}
            }
            let next = join(&done, &part);
            match self.find(&next).map(|id| &self.object(id).what) {
                None | Some(What::Directory) => done = next,
                Some(What::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(TreeError::Loop(show(path)));
                    }
                    if target.first() == Some(&b'/') {
                        done.clear();
                    }
                    todo.extend(target.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(_) => return Err(TreeError::NotADirectory(show(path), show(&next))),
            }
        }
        Ok(join(&done, name))
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        self.find(path).is_some_and(|id| self.object(id).what == What::Directory)
    }
}

/// Whether a path is one of these, or a directory on the way to one.
fn is_or_holds_any(path: &[u8], keep: &[Vec<u8>]) -> bool {
    let below = join(path, b"");
    // `keep` is sorted, as it comes from an ordered map: only the first entry at or after `path`, or at or after
    // `path/`, can match
    let at = |bound: &[u8]| keep.partition_point(|kept| &kept[..] < bound);
    keep.get(at(path)).is_some_and(|kept| kept == path)
        || keep.get(at(&below)).is_some_and(|kept| kept.starts_with(&below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry { path: path.into(), kind, meta: Meta::implied_directory() }
    }
    fn put(tree: &mut Tree, layer: u32, path: &str, kind: Kind) -> Result<Option<Vec<u8>>, TreeError> {
        let ordinal = tree.objects.len() as u64;
        tree.put(entry(path, kind), ContentAt { layer, ordinal })
    }
    fn file(tree: &mut Tree, layer: u32, path: &str) {
        put(tree, layer, path, Kind::File { size: 1 }).unwrap();
    }
    fn names(tree: &Tree) -> Vec<String> {
        tree.names().map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect()
    }

    #[test]
    fn whiteouts_hide_lower_layers_only() {
        let mut tree = Tree::new();
        for path in ["a/b/one", "a/b/two", "a/c", "a-b", "a0"] {
            file(&mut tree, 0, path);
        }
        file(&mut tree, 1, "a/b/new");
        tree.opaque(b"a/b", 1);
        assert_eq!(names(&tree), ["a", "a-b", "a/b", "a/b/new", "a/c", "a0"]);
        tree.whiteout(b"a/c", 1);
        tree.whiteout(b"a-b", 1);
        assert_eq!(names(&tree), ["a", "a/b", "a/b/new", "a0"]);
        tree.whiteout(b"a", 2);
        assert_eq!(names(&tree), ["a0"]);
        file(&mut tree, 3, "n/f");
        tree.opaque(b"", 3);
        assert_eq!(names(&tree), ["n", "n/f"]);
    }

    #[test]
    fn a_whiteout_after_the_replacement_leaves_it() {
        let mut tree = Tree::new();
        file(&mut tree, 0, "d/old");
        file(&mut tree, 1, "d/new");
        tree.whiteout(b"d", 1);
        assert_eq!(names(&tree), ["d", "d/new"]);
    }

    #[test]
    fn kinds_replace_each_other_and_directories_merge() {
        let mut tree = Tree::new();
        file(&mut tree, 0, "d/x");
        put(&mut tree, 1, "d", Kind::Directory).unwrap();
        assert_eq!(names(&tree), ["d", "d/x"]);
        put(&mut tree, 2, "d", Kind::Symlink(b"e".to_vec())).unwrap();
        assert_eq!(names(&tree), ["d"]);
    }

    #[test]
    fn links_in_a_path_are_followed_inside_the_image() {
        let mut tree = Tree::new();
        put(&mut tree, 0, "usr/lib", Kind::Directory).unwrap();
        put(&mut tree, 0, "lib", Kind::Symlink(b"usr/lib".to_vec())).unwrap();
        put(&mut tree, 0, "up", Kind::Symlink(b"../../../etc".to_vec())).unwrap();
        put(&mut tree, 0, "abs", Kind::Symlink(b"/lib/x".to_vec())).unwrap();
        put(&mut tree, 0, "round", Kind::Symlink(b"round".to_vec())).unwrap();
        assert_eq!(put(&mut tree, 1, "lib/f", Kind::Fifo).unwrap().unwrap(), b"usr/lib/f");
        assert_eq!(put(&mut tree, 1, "up/f", Kind::Fifo).unwrap().unwrap(), b"etc/f");
        assert_eq!(put(&mut tree, 1, "abs/f", Kind::Fifo).unwrap().unwrap(), b"usr/lib/x/f");
        assert!(matches!(put(&mut tree, 1, "round/f", Kind::Fifo), Err(TreeError::Loop(_))));
        assert!(matches!(put(&mut tree, 1, "etc/f/g", Kind::Fifo), Err(TreeError::NotADirectory(..))));
    }

    #[test]
    fn a_hard_link_outlives_its_first_name() {
        let mut tree = Tree::new();
        file(&mut tree, 0, "a");
        put(&mut tree, 1, "b", Kind::HardLink(b"a".to_vec())).unwrap();
        tree.whiteout(b"a", 2);
        assert_eq!(names(&tree), ["b"]);
        assert!(matches!(tree.object(tree.find(b"b").unwrap()).what, What::File { size: 1, .. }));
        let missing = put(&mut tree, 2, "c", Kind::HardLink(b"a".to_vec()));
        assert!(matches!(missing, Err(TreeError::NoTarget(..))));
        put(&mut tree, 2, "b", Kind::HardLink(b"b".to_vec())).unwrap();
        assert_eq!(names(&tree), ["b"]);
    }
}
