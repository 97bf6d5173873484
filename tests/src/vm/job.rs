//! What the guest is told: the program as a shell script, and which directories of the host it sees.

use crate::Result;
use corebox_spec::Failure;
use corebox_sys::fs;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The guest's first process.
const INIT: &str = include_str!("../../vm/init");
/// Variables of ours with these beginnings are the program's too.
const PASSED_ON: [&str; 3] = ["COREBOX", "RUST_", "CARGO_"];

/// A program in a guest.
#[derive(Debug)]
pub(crate) struct Job {
    /// Becomes the program.
    script: String,
    /// Directories the guest sees at the same place, read-only.
    pub(crate) shares: Vec<PathBuf>,
}

impl Job {
    /// This program, with our variables and working directory where the guest has them.
    pub(crate) fn new(program: &str, args: &[String], kernel: &str) -> Result<Self> {
        let failed = |e| Failure::new("cannot describe the program to the guest", e);
        let mut seen = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")];
        let program_path = program.contains('/').then(|| Path::new(program).to_path_buf());
        seen.extend(program_path.iter().filter_map(|path| path.parent()).map(Path::to_path_buf));
        seen.extend(crate::corebox().ok().and_then(|path| path.parent().map(Path::to_path_buf)));
        seen.extend(std::env::var_os("COREBOX_STORE").map(PathBuf::from));
        let shares = outermost(seen.iter().filter_map(|path| std::fs::canonicalize(path).ok()));
        let mut script = String::new();
        let here = std::env::current_dir().map_err(failed)?;
        let inside = shares.iter().any(|share| here.starts_with(share));
        let _ = writeln!(script, "cd {}", quoted(if inside { here.to_str().unwrap_or("/") } else { "/" }));
        let _ = write!(script, "exec env HOME=/root {}={}", super::INSIDE, quoted(kernel));
        for (name, value) in std::env::vars() {
            if PASSED_ON.iter().any(|start| name.starts_with(start)) && name != super::INSIDE {
                let _ = write!(script, " {name}={}", quoted(&value));
            }
        }
        let program = match program_path {
            Some(path) => std::fs::canonicalize(path).map_err(failed)?.display().to_string(),
            None => program.to_owned(),
        };
        for word in std::iter::once(&program).chain(args) {
            let _ = write!(script, " {}", quoted(word));
        }
        script.push('\n');
        Ok(Self { script, shares })
    }

    /// Puts it where the guest looks.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let mut shares = String::new();
        for (index, share) in self.shares.iter().enumerate() {
            let _ = writeln!(shares, "share{index} {}", share.display());
        }
        let write = |name: &str, text: &str| fs::write(directory.join(name), text);
        write("init", INIT)
            .and_then(|()| write("job", &self.script))
            .and_then(|()| write("shares", &shares))
            .map_err(|e| Failure::new("cannot describe the program to the guest", e))
    }
}

/// Those that are not inside another, each once.
fn outermost(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = paths.collect();
    all.sort();
    all.dedup();
    // In this order a directory comes before what is in it.
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in all {
        if !kept.iter().any(|outer| path.starts_with(outer)) {
            kept.push(path);
        }
    }
    kept
}

/// One word of a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_do_not_overlap() {
        let paths = ["/b/c/d", "/b/c", "/b/cd", "/a", "/b/c"].map(PathBuf::from);
        assert_eq!(outermost(paths.into_iter()), ["/a", "/b/c", "/b/cd"].map(PathBuf::from));
    }

    #[test]
    fn words_arrive_as_they_are() {
        let words = ["a b", "it's", "$HOME", "", "*", "new\nline"].map(String::from);
        let job = Job::new("printf", &[&["[%s]".to_owned()], &words[..]].concat(), "6.12").expect("a job");
        let output = std::process::Command::new("sh").args(["-c", &job.script]).output().expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "[a b][it's][$HOME][][*][new\nline]");
    }
}
