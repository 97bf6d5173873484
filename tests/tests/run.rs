//! `corebox run`, seen from inside the container, on the real kernel: as root, and as an ordinary user with FUSE.

use corebox_tests::{Result, corebox, require_programs, require_root, skip, wait_until};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// An id that no account has.
const USER: &str = "47114";
const PATIENCE: Duration = Duration::from_secs(10);

struct Fixture {
    /// 0755, so that an ordinary user reaches it.
    directory: PathBuf,
    corebox: PathBuf,
    image: PathBuf,
    /// Its files in a directory.
    root: PathBuf,
}

/// The image: busybox, a few links, and traps for mounts. Built once; the next run of the tests removes it, as nothing
/// tells which test is the last one.
fn fixture() -> &'static Result<Fixture> {
    static FIXTURE: OnceLock<Result<Fixture>> = OnceLock::new();
    FIXTURE.get_or_init(build)
}

fn build() -> Result<Fixture> {
    let directory = corebox_tests::fixture_directory("run");
    let root = directory.join("root");
    for name in ["bin", "etc", "data", "tmp", "proc", "sys", "dev"] {
        corebox_sys::fs::create_dir_all(root.join(name)).expect("a directory");
    }
    let busybox = corebox_tests::program("busybox").expect("checked before");
    std::fs::copy(busybox, root.join("bin/busybox")).expect("a copy of busybox");
    for name in [
        "sh", "cat", "id", "ls", "mkdir", "sleep", "true", "head", "grep", "wc", "kill", "dd", "readlink", "tail",
        "usleep",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    std::os::unix::fs::symlink("../../../../../../..", root.join("escape")).expect("a link");
    corebox_sys::fs::write(root.join("etc/motd"), "hello\n").expect("a file");
    let image = import(&root, &directory.join("store"), "none")?;
    // A copy where every user may execute it.
    let program = directory.join("corebox");
    std::fs::copy(corebox()?, &program).expect("a copy of corebox");
    Ok(Fixture { corebox: program, image, root, directory })
}

/// The file of a new image.
fn import(root: &Path, store: &Path, codec: &str) -> Result<PathBuf> {
    let made = Command::new(corebox()?)
        .args(["image", "import", "--codec", codec, codec])
        .arg(root)
        .env("COREBOX_STORE", store)
        .output()
        .expect("corebox runs");
    assert!(made.status.success(), "{}", text(&made.stderr));
    let digest = text(&made.stdout).split(' ').nth(1).expect("NAME DIGEST").trim_start_matches("sha256:").to_owned();
    let suffix = if codec == "none" { "erofs" } else { "sqsh" };
    Ok(store.join(format!("blobs/sha256/{digest}.{suffix}")))
}

/// The fixture, or a SKIP line.
fn ready(test: &str) -> Option<&'static Fixture> {
    if !require_root(test) || !require_programs(test, &["busybox"]) {
        return None;
    }
    match fixture() {
        Ok(fixture) => Some(fixture),
        Err(failure) => {
            skip!(test, "{}", failure.to_string().replace('\n', " "));
            None
        }
    }
}

impl Fixture {
    /// `corebox run OPTIONS IMAGE sh -c SCRIPT`, from a directory that is not bound.
    fn command(&self, options: &[&str], script: &str) -> Command {
        let mut command = Command::new(&self.corebox);
        command.arg("run").args(options).arg(&self.image).args(["sh", "-c", script]).current_dir("/");
        command
    }

    /// The same with its files in a squashfs image.
    fn compressed(&self) -> Fixture {
        let image = import(&self.root, &self.directory.join("store"), "lz4").expect("corebox is there");
        Fixture { corebox: self.corebox.clone(), image, root: self.root.clone(), directory: self.directory.clone() }
    }

    fn run(&self, options: &[&str], script: &str) -> Output {
        self.command(options, script).stdin(Stdio::null()).output().expect("corebox runs")
    }

    /// As an ordinary user, who may open /dev/fuse (in a mount namespace of its own: the host's node stays as it is).
    fn as_user(&self, options: &[&str], script: &str) -> Output {
        let prepare = "mount --make-rprivate / && mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && \
                       mount --bind /mnt/fuse /dev/fuse && chmod 666 /mnt/fuse && umount -l /mnt && \
                       exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups --bounding-set=-all --inh-caps=-all \"$@\"";
        Command::new("unshare")
            .args(["-m", "sh", "-c", prepare, USER])
            .arg(&self.corebox)
            .arg("run")
            .args(options)
            .arg(&self.image)
            .args(["sh", "-c", script])
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .expect("unshare runs")
    }
}

