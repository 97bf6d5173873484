//! A store of the test's own, the program run on it, and what unsquashfs says about the result.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory that is removed at the end, with a store in it.
pub struct Scratch {
    pub path: PathBuf,
}

impl Scratch {
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("corebox-image-{test}-{}", std::process::id()));
        // a leftover of a killed run with the same process id
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir(&path).unwrap();
        Self { path }
    }

    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path.join(name);
        corebox_sys::fs::create_dir_all(path.parent().unwrap()).unwrap();
        corebox_sys::fs::write(&path, content).unwrap();
        path
    }

    /// An executable script or copied program. Another process writes it: were this one to fork meanwhile (tests run in
    /// threads), the child would hold it open for writing for a moment, and executing it would be ETXTBSY.
    pub fn executable(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        let script = r#"mkdir -p "${1%/*}" && printf %s "$2" > "$1" && chmod 755 "$1""#;
        let status = Command::new("sh").args(["-c", script, "sh"]).arg(&path).arg(content).status();
        assert!(status.unwrap().success());
        path
    }

    /// A copy of the program where any user can run it (a build directory may be private).
    pub fn public_program(&self) -> PathBuf {
        let copy = self.path.join("corebox");
        let script = r#"cp -f "$1" "$2" && chmod 755 "$2" "${2%/*}""#;
        let status =
            Command::new("sh").args(["-c", script, "sh"]).arg(corebox_tests::corebox().unwrap()).arg(&copy).status();
        assert!(status.unwrap().success());
        copy
    }

    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// `corebox image ARGS…` on this store, with a clean environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(corebox_tests::corebox().unwrap());
        command.arg("image").args(args).env_remove("SOURCE_DATE_EPOCH").env("COREBOX_STORE", self.store());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it and gives its standard output; it must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "corebox image {args:?}: {}\n{said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it and gives its standard error; it must fail with 125 and an error in the house's form.
    pub fn fails(&self, args: &[&str]) -> String {
        failed(&self.run(args))
    }

    pub fn import(&self, name: &str, source: &Path) -> Value {
        self.ok(&["import", name, source.to_str().unwrap()]);
        self.inspect(name)
    }

    pub fn import_fails(&self, source: &Path) -> String {
        let said = self.fails(&["import", "hostile", source.to_str().unwrap()]);
        self.assert_empty();
        said
    }

    pub fn inspect(&self, name: &str) -> Value {
        serde_json::from_str(&self.ok(&["inspect", "--json", name])).unwrap()
    }

    pub fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.ok(&["ls", "--json"])).unwrap()
    }

    /// No image, no half image, no temporary file.
    pub fn assert_empty(&self) {
        assert_eq!(self.list(), Vec::<Value>::new());
        for directory in ["blobs/sha256", "facts", "names", "tmp"] {
            assert_eq!(files_in(&self.store().join(directory)), Vec::<String>::new(), "in {directory}");
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.path).ok();
    }
}

/// The error text of a run that must have failed.
pub fn failed(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.starts_with("error: ") && said.contains("\n  cause: "), "not an error of the house: {said}");
    said
}

/// File names in a directory; none if it is not there.
pub fn files_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// `unsquashfs -lln` as path → the rest of the line without the time (mode, owner, size or device, link target).
pub fn listing(image: &Value) -> BTreeMap<String, String> {
    let output =
        Command::new("unsquashfs").args(["-lln", "-d", "/R", image["path"].as_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some(at) = line.find(" /R") else { continue };
        let (head, path) = line.split_at(at);
        let (path, target) = path.split_once(" -> ").unwrap_or((path, ""));
        let mut words: Vec<_> = head.split_whitespace().collect();
        // the date and the time of day come last
        words.truncate(words.len() - 2);
        let target = if target.is_empty() { String::new() } else { format!(" -> {target}") };
        let path = path.trim_start_matches(" /R").trim_start_matches('/');
        found.insert(path.to_owned(), format!("{}{target}", words.join(" ")));
    }
    found
}

/// Content of a file in an image.
pub fn cat(image: &Value, path: &str) -> Vec<u8> {
    let output = Command::new("unsquashfs").args(["-cat", image["path"].as_str().unwrap(), path]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Whether the tools of all these tests are there.
pub fn ready(test: &str) -> bool {
    corebox_tests::require_programs(test, &["mksquashfs", "unsquashfs"])
}
