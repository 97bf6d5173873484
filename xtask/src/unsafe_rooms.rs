//! Unsafe code has one room, `sys/`, and the files that speak to a C library: those with `ffi` in their name.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One line per use of `unsafe` outside its rooms.
pub fn broken() -> Result<Vec<String>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask has no parent")?;
    let mut lines = Vec::new();
    for file in sources(root)? {
        if is_room(&file) {
            continue;
        }
        let text = std::fs::File::open(root.join(&file))
            .and_then(std::io::read_to_string)
            .map_err(|e| format!("read {}: {e}", file.display()))?;
        for (number, what) in uses(&text) {
            lines.push(format!("{}:{number}: {what} outside sys/ and the ffi files", file.display()));
        }
    }
    Ok(lines)
}

/// The Rust files that git knows or would know.
fn sources(root: &Path) -> Result<Vec<PathBuf>, String> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rs"])
        .output()
        .map_err(|e| format!("git ls-files: {e}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.lines().map(PathBuf::from).filter(|file| root.join(file).exists()).collect())
}

fn is_room(file: &Path) -> bool {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    file.starts_with("sys") || name.split('_').any(|word| word == "ffi")
}

/// Lines that use `unsafe` as code: a block, function, implementation, trait, attribute or foreign block.
fn uses(text: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, word) in code.match_indices("unsafe") {
            let before = code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "_\"'`".contains(c));
            let after = code[at + word.len()..].trim_start();
            let starts = ["{", "fn ", "impl", "trait ", "extern ", "("];
            if !before && (after.is_empty() || starts.iter().any(|start| after.starts_with(start))) {
                found.push((index + 1, "unsafe code"));
            }
        }
        if code.contains(concat!("allow(uns", "afe_code)")) {
            found.push((index + 1, "permission for unsafe code"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_unsafe_code_and_nothing_else() {
        let text = concat!(
            "let x = uns",
            "afe { 1 };\nuns",
            "afe fn f() {}\n// uns",
            "afe { }\n#![forbid(unsafe_code)]\n\"unsafe {\"\n"
        );
        assert_eq!(uses(text).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn knows_the_rooms() {
        assert!(is_room(Path::new("sys/src/mount.rs")) && is_room(Path::new("mpi-launcher/src/wire/pmix/ffi.rs")));
        assert!(is_room(Path::new("schedulers/src/spank_ffi.rs")));
        assert!(!is_room(Path::new("host/src/suffix.rs")) && !is_room(Path::new("system/src/lib.rs")));
    }
}
