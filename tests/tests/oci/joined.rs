//! What the caller hands over: cgroups for one more process, sockets.

use super::{Bundle, Runtime, new_id, ready, text};
use corebox_tests::require_programs;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `exec --cgroup`: below the container's own, and nowhere else.
#[test]
fn a_process_in_a_cgroup_below() {
    if !ready("a_process_in_a_cgroup_below") {
        return;
    }
    let runtime = Runtime::corebox();
    let bundle = Bundle::new().set("/process/args", json!(["sleep", "1000"]));
    let container = runtime.create(&bundle);
    assert!(container.does("start", &[]));
    let id = container.id.as_str();
    let exec = |cgroup: &[&str]| {
        let options: Vec<&str> = cgroup.iter().flat_map(|path| ["--cgroup", path]).collect();
        let output = runtime.output(&[&["exec"], options.as_slice(), &[id, "sleep", "0"]].concat());
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(exec(&["/"]), (Some(0), String::new()));
    for (bad, why) in [("/../up", "`..`"), ("/nosuch", "is not there"), ("nosuch:/", "")] {
        let (code, said) = exec(&[bad]);
        assert!(code == Some(125) && said.contains("--cgroup") && said.contains(why), "{bad}: {said}");
    }
    assert_eq!(exec(&["/", "/"]).0, Some(125), "a path for all and another");
    let found =
        Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", id]).output().expect("find is there");
    let found = text(&found.stdout);
    let directories: Vec<PathBuf> = found.lines().map(|line| Path::new(line).join("sub")).collect();
    assert!(!directories.is_empty(), "the container has cgroups");
    for directory in &directories {
        corebox_sys::fs::create_dir_all(directory).expect("a cgroup");
        let parent = directory.parent().expect("the container's");
        // A new cpuset of version 1 has neither.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if parent.join("cpuset.sched_load_balance").exists() {
                let value = corebox_sys::fs::read_to_string(parent.join(file)).expect("readable");
                corebox_sys::fs::write(directory.join(file), value.trim()).expect("writable");
            }
        }
    }
    let detached = [&["exec", "--detach", "--cgroup", "/sub"][..], &[id, "sleep", "1000"]].concat();
    let mut detached = runtime.command(&detached);
    assert!(detached.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("corebox runs").success());
    for directory in &directories {
        let members = corebox_sys::fs::read_to_string(directory.join("cgroup.procs")).expect("readable");
        assert_eq!(members.lines().count(), 1, "{}", directory.display());
    }
}

/// Sockets of a service manager reach the program (sd_listen_fds(3)).
#[test]
fn passes_sockets_on() {
    if !ready("passes_sockets_on") || !require_programs("passes_sockets_on", &["sh"]) {
        return;
    }
    let runtime = Runtime::corebox();
    let bundle = Bundle::new().script("echo $LISTEN_FDS $LISTEN_PID; cat <&3; test -e /proc/self/fd/4 || echo no more");
    bundle.write();
    corebox_sys::fs::write(bundle.directory.join("given"), "given\n").expect("a file");
    let path = bundle.directory.display();
    for (pid, expected) in [("$$", "1 1\ngiven\nno more\n"), ("1", "\n")] {
        let inner = runtime.command(&["run", "--bundle", &path.to_string(), &new_id()]);
        let mut outer = Command::new("sh");
        outer
            .arg("-c")
            .arg(format!("exec 3<{path}/given; export LISTEN_FDS=1 LISTEN_PID={pid}; exec \"$@\""))
            .arg("sh");
        outer.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
        let output = outer.output().expect("sh runs");
        assert!(text(&output.stdout).starts_with(expected), "{pid}: {output:?}");
    }
}
