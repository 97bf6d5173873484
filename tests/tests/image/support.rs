//! A store of the test's own, the program run on it, and what the kernel says about the result.

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

/// Runs a shell script with the image mounted on /mnt by the kernel, in a mount namespace of its own; `$1` is its
/// argument. Gives its standard output.
pub fn with_mounted(image: &Value, script: &str, argument: &std::ffi::OsStr) -> Vec<u8> {
    let mount = r#"case $0 in *.erofs) kind=erofs ;; *) kind=squashfs ;; esac
        mount -t $kind -o loop,ro "$0" /mnt || exit"#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &format!("{mount}\n{script}"), image["path"].as_str().unwrap()])
        .arg(argument)
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Each object of an image as path → mode, owner, size or device, link target.
pub fn listing(image: &Value) -> BTreeMap<String, String> {
    let script = r#"exec python3 -c '
import json, os, stat
def show(path):
    s = os.lstat(path)
    device = stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode)
    size = "%d, %d" % (os.major(s.st_rdev), os.minor(s.st_rdev)) if device else str(s.st_size)
    target = " -> " + os.readlink(path) if stat.S_ISLNK(s.st_mode) else ""
    return "%s %d/%d %s%s" % (stat.filemode(s.st_mode), s.st_uid, s.st_gid, size, target)
found = {"": show("/mnt")}
for where, directories, files in os.walk("/mnt"):
    for name in directories + files:
        path = os.path.join(where, name)
        found[os.path.relpath(path, "/mnt")] = show(path)
print(json.dumps(found))'"#;
    serde_json::from_slice(&with_mounted(image, script, "".as_ref())).unwrap()
}

/// Content of a file in an image.
pub fn cat(image: &Value, path: &str) -> Vec<u8> {
    with_mounted(image, r#"cat "/mnt/$1""#, path.as_ref())
}

/// Copies an image with all metadata to a directory that does not exist yet.
pub fn copy_out(image: &Value, out: &Path) {
    with_mounted(image, r#"cp -a /mnt "$1""#, out.as_os_str());
}

/// Whether images can be looked into here.
pub fn ready(test: &str) -> bool {
    let known = corebox_sys::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let erofs = known.lines().any(|line| line.trim_end().ends_with("erofs"));
    if !erofs {
        corebox_tests::skip!(test, "needs a kernel with EROFS to look into images");
    }
    erofs
        && corebox_tests::require_root(test)
        && corebox_tests::require_programs(test, &["unshare", "mount", "python3"])
}
