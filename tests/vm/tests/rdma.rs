//! RDMA inside containers, over Soft-RoCE: that it works, and that what is missing is named.

use corebox_tests::vm::{Need, require, soft_roce};
use corebox_tests::{corebox, require_images, wait_until};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The tests take pieces of the one machine away.
static MACHINE: Mutex<()> = Mutex::new(());

fn ready(test: &str, needs: &[Need]) -> Option<MutexGuard<'static, ()>> {
    let guard = MACHINE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let there = require(test, needs) && require_images(test, &["rdma"]);
    there.then_some(guard)
}

const USER: &str = "1000";

/// `corebox ARGS` as root, or as an ordinary user whom the administrator gave locked memory.
fn command(user: bool, args: &[&str]) -> Command {
    let corebox = corebox().expect("corebox is built");
    let mut command = Command::new("prlimit");
    command.arg("--memlock=unlimited:unlimited");
    if user {
        command.args([
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ]);
    }
    command.arg(corebox).args(args).current_dir("/").stdin(Stdio::null());
    command
}

fn run(user: bool, args: &[&str]) -> Output {
    command(user, args).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{:?}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A refused start: its message, once.
fn refused(options: &[&str]) -> String {
    let output = run(false, &[&["run", "--fabric", "require"], options, &["rdma", "true"]].concat());
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert_eq!(error.matches("error:").count(), 1, "{error}");
    assert!(error.contains("hint:"), "{error}");
    error
}

#[test]
fn the_kernel_lists_its_devices() {
    let Some(_machine) = ready("the_kernel_lists_its_devices", &[Need::Rdma]) else { return };
    let json: serde_json::Value = serde_json::from_str(&said(&run(true, &["rdma", "ls", "--json"]))).expect("JSON");
    let device =
        json["devices"].as_array().expect("devices").iter().find(|d| d["name"] == "rxe0").expect("rxe0").clone();
    assert_eq!(device["protocol"], "roce");
    assert_eq!(device["ports"][0]["netdev"], "roce0");
    assert_eq!(device["ports"][0]["state"], "ACTIVE");
    assert_eq!(device["uverbs"]["number"][0], 231, "the kernel's own major number");
    assert_eq!(json["netns"], "shared");
    let cm = json["rdma_cm"]["number"][1].as_u64().expect("a minor number");
    let real = std::fs::metadata("/dev/infiniband/rdma_cm").map(|m| std::os::linux::fs::MetadataExt::st_rdev(&m));
    assert_eq!(real.expect("a node") & 0xff, cm & 0xff);
    assert!(said(&run(true, &["rdma", "ls"])).contains("rxe0    1     ACTIVE"));
}

/// A server and a client of one of the verbs benchmarks, in two containers.
fn pair(user: bool, options: &[&str], program: &[&str]) -> String {
    let words = [&["run"], options, &["rdma"], program].concat();
    let server = command(user, &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    wait_until(Duration::from_secs(60), || listens().then_some(())).expect("the server listens");
    let client = run(user, &[&words[..], &["10.88.0.1"]].concat());
    let server = server.wait_with_output().expect("it ends");
    said(&server);
    said(&client)
}

/// Something listens on the port that all these programs use to meet.
fn listens() -> bool {
    // 18515, as /proc/net/tcp writes it; perftest listens on all addresses of IPv6.
    let listening = |file: &str| {
        let table = corebox_sys::fs::read_to_string(file).unwrap_or_default();
        table.lines().any(|line| line.contains(":4853 ") && line.contains(" 0A "))
    };
    listening("/proc/net/tcp") || listening("/proc/net/tcp6")
}

#[test]
fn verbs_work_between_containers() {
    let Some(_machine) = ready("verbs_work_between_containers", &[Need::Rdma]) else { return };
    for user in [false, true] {
        let options = ["--rdma", "rxe0", "--fabric", "require"];
        let ping = pair(user, &options, &["ibv_rc_pingpong", "-d", "rxe0", "-g", "1", "-n", "100"]);
        assert!(ping.contains("100 iters in"), "{ping}");
        let latency = pair(user, &options, &["ib_write_lat", "-d", "rxe0", "-x", "1", "-n", "100"]);
        assert!(latency.contains("t_typical"), "{latency}");
        let bandwidth = pair(user, &options, &["ib_write_bw", "-d", "rxe0", "-x", "1", "-n", "50"]);
        assert!(bandwidth.contains("BW average"), "{bandwidth}");
    }
}

#[test]
fn only_the_chosen_device_is_there() {
    let Some(_machine) = ready("only_the_chosen_device_is_there", &[Need::Rdma]) else { return };
    soft_roce(1).expect("a second device");
    let nodes = |which: &str| {
        said(&run(true, &["run", "--rdma", which, "rdma", "sh", "-c", "ls /dev/infiniband; ibv_devices"]))
    };
    let all = nodes("all");
    assert!(all.contains("uverbs0") && all.contains("uverbs1") && all.contains("rxe1"), "{all}");
    assert!(!all.contains("umad"), "subnet management stays out: {all}");
    let one = nodes("rxe1");
    assert!(one.contains("uverbs1") && !one.contains("uverbs0") && !one.contains("rxe0"), "{one}");
    assert!(nodes("netdev=roce1").contains("rxe1"));
    let none = run(true, &["run", "--rdma", "none", "rdma", "ls", "/dev/infiniband"]);
    assert!(!none.status.success());
    let wrong = run(true, &["run", "--rdma", "mlx5_0", "rdma", "true"]);
    assert!(wrong.status.code() == Some(125) && text(&wrong.stderr).contains("rxe0, rxe1"), "{wrong:?}");
}

#[test]
fn what_is_missing_is_named() {
    let Some(_machine) = ready("what_is_missing_is_named", &[Need::Rdma]) else { return };
    let chosen: &[&str] = &["--rdma", "rxe0"];
    let with = |more: &[&str]| refused(&[chosen, more].concat());
    // No right to the node: the kernel's EACCES, which libibverbs shows as ENOENT.
    let locked = || std::os::unix::fs::chown("/dev/infiniband/uverbs0", Some(0), Some(0)).and_then(|()| mode(0o600));
    locked().expect("the node is ours");
    let user = run(true, &["run", "--fabric", "require", "--rdma", "rxe0", "rdma", "true"]);
    mode(0o666).expect("the node is ours");
    let error = text(&user.stderr);
    assert!(user.status.code() == Some(125) && error.contains("uverbs0") && error.contains("EACCES"), "{error}");
    // The port's interface is down.
    ip(&["link", "set", "roce0", "down"]);
    let error = with(&[]);
    ip(&["link", "set", "roce0", "up"]);
    assert!(error.contains("rxe0 has no active port") && error.contains("roce0"), "{error}");
    wait_until(Duration::from_secs(10), || {
        run(false, &["rdma", "ls"]).stdout.windows(6).any(|w| w == b"ACTIVE").then_some(())
    })
    .expect("the port comes back");
    // The image lacks a piece: here one that lies over it.
    for (over, words) in [
        ("/etc/libibverbs.d", "/etc/libibverbs.d"),
        ("/usr/lib/x86_64-linux-gnu/libibverbs", "no provider `rxe`"),
        ("/usr/lib/x86_64-linux-gnu", "libibverbs.so.1"),
        ("/sys/class/infiniband", "/sys/class/infiniband/rxe0"),
    ] {
        let error = with(&["--tmpfs", over]);
        assert!(error.contains(words), "{over}: {error}");
    }
    // Too little locked memory, of a user who cannot raise it.
    let poor = Command::new("prlimit")
        .args([
            "--memlock=65536:65536",
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
            "--bounding-set=-all",
        ])
        .arg(corebox().expect("corebox is built"))
        .args(["run", "--fabric", "require", "--rdma", "rxe0", "rdma", "true"])
        .current_dir("/")
        .output()
        .expect("it runs");
    let error = text(&poor.stderr);
    assert!(poor.status.code() == Some(125) && error.contains("RLIMIT_MEMLOCK") && error.contains("64 KiB"), "{error}");
    // `prefer` says it and starts; `any` does not look.
    let prefer = run(
        false,
        &["run", "--fabric", "prefer", "--rdma", "rxe0", "--tmpfs", "/etc/libibverbs.d", "rdma", "echo", "ran"],
    );
    assert_eq!(said(&prefer), "ran\n");
    assert!(text(&prefer.stderr).contains("/etc/libibverbs.d"), "{prefer:?}");
    assert_eq!(text(&run(false, &["run", "--tmpfs", "/etc/libibverbs.d", "rdma", "echo", "ran"]).stderr), "");
}

fn mode(bits: u32) -> std::io::Result<()> {
    std::fs::set_permissions("/dev/infiniband/uverbs0", std::os::unix::fs::PermissionsExt::from_mode(bits))
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().expect("ip runs").success());
}

#[test]
fn check_speaks_of_the_host_and_of_an_image() {
    let Some(_machine) = ready("check_speaks_of_the_host_and_of_an_image", &[Need::Rdma]) else { return };
    assert!(said(&run(true, &["rdma", "check", "--rdma", "rxe0"])).contains("rxe0: fine"));
    assert!(said(&run(true, &["rdma", "check", "--rdma", "rxe0", "rdma"])).contains("fine in a container of rdma"));
    let bare = run(false, &["rdma", "check", "--rdma", "rxe0", "plain"]);
    assert_eq!(bare.status.code(), Some(1));
    assert!(text(&bare.stderr).contains("libibverbs.so.1"), "{bare:?}");
}

/// Objects that a container of ours holds of rxe0, by its name.
fn current(name: &str) -> Option<String> {
    let groups = corebox_sys::fs::list("/sys/fs/cgroup").expect("readable");
    let own = groups.into_iter().find(|group| group.starts_with(&format!("corebox-{name}.")))?;
    corebox_sys::fs::read_to_string(Path::new("/sys/fs/cgroup").join(own).join("rdma.current")).ok()
}

#[test]
fn limits_of_hcas_are_exact_and_per_container() {
    let needs = [Need::Rdma, Need::Cgroup2(&["rdma"])];
    let Some(_machine) = ready("limits_of_hcas_are_exact_and_per_container", &needs) else { return };
    // ibv_rc_pingpong takes a context, and a PD, an MR, a CQ and a QP.
    let start = |name: &str, limit: &str| -> Child {
        let words = [
            "run",
            "--name",
            name,
            "--rdma",
            "rxe0",
            "--rdma-limit",
            limit,
            "rdma",
            "ibv_rc_pingpong",
            "-d",
            "rxe0",
            "-g",
            "1",
        ];
        command(false, &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
    };
    let mut enough = start("enough", "rxe0:handles=1,objects=4");
    wait_until(Duration::from_secs(60), || listens().then_some(())).expect("the server listens");
    let held = current("enough").expect("a cgroup");
    assert!(held.contains("rxe0 hca_handle=1 hca_object=4"), "{held}");
    // The other container's limit is its own: one object less, and it is the last one that fails.
    for (limit, words) in [
        ("rxe0:handles=1,objects=3", "Couldn't create QP"),
        ("rxe0:handles=1,objects=2", "Couldn't create CQ"),
        ("rxe0:handles=1,objects=1", "Couldn't register MR"),
        ("rxe0:handles=0", "Couldn't get context"),
    ] {
        let output = start("less", limit).wait_with_output().expect("it ends");
        assert!(!output.status.success() && text(&output.stderr).contains(words), "{limit}: {output:?}");
    }
    enough.kill().expect("it lives");
    enough.wait().expect("it ends");
    let wrong = run(false, &["run", "--rdma-limit", "mlx5_0:handles=1", "rdma", "true"]);
    assert!(wrong.status.code() == Some(125) && text(&wrong.stderr).contains("rdma.max"), "{wrong:?}");
}
