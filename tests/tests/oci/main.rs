//! Conformance with runtime-spec, seen from inside containers: each case runs on corebox and on the OCI runtimes that
//! this machine has besides (crun, runc). A case is what the specification says; where both others agree with each other
//! against corebox, the case or corebox is wrong.

mod joined;

use corebox_tests::{corebox, program, require_programs, require_root, wait_until};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
static COUNT: AtomicU32 = AtomicU32::new(0);
const PREFIX: &str = "corebox-oci-test-";

/// A bundle with busybox; removed with the value.
struct Bundle {
    directory: PathBuf,
    config: Value,
}

impl Bundle {
    fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = Path::new("/var/tmp").join(format!("{PREFIX}{}-{number}", std::process::id()));
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys", "root"] {
            corebox_sys::fs::create_dir_all(directory.join("rootfs").join(name)).expect("a directory");
        }
        let busybox = program("busybox").expect("checked before");
        std::fs::copy(&busybox, directory.join("rootfs/bin/busybox")).expect("a copy of busybox");
        let names = Command::new(&busybox).arg("--list").output().expect("busybox runs");
        for name in text(&names.stdout).lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", directory.join("rootfs/bin").join(name)).expect("a link");
        }
        let made = Command::new(corebox().expect("built")).args(["oci", "spec", "--bundle"]).arg(&directory).output();
        assert!(made.expect("corebox runs").status.success());
        let read = corebox_sys::fs::read(directory.join("config.json")).expect("written just now");
        let mut config: Value = serde_json::from_slice(&read).expect("JSON");
        config["process"]["terminal"] = false.into();
        // What the oldest of the peers knows.
        config["ociVersion"] = "1.0.2".into();
        config["root"] = json!({"path": "rootfs"});
        config["process"].as_object_mut().expect("an object").remove("rlimits");
        Self { directory, config }
    }

    /// Sets a value by its JSON pointer.
    fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        self.config.pointer_mut(parent).expect("it has a parent")[name] = value;
        self
    }

    fn add(mut self, pointer: &str, value: Value) -> Self {
        self.config.pointer_mut(pointer).and_then(Value::as_array_mut).expect("a list").push(value);
        self
    }

    fn script(self, script: &str) -> Self {
        self.set("/process/args", json!(["sh", "-c", script]))
    }

    fn write(&self) {
        corebox_sys::fs::write(self.directory.join("config.json"), self.config.to_string()).expect("a file");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A runtime under test, with state of its own.
struct Runtime {
    name: &'static str,
    program: PathBuf,
    state: PathBuf,
}

impl Runtime {
    fn corebox() -> Self {
        Self::of("corebox", corebox().expect("built"))
    }

    fn of(name: &'static str, program: PathBuf) -> Self {
        // Its own, as it goes with the value and tests run side by side.
        let state = Path::new("/run").join(new_id());
        corebox_sys::fs::create_dir_all(&state).expect("a directory");
        Self { name, program, state }
    }

    /// Those others that run anything at all on this machine (crun 1.8 does not where version 2 has controllers beside
    /// version 1).
    fn peers() -> Vec<Self> {
        static USABLE: OnceLock<Vec<&'static str>> = OnceLock::new();
        let works = |name: &&'static str| {
            let Some(program) = program(name) else { return false };
            let (code, _, said) = Self::of(name, program).run(&Bundle::new().script("true"));
            if code != Some(0) {
                eprintln!("SKIP comparison with {name}: {}", said.trim());
            }
            code == Some(0)
        };
        let usable = USABLE.get_or_init(|| ["crun", "runc"].into_iter().filter(works).collect());
        usable.iter().filter_map(|name| Some(Self::of(name, program(name)?))).collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        if self.name == "corebox" {
            command.arg("oci");
        }
        command.arg("--root").arg(&self.state).args(arguments).stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the runtime is there")
    }

    fn run(&self, bundle: &Bundle) -> (Option<i32>, String, String) {
        bundle.write();
        let id = new_id();
        let output = self.output(&["run", "--bundle", bundle.directory.to_str().expect("ours"), &id]);
        if !output.status.success() {
            self.output(&["delete", "--force", &id]);
        }
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// `create`s a container that goes with the value. Its streams are no pipes: a runtime that is gone leaves them open.
    fn create(&self, bundle: &Bundle) -> Container<'_> {
        bundle.write();
        let id = new_id();
        let mut command = self.command(&["create", "--bundle", bundle.directory.to_str().expect("ours"), &id]);
        let log = bundle.directory.join("create.log");
        let file = std::fs::File::create(&log).expect("a file");
        command.stdout(file.try_clone().expect("a copy")).stderr(file);
        let status = command.status().expect("the runtime is there");
        assert!(status.success(), "{}", corebox_sys::fs::read_to_string(&log).unwrap_or_default());
        Container { runtime: self, id }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

struct Container<'a> {
    runtime: &'a Runtime,
    id: String,
}

impl Container<'_> {
    fn status(&self) -> String {
        let output = self.runtime.output(&["state", &self.id]);
        let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        state["status"].as_str().unwrap_or("none").to_owned()
    }
    fn wait(&self, status: &str) {
        assert!(
            wait_until(PATIENCE, || (self.status() == status).then_some(())).is_some(),
            "{status}: {}",
            self.status()
        );
    }
    fn does(&self, verb: &str, more: &[&str]) -> bool {
        self.runtime.output(&[&[verb, &self.id], more].concat()).status.success()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.runtime.output(&["delete", "--force", &self.id]);
    }
}