fn user_ready(test: &str) -> Option<&'static Fixture> {
    let fixture = ready(test)?;
    if !require_programs(test, &["unshare", "setpriv"]) {
        return None;
    }
    if !Path::new("/dev/fuse").exists() {
        skip!(test, "needs /dev/fuse");
        return None;
    }
    Some(fixture)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Its standard output, when it exited with 0.
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

fn lines(output: &Output) -> Vec<String> {
    said(output).lines().map(str::to_owned).collect()
}

#[test]
fn no_privilege_is_left() {
    let Some(f) = ready("no_privilege_is_left") else { return };
    let users = user_ready("no_privilege_is_left (user)").map(|f| f.as_user(&[], PRIVILEGES));
    const PRIVILEGES: &str = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status";
    for output in [f.run(&[], PRIVILEGES)].into_iter().chain(users) {
        let lines = lines(&output);
        assert_eq!(lines.len(), 6, "{lines:?}");
        for line in lines {
            let (name, value) = line.split_once(":\t").expect("NAME: value");
            assert_eq!(value, if name == "NoNewPrivs" { "1" } else { "0000000000000000" }, "{name}");
        }
    }
}

#[test]
fn ids_are_the_callers() {
    let Some(f) = ready("ids_are_the_callers") else { return };
    const IDS: &str = "id -u; id -g; cat /proc/self/uid_map";
    assert_eq!(said(&f.run(&[], IDS)).split_whitespace().collect::<Vec<_>>(), ["0", "0", "0", "0", "4294967295"]);
    let Some(f) = user_ready("ids_are_the_callers (user)") else { return };
    let words =
        |options: &[&str]| said(&f.as_user(options, IDS)).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&[]), [USER, USER, USER, USER, "1"]);
    assert_eq!(words(&["--as-root"]), ["0", "0", "0", USER, "1"]);
    assert!(said(&f.as_user(&[], "grep :47114: /etc/passwd; grep :47114: /etc/group")).lines().count() == 2);
}

#[test]
fn namespaces_are_new_but_the_network() {
    let Some(f) = ready("namespaces_are_new_but_the_network") else { return };
    let script = "for n in user mnt pid ipc uts cgroup net; do readlink /proc/self/ns/$n; done";
    let own = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).expect("a link").display().to_string();
    let inside = lines(&f.run(&[], script));
    for (inside, name) in inside.iter().zip(["user", "mnt", "pid", "ipc", "uts", "cgroup"]) {
        assert_ne!(*inside, own(name));
    }
    assert_eq!(inside[6], own("net"));
    let none = f.run(&["--net", "none"], "readlink /proc/self/ns/net; ls /sys/class/net; grep -c lo: /proc/net/dev");
    let none = lines(&none);
    assert_ne!(none[0], own("net"));
    assert_eq!(none[1..], ["lo", "1"]);
}

#[test]
fn mounts_are_nosuid_and_nodev_and_the_host_is_hidden() {
    let Some(f) = ready("mounts_are_nosuid_and_nodev_and_the_host_is_hidden") else { return };
    let secret = f.directory.join("secret");
    corebox_sys::fs::write(&secret, "x").expect("a file");
    let script =
        format!("cat /proc/self/mountinfo; ! [ -e {} ] && ! [ -e /tmp/image ] && ! [ -e /home ]", secret.display());
    for line in lines(&f.run(&[], &script)) {
        let fields: Vec<&str> = line.split(' ').collect();
        let (target, options) = (fields[4], fields[5]);
        assert!(options.contains("nosuid"), "{line}");
        // Devices work on the nodes themselves, on /dev's own tmpfs (which can have none) and on terminals; /proc/keys
        // and the like are hidden by /dev/null.
        let node = target.starts_with("/dev") || line.contains(" /null /proc/");
        assert!(node || options.contains("nodev"), "{line}");
        let kernel = ["/proc", "/sys", "/dev"].iter().any(|k| target.starts_with(k));
        if !kernel && !["/tmp", "/run"].contains(&target) {
            assert!(options.split(',').any(|o| o == "ro"), "{line}");
        }
        if target.starts_with("/sys") {
            assert!(options.split(',').any(|o| o == "ro"), "{line}");
        }
    }
}

