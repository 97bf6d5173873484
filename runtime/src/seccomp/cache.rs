//! Compiled programs, kept by the digest of their profile, as compiling podman's takes longer than all the rest of a
//! start.
//!
//! A program decides what a container may do, so a file counts only in a directory, and as a file, that nobody but us
//! could have written: owner, mode and kind are asked of the open descriptor, and a digest finds a torn file. Whatever
//! is wrong with the cache, the profile is compiled.

use super::{Error, Program, assemble};
use corebox_sys::seccomp::{self, Instruction};
use corebox_sys::{fd, fs, process, user};
use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Changes with what `assemble` makes of a profile.
const FORMAT: &str = "corebox seccomp 1";
/// The kernel takes no longer programs (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
const DIGEST: usize = 32;

/// A directory of programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Below the runtime's state root, which is on a tmpfs: a new libseccomp counts after the next boot at the latest.
    pub fn below(state_root: &Path) -> Self {
        Self { directory: state_root.join("seccomp") }
    }

    /// The caller's own: below /run/corebox for root, below `$XDG_RUNTIME_DIR` for others; `None` where there is none.
    pub fn of_caller() -> Option<Self> {
        if user::ids().0 == 0 && crate::facts::in_initial_user_namespace().unwrap_or(true) {
            return Some(Self::below(Path::new("/run/corebox")));
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute())?;
        Some(Self::below(&Path::new(&runtime).join("corebox")))
    }

    fn get(&self, digest: &str) -> Option<Vec<Instruction>> {
        if !only_ours(&std::fs::symlink_metadata(&self.directory).ok()?, Kind::Directory) {
            return None;
        }
        let mut file = std::fs::File::from(fd::open_no_follow(&self.directory.join(digest)).ok()?);
        let facts = file.metadata().ok()?;
        let largest = (DIGEST + MAX_INSTRUCTIONS * size_of::<Instruction>()) as u64;
        if !only_ours(&facts, Kind::File) || facts.len() > largest {
            return None;
        }
        let mut bytes = Vec::with_capacity(facts.len() as usize);
        file.read_to_end(&mut bytes).ok()?;
        let (sum, body) = bytes.split_at_checked(DIGEST)?;
        let whole = !body.is_empty() && body.len().is_multiple_of(size_of::<Instruction>());
        (whole && Sha256::digest(body).as_slice() == sum).then(|| seccomp::instructions(body))
    }

    /// Keeps a program; what cannot be kept is compiled again next time.
    fn put(&self, digest: &str, program: &[Instruction]) -> corebox_sys::Result<()> {
        let directory = &self.directory;
        if let Some(parent) = directory.parent() {
            fs::create_dir_all(parent)?;
        }
        let failed = |e: &std::io::Error| corebox_sys::Error::io("keep a seccomp program in", directory.display(), e);
        match std::fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(&e)),
            _ => {}
        }
        let facts = std::fs::symlink_metadata(directory).map_err(|e| failed(&e))?;
        if !only_ours(&facts, Kind::Directory) {
            return Ok(());
        }
        let body = seccomp::bytes(program);
        // Named by pid: a name that is there is of a process that is gone, or of another pid namespace.
        let new = directory.join(format!(".{digest}.{}", process::id()));
        let _ = std::fs::remove_file(&new);
        let mut options = std::fs::OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(&new);
        let written = opened.and_then(|mut file| {
            file.write_all(&Sha256::digest(&body))?;
            file.write_all(&body)
        });
        if let Err(e) = written {
            let _ = std::fs::remove_file(&new);
            return Err(failed(&e));
        }
        fs::rename(&new, directory.join(digest)).inspect_err(|_| {
            let _ = std::fs::remove_file(&new);
        })
    }
}

/// As [`super::compile`], from the cache where it has the program.
///
/// # Errors
/// As [`super::compile`].
pub fn cached(profile: &LinuxSeccomp, cache: Option<&Cache>) -> Result<Program, Error> {
    let flags = assemble::check(profile)?;
    let Some(cache) = cache else { return assemble::compile(profile) };
    let digest = digest(profile)?;
    if let Some(instructions) = cache.get(&digest) {
        return Ok(Program { instructions, flags });
    }
    let program = assemble::compile(profile)?;
    // A full or read-only file system costs time, not the start.
    let _ = cache.put(&digest, &program.instructions);
    Ok(program)
}

/// Names a profile on this architecture, in hexadecimal.
fn digest(profile: &LinuxSeccomp) -> Result<String, Error> {
    let text = serde_json::to_vec(profile).map_err(|e| Error::Profile(e.to_string()))?;
    let mut hash = Sha256::new();
    for part in [FORMAT, env!("CARGO_PKG_VERSION"), std::env::consts::ARCH] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(text);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What a path of the cache must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

/// Nobody but our user can have written it.
fn only_ours(facts: &std::fs::Metadata, kind: Kind) -> bool {
    let right_kind = match kind {
        Kind::Directory => facts.is_dir(),
        Kind::File => facts.is_file() && facts.nlink() == 1,
    };
    right_kind && facts.uid() == user::ids().0 && facts.permissions().mode() & 0o022 == 0
}
