//! From a tree and its sources' bytes to one image file, in one stream.

use crate::entry::{Entry, Kind, Meta, split};
use crate::inspect::{Findings, Inspector};
use crate::layer::{Layer, LayerError};
use crate::squash::{Settings, Squash, SquashError};
use crate::tar_reader::{TarError, TarReader};
use crate::tree::{ContentAt, Id, Tree, TreeError, What};
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// Why no image file came out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlattenError {
    #[error("{0}")]
    Squash(#[from] SquashError),
    #[error("{0}")]
    Layer(#[from] LayerError),
    #[error("{0}")]
    Tar(#[from] TarError),
    #[error("{0}")]
    Tree(#[from] TreeError),
    #[error("{0}")]
    File(#[from] corebox_sys::Error),
    #[error("entry `{0}` comes twice in the stream")]
    Twice(String),
    #[error("entry `{0}` comes before its directory")]
    NoDirectory(String),
    #[error("`{0}` changed while it was read")]
    Changed(String),
    #[error("it holds no files")]
    Empty,
}

/// Takes the contents of files, in any order, and leaves out those that no name of the tree leads to.
pub(crate) struct Contents<'a> {
    tree: &'a Tree,
    squash: Squash,
    inspector: Inspector,
    /// The first name of each regular file that was not written yet.
    missing: HashMap<ContentAt, (&'a [u8], Id)>,
    progress: &'a dyn Fn(u64),
}

impl Contents<'_> {
    /// Writes a file's content, if it is wanted.
    pub(crate) fn add(&mut self, at: ContentAt, content: &mut dyn Read) -> Result<(), SquashError> {
        let Some((path, id)) = self.missing.remove(&at) else { return Ok(()) };
        let object = self.tree.object(id);
        let What::File { size, .. } = object.what else { return Ok(()) };
        write_file(&mut self.squash, &mut self.inspector, path, &object.meta, size, content, self.progress)
    }
}

fn write_file(
    squash: &mut Squash,
    inspector: &mut Inspector,
    path: &[u8],
    meta: &Meta,
    size: u64,
    content: &mut dyn Read,
    progress: &dyn Fn(u64),
) -> Result<(), SquashError> {
    inspector.begin(path, size);
    squash.file(path, meta, size, content, &mut |piece| {
        inspector.feed(piece);
        progress(piece.len() as u64);
    })?;
    inspector.end();
    Ok(())
}

/// Writes the image file `out` from a complete tree; `feed` hands over the contents in the order it has them.
/// `progress` is told how many bytes of content were written.
pub(crate) fn write_tree(
    tree: &Tree,
    out: &Path,
    settings: Settings,
    progress: &dyn Fn(u64),
    feed: impl FnOnce(&mut Contents) -> Result<(), FlattenError>,
) -> Result<Findings, FlattenError> {
    let mut first_names: HashMap<Id, &[u8]> = HashMap::new();
    let mut missing = HashMap::new();
    for (path, id) in tree.names() {
        let first = *first_names.entry(id).or_insert(path);
        if let What::File { at, .. } = tree.object(id).what {
            missing.entry(at).or_insert((first, id));
        }
    }
    if first_names.is_empty() {
        return Err(FlattenError::Empty);
    }
    let squash = Squash::start(out, tree.root(), settings)?;
    let mut contents = Contents { tree, squash, inspector: Inspector::default(), missing, progress };
    match write_all(&mut contents, &first_names, feed) {
        Ok(()) => {
            contents.squash.finish()?;
            Ok(contents.inspector.finish())
        }
        Err(error) => {
            contents.squash.abort();
            Err(error)
        }
    }
}

fn write_all(
    contents: &mut Contents,
    first_names: &HashMap<Id, &[u8]>,
    feed: impl FnOnce(&mut Contents) -> Result<(), FlattenError>,
) -> Result<(), FlattenError> {
    let tree = contents.tree;
    for (path, id) in tree.names() {
        let object = tree.object(id);
        if object.what == What::Directory {
            contents.squash.directory(path, &object.meta)?;
        }
    }
    feed(contents)?;
    if let Some((path, _)) = contents.missing.values().next() {
        return Err(FlattenError::Changed(crate::entry::show(path)));
    }
    for (path, id) in tree.names() {
        let object = tree.object(id);
        let first = first_names[&id];
        let squash = &mut contents.squash;
        match &object.what {
            What::Directory => {}
            _ if first != path => squash.hard_link(path, &object.meta, first)?,
            What::File { .. } => {}
            What::Symlink(target) => squash.symlink(path, &object.meta, target)?,
            What::Device(device) => squash.device(path, &object.meta, *device)?,
            What::Fifo => squash.fifo(path, &object.meta)?,
        }
    }
    Ok(())
}

/// Flattens layers, lowest first. They are read twice: for what is there and visible at last, then for its content.
pub(crate) fn flatten_layers(
    layers: &[Layer],
    out: &Path,
    settings: Settings,
    progress: &dyn Fn(u64),
) -> Result<Findings, FlattenError> {
    let mut tree = Tree::new();
    for (index, layer) in layers.iter().enumerate() {
        layer.add_to(&mut tree, index as u32)?;
    }
    write_tree(&tree, out, settings, progress, |contents| {
        for (index, layer) in layers.iter().enumerate() {
            layer.read::<FlattenError>(|ordinal, entry, content| {
                if matches!(entry.kind, Kind::File { .. }) {
                    contents.add(ContentAt { layer: index as u32, ordinal }, content)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// Writes the image file from one archive that can be read only once (a pipe). Such an archive must have each object
/// once and each directory before what it holds, as tar(1) writes them.
pub(crate) fn flatten_stream(
    stream: impl Read,
    out: &Path,
    settings: Settings,
    progress: &dyn Fn(u64),
) -> Result<Findings, FlattenError> {
    let mut tar = TarReader::new(stream, false);
    let mut copy = StreamCopy {
        tree: Tree::new(),
        inspector: Inspector::default(),
        squash: None,
        early: Vec::new(),
        out,
        settings,
        progress,
    };
    match copy.all(&mut tar) {
        Ok(()) => {
            // the writer must be able to end by itself, not by a broken pipe
            tar.drain().map_err(TarError::from)?;
            copy.squash.ok_or(FlattenError::Empty)?.finish()?;
            Ok(copy.inspector.finish())
        }
        Err(error) => {
            copy.squash.into_iter().for_each(Squash::abort);
            Err(error)
        }
    }
}

/// A stream on its way into an image file.
struct StreamCopy<'a> {
    tree: Tree,
    inspector: Inspector,
    squash: Option<Squash>,
    /// Entries before the root directory's own, whose metadata mksquashfs must be told at its start. mmdebstrap's
    /// device nodes come so.
    early: Vec<Entry>,
    out: &'a Path,
    settings: Settings,
    progress: &'a dyn Fn(u64),
}

impl StreamCopy<'_> {
    fn all(&mut self, tar: &mut TarReader<impl Read>) -> Result<(), FlattenError> {
        while let Some((ordinal, entry)) = tar.next()? {
            self.check(&entry)?;
            let is_root = entry.path.is_empty();
            let has_content = matches!(entry.kind, Kind::File { size } if size > 0);
            self.tree.put(entry.clone(), ContentAt { layer: 0, ordinal })?;
            if self.squash.is_none() && !is_root && !has_content {
                self.early.push(entry);
                continue;
            }
            if self.squash.is_none() {
                self.squash = Some(Squash::start(self.out, self.tree.root(), self.settings)?);
                for entry in std::mem::take(&mut self.early) {
                    self.write(&entry, &mut std::io::empty())?;
                }
            }
            if !is_root {
                self.write(&entry, tar)?;
            }
        }
        Ok(())
    }

    /// Refuses what cannot be written in the order in which it comes.
    fn check(&self, entry: &Entry) -> Result<(), FlattenError> {
        let shown = || crate::entry::show(&entry.path);
        if entry.path.is_empty() {
            return if self.squash.is_some() { Err(FlattenError::NoDirectory("/".into())) } else { Ok(()) };
        }
        let directory = split(&entry.path).0;
        let is_directory = |id| self.tree.object(id).what == What::Directory;
        if !directory.is_empty() && !self.tree.find(directory).is_some_and(is_directory) {
            return Err(FlattenError::NoDirectory(shown()));
        }
        if self.tree.find(&entry.path).is_some() { Err(FlattenError::Twice(shown())) } else { Ok(()) }
    }

    fn write(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), FlattenError> {
        let Some(squash) = self.squash.as_mut() else { return Ok(()) };
        let (path, meta) = (&entry.path, &entry.meta);
        match &entry.kind {
            Kind::Directory => squash.directory(path, meta)?,
            Kind::File { size } => {
                write_file(squash, &mut self.inspector, path, meta, *size, content, self.progress)?;
            }
            Kind::Symlink(target) => squash.symlink(path, meta, target)?,
            Kind::HardLink(target) => squash.hard_link(path, meta, target)?,
            Kind::Device(device) => squash.device(path, meta, *device)?,
            Kind::Fifo => squash.fifo(path, meta)?,
        }
        Ok(())
    }
}
