//! Finding the host's libpmix at run time. Nothing is linked: a host without it still runs MPICH jobs.

use super::ffi::{Functions, LoadError};
use corebox_spec::Failure;
use std::path::{Path, PathBuf};

/// The name by which the dynamic loader knows it (the same for 3.x to 6.x).
const NAME: &str = "libpmix.so.2";
/// The oldest version whose server speaks to Open MPI 4.1 and 5 clients.
const OLDEST: u32 = 4;
/// The variable that names another library.
pub const VARIABLE: &str = "COREBOX_LIBPMIX";
/// Where distributions and sites put it outside of the loader's path.
const DIRECTORIES: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu/pmix2/lib",
    "/usr/lib/aarch64-linux-gnu/pmix2/lib",
    "/usr/lib64",
    "/usr/lib64/pmix/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/opt/pmix/lib",
    "/opt/pmix/lib64",
];

/// A loaded libpmix, new enough and complete.
pub struct Library {
    pub(super) functions: Functions,
    path: PathBuf,
    version: String,
    major: u32,
}

impl Library {
    /// Loads the library: the given path, or that of `COREBOX_LIBPMIX`, alone; else along the loader's path, then in
    /// well-known directories. Loading starts no thread.
    ///
    /// # Errors
    /// If there is none, it is too old, or lacks a function: said with the package that cures it.
    pub fn find(explicit: Option<&Path>) -> Result<Self, Failure> {
        let named = explicit.map(Path::to_path_buf).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
        if let Some(path) = named {
            return Self::load(&path).map_err(|cause| failure(&cause));
        }
        let mut causes = Vec::new();
        for path in std::iter::once(PathBuf::from(NAME)).chain(DIRECTORIES.iter().map(|dir| Path::new(dir).join(NAME)))
        {
            if path.is_absolute() && !path.exists() {
                continue;
            }
            match Self::load(&path) {
                Ok(library) => return Ok(library),
                Err(cause) => causes.push(cause),
            }
        }
        Err(failure(&causes.join("\n")))
    }

    fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let functions = Functions::load(path).map_err(|error| match error {
            LoadError::Open(text) => format!("dlopen: {text}"),
            LoadError::Symbol(name) => format!("{shown} has no function {name}: it is not a PMIx of this kind"),
        })?;
        let version = functions.version();
        let major = major_of(&version).ok_or_else(|| format!("{shown} says it is `{version}`, which is no version"))?;
        if major < OLDEST {
            return Err(format!("{shown} is {version}; version {OLDEST} or later is needed"));
        }
        Ok(Self { functions, path: path.to_path_buf(), version, major })
    }

    /// The path, or the bare name that the loader found.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// What the library calls itself: `OpenPMIx 4.2.2rc2 (…)`.
    pub fn version(&self) -> &str {
        &self.version
    }
    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }
}

fn failure(cause: &str) -> Failure {
    Failure::new("cannot wire up an Open MPI job", cause).during("loading the host's PMIx library", "pmix").hint(
        format!(
            "PMIx {OLDEST} or later is needed on each node: ask your administrator for the package `libpmix2` \
             (Debian, Ubuntu) or `pmix` (Fedora, RHEL),\nor name a copy of it in {VARIABLE}. No MPI is needed on the \
             host, and MPICH images run without PMIx."
        ),
    )
}

/// The major version in `OpenPMIx 4.2.2rc2 (PMIx Standard: 4.2, …)`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(major_of("OpenPMIx 4.2.2rc2 (PMIx Standard: 4.2, Stable ABI: 0.0)"), Some(4));
        assert_eq!(major_of("OpenPMIx 5.0.9a1 Unreleased developer copy (PMIx Standard: 5.1)"), Some(5));
        assert_eq!(major_of("PMIx"), None);
    }

    #[test]
    fn absence_names_the_package() {
        let failure = Library::find(Some(Path::new("/nonexistent/libpmix.so.2"))).err().unwrap();
        assert!(failure.cause.contains("/nonexistent/libpmix.so.2"), "{failure}");
        assert!(failure.hint.unwrap().contains("libpmix2"));
        let other = Library::find(Some(Path::new("libc.so.6"))).err().unwrap();
        assert!(other.cause.contains("PMIx_Get_version"), "{other}");
    }
}