fn new_id() -> String {
    format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn ready(test: &str) -> bool {
    require_root(test) && require_programs(test, &["busybox"])
}

/// One case: what a container with this configuration prints.
fn says(bundle: Bundle, expected: &str) {
    let (code, out, err) = Runtime::corebox().run(&bundle);
    let others: Vec<(&str, String)> = Runtime::peers().iter().map(|peer| (peer.name, peer.run(&bundle).1)).collect();
    assert!(
        code == Some(0) && out == expected,
        "corebox ({code:?}): {out}{err}\nexpected: {expected}\nothers: {others:?}"
    );
    let against = others.len() > 1 && others.iter().all(|(_, other)| *other == others[0].1 && *other != out);
    assert!(!against, "both others say {:?}, corebox and the expectation {out:?}", others[0].1);
}

/// One case: a configuration that every runtime must refuse; corebox by this word.
fn refused(bundle: Bundle, word: &str) {
    let (code, _, err) = Runtime::corebox().run(&bundle);
    assert!(code == Some(125) && err.contains(word) && !err.contains("panicked"), "corebox ({code:?}): {err}");
}

#[test]
fn identity_and_limits() {
    if !ready("identity_and_limits") {
        return;
    }
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o077});
    says(Bundle::new().set("/process/user", user).script("id -u; id -g; id -G; umask"), "1000\n1001\n1001 5 6\n0077\n");
    let limits =
        json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    says(Bundle::new().set("/process/rlimits", limits).script("ulimit -Sn; ulimit -Hn; ulimit -Hc"), "100\n200\n0\n");
    says(Bundle::new().set("/process/oomScoreAdj", json!(123)).script("cat /proc/self/oom_score_adj"), "123\n");
    says(Bundle::new().set("/process/cwd", json!("/tmp")).script("pwd"), "/tmp\n");
    let env = json!(["PATH=/bin", "A=b c", "HOME=/x"]);
    says(Bundle::new().set("/process/env", env).script("echo \"$A\" $HOME"), "b c /x\n");
}

#[test]
fn capabilities() {
    if !ready("capabilities") {
        return;
    }
    let sets = json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
    let script = "grep -E 'Cap|NoNewPrivs' /proc/self/status | tr -s '\\t\\n' '  '";
    let root = Bundle::new().set("/process/capabilities", sets.clone()).set("/process/noNewPrivileges", json!(true));
    let expected = "CapInh: 0000000000000020 CapPrm: 0000000000000021 CapEff: 0000000000000021 CapBnd: 0000000000000021 \
                    CapAmb: 0000000000000020 NoNewPrivs: 1 ";
    says(root.script(script), expected);
    let user = Bundle::new().set("/process/capabilities", sets).set("/process/user", json!({"uid": 7, "gid": 7}));
    let expected = "CapInh: 0000000000000020 CapPrm: 0000000000000020 CapEff: 0000000000000020 CapBnd: 0000000000000021 \
                    CapAmb: 0000000000000020 NoNewPrivs: 0 ";
    says(user.set("/process/noNewPrivileges", json!(false)).script(script), expected);
}

