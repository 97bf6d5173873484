//! podman with corebox as its runtime: what people who have podman already do with it, as root and as an ordinary user.
//!
//! Images come from a tar of busybox, nothing from a registry. Storage, run directory and configuration are the test's
//! own, so the machine's podman is not touched.

use corebox_tests::{corebox, program, require_programs, require_root, skip, wait_until};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
/// An ordinary user with ranges of subordinate ids: there while the test that needs it runs, and of this program alone, as
/// another run of it may be at the same place.
fn user() -> String {
    user_of(std::process::id())
}

fn user_of(pid: impl std::fmt::Display) -> String {
    format!("corebox-podman-{pid}")
}

/// A storage of its own, removed with the value, with the user if one was made. One at a time: podman's locks are the
/// machine's.
struct Podman {
    directory: PathBuf,
    /// As an ordinary user.
    rootless: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Podman {
    fn drop(&mut self) {
        if self.rootless {
            // Ends the process that keeps the user's namespaces.
            self.output(&["system", "migrate"]);
            let _ = Command::new("userdel").args(["--force", &user()]).output();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

static TURN: Mutex<()> = Mutex::new(());

impl Podman {
    /// As root; `None` with a SKIP line where something is missing.
    fn ready(test: &str) -> Option<Self> {
        Self::prepare(test, false)
    }

    fn rootless(test: &str) -> Option<Self> {
        if !require_programs(test, &["newuidmap", "setpriv", "useradd", "userdel"]) {
            return None;
        }
        Self::prepare(test, true)
    }

    fn prepare(test: &str, rootless: bool) -> Option<Self> {
        if !require_root(test) || !require_programs(test, &["podman", "conmon", "busybox"]) {
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let podman = Self { directory: make_directory(rootless), rootless, _turn: turn };
        let tar = podman.directory.join("busybox.tar");
        podman.must(&["import", tar.to_str().expect("a path of ours"), "bb"]);
        Some(podman)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let path = |name: &str| self.directory.join(name);
        let mut command = if self.rootless {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &user(), "--regid", &user(), "--init-groups", "podman"]);
            command
        } else {
            Command::new("podman")
        };
        command.arg("--root").arg(path("root")).arg("--runroot").arg(path("run"));
        command.arg("--runtime").arg(path("corebox-oci"));
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]).args(arguments);
        command.env("CONTAINERS_CONF", path("containers.conf")).env("HOME", &self.directory);
        command.env("XDG_RUNTIME_DIR", path("xdg")).env_remove("DBUS_SESSION_BUS_ADDRESS");
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("podman is there")
    }

    /// Standard output of a command that must succeed.
    fn must(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "podman {}:\n{}", arguments.join(" "), text(&output.stderr));
        text(&output.stdout)
    }

    /// `podman run --rm --network none OPTIONS bb sh -c SCRIPT`: its output.
    fn run(&self, options: &[&str], script: &str) -> String {
        self.must(&[&["run", "--rm", "--network", "none"], options, &["bb", "sh", "-c", script]].concat())
    }

    /// Its exit code and what it said.
    fn fails(&self, options: &[&str], command: &[&str]) -> (Option<i32>, String) {
        let output = self.output(&[&["run", "--rm", "--network", "none"], options, &["bb"], command].concat());
        (output.status.code(), text(&output.stderr))
    }