#[test]
fn the_root_is_read_only_unless_asked() {
    let Some(f) = ready("the_root_is_read_only_unless_asked") else { return };
    const WRITE: &str = "echo new > /etc/motd && mkdir /data/x /new && echo more > /new/file && cat /etc/motd";
    const FILL: &str = "dd if=/dev/zero of=/big bs=1M count=30 2>&1; ls -l /big | grep -c 31457280";
    let refused = f.run(&[], "echo x > /etc/motd");
    assert!(!refused.status.success() && text(&refused.stderr).contains("Read-only"), "{refused:?}");
    assert_eq!(said(&f.run(&["--writable"], WRITE)), "new\n");
    assert!(text(&f.run(&["--writable=20M"], FILL).stdout).contains("No space left"));
    assert_eq!(said(&f.run(&[], "cat /etc/motd")), "hello\n", "the image was written to");
    let Some(f) = user_ready("the_root_is_read_only_unless_asked (user)") else { return };
    assert!(!f.as_user(&[], "echo x > /etc/motd").status.success());
    assert_eq!(said(&f.as_user(&["--writable"], WRITE)), "new\n");
    assert_eq!(said(&f.as_user(&["--writable", "--as-root"], WRITE)), "new\n");
}

#[test]
fn binds_go_where_they_are_told_and_nowhere_else() {
    let Some(f) = ready("binds_go_where_they_are_told_and_nowhere_else") else { return };
    let source = f.directory.join("bound");
    corebox_sys::fs::create_dir_all(source.join("deep")).expect("a directory");
    corebox_sys::fs::write(source.join("file"), "data\n").expect("a file");
    let at = |target: &str| format!("{}:{target}", source.display());
    assert_eq!(said(&f.run(&["-v", &at("/data")], "cat /data/file; echo out > /data/out")), "data\n");
    assert_eq!(corebox_sys::fs::read(source.join("out")).expect("written by the container"), b"out\n");
    let refused = f.run(&["-v", &at("/data:ro")], "echo x > /data/refused");
    assert!(text(&refused.stderr).contains("Read-only"), "{refused:?}");
    // A target that the image lacks, below another bind, on a tmpfs, a single file, and through a link out of the image.
    assert_eq!(said(&f.run(&["-v", &at("/not/in/image")], "cat /not/in/image/file")), "data\n");
    assert_eq!(said(&f.run(&["-v", &at("/data"), "-v", &at("/data/deep")], "cat /data/deep/file")), "data\n");
    assert_eq!(said(&f.run(&["--tmpfs", "/scratch:1M", "-v", &at("/scratch/a/b")], "cat /scratch/a/b/file")), "data\n");
    let file = format!("{}:/etc/one", source.join("file").display());
    assert_eq!(said(&f.run(&["-v", &file], "cat /etc/one")), "data\n");
    assert_eq!(said(&f.run(&["-v", &at("/escape/caught")], "cat /caught/file")), "data\n");
    assert!(!Path::new("/caught").exists(), "a mount point was made on the host");
    // Never made on the host, through a bind.
    let missing = f.run(&["-v", &at("/data"), "-v", &at("/data/missing")], "true");
    assert_eq!(missing.status.code(), Some(125));
    assert!(!source.join("missing").exists());
}

#[test]
fn the_present_directory_is_bound() {
    let Some(f) = ready("the_present_directory_is_bound") else { return };
    let here = f.directory.join("here");
    corebox_sys::fs::create_dir_all(&here).expect("a directory");
    let output = f.command(&[], "busybox pwd; echo made > made").current_dir(&here).output().expect("corebox runs");
    assert_eq!(said(&output).trim(), here.display().to_string());
    assert_eq!(corebox_sys::fs::read(here.join("made")).expect("written by the container"), b"made\n");
    let output = f.command(&["--no-cwd"], "busybox pwd").current_dir(&here).output().expect("corebox runs");
    assert_eq!(said(&output), "/\n");
    assert_eq!(said(&f.run(&["-w", "/data"], "busybox pwd")), "/data\n");
}