#[test]
fn mounts_and_devices() {
    if !ready("mounts_and_devices") {
        return;
    }
    let tmpfs = json!({"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "mode=1711", "size=64k"]});
    let script = "stat -c %a /m; grep ' /m ' /proc/mounts | cut -d' ' -f3,4 | tr , ' ' | grep -o -E '^tmpfs|nosuid|noexec|size=64k'";
    says(Bundle::new().add("/mounts", tmpfs).script(script), "1711\ntmpfs\nnosuid\nnoexec\nsize=64k\n");
    let bundle = Bundle::new();
    corebox_sys::fs::create_dir_all(bundle.directory.join("host/below")).expect("a directory");
    let bind =
        json!({"destination": "/new/place", "source": "host", "type": "none", "options": ["rbind", "ro", "nodev"]});
    says(
        bundle.add("/mounts", bind).script("ls /new/place; touch /new/place/x 2>/dev/null || echo refused"),
        "below\nrefused\n",
    );
    let nodes = "cd /dev; ls -l null zero full random urandom tty | tr -s ' ' | cut -d' ' -f1,5,6 | tr -d ' '";
    says(
        Bundle::new().script(nodes),
        "crw-rw-rw-1,7\ncrw-rw-rw-1,3\ncrw-rw-rw-1,8\ncrw-rw-rw-5,0\ncrw-rw-rw-1,9\ncrw-rw-rw-1,5\n",
    );
    says(
        Bundle::new().script("cd /dev; for l in fd stdin stdout stderr ptmx; do readlink $l; done"),
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n",
    );
    let device =
        json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4}]);
    says(Bundle::new().set("/linux/devices", device).script("stat -c '%a %u %g %t:%T' /dev/mine"), "640 3 4 1:5\n");
    says(Bundle::new().set("/root/readonly", json!(true)).script("touch /x 2>/dev/null || echo refused"), "refused\n");
    let masked = Bundle::new().set("/linux/maskedPaths", json!(["/etc/secret", "/root", "/nowhere"]));
    corebox_sys::fs::write(masked.directory.join("rootfs/etc/secret"), "secret").expect("a file");
    corebox_sys::fs::write(masked.directory.join("rootfs/root/file"), "secret").expect("a file");
    let masked = masked.set("/linux/readonlyPaths", json!(["/tmp"]));
    says(masked.script("cat /etc/secret; ls /root; touch /tmp/x 2>/dev/null || echo refused"), "refused\n");
    let links = Bundle::new();
    std::os::unix::fs::symlink("../../../../../../../..", links.directory.join("rootfs/up")).expect("a link");
    let through = json!({"destination": "/up/inside", "type": "tmpfs", "source": "tmpfs"});
    says(links.add("/mounts", through).script("grep -c ' /inside ' /proc/mounts"), "1\n");
    assert!(!Path::new("/inside").exists(), "a link of the root directory led out");
}

#[test]
fn namespaces_and_kernel_parameters() {
    if !ready("namespaces_and_kernel_parameters") {
        return;
    }
    says(
        Bundle::new().set("/hostname", json!("inside")).script("hostname; echo $$; ls /sys/class/net"),
        "inside\n1\nlo\n",
    );
    let sysctl = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4321"});
    says(
        Bundle::new().set("/linux/sysctl", sysctl).script("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax"),
        "1\n4321\n",
    );
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let user = Bundle::new().add("/linux/namespaces", json!({"type": "user"})).set("/linux/uidMappings", maps.clone());
    says(
        user.set("/linux/gidMappings", maps)
            .script("id -u; tr -s ' ' </proc/self/uid_map; test -c /dev/null && echo device"),
        "0\n 0 100000 1000\ndevice\n",
    );
    let mut holder =
        Command::new("unshare").args(["--uts", "--net", "sleep", "1000"]).spawn().expect("unshare is there");
    let inode =
        |kind: &str, pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).map(|l| l.display().to_string());
    let own = inode("net", std::process::id()).expect("readable");
    let of_holder =
        wait_until(PATIENCE, || inode("net", holder.id()).ok().filter(|net| *net != own)).expect("it starts");
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", holder.id());
    let joined = Bundle::new().set(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc"},
        {"type": "network", "path": path("net")}, {"type": "uts", "path": path("uts")}]),
    );
    let mut joined = joined.script("readlink /proc/self/ns/net");
    joined.config.as_object_mut().expect("an object").remove("hostname");
    says(joined, &format!("{of_holder}\n"));
    holder.kill().expect("ours");
    holder.wait().expect("ours");
}

