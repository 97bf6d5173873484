//! The order that mksquashfs wants: directories before what they hold, a hard link after what it leads to, and the
//! root directory's metadata at the start.

use crate::content::Content;
use crate::entry::{Entry, Kind, split};
use crate::flatten::{FlattenError, Settings, watched};
use crate::inspect::{Findings, Inspector};
use crate::squash::{Squash, SquashError};
use crate::tar_reader::{TarError, TarReader};
use crate::tree::{ContentAt, Id, Tree, What};
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// What comes before the contents of a complete tree.
pub(crate) fn write_directories(squash: &mut Squash, tree: &Tree) -> Result<(), SquashError> {
    let directories = tree.names().map(|(path, id)| (path, tree.object(id)));
    directories.filter(|(_, o)| o.what == What::Directory).try_for_each(|(path, o)| squash.directory(path, &o.meta))
}

/// What comes after the contents of a complete tree.
pub(crate) fn write_others(
    squash: &mut Squash,
    tree: &Tree,
    first_names: &HashMap<Id, &[u8]>,
) -> Result<(), SquashError> {
    for (path, id) in tree.names() {
        let object = tree.object(id);
        let first = first_names[&id];
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

    fn write(&mut self, entry: &Entry, content: &mut dyn Content) -> Result<(), FlattenError> {
        let Some(squash) = self.squash.as_mut() else { return Ok(()) };
        let (path, meta) = (&entry.path, &entry.meta);
        match &entry.kind {
            Kind::Directory => squash.directory(path, meta)?,
            Kind::File { size } => {
                watched(&mut self.inspector, path, *size, self.progress, |see| {
                    Ok(squash.file(path, meta, *size, content, see)?)
                })?;
            }
            Kind::Symlink(target) => squash.symlink(path, meta, target)?,
            Kind::HardLink(target) => squash.hard_link(path, meta, target)?,
            Kind::Device(device) => squash.device(path, meta, *device)?,
            Kind::Fifo => squash.fifo(path, meta)?,
        }
        Ok(())
    }
}