#[test]
fn the_environment_is_clean() {
    let Some(f) = ready("the_environment_is_clean") else { return };
    let output = f
        .command(&["-e", "ADDED=1", "-e", "TAKEN"], "busybox env")
        .env_clear()
        .envs([
            ("LD_PRELOAD", "/x.so"),
            ("TAKEN", "2"),
            ("SLURM_JOB_ID", "7"),
            ("OTHER", "3"),
            ("PATH", "/host"),
            ("HOME", "/host"),
        ])
        .output()
        .expect("corebox runs");
    let text = said(&output);
    for wanted in ["ADDED=1", "TAKEN=2", "SLURM_JOB_ID=7", "HOME=/root"] {
        assert!(text.lines().any(|line| line == wanted), "{wanted} is missing in {text}");
    }
    for unwanted in ["LD_PRELOAD", "OTHER", "/host"] {
        assert!(!text.contains(unwanted), "{unwanted} is in {text}");
    }
}

#[test]
fn exit_codes_are_exact() {
    let Some(f) = ready("exit_codes_are_exact") else { return };
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("exit 255", 255), ("kill -9 $$", 137), ("kill -11 $$", 139)]
    {
        assert_eq!(f.run(&[], script).status.code(), Some(code), "{script}");
    }
    let execute =
        |program: &str| Command::new(&f.corebox).arg("run").arg(&f.image).arg(program).output().expect("runs");
    for (program, code) in [("nosuch", 127), ("/nosuch", 127), ("/etc/motd", 126), ("/etc", 126)] {
        let output = execute(program);
        assert_eq!(output.status.code(), Some(code), "{program}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr).matches("error:").count(), 1);
    }
    assert_eq!(f.run(&["-v", "/nosuch:/x"], "true").status.code(), Some(125));
}

#[test]
fn stdin_arrives_whole() {
    let Some(f) = ready("stdin_arrives_whole") else { return };
    let data: Vec<u8> = (0..10_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = f.command(&[], "cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("corebox runs");
    let mut stdin = child.stdin.take().expect("piped");
    let copy = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("all is taken");
    assert!(output.status.success() && output.stdout == data, "{} of {} bytes", output.stdout.len(), data.len());
}

/// Starts a script that says `ready`, and waits until it has said so.
fn started(command: &mut Command) -> (std::process::Child, std::io::BufReader<std::process::ChildStdout>) {
    use std::io::BufRead;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("corebox runs");
    let mut reader = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    (child, reader)
}

fn signal(child: &std::process::Child, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).expect("it lives");
}

#[test]
fn signals_reach_the_command() {
    use nix::sys::signal::Signal;
    let Some(f) = ready("signals_reach_the_command") else { return };
    for (sent, name, code) in [
        (Signal::SIGTERM, "TERM", 21),
        (Signal::SIGUSR1, "USR1", 22),
        (Signal::SIGHUP, "HUP", 23),
        (Signal::SIGINT, "INT", 24),
    ] {
        let script = format!("trap 'exit {code}' {name}; echo ready; while :; do usleep 10000; done");
        let (mut child, _reader) = started(&mut f.command(&[], &script));
        signal(&child, sent);
        assert_eq!(child.wait().expect("it ends").code(), Some(code), "{name}");
    }
    let (mut child, _reader) = started(&mut f.command(&[], "echo ready; exec sleep 1000"));
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().expect("it ends").code(), Some(128 + 15));
}

/// Everything of ours that a container could leave on the host.
fn leftovers(mark: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = corebox_sys::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if text(&line).contains(mark) {
            found.push(format!("process {}", entry.file_name().to_string_lossy()));
        }
    }
    let mounts = corebox_sys::fs::read("/proc/self/mountinfo").unwrap_or_default();
    found.extend(text(&mounts).lines().filter(|line| line.contains(mark)).map(str::to_owned));
    found.extend(cgroups(Path::new("/sys/fs/cgroup"), mark));
    found
}

fn cgroups(root: &Path, mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in
        std::fs::read_dir(root).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
    {
        if entry.file_name().to_string_lossy().contains(mark) {
            found.push(entry.path().display().to_string());
        }
        found.extend(cgroups(&entry.path(), mark));
    }
    found
}