#[test]
fn lifecycle() {
    if !ready("lifecycle") {
        return;
    }
    for runtime in std::iter::once(Runtime::corebox()).chain(Runtime::peers()) {
        let bundle = Bundle::new().script("trap 'exit 3' TERM; touch /ran; while :; do sleep 0.02; done");
        let container = runtime.create(&bundle);
        assert_eq!(container.status(), "created", "{}", runtime.name);
        assert!(!bundle.directory.join("rootfs/ran").exists(), "{}: nothing runs before `start`", runtime.name);
        let again = runtime.output(&["create", "--bundle", bundle.directory.to_str().expect("ours"), &container.id]);
        assert!(!again.status.success(), "{}: an id is taken once", runtime.name);
        assert!(container.does("start", &[]), "{}", runtime.name);
        container.wait("running");
        wait_until(PATIENCE, || bundle.directory.join("rootfs/ran").exists().then_some(())).expect("the program runs");
        assert!(!container.does("start", &[]) && !container.does("delete", &[]), "{}: it runs", runtime.name);
        assert!(container.does("kill", &["TERM"]), "{}", runtime.name);
        container.wait("stopped");
        assert!(!container.does("kill", &["TERM"]), "{}: it is stopped", runtime.name);
        assert!(container.does("delete", &[]), "{}", runtime.name);
        assert!(!container.does("state", &[]) && !container.does("delete", &[]), "{}: it is gone", runtime.name);
    }
}

#[test]
fn hooks_run_at_their_points() {
    if !ready("hooks_run_at_their_points") {
        return;
    }
    let bundle = Bundle::new();
    let log = bundle.directory.join("log");
    // The state comes on standard input: its status and id are what a hook writes down.
    let hook = |point: &str| {
        let script =
            format!("read -r state; echo {point} $(echo \"$state\" | grep -o '\"id\":\"[^\"]*\"') >>{}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 10}])
    };
    let points = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let hooks: Value =
        points.iter().map(|point| ((*point).to_owned(), hook(point))).collect::<serde_json::Map<_, _>>().into();
    let bundle = bundle.set("/hooks", hooks).script("true");
    let runtime = Runtime::corebox();
    let container = runtime.create(&bundle);
    let read = || corebox_sys::fs::read_to_string(&log).unwrap_or_default();
    let line = |point: &str| format!("{point} \"id\":\"{}\"\n", container.id);
    let before: String = points[..3].iter().map(|point| line(point)).collect();
    assert_eq!(read(), before);
    assert!(container.does("start", &[]));
    assert_eq!(read(), before.clone() + &line("poststart"));
    container.wait("stopped");
    assert!(container.does("delete", &[]));
    assert_eq!(read(), before + &line("poststart") + &line("poststop"));
    let slow = json!({"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]});
    refused(Bundle::new().set("/hooks", slow), "did not end within 1 s");
    let failing = json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]});
    refused(Bundle::new().set("/hooks", failing), "why");
}