    /// A container that sleeps; removed with the value.
    fn sleeper(&self, name: &'static str, options: &[&str]) -> Sleeper<'_> {
        self.must(&[&["run", "-d", "--name", name, "--network", "none"], options, &["bb", "sleep", "1000"]].concat());
        Sleeper { podman: self, name }
    }
}

struct Sleeper<'a> {
    podman: &'a Podman,
    name: &'static str,
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.podman.output(&["rm", "-f", "-t", "0", self.name]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const PREFIX: &str = "corebox-podman-test-";

/// Below /var/tmp, as podman wants real files; those of test programs that are gone are removed, with their users.
fn make_directory(rootless: bool) -> PathBuf {
    let parent = Path::new("/var/tmp");
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if let Some(pid) = pid.filter(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("userdel").args(["--force", &user_of(pid)]).output();
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let kind = if rootless { "user" } else { "root" };
    let directory = parent.join(format!("{PREFIX}{}-{kind}", std::process::id()));
    for name in ["xdg", "tree/bin", "tree/etc", "tree/tmp", "tree/dev", "tree/proc", "tree/sys", "tree/root"] {
        corebox_sys::fs::create_dir_all(directory.join(name)).expect("a directory");
    }
    std::fs::copy(corebox().expect("built"), directory.join("corebox-oci")).expect("a copy of corebox");
    fill(&directory);
    let conf = "[containers]\ndefault_ulimits = [\"nofile=512:1024\", \"nproc=4000:4000\"]\n[engine]\nevents_logger = \"file\"\n";
    corebox_sys::fs::write(directory.join("containers.conf"), conf).expect("a file");
    if rootless {
        make_user();
        let done = Command::new("chown").arg("-R").arg(format!("{0}:{0}", user())).arg(&directory).status();
        assert!(done.expect("chown is there").success());
    }
    directory
}

/// The tar of the image.
fn fill(directory: &Path) {
    let tree = directory.join("tree");
    let busybox = program("busybox").expect("checked before");
    std::fs::copy(&busybox, tree.join("bin/busybox")).expect("a copy of busybox");
    let names = Command::new(&busybox).arg("--list").output().expect("busybox runs");
    for name in text(&names.stdout).lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(name)).expect("a link");
    }
    std::fs::set_permissions(tree.join("tmp"), std::fs::Permissions::from_mode(0o1777)).expect("ours");
    let accounts = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
    corebox_sys::fs::write(tree.join("etc/passwd"), accounts).expect("a file");
    corebox_sys::fs::write(tree.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").expect("a file");
    let tar = Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(directory.join("busybox.tar")).arg(".").status();
    assert!(tar.expect("tar is there").success());
    let _ = std::fs::remove_dir_all(&tree);
}

fn make_user() {
    let made = Command::new("useradd").args(["--no-create-home", &user()]).output().expect("useradd is there");
    assert!(made.status.success(), "{}", text(&made.stderr));
}

#[test]
fn runs_and_returns_the_exit_code() {
    let Some(podman) = Podman::ready("runs_and_returns_the_exit_code") else { return };
    assert_eq!(podman.run(&[], "echo hello"), "hello\n");
    assert_eq!(podman.fails(&[], &["sh", "-c", "exit 7"]).0, Some(7));
    let (code, words) = podman.fails(&[], &["nosuch"]);
    assert_eq!(code, Some(127), "{words}");
    let (code, words) = podman.fails(&[], &["/etc"]);
    assert_eq!(code, Some(126), "{words}");
}

#[test]
fn lives_through_exec_pause_kill_logs_and_rm() {
    let Some(podman) = Podman::ready("lives_through_exec_pause_kill_logs_and_rm") else { return };
    let container = podman.sleeper("life", &[]);
    assert_eq!(
        podman.must(&["exec", "-u", "65534", "-w", "/tmp", "-e", "A=b", "life", "sh", "-c", "id -u; pwd; echo $A"]),
        "65534\n/tmp\nb\n"
    );
    assert_eq!(podman.output(&["exec", "life", "sh", "-c", "exit 5"]).status.code(), Some(5));
    podman.must(&["pause", "life"]);
    assert_eq!(podman.must(&["inspect", "-f", "{{.State.Status}}", "life"]).trim(), "paused");
    podman.must(&["unpause", "life"]);
    assert!(podman.must(&["top", "life"]).contains("sleep 1000"));
    assert!(podman.must(&["stats", "--no-stream", "life"]).contains("life"));
    podman.must(&["kill", "-s", "KILL", "life"]);
    assert_eq!(podman.must(&["wait", "life"]).trim(), "137");
    drop(container);
    podman.must(&["create", "--name", "said", "--network", "none", "bb", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(podman.output(&["start", "-a", "said"]).status.code(), Some(3));
    assert!(podman.must(&["logs", "said"]).contains("out"));
    podman.must(&["rm", "said"]);
    assert_eq!(podman.must(&["ps", "-aq"]), "");
}

#[test]
fn stops_with_term_and_then_kill() {
    let Some(podman) = Podman::ready("stops_with_term_and_then_kill") else { return };
    let ready = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    podman.must(&["run", "-d", "--name", "polite", "--network", "none", "bb", "sh", "-c", ready]);
    let polite = Sleeper { podman: &podman, name: "polite" };
    wait_until(PATIENCE, || podman.must(&["logs", "polite"]).contains("ready").then_some(())).expect("it starts");
    podman.must(&["stop", "-t", "10", "polite"]);
    assert_eq!(podman.must(&["inspect", "-f", "{{.State.ExitCode}}", "polite"]).trim(), "9");
    drop(polite);
    let stubborn = podman.sleeper("stubborn", &[]);
    podman.must(&["stop", "-t", "0", "stubborn"]);
    assert_eq!(podman.must(&["inspect", "-f", "{{.State.ExitCode}}", "stubborn"]).trim(), "137");
    drop(stubborn);
}

#[test]
fn gives_a_terminal() {
    let Some(podman) = Podman::ready("gives_a_terminal") else { return };
    if !require_programs("gives_a_terminal", &["script"]) {
        return;
    }
    let _container = podman.sleeper("tty", &[]);
    for arguments in [
        &["run", "--rm", "-it", "--network", "none", "bb", "sh", "-c", "test -t 0 && tty && ls -l /dev/console"][..],
        &["exec", "-it", "tty", "sh", "-c", "test -t 0 && tty"][..],
    ] {
        let inner = podman.command(arguments);
        let words: Vec<String> = inner.get_args().map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let mut outer = Command::new("script");
        outer.args(["-qec", &format!("podman {}", words.join(" ")), "/dev/null"]);
        outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = outer.stdin(Stdio::null()).output().expect("script runs");
        let said = text(&output.stdout);
        assert!(output.status.success() && said.contains("/dev/pts/0"), "{said}");
    }
}

#[test]
fn limits_resources() {
    let Some(podman) = Podman::ready("limits_resources") else { return };
    let limits = ["--cpuset-cpus", "0", "-m", "64m", "--pids-limit", "50"];
    let version_2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let files = if version_2 {
        "cd /sys/fs/cgroup; cat cpuset.cpus memory.max pids.max"
    } else {
        "cd /sys/fs/cgroup; cat cpuset/cpuset.cpus memory/memory.limit_in_bytes pids/pids.max"
    };
    if version_2 {
        let controllers = corebox_sys::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        if !["cpuset", "memory", "pids"].iter().all(|c| controllers.contains(c)) {
            skip!("limits_resources", "the controllers of cgroup version 2 are not here: {controllers}");
            return;
        }
    }
    assert_eq!(podman.run(&limits, &format!("nproc; {files}")), "1\n0\n67108864\n50\n");
    let both = ["--ulimit", "nofile=100:200", "--ulimit", "nproc=3000:3000"];
    assert_eq!(podman.run(&both, "ulimit -n; ulimit -Hn"), "100\n200\n");
}

#[test]
fn mounts_volumes() {
    let Some(podman) = Podman::ready("mounts_volumes") else { return };
    let volume = podman.directory.join("volume");
    corebox_sys::fs::create_dir_all(&volume).expect("a directory");
    corebox_sys::fs::write(volume.join("file"), "content\n").expect("a file");
    let option = |words: &str| format!("{}:/v:{words}", volume.display());
    assert_eq!(
        podman.run(&["-v", &option("ro")], "cat /v/file; touch /v/new 2>/dev/null || echo refused"),
        "content\nrefused\n"
    );
    assert_eq!(podman.run(&["-v", &option("rw")], "echo more >/v/new && cat /v/new"), "more\n");
    assert_eq!(corebox_sys::fs::read_to_string(volume.join("new")).expect("written inside"), "more\n");
    for (words, expected) in [("rw,rprivate", false), ("rw,rslave", true)] {
        // Optional fields of proc_pid_mountinfo(5): `master:` where events arrive from the host's shared mount.
        let shared = corebox_sys::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let host_shared = shared.lines().any(|line| line.split(' ').nth(4) == Some("/") && line.contains("shared:"));
        let line = podman.run(&["-v", &option(words)], "grep ' /v ' /proc/self/mountinfo");
        assert_eq!(line.contains("master:"), expected && host_shared, "{words}: {line}");
    }
    let output = podman.run(&["--read-only"], "touch /x 2>/dev/null || echo refused; touch /tmp/y && echo temporary");
    assert_eq!(output, "refused\ntemporary\n");
    let tmpfs = podman.run(
        &["--tmpfs", "/etc:size=1m,mode=700"],
        "grep -c nobody /etc/passwd; stat -c %a /etc; df -k /etc | tail -1",
    );
    assert!(tmpfs.starts_with("1\n700\n") && tmpfs.contains("1024"), "the tmpfs starts with what it hides: {tmpfs}");
    assert_eq!(podman.run(&["--device", "/dev/fuse"], "test -c /dev/fuse && echo there"), "there\n");
}

#[test]
fn sets_users_and_privileges() {
    let Some(podman) = Podman::ready("sets_users_and_privileges") else { return };
    assert_eq!(podman.run(&["--user", "1000:1001"], "id -u; id -g"), "1000\n1001\n");
    let some = podman.run(&["--cap-drop", "all", "--cap-add", "net_raw"], "grep -E 'Cap(Eff|Bnd)' /proc/self/status");
    assert_eq!(some, "CapEff:\t0000000000002000\nCapBnd:\t0000000000002000\n");
    assert!(podman.run(&["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status").ends_with("1\n"));
    assert!(!podman.run(&["--privileged"], "mount").contains(" /proc/"), "nothing is hidden from a privileged one");
    let maps = ["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"];
    assert_eq!(
        podman
            .run(&maps, "id -u; tr -s ' ' </proc/self/uid_map; test -c /dev/null && echo 1 >/dev/null && echo device"),
        "0\n 0 100000 1000\ndevice\n"
    );
    assert_eq!(podman.run(&["--sysctl", "kernel.msgmax=1234"], "cat /proc/sys/kernel/msgmax"), "1234\n");
}

#[test]
fn filters_system_calls() {
    let Some(podman) = Podman::ready("filters_system_calls") else { return };
    assert!(podman.run(&[], "grep Seccomp: /proc/self/status").ends_with("2\n"));
    assert!(podman.run(&["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status").ends_with("0\n"));
    let profile = podman.directory.join("no-mkdir.json");
    let rules = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    corebox_sys::fs::write(&profile, rules).expect("a file");
    let option = format!("seccomp={}", profile.display());
    let said = podman.run(&["--security-opt", &option], "mkdir /tmp/x 2>&1; touch /tmp/y && echo other calls work");
    assert!(said.contains("No space left on device") && said.ends_with("other calls work\n"), "{said}");
}

#[test]
fn has_networks() {
    let Some(podman) = Podman::ready("has_networks") else { return };
    let interfaces = |network: &str| podman.must(&["run", "--rm", "--network", network, "bb", "ls", "/sys/class/net"]);
    assert_eq!(interfaces("none"), "lo\n");
    let host: Vec<String> = corebox_sys::fs::list("/sys/class/net").expect("readable");
    assert_eq!(interfaces("host").split_whitespace().collect::<Vec<_>>(), host);
    assert_eq!(podman.run(&["--hostname", "somewhere"], "hostname"), "somewhere\n");
    let bridged = podman.output(&["run", "--rm", "--network", "bridge", "bb", "ls", "/sys/class/net"]);
    if bridged.status.success() {
        assert_eq!(text(&bridged.stdout), "eth0\nlo\n");
    } else {
        // Of podman, before any runtime is called: a kernel without bridges, or no netavark.
        assert!(!text(&bridged.stderr).contains("corebox-oci"), "{}", text(&bridged.stderr));
        skip!(
            "has_networks: bridge",
            "podman cannot make a bridge here: {}",
            text(&bridged.stderr).trim().replace('\n', " ")
        );
    }
}

#[test]
fn shares_namespaces_in_a_pod() {
    let Some(podman) = Podman::ready("shares_namespaces_in_a_pod") else { return };
    podman.must(&[
        "pod",
        "create",
        "--name",
        "pod",
        "--network",
        "none",
        "--infra-image",
        "localhost/bb",
        "--infra-command",
        "sleep 1000",
    ]);
    let first = podman.output(&["run", "-d", "--pod", "pod", "--name", "one", "bb", "sleep", "1000"]);
    let names =
        podman.output(&["run", "--rm", "--pod", "pod", "bb", "sh", "-c", "readlink /proc/self/ns/net; hostname"]);
    let of_first = podman.output(&["exec", "one", "sh", "-c", "readlink /proc/self/ns/net; hostname"]);
    podman.must(&["pod", "rm", "-f", "-t", "0", "pod"]);
    assert!(first.status.success() && names.status.success(), "{}{}", text(&first.stderr), text(&names.stderr));
    assert_eq!(text(&names.stdout), text(&of_first.stdout));
}

#[test]
fn checks_health_and_runs_an_init() {
    let Some(podman) = Podman::ready("checks_health_and_runs_an_init") else { return };
    let _container = podman.sleeper("healthy", &["--health-cmd", "test -d /tmp"]);
    podman.must(&["healthcheck", "run", "healthy"]);
    assert_eq!(podman.must(&["inspect", "-f", "{{.State.Health.Status}}", "healthy"]).trim(), "healthy");
    if program("catatonit").is_some() || Path::new("/usr/libexec/podman/catatonit").exists() {
        let said = podman.must(&["run", "--rm", "--network", "none", "--init", "bb", "ps"]);
        assert!(said.contains("podman-init"), "{said}");
    } else {
        skip!("checks_health_and_runs_an_init: init", "needs the program `catatonit`");
    }
}

#[test]
fn leaves_nothing_behind() {
    let Some(podman) = Podman::ready("leaves_nothing_behind") else { return };
    let id = podman.must(&["run", "-d", "--network", "none", "bb", "true"]).trim().to_owned();
    podman.must(&["wait", &id]);
    podman.must(&["rm", "-f", &id]);
    let left = || {
        let state = Path::new("/run/corebox-oci").join(&id).exists();
        let mounts = corebox_sys::fs::read_to_string("/proc/self/mountinfo").expect("readable").contains(&id);
        let groups =
            Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("*{id}*")]).output().expect("find is there");
        // podman makes one for conmon, and removes it when that ended.
        let groups: Vec<String> =
            text(&groups.stdout).lines().filter(|l| !l.contains("conmon")).map(str::to_owned).collect();
        (state, mounts, groups)
    };
    let clean = (false, false, Vec::<String>::new());
    assert!(wait_until(PATIENCE, || (left() == clean).then_some(())).is_some(), "{:?}", left());
}

#[test]
fn works_for_an_ordinary_user() {
    let Some(podman) = Podman::rootless("works_for_an_ordinary_user") else { return };
    assert_eq!(podman.run(&[], "id -u; echo $(wc -l </proc/self/uid_map)"), "0\n2\n");
    assert_eq!(podman.run(&["--user", "1000"], "id -u"), "1000\n");
    let own = podman.run(&["--userns", "keep-id"], "id -un; test -c /dev/null && touch /tmp/x && echo writes");
    assert_eq!(own, format!("{}\nwrites\n", user()));
    let container = podman.sleeper("user", &[]);
    assert_eq!(podman.must(&["exec", "user", "id", "-u"]), "0\n");
    podman.must(&["stop", "-t", "0", "user"]);
    drop(container);
    assert_eq!(podman.fails(&[], &["nosuch"]).0, Some(127));
    assert_eq!(podman.must(&["ps", "-aq"]), "");
}
