//! From a tree and its sources' bytes to one image file, in one stream.

use crate::content::{Content, Piece};
use crate::entry::{Kind, show};
use crate::erofs::{ErofsError, ErofsWriter};
use crate::inspect::{Findings, Inspector};
use crate::layer::{Layer, LayerError};
use crate::squash::{Squash, SquashError};
use crate::squash_stream;
use crate::tar_reader::{TarError, TarReader};
use crate::tree::{ContentAt, Id, Tree, TreeError, What};
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// How an image file holds its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// As they are, in EROFS: the fastest start.
    #[default]
    None,
    /// Compressed with lz4, in squashfs: half the size.
    Lz4,
    /// Compressed with zstd, in squashfs: a third of the size, slow to start.
    Zstd,
}

/// How the image file is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub codec: Codec,
    /// Times of all files and of the file system (SOURCE_DATE_EPOCH); `None`: files keep theirs.
    pub epoch: Option<u32>,
    /// Compressor threads.
    pub processors: usize,
}

/// Why no image file came out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlattenError {
    #[error("{0}")]
    Erofs(#[from] ErofsError),
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

/// What writes the image file.
enum Writer {
    Erofs(ErofsWriter),
    Squash(Squash),
}

/// Takes the contents of files, in any order, and leaves out those that no name of the tree leads to.
pub(crate) struct Contents<'a> {
    tree: &'a Tree,
    writer: Writer,
    inspector: Inspector,
    /// The first name of each regular file that was not written yet.
    missing: HashMap<ContentAt, (&'a [u8], Id)>,
    progress: &'a dyn Fn(u64),
}

impl Contents<'_> {
    /// Writes a file's content, if it is wanted.
    pub(crate) fn add(&mut self, at: ContentAt, content: &mut dyn Content) -> Result<(), FlattenError> {
        let Some((path, id)) = self.missing.remove(&at) else { return Ok(()) };
        let object = self.tree.object(id);
        let What::File { size, .. } = object.what else { return Ok(()) };
        let writer = &mut self.writer;
        watched(&mut self.inspector, path, size, self.progress, |see| match writer {
            Writer::Erofs(erofs) => Ok(erofs.file(at, path, size, content, see)?),
            Writer::Squash(squash) => Ok(squash.file(path, &object.meta, size, content, see)?),
        })
    }
}

/// Shows a file's content to the inspector and the progress bar while it is written.
pub(crate) fn watched(
    inspector: &mut Inspector,
    path: &[u8],
    size: u64,
    progress: &dyn Fn(u64),
    write: impl FnOnce(&mut dyn FnMut(Piece)) -> Result<(), FlattenError>,
) -> Result<(), FlattenError> {
    inspector.begin(path, size);
    write(&mut |piece| {
        inspector.feed(&piece);
        progress(match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Zeros(length) => length,
        });
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
    let writer = match settings.codec {
        Codec::None => Writer::Erofs(ErofsWriter::start(out)?),
        Codec::Lz4 | Codec::Zstd => Writer::Squash(Squash::start(out, tree.root(), settings)?),
    };
    let mut contents = Contents { tree, writer, inspector: Inspector::default(), missing, progress };
    let written = write_all(&mut contents, &first_names, feed);
    let Contents { writer, inspector, .. } = contents;
    match (writer, written) {
        (Writer::Erofs(_), Err(error)) => return Err(error),
        (Writer::Squash(squash), Err(error)) => {
            squash.abort();
            return Err(error);
        }
        (Writer::Erofs(erofs), Ok(())) => erofs.finish(tree, settings.epoch)?,
        (Writer::Squash(squash), Ok(())) => squash.finish()?,
    }
    Ok(inspector.finish())
}

/// Writes all that comes as a stream: for EROFS the contents, for squashfs everything.
fn write_all(
    contents: &mut Contents,
    first_names: &HashMap<Id, &[u8]>,
    feed: impl FnOnce(&mut Contents) -> Result<(), FlattenError>,
) -> Result<(), FlattenError> {
    let tree = contents.tree;
    if let Writer::Squash(squash) = &mut contents.writer {
        squash_stream::write_directories(squash, tree)?;
    }
    feed(contents)?;
    if let Some((path, _)) = contents.missing.values().next() {
        return Err(FlattenError::Changed(show(path)));
    }
    if let Writer::Squash(squash) = &mut contents.writer {
        squash_stream::write_others(squash, tree, first_names)?;
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

/// Writes the image file from one archive that can be read only once (a pipe).
pub(crate) fn flatten_stream(
    stream: impl Read,
    out: &Path,
    settings: Settings,
    progress: &dyn Fn(u64),
) -> Result<Findings, FlattenError> {
    if settings.codec != Codec::None {
        return squash_stream::flatten_stream(stream, out, settings, progress);
    }
    let mut tar = TarReader::new(stream, false);
    let mut tree = Tree::new();
    let mut inspector = Inspector::default();
    let mut erofs = ErofsWriter::start(out)?;
    while let Some((ordinal, entry)) = tar.next()? {
        let at = ContentAt { layer: 0, ordinal };
        if let Kind::File { size } = entry.kind {
            let path = &entry.path;
            watched(&mut inspector, path, size, progress, |see| Ok(erofs.file(at, path, size, &mut tar, see)?))?;
        }
        tree.put(entry, at)?;
    }
    // the writer must be able to end by itself, not by a broken pipe
    tar.drain().map_err(TarError::from)?;
    if tree.names().next().is_none() {
        return Err(FlattenError::Empty);
    }
    erofs.finish(&tree, settings.epoch)?;
    Ok(inspector.finish())
}
