//! What a test needs from the machine, and where the programs under test are.

use crate::Result;
use corebox_spec::Failure;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The `corebox` program under test: `$COREBOX`, else the one built beside the running test, else the release build.
///
/// # Errors
/// None of them exists: build it with `cargo build -p corebox`.
pub fn corebox() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("COREBOX") {
        return Ok(path.into());
    }
    built("corebox", "cargo build --release -p corebox")
}

/// The helper program `corebox-simnode`: this very program if it is it, else `$COREBOX_SIMNODE`, else the one built
/// beside the running program.
///
/// # Errors
/// It was not built: `cargo build -p corebox-tests`.
pub fn simnode_program() -> Result<PathBuf> {
    if let Some(own) = std::env::current_exe().ok().filter(|exe| exe.ends_with("corebox-simnode")) {
        return Ok(own);
    }
    if let Some(path) = std::env::var_os("COREBOX_SIMNODE") {
        return Ok(path.into());
    }
    built("corebox-simnode", "cargo build -p corebox-tests")
}

/// The runner of virtual machines `corebox-vm`: `$COREBOX_VM_RUNNER`, else the one built beside the running program.
///
/// # Errors
/// It was not built: `cargo build -p corebox-vm-tests`.
pub fn vm_program() -> Result<PathBuf> {
    match std::env::var_os("COREBOX_VM_RUNNER") {
        Some(path) => Ok(path.into()),
        None => built("corebox-vm", "cargo build -p corebox-vm-tests"),
    }
}

/// A program of this workspace beside the running one (`target/PROFILE/` or its `deps/`), else of the other profile.
fn built(name: &str, cure: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().map_err(|e| Failure::new("cannot find the running program", e))?;
    let mut profile = exe.parent().unwrap_or(Path::new("/")).to_path_buf();
    if profile.ends_with("deps") {
        profile.pop();
    }
    let target = profile.parent().unwrap_or(Path::new("/"));
    [profile.join(name), target.join("release").join(name), target.join("debug").join(name)]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Failure::new(format!("cannot find `{name}`"), format_args!("not built in {}", target.display())).hint(cure)
        })
}

/// Finds a program in `PATH` and in the directories of the administrator (`/usr/sbin`, `/sbin`).
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).map(|dir| Path::new(dir).join(name)).find(|file| file.is_file())
}

/// Whether all these programs are there; prints the SKIP line of `test` naming the first missing one if not.
#[must_use]
pub fn require_programs(test: &str, names: &[&str]) -> bool {
    match names.iter().find(|name| program(name).is_none()) {
        Some(name) => {
            crate::skip!(test, "needs the program `{name}`");
            false
        }
        None => true,
    }
}

/// Whether we are root; prints the SKIP line of `test` if not.
#[must_use]
pub fn require_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::skip!(test, "needs root");
    }
    root
}

/// Waits until `condition` gives a value, looking every few milliseconds; `None` after `limit`.
///
/// For conditions the kernel has no event for (a cgroup that becomes empty, a socket that starts to listen).
pub fn wait_until<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