#[test]
fn more_processes() {
    if !ready("more_processes") {
        return;
    }
    let runtime = Runtime::corebox();
    let bundle = Bundle::new().set("/process/args", json!(["sleep", "1000"]));
    let container = runtime.create(&bundle);
    assert!(container.does("start", &[]));
    let exec = |more: &[&str]| {
        let output = runtime.output(&[&["exec"], more].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let id = container.id.as_str();
    let options = [
        "--user",
        "1000:7",
        "--cwd",
        "/tmp",
        "--env",
        "A=b",
        "--cap",
        "CAP_KILL",
        id,
        "sh",
        "-c",
        "id -u; id -g; pwd; echo $A",
    ];
    assert_eq!(exec(&options), (Some(0), "1000\n7\n/tmp\nb\n".to_owned(), String::new()));
    assert_eq!(exec(&[id, "sh", "-c", "exit 9"]).0, Some(9));
    assert_eq!(exec(&[id, "nosuch"]).0, Some(127));
    assert_eq!(exec(&[id, "/etc"]).0, Some(126));
    let same = |kind: &str| {
        exec(&[id, "readlink", &format!("/proc/self/ns/{kind}")]).1
            == exec(&[id, "readlink", &format!("/proc/1/ns/{kind}")]).1
    };
    assert!(["net", "mnt", "pid", "ipc", "uts", "cgroup"].iter().all(|kind| same(kind)));
    let file = bundle.directory.join("process.json");
    let process =
        json!({"args": ["sh", "-c", "echo $X"], "cwd": "/", "env": ["PATH=/bin", "X=y"], "user": {"uid": 0, "gid": 0}});
    corebox_sys::fs::write(&file, process.to_string()).expect("a file");
    let process = exec(&["--process", file.to_str().expect("ours"), id]);
    assert_eq!(process, (Some(0), "y\n".to_owned(), String::new()));
    assert!(runtime.output(&["ps", "--format", "json", id]).status.success());
    assert!(container.does("pause", &[]));
    assert_eq!(container.status(), "paused");
    assert!(container.does("resume", &[]));
    assert!(container.does("kill", &["KILL"]));
    container.wait("stopped");
    assert!(exec(&[id, "true"]).2.contains("container not running"));
}

#[test]
fn refuses_by_name() {
    if !ready("refuses_by_name") {
        return;
    }
    refused(Bundle::new().set("/root/path", json!("nowhere")), "nowhere: ENOENT");
    refused(Bundle::new().set("/process/args", json!([])), "`process.args` is empty");
    refused(Bundle::new().set("/process/cwd", json!("tmp")), "`process.cwd`");
    refused(Bundle::new().set("/process/capabilities/bounding", json!(["CAP_NOTHING"])), "config.json is not valid");
    refused(Bundle::new().set("/linux/sysctl", json!({"vm.swappiness": "1"})), "vm.swappiness belongs to no namespace");
    refused(Bundle::new().set("/linux/resources/rdma", json!({"mlx5_0": {"hcaHandles": 3}})), "rdma");
    refused(Bundle::new().set("/linux/resources/unified", json!({"../escape": "1"})), "unified");
    refused(Bundle::new().set("/linux/cgroupsPath", json!("/../up")), "`..`");
    refused(Bundle::new().add("/linux/namespaces", json!({"type": "pid"})), "`pid` twice");
    refused(Bundle::new().add("/linux/namespaces", json!({"type": "user"})), "uidMappings");
    refused(Bundle::new().add("/mounts", json!({"destination": "/x", "type": "nosuchfs", "source": "x"})), "nosuchfs");
    refused(Bundle::new().set("/ociVersion", json!("2.0.0")), "ociVersion");
    // By name, either as a module that is not there or as a profile or label that the module does not know.
    refused(Bundle::new().set("/process/apparmorProfile", json!("nosuch")), "`process.apparmorProfile`");
    refused(Bundle::new().set("/process/selinuxLabel", json!("nosuch")), "`process.selinuxLabel`");
    for verb in ["checkpoint", "restore"] {
        let output = Runtime::corebox().output(&[verb, "--image-path", "/nowhere", "name"]);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(125) && said.contains(&format!("`{verb}` is not supported")), "{said}");
    }
    for hostile in ["", "{", "[]", "null", "{\"process\":{\"args\":3}}", "\u{0}"] {
        let bundle = Bundle::new();
        corebox_sys::fs::write(bundle.directory.join("config.json"), hostile).expect("a file");
        let output =
            Runtime::corebox().output(&["run", "--bundle", bundle.directory.to_str().expect("ours"), &new_id()]);
        let err = text(&output.stderr);
        assert!(
            output.status.code() == Some(125) && err.contains("config.json") && !err.contains("panicked"),
            "{hostile:?}: {err}"
        );
    }
    for id in ["../x", "a/b", "", "."] {
        let output = Runtime::corebox().output(&["state", id]);
        assert_eq!(output.status.code(), Some(125), "{id:?}: {}", text(&output.stderr));
    }
}

/// What a container could leave: state, mounts, cgroups, processes.
fn leftovers(runtime: &Runtime, id: &str, bundle: &Bundle) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(runtime.state.join(id).exists().then(|| "state".to_owned()));
    let rootfs = bundle.directory.join("rootfs").display().to_string();
    let mounts = corebox_sys::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    left.extend(mounts.contains(&rootfs).then(|| "mount".to_owned()));
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", id]).output().expect("find is there");
    left.extend(text(&found.stdout).lines().map(str::to_owned));
    for process in corebox_sys::fs::list("/proc").expect("readable") {
        let root =
            std::fs::read_link(format!("/proc/{process}/root")).map(|r| r.display().to_string()).unwrap_or_default();
        left.extend((root == rootfs).then(|| format!("process {process}")));
    }
    left
}

