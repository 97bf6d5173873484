//! Small text files below a root directory: `/` on a live machine, a directory of copies for a recorded one.

use crate::Error;
use corebox_spec::IdSet;
use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// A sysfs and procfs as seen below `root`.
pub(crate) struct Tree<'a> {
    root: &'a Path,
}

impl<'a> Tree<'a> {
    pub(crate) fn at(root: &'a Path) -> Self {
        Self { root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The file without surrounding white space; `None` when this kernel or machine has no such file.
    ///
    /// Some sysfs attributes exist but have nothing to say and answer a read with ENODEV, ENXIO or EOPNOTSUPP.
    pub(crate) fn text(&self, path: &str) -> Result<Option<String>, Error> {
        match corebox_sys::fs::read_to_string(self.path(path)) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(e) => match e.errno {
                Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV | Errno::ENXIO | Errno::EOPNOTSUPP => Ok(None),
                _ => Err(e.into()),
            },
        }
    }

    /// The file, which every supported kernel has.
    pub(crate) fn required(&self, path: &str) -> Result<String, Error> {
        Ok(corebox_sys::fs::read_to_string(self.path(path))?.trim().to_owned())
    }

    /// The first of these files that exists, as an idset.
    pub(crate) fn ids(&self, paths: &[&str]) -> Result<Option<IdSet>, Error> {
        for path in paths {
            if let Some(text) = self.text(path)? {
                return self.parsed(path, &text).map(Some);
            }
        }
        Ok(None)
    }

    /// The file as a number (which may be -1: "not known").
    pub(crate) fn number(&self, path: &str) -> Result<Option<i64>, Error> {
        self.text(path)?.map(|text| self.parsed(path, &text)).transpose()
    }

    /// Parses what was read from `path`; an error shows both.
    pub(crate) fn parsed<T: std::str::FromStr>(&self, path: &str, text: &str) -> Result<T, Error>
    where
        T::Err: std::fmt::Display,
    {
        text.parse().map_err(|e: T::Err| Error::malformed(self.path(path).display(), format_args!("`{text}`: {e}")))
    }
}
