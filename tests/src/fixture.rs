//! What all tests of one suite use together.

use std::path::{Path, PathBuf};

/// A new directory of this process for a suite's fixture. Those of processes that are gone are removed first: nothing
/// tells which test of a process is its last one.
///
/// # Panics
/// If the temporary directory cannot be written.
pub fn fixture_directory(suite: &str) -> PathBuf {
    let prefix = format!("corebox-{suite}-test-");
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(&prefix) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let directory = std::env::temp_dir().join(format!("{prefix}{}", std::process::id()));
    corebox_sys::fs::create_dir_all(&directory).expect("a directory");
    directory
}
