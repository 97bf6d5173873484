//! File operations whose error names the path.
#![allow(clippy::disallowed_methods)] // this is the room that the lint points to

use crate::{Error, Result};
use std::path::Path;

/// Reads a whole file.
///
/// # Errors
/// What open(2) or read(2) say.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    std::fs::read(path).map_err(|e| Error::io("read", path.display(), &e))
}

/// Reads a whole file that must be UTF-8 (else EILSEQ).
///
/// # Errors
/// What open(2) or read(2) say, or EILSEQ.
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    String::from_utf8(read(path)?).map_err(|_| Error::new("read", path.display(), nix::errno::Errno::EILSEQ))
}

/// Writes a whole file, creating or truncating it.
///
/// # Errors
/// What open(2) or write(2) say.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    std::fs::write(path, bytes).map_err(|e| Error::io("write", path.display(), &e))
}

/// Creates a directory and its parents.
///
/// # Errors
/// What mkdir(2) says.
pub fn create_dir_all(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    std::fs::create_dir_all(path).map_err(|e| Error::io("mkdir", path.display(), &e))
}

/// Renames a file, replacing the target.
///
/// # Errors
/// What rename(2) says.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    std::fs::rename(from, to)
        .map_err(|e| Error::io("rename", format_args!("{} to {}", from.display(), to.display()), &e))
}

/// The names in a directory, sorted; a directory that is not there has none.
///
/// # Errors
/// What open(2) or getdents(2) say, ENOENT excepted.
pub fn list(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io("list", path.display(), &e))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", path.display(), &e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
