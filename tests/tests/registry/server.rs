//! A docker-registry on a loopback port, and images to put into it.

use crate::sources::{Layout, Platform, Tar, gzip};
use crate::support::Scratch;
use corebox_tests::{require_programs, wait_until};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Whether what these tests need is there.
pub fn ready(test: &str) -> bool {
    crate::support::ready(test) && require_programs(test, &["docker-registry", "skopeo", "htpasswd", "openssl"])
}

/// A running registry; ends with the test.
pub struct Registry {
    /// `127.0.0.1:PORT`.
    pub address: String,
    child: Child,
}

impl Registry {
    /// Plain http, open to all.
    pub fn plain(scratch: &Scratch) -> Self {
        Self::start(scratch, "", "")
    }

    /// TLS with a certificate of its own (its authority's is `ca.pem` in the scratch directory), and one user, `ann` with `secret`.
    pub fn closed(scratch: &Scratch) -> Self {
        let path = |name: &str| scratch.path.join(name).display().to_string();
        let script = r#"
            new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
            openssl req -x509 $new -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
            openssl req $new -subj /CN=registry -keyout key.pem -out request.pem
            echo subjectAltName=IP:127.0.0.1 > extensions
            openssl x509 -req -in request.pem -days 2 -CA ca.pem -CAkey ca.key -CAcreateserial -extfile extensions -out cert.pem
            htpasswd -Bbn ann secret > htpasswd"#;
        sh(&format!("cd {} && {script}", scratch.path.display()));
        let tls = format!("  tls: {{certificate: {}, key: {}}}\n", path("cert.pem"), path("key.pem"));
        Self::start(scratch, &tls, &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd")))
    }

    fn start(scratch: &Scratch, http: &str, rest: &str) -> Self {
        // another program may take the port before the registry does; then the next one is tried
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let mut child = Command::new("docker-registry");
            child.arg("serve").arg(config(scratch, &address, http, rest)).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = child.spawn().unwrap();
            let answers = wait_until(Duration::from_secs(20), || {
                match (TcpStream::connect(&address), child.try_wait().unwrap()) {
                    (_, Some(_)) => Some(false),
                    (Ok(_), None) => Some(true),
                    _ => None,
                }
            });
            if answers == Some(true) {
                return Self { address, child };
            }
            child.kill().ok();
            child.wait().unwrap();
        }
        panic!("docker-registry does not start");
    }

    /// Copies a layout's image to a name in this registry with skopeo.
    pub fn fill(&self, layout: &Path, name: &str) {
        skopeo(&["copy", "--all", "--dest-tls-verify=false", &format!("oci:{}", layout.display()), &self.docker(name)]);
    }

    /// `docker://ADDRESS/NAME`.
    pub fn docker(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Writes the registry's configuration; its data are beside it.
pub fn config(scratch: &Scratch, address: &str, http: &str, rest: &str) -> PathBuf {
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n{http}{rest}",
        scratch.path.join("registry").display()
    );
    scratch.file("registry.yml", text.as_bytes())
}

/// Runs skopeo without the caller's configuration; it must succeed.
pub fn skopeo(args: &[&str]) -> String {
    let output = Command::new("skopeo").arg("--insecure-policy").args(args).env_remove("REGISTRY_AUTH_FILE").output();
    let output = output.unwrap();
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a shell script; it must succeed.
pub fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes that do not compress, different for each seed.
pub fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A layout of three layers, the middle one with a megabyte.
pub fn layout(scratch: &Scratch) -> PathBuf {
    let layers = [
        gzip(&Tar::default().dir("etc/").file("etc/name", b"base").file("gone", b"x").end()),
        gzip(&Tar::default().file("data", &noise(1, 1 << 20)).end()),
        gzip(&Tar::default().file(".wh.gone", b"").file("etc/name", b"top").end()),
    ];
    let config = serde_json::json!({"Env": ["A=b"], "Cmd": ["/bin/x", "y"]});
    write_layout(scratch, "layout", &[(None, &layers, config)])
}

/// A layout with `diff_ids`, which tools that convert images look at.
pub fn write_layout(scratch: &Scratch, name: &str, images: &[Platform]) -> PathBuf {
    Layout::new(images).write(scratch, name)
}

/// `corebox image ARGS…` with a configuration of the test's own and no proxy of the host.
pub trait Configured {
    /// Writes `images.toml`.
    fn configure(&self, toml: &str);
    /// The command with it.
    fn image(&self, args: &[&str]) -> Command;
    /// Runs it.
    fn output(&self, args: &[&str]) -> Output {
        self.image(args).output().unwrap()
    }
    /// Runs it; it must succeed.
    fn succeeds(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "corebox image {args:?}: {}\n{said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
    /// Runs it; it must fail in the house's way. Gives what it said.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "corebox image {args:?}: {said}");
        let error = said.find("error: ").map(|at| said[at..].to_owned());
        // what was tried again is said before
        error
            .filter(|error| error.contains("\n  cause: "))
            .unwrap_or_else(|| panic!("not an error of the house: {said}"))
    }
    /// No image, no half image, no lease, no temporary file; layers are left.
    fn assert_no_image(&self);
    /// Bytes of layers that wait for the next try.
    fn kept(&self) -> u64;
}

impl Configured for Scratch {
    fn configure(&self, toml: &str) {
        self.file("images.toml", toml.as_bytes());
    }

    fn image(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        for variable in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(variable);
        }
        command.env_remove("REGISTRY_AUTH_FILE").env_remove("XDG_RUNTIME_DIR");
        command
            .env("COREBOX_IMAGES_CONFIG", self.path.join("images.toml"))
            .env("DOCKER_CONFIG", self.path.join("docker"));
        command
    }

    fn assert_no_image(&self) {
        for directory in ["blobs/sha256", "facts", "names", "origins", "leases", "tmp"] {
            let found = crate::support::files_in(&self.store().join(directory));
            assert_eq!(found, Vec::<String>::new(), "in {directory}");
        }
    }

    fn kept(&self) -> u64 {
        let directory = self.store().join("layers");
        let files = crate::support::files_in(&directory);
        files.iter().map(|file| std::fs::metadata(directory.join(file)).unwrap().len()).sum()
    }
}

/// Plain http for these registries, and repetitions without long waits.
pub fn plain(addresses: &[&str]) -> String {
    let registries: String = addresses.iter().map(|address| format!("[registry.'{address}']\nhttp = true\n")).collect();
    format!("retry-delay = '10ms'\nretries = 3\n{registries}")
}
