//! containerd with corebox as its runtime (`BinaryName` of the runc shim), driven by `ctr`.

use corebox_tests::{corebox, program, require_programs, require_root, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A containerd of its own, with a root directory of busybox; ended and removed with the value.
struct Containerd {
    directory: PathBuf,
    daemon: Child,
}

impl Containerd {
    fn start() -> Self {
        let directory = Path::new("/var/tmp").join(format!("corebox-containerd-test-{}", std::process::id()));
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
            corebox_sys::fs::create_dir_all(directory.join("rootfs").join(name)).expect("a directory");
        }
        let busybox = program("busybox").expect("checked before");
        std::fs::copy(busybox, directory.join("rootfs/bin/busybox")).expect("a copy of busybox");
        for name in ["sh", "echo", "sleep", "ps"] {
            std::os::unix::fs::symlink("busybox", directory.join("rootfs/bin").join(name)).expect("a link");
        }
        std::os::unix::fs::symlink(corebox().expect("built"), directory.join("corebox-oci")).expect("a link");
        let at = directory.display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{at}/grpc\"\n[ttrpc]\naddress = \"{at}/ttrpc\"\n"
        );
        corebox_sys::fs::write(directory.join("config.toml"), config).expect("a file");
        let log = std::fs::File::create(directory.join("log")).expect("a file");
        let mut command = Command::new("containerd");
        command.arg("-c").arg(directory.join("config.toml")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = command.spawn().expect("containerd is there");
        let containerd = Self { directory, daemon };
        let answers = || containerd.ctr(&["version"]).status.success().then_some(());
        let started = wait_until(PATIENCE, answers);
        let log = corebox_sys::fs::read_to_string(containerd.directory.join("log")).unwrap_or_default();
        assert!(started.is_some(), "containerd does not start: {log}");
        containerd
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.directory.join("grpc")).args(arguments).stdin(Stdio::null());
        command.output().expect("ctr is there")
    }

    fn run(&self, options: &[&str], name: &str, program: &[&str]) -> Output {
        let binary = self.directory.join("corebox-oci").display().to_string();
        let root = self.directory.join("rootfs").display().to_string();
        self.ctr(&[&["run", "--rootfs", "--runc-binary", &binary], options, &[&root, name], program].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for name in ["one", "two", "three"] {
            self.ctr(&["task", "rm", "--force", name]);
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn runs_containers_of_containerd() {
    const TEST: &str = "runs_containers_of_containerd";
    if !require_root(TEST) || !require_programs(TEST, &["containerd", "ctr", "containerd-shim-runc-v2", "busybox"]) {
        return;
    }
    let containerd = Containerd::start();
    let hello = containerd.run(&["--rm"], "one", &["/bin/echo", "hello"]);
    assert!(hello.status.success() && said(&hello).contains("hello"), "{}", said(&hello));
    assert_eq!(containerd.run(&["--rm"], "two", &["/bin/sh", "-c", "exit 4"]).status.code(), Some(4));
    let long = containerd.run(&["-d"], "three", &["/bin/sleep", "1000"]);
    assert!(long.status.success(), "{}", said(&long));
    let does = |arguments: &[&str]| {
        let output = containerd.ctr(arguments);
        assert!(output.status.success(), "ctr {}: {}", arguments.join(" "), said(&output));
        said(&output)
    };
    assert!(does(&["task", "exec", "--exec-id", "more", "three", "/bin/ps"]).contains("sleep 1000"));
    does(&["task", "pause", "three"]);
    assert!(does(&["task", "ls"]).contains("PAUSED"));
    does(&["task", "resume", "three"]);
    does(&["task", "kill", "--signal", "KILL", "three"]);
    let stopped = || said(&containerd.ctr(&["task", "ls"])).contains("STOPPED").then_some(());
    wait_until(PATIENCE, stopped).expect("it ends");
    containerd.ctr(&["task", "rm", "three"]);
    does(&["container", "rm", "three"]);
    let state = Path::new("/run/containerd/runc/default/three");
    assert!(!state.exists(), "its state is gone");
}