#[test]
fn sigkill_of_corebox_leaves_nothing() {
    let Some(f) = ready("sigkill_of_corebox_leaves_nothing") else { return };
    let mark = format!("killme{}", std::process::id());
    let mounts = || text(&corebox_sys::fs::read("/proc/self/mountinfo").expect("readable"));
    let before = mounts();
    for options in [vec!["--name", &mark], vec!["--name", &mark, "--pids", "50"]] {
        let script = format!("echo ready; sleep 1000 & exec sleep 1000; : {mark}");
        let (mut child, _reader) = started(&mut f.command(&options, &script));
        assert!(!leftovers(&mark).is_empty(), "the test sees nothing");
        signal(&child, nix::sys::signal::Signal::SIGKILL);
        child.wait().expect("it ends");
        let gone = wait_until(PATIENCE, || leftovers(&mark).is_empty().then_some(()));
        assert!(gone.is_some(), "{:?}", leftovers(&mark));
    }
    assert_eq!(mounts(), before);
}

/// The version 1 or 2 hierarchy of the controller may be limited here.
fn limits_ready(test: &str, f: &Fixture) -> bool {
    let output = f.run(&["--pids", "50", "--plan"], "true");
    if output.status.success() {
        return true;
    }
    skip!(test, "needs a cgroup: {}", text(&output.stderr).replace('\n', " "));
    false
}

#[test]
fn limits_are_enforced() {
    let Some(f) = ready("limits_are_enforced") else { return };
    if !limits_ready("limits_are_enforced", f) {
        return;
    }
    let forks = "i=0; while [ $i -lt 40 ]; do sleep 100 & i=$((i+1)); done; echo all";
    let output = f.run(&["--pids", "20"], forks);
    assert!(!text(&output.stdout).contains("all") && text(&output.stderr).contains("fork"), "{output:?}");
    assert_eq!(said(&f.run(&["--pids", "60"], forks)), "all\n");
    let output = f.run(&["--mem", "48M"], "exec tail /dev/zero");
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    assert!(text(&output.stderr).contains("memory limit"), "{output:?}");
    let cpus = text(&corebox_sys::fs::read("/proc/self/status").expect("readable"));
    let cpus = cpus.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:\t")).expect("a line").to_owned();
    let last = cpus.rsplit([',', '-']).next().expect("a CPU");
    let script = "grep Cpus_allowed_list /proc/self/status; busybox taskset -p ff $$ > /dev/null; grep Cpus_allowed_list /proc/self/status";
    let found = f.run(&["--cpus", last], script);
    assert_eq!(lines(&found), vec![format!("Cpus_allowed_list:\t{last}"); 2], "the command left its CPUs");
    let output = f.run(&["--cpus", "60000"], "true");
    assert!(output.status.code() == Some(125) && text(&output.stderr).contains("60000"), "{output:?}");
}

#[test]
fn limits_without_permission_are_refused() {
    let Some(f) = user_ready("limits_without_permission_are_refused") else { return };
    let output = f.as_user(&["--mem", "1G"], "true");
    let error = text(&output.stderr);
    if output.status.success() {
        skip!("limits_without_permission_are_refused", "user {USER} may make cgroups here");
        return;
    }
    assert_eq!(output.status.code(), Some(125));
    assert!(error.contains("memory") && error.contains("hint: your administrator"), "{error}");
}

#[test]
fn shm_has_its_size() {
    let Some(f) = ready("shm_has_its_size") else { return };
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>&1; ls -l /dev/shm/x";
    let output = said(&f.run(&["--shm-size", "4M"], script));
    assert!(output.contains("No space left") && output.contains("4194304"), "{output}");
}

#[test]
fn a_plan_changes_nothing() {
    let Some(f) = ready("a_plan_changes_nothing") else { return };
    let mark = format!("planned{}", std::process::id());
    let output = f.run(&["--plan", "--name", &mark, "--writable=1G", "-v", "/etc:/mnt/etc:ro"], "echo ran");
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(plan["name"], mark.as_str());
    assert_eq!(plan["method"], "kernel");
    let mounts = plan["mounts"].as_array().expect("mounts");
    assert!(mounts.iter().any(|m| m["target"] == "/mnt/etc" && m["read_only"] == true && m["origin"] == "--volume"));
    assert!(leftovers(&mark).is_empty());
    assert!(!text(&output.stdout).contains("ran\n"));
}

#[test]
fn the_fuse_server_dies_with_a_clear_message() {
    let Some(f) = user_ready("the_fuse_server_dies_with_a_clear_message") else { return };
    // Init starts it first, so it is process 2.
    let output = f.as_user(&[], "kill -9 2; sleep 1000");
    assert_eq!(output.status.code(), Some(125));
    let error = text(&output.stderr);
    assert!(error.contains("lost its root directory") && error.contains("SIGKILL"), "{error}");
    assert_eq!(error.matches("error:").count(), 1, "{error}");
}