#[test]
fn killed_at_any_step_it_leaves_nothing_after_delete() {
    const TEST: &str = "killed_at_any_step_it_leaves_nothing_after_delete";
    if !ready(TEST) {
        return;
    }
    let runtime = Runtime::corebox();
    let bundle = Bundle::new().set("/process/args", json!(["sleep", "1000"]));
    bundle.write();
    let path = bundle.directory.to_str().expect("ours").to_owned();
    let steps = [
        "check",
        "config",
        "facts",
        "plan",
        "terminal",
        "state",
        "record",
        "listen",
        "sources",
        "socket",
        "clone",
        "ids",
        "limits",
        "cgroup",
        "ready",
        "process",
        "namespaces",
        "root",
        "mounts",
        "devices",
        "cover",
        "pivot",
        "identity",
    ];
    for step in steps {
        let id = new_id();
        let mut command = runtime.command(&["create", "--bundle", &path, &id]);
        command.env("COREBOX_KILL_AT", step).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().expect("corebox runs");
        assert!(!status.success(), "step `{step}` is reached");
        let deleted = runtime.output(&["delete", "--force", &id]);
        assert!(deleted.status.success(), "step `{step}`: {}", text(&deleted.stderr));
        let clean = wait_until(PATIENCE, || leftovers(&runtime, &id, &bundle).is_empty().then_some(()));
        assert!(clean.is_some(), "step `{step}`: {:?}", leftovers(&runtime, &id, &bundle));
        // The same id again, without a delete in between.
        runtime
            .command(&["create", "--bundle", &path, &id])
            .env("COREBOX_KILL_AT", step)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("corebox runs");
        let log = std::fs::File::create(bundle.directory.join("again")).expect("a file");
        let again = runtime.command(&["create", "--bundle", &path, &id]).stdout(Stdio::null()).stderr(log).status();
        let said = corebox_sys::fs::read_to_string(bundle.directory.join("again")).unwrap_or_default();
        assert!(again.expect("corebox runs").success(), "step `{step}`: {said}");
        assert!(runtime.output(&["delete", "--force", &id]).status.success(), "step `{step}`");
        assert!(leftovers(&runtime, &id, &bundle).is_empty(), "step `{step}`: {:?}", leftovers(&runtime, &id, &bundle));
    }
}

#[test]
fn full_state_directory_and_no_pids() {
    const TEST: &str = "full_state_directory_and_no_pids";
    if !ready(TEST) || !require_programs(TEST, &["unshare"]) {
        return;
    }
    let bundle = Bundle::new().script("true");
    bundle.write();
    let program = corebox().expect("built");
    let script = format!(
        "mount -t tmpfs -o size=4k,nr_inodes=3 none /mnt && {} oci --root /mnt run --bundle {} full; echo code=$?; ls -A /mnt",
        program.display(),
        bundle.directory.display()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().expect("unshare runs");
    let said = text(&output.stderr);
    assert_eq!(text(&output.stdout), "code=125\n", "{said}");
    assert!(said.contains("ENOSPC") && !said.contains("panicked"), "{said}");
    let few = bundle
        .set("/linux/resources", json!({"pids": {"limit": 1}}))
        .script("echo shell; (true) || true; sleep 0 & wait; true");
    let (_, out, err) = Runtime::corebox().run(&few);
    assert!(out.starts_with("shell\n") && err.contains("fork"), "{out}{err}");
}