#[test]
fn a_damaged_image_is_refused() {
    let Some(f) = ready("a_damaged_image_is_refused") else { return };
    let damaged = f.directory.join("damaged.erofs");
    let bytes = corebox_sys::fs::read(&f.image).expect("readable");
    let mut wrong_sum = bytes.clone();
    wrong_sum[1100] ^= 1;
    let mut no_root = bytes.clone();
    let end = no_root.len() - 4096;
    no_root[end..].fill(0xff);
    let contents: [(&[u8], &str); 4] = [
        (b"no image", "squashfs or EROFS"),
        (&bytes[..2000], "not an EROFS image"),
        (&wrong_sum, "checksum"),
        (&no_root, "does not serve"),
    ];
    for (content, by_fuse) in contents {
        corebox_sys::fs::write(&damaged, content).expect("a file");
        for (method, words) in [("kernel", "erofs"), ("fuse", by_fuse), ("unpack", "")] {
            let mut command = Command::new(&f.corebox);
            let output = command.args(["run", "--rootfs", method]).arg(&damaged).arg("true").output();
            let output = output.expect("corebox runs");
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(125), "{method}: {error}");
            assert!(error.to_lowercase().contains(&words.to_lowercase()), "{method}, {words}: {error}");
        }
    }
}

/// What a container sees of the image is the same however it got there.
#[test]
fn all_ways_to_the_root_directory_show_the_same() {
    let Some(f) = ready("all_ways_to_the_root_directory_show_the_same") else { return };
    const LOOK: &str = "cd / && ls -ln bin etc/motd data escape && cat etc/motd && readlink escape && \
                        ! cat /none 2>/dev/null && ! echo x 2>/dev/null >etc/motd && ls -ld etc /escape";
    let seen = said(&f.run(&["--rootfs", "kernel"], LOOK));
    assert!(seen.contains("hello\n"), "{seen}");
    // directories have another size in a tmpfs
    let strip =
        |text: &str| text.lines().filter(|l| !l.starts_with("total") && !l.starts_with('d')).collect::<String>();
    for (method, output) in [
        ("fuse", f.run(&["--rootfs", "fuse"], LOOK)),
        ("unpack", f.run(&["--rootfs", "unpack"], LOOK)),
        ("user, unpack", f.as_user(&["--rootfs", "unpack", "--as-root"], LOOK)),
    ] {
        assert_eq!(strip(&said(&output)), strip(&seen), "{method}");
    }
    if let Some(f) = user_ready("all_ways_to_the_root_directory_show_the_same (user)") {
        assert_eq!(strip(&said(&f.as_user(&["--as-root"], LOOK))), strip(&seen), "user");
    }
    let decided = |method: &str| {
        let output =
            Command::new(&f.corebox).args(["run", "--plan", "--rootfs", method]).arg(&f.image).arg("x").output();
        serde_json::from_slice::<serde_json::Value>(&output.expect("corebox runs").stdout).expect("JSON")["method"]
            .clone()
    };
    assert_eq!(decided("auto"), "kernel");
    assert_eq!(decided("unpack"), "unpack");
    assert_eq!(decided("fuse"), serde_json::json!({"fuse": {"program": null}}));
}

#[test]
fn unpacking_leaves_a_writable_layer_on_top() {
    let Some(f) = ready("unpacking_leaves_a_writable_layer_on_top") else { return };
    let write = "echo new > /etc/motd && cat /etc/motd && ls /data";
    assert_eq!(said(&f.run(&["--rootfs", "unpack", "--writable"], write)), "new\n");
    assert_eq!(said(&f.as_user(&["--rootfs", "unpack", "--writable"], write)), "new\n");
}

#[test]
fn compressed_images_still_run() {
    let test = "compressed_images_still_run";
    let Some(f) = ready(test).filter(|_| require_programs(test, &["mksquashfs"])) else { return };
    let compressed = f.compressed();
    assert_eq!(said(&compressed.run(&[], "cat /etc/motd")), "hello\n");
    let refused = compressed.run(&["--rootfs", "unpack"], "true");
    assert!(text(&refused.stderr).contains("without --codec"), "{}", text(&refused.stderr));
    if user_ready(test).is_some() && require_programs(test, &["squashfuse"]) {
        assert_eq!(said(&compressed.as_user(&[], "cat /etc/motd")), "hello\n");
    }
}
