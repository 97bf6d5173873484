//! The simulated nodes themselves: separate where they must be, together where they must be, and gone afterwards.

use corebox_tests::{Cluster, Snapshot, require_programs, require_root, simnode_program, skip, wait_until};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(15);

fn output(command: &mut Command) -> String {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().into()
}

fn sh(cluster: &Cluster, node: &str, script: &str) -> String {
    output(cluster.node(node).command("sh").args(["-c", script]))
}

#[test]
fn nodes_are_separate_machines() {
    if !require_root("nodes_are_separate_machines") {
        return;
    }
    let cluster = Cluster::builder().start().expect("starts");
    for name in ["ctl", "n1", "n2"] {
        assert_eq!(sh(&cluster, name, "hostname"), name);
        assert_eq!(sh(&cluster, name, "cat /proc/1/comm"), "corebox-simnode");
        assert_eq!(sh(&cluster, name, "ls -A /dev/shm"), "");
        assert_eq!(sh(&cluster, name, "touch /tmp/mine /run/mine /dev/shm/mine && stat -c %a /dev/fuse"), "666");
    }
    let mut kinds = Vec::new();
    for kind in ["pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let link = |name: &str| sh(&cluster, name, &format!("readlink /proc/self/ns/{kind}"));
        let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("link").display().to_string();
        let mut links = vec![host, link("ctl"), link("n1"), link("n2")];
        links.sort();
        links.dedup();
        kinds.push((kind, links.len()));
    }
    assert_eq!(kinds, ["pid", "mnt", "uts", "ipc", "net", "cgroup"].map(|kind| (kind, 4)));
    cluster.stop().expect("stops");
}

#[test]
fn nodes_share_the_parallel_file_system_and_a_network() {
    if !require_root("nodes_share_the_parallel_file_system_and_a_network") {
        return;
    }
    let interfaces = std::fs::read_dir("/sys/class/net").expect("list").count();
    let cluster = Cluster::builder().nodes(3).start().expect("starts");
    let file = cluster.pfs().join("note");
    sh(&cluster, "n1", &format!("echo hello >{}", file.display()));
    assert_eq!(sh(&cluster, "n3", &format!("cat {}", file.display())), "hello");
    assert_eq!(sh(&cluster, "n2", "getent hosts n3 | tr -s ' '"), "10.77.0.3 n3");
    assert_eq!(talk(&cluster), Some("over the cable".into()));
    cluster.node("n3").cut_link().expect("cut");
    assert_eq!(talk(&cluster), None, "a cut cable carries nothing");
    cluster.node("n3").restore_link().expect("restore");
    assert!(wait_until(LIMIT, || talk(&cluster)).is_some(), "the cable works again");
    assert_eq!(std::fs::read_dir("/sys/class/net").expect("list").count(), interfaces, "nothing on the host's network");
}

/// n1 tells n3 something over TCP (the client is bash, which has sockets); `None` if it does not arrive within a second.
fn talk(cluster: &Cluster) -> Option<String> {
    let script = "import socket,sys;s=socket.create_server((sys.argv[1],0));print(s.getsockname()[1],flush=True);\
                  s.settimeout(1.5);print(s.accept()[0].makefile().read())";
    let mut server = cluster.node("n3");
    let mut server = start(server_command(&mut server, script));
    let mut lines = BufReader::new(server.stdout.take().expect("piped"));
    let mut port = String::new();
    lines.read_line(&mut port).expect("port");
    let client = format!("timeout 1 bash -c 'echo over the cable >/dev/tcp/10.77.0.3/{}'", port.trim());
    let sent = cluster.node("n1").command("sh").args(["-c", &client]).stderr(Stdio::null()).status().expect("runs");
    let mut text = String::new();
    lines.read_to_string(&mut text).expect("text");
    server.wait().expect("waits");
    (sent.success() && !text.is_empty()).then(|| text.trim().into())
}

fn server_command(node: &mut corebox_tests::Node<'_>, script: &str) -> Command {
    let mut command = node.command("python3");
    command.args(["-c", script, node.address()]).stderr(Stdio::null());
    command
}

fn start(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawns")
}

#[test]
fn programs_are_in_the_nodes_cgroups_and_can_use_them() {
    if !require_root("programs_are_in_the_nodes_cgroups_and_can_use_them") {
        return;
    }
    let cluster = Cluster::builder().start().expect("starts");
    let node = cluster.node("n2");
    if node.cgroups().is_empty() {
        skip!("programs_are_in_the_nodes_cgroups_and_can_use_them", "no cgroup hierarchy is mounted here");
        return;
    }
    assert!(sh(&cluster, "n2", "cut -d: -f3 /proc/self/cgroup").lines().all(|path| path == "/"));
    if Path::new("/sys/fs/cgroup/pids").is_dir() {
        let limited = "import os,sys\nd='/sys/fs/cgroup/pids'\nos.mkdir(d+'/few')\nopen(d+'/few/pids.max','w').write('1')\n\
                       open(d+'/few/cgroup.procs','w').write('0')\ntry: os.fork()\nexcept BlockingIOError: print('limited')\n\
                       open(d+'/cgroup.procs','w').write('0')\nos.rmdir(d+'/few')";
        assert_eq!(output(node.command("python3").args(["-c", limited])), "limited");
    }
    let procs = |dir: &PathBuf| corebox_sys::fs::read(dir.join("cgroup.procs")).expect("procs");
    for dir in node.cgroups() {
        let text = String::from_utf8(procs(dir)).expect("text");
        assert_eq!(text.lines().count(), 1, "only the init is in {}: {text}", dir.display());
    }
}

#[test]
fn nodes_can_have_their_own_cpus() {
    if !require_root("nodes_can_have_their_own_cpus") {
        return;
    }
    let shared = Cluster::builder().start().expect("starts");
    let all = sh(&shared, "n1", "nproc").parse::<usize>().expect("number");
    if all < 2 {
        skip!("nodes_can_have_their_own_cpus", "needs 2 CPUs");
        return;
    }
    let cluster = Cluster::builder().split_cpus(true).start().expect("starts");
    let list = |node: &str| sh(&cluster, node, "grep Cpus_allowed_list /proc/self/status");
    assert_ne!(list("n1"), list("n2"));
    assert_eq!(sh(&cluster, "n1", "nproc"), (all / 2).to_string());
    assert_eq!(sh(&cluster, "n1", &format!("{} n2 nproc", cluster.rsh().display())), (all / 2).to_string());
    assert_eq!(sh(&cluster, "ctl", "nproc"), all.to_string());
}

#[test]
fn programs_end_as_they_ended() {
    if !require_root("programs_end_as_they_ended") {
        return;
    }
    let cluster = Cluster::builder().nodes(1).start().expect("starts");
    let status = |script: &str| cluster.node("n1").command("sh").args(["-c", script]).status().expect("runs");
    assert_eq!(status("exit 42").code(), Some(42));
    assert_eq!(status("kill -SEGV $$").signal(), Some(11));
    assert_eq!(
        cluster.node("n1").command("no-such-program").stderr(Stdio::null()).status().expect("runs").code(),
        Some(127)
    );
    assert_eq!(output(cluster.node("n1").command_as(65534, "id").arg("-u")), "65534");
    let mut trapped = cluster.node("n1").command("sh");
    let mut child = start({
        trapped.args(["-c", "trap 'exit 7' TERM; echo set; while :; do read x; done"]);
        trapped
    });
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("set");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).expect("kill");
    drop(child.stdin.take());
    assert_eq!(child.wait().expect("waits").code(), Some(7), "signals reach the program");
}

#[test]
fn leftovers_are_seen_and_then_gone() {
    if !require_root("leftovers_are_seen_and_then_gone") {
        return;
    }
    let cluster = Cluster::builder().start().expect("starts");
    let node = cluster.node("n1");
    assert_eq!(node.leftovers().expect("looks"), Vec::<String>::new());
    let mess = "setsid -f unshare --user --map-root-user sleep 1000 >/dev/null 2>&1; mount -t tmpfs none /mnt; ip link add d0 type veth peer name d1; \
                touch /tmp/left /dev/shm/left; for d in /sys/fs/cgroup/*/cgroup.procs; do mkdir ${d%/*}/left; done; ipcmk -M 64 >/dev/null; \
                setsid -f python3 -c 'import socket,time;s=socket.create_server((\"127.0.0.1\",7777));time.sleep(1000)' >/dev/null 2>&1";
    sh(&cluster, "n1", mess);
    let wanted = [
        "sleep 1000",
        "mount /mnt",
        "interface d0",
        "file /tmp/left",
        "file /dev/shm/left",
        "ipc shm",
        "user-namespace",
        "listener tcp 0100007F:1E61",
        "cgroup /sys/fs/cgroup",
    ];
    let all = wait_until(LIMIT, || {
        let list = node.leftovers().expect("looks");
        wanted.iter().all(|want| list.iter().any(|line| line.contains(want))).then_some(list)
    });
    assert!(all.is_some(), "{:?} lacks some of {wanted:?}", node.leftovers());
    assert_eq!(
        cluster.node("n2").leftovers().expect("looks"),
        Vec::<String>::new(),
        "the other node has nothing of it"
    );
    sh(
        &cluster,
        "n1",
        "pkill sleep; pkill python3; umount /mnt; rm -r /run/mount; ip link del d0; rm /tmp/left /dev/shm/left; rmdir /sys/fs/cgroup/*/left; ipcrm -a",
    );
    assert_eq!(node.wait_clean(LIMIT).expect("looks"), Vec::<String>::new());
    let one = Snapshot::take(&node).expect("takes");
    assert_eq!((one.count("user-namespace"), one.count("pid-namespace")), (1, 1));
}

#[test]
fn a_killed_node_is_dead() {
    if !require_root("a_killed_node_is_dead") {
        return;
    }
    let cluster = Cluster::builder().start().expect("starts");
    let mut program = start({
        let mut sleep = cluster.node("n1").command("sh");
        sleep.args(["-c", "echo up; exec sleep 1000"]);
        sleep
    });
    let mut line = String::new();
    BufReader::new(program.stdout.take().expect("piped")).read_line(&mut line).expect("up");
    cluster.node("n1").kill().expect("kills");
    assert_eq!(program.wait().expect("waits").signal(), Some(9));
    assert_eq!(cluster.node("n1").wait_clean(LIMIT).expect("looks"), Vec::<String>::new());
    let refused = cluster.node("ctl").command(cluster.rsh()).args(["n1", "true"]).output().expect("runs");
    assert_eq!(refused.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot reach node n1"));
    cluster.stop().expect("stops though a node is dead");
}

#[test]
fn rsh_behaves_like_ssh() {
    if !require_root("rsh_behaves_like_ssh") {
        return;
    }
    let cluster = Cluster::builder().start().expect("starts");
    let rsh = |words: &[&str]| {
        let mut command = cluster.node("n1").command(cluster.rsh());
        command.args(words).env("SECRET", "1");
        command
    };
    assert_eq!(output(rsh(&["n2", "hostname;", "echo", "$SECRET$HOME"]).stdin(Stdio::null())), "n2\n/root");
    assert_eq!(rsh(&["-x", "n2", "exit", "5"]).status().expect("runs").code(), Some(5));
    assert_eq!(rsh(&["n2", "kill -9 $$"]).status().expect("runs").code(), Some(255));
    assert_eq!(rsh(&["n9", "true"]).stderr(Stdio::null()).status().expect("runs").code(), Some(255));
    let mut cat = start(rsh(&["n2", "cat; echo end"]));
    cat.stdin.take().expect("piped").write_all(b"in\n").expect("writes");
    let mut text = String::new();
    cat.stdout.take().expect("piped").read_to_string(&mut text).expect("reads");
    assert_eq!(text, "in\nend\n");
    assert!(cat.wait().expect("waits").success());
    let big = output(&mut rsh(&["n2", "head -c 50000000 /dev/zero | tr '\\0' x; echo"]));
    assert_eq!(big.len(), 50_000_000, "nothing is lost at the end");
}

#[test]
fn rsh_ends_when_the_program_does_and_its_death_is_an_end_of_input() {
    if !require_root("rsh_ends_when_the_program_does_and_its_death_is_an_end_of_input") {
        return;
    }
    let cluster = Cluster::builder().start().expect("starts");
    let rsh = |script: &str| {
        let mut command = cluster.node("n1").command(cluster.rsh());
        command.args(["n2", script]);
        command
    };
    let mut early = start(rsh("setsid -f sleep 1000; exit 3"));
    assert_eq!(early.wait().expect("waits").code(), Some(3), "not held up by a daemon that keeps the output open");
    let note = cluster.pfs().join("note");
    let mut child = start(rsh(&format!("echo up; cat >/dev/null; echo over >{}", note.display())));
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("up");
    child.kill().expect("kill");
    child.wait().expect("waits");
    let seen = wait_until(LIMIT, || std::fs::metadata(&note).ok());
    assert!(seen.is_some(), "the program saw the end of its input though the writer of the pipe still lives");
}

#[test]
fn ssh_between_nodes() {
    if !require_root("ssh_between_nodes") || !require_programs("ssh_between_nodes", &["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let cluster = Cluster::builder().ssh(true).start().expect("starts");
    assert_eq!(sh(&cluster, "n1", "ssh n2 hostname </dev/null"), "n2");
    assert_eq!(sh(&cluster, "ctl", "ssh 10.77.0.1 hostname </dev/null"), "n1");
    assert_eq!(cluster.node("n2").command("ssh").args(["n1", "exit 9"]).status().expect("runs").code(), Some(9));
    assert_eq!(cluster.node("n1").wait_clean(LIMIT).expect("looks"), Vec::<String>::new());
    cluster.stop().expect("stops");
}

/// What a cluster started by `corebox-simnode up` has on the host.
struct Traces {
    child: Child,
    pids: Vec<i64>,
    paths: Vec<PathBuf>,
    keeper: i32,
}

fn traces() -> Traces {
    let state = std::env::temp_dir().join(format!("simnode-test-{}", std::process::id()));
    let mut up = Command::new(simnode_program().expect("built"));
    up.args(["up", "2", "--state"]).arg(&state).args(["--", "sh", "-c", "echo up; exec sleep 1000"]);
    let mut child = start(up);
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("up");
    let text = corebox_sys::fs::read(&state).expect("state");
    std::fs::remove_file(&state).expect("the link");
    let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let nodes = value["nodes"].as_array().expect("nodes");
    let pids = nodes.iter().map(|node| node["pid"].as_i64().expect("pid")).collect();
    let dirs = nodes.iter().flat_map(|node| node["cgroups"].as_array().expect("cgroups"));
    let mut paths: Vec<PathBuf> = dirs.map(|dir| dir.as_str().expect("path").into()).collect();
    paths.push(value["dir"].as_str().expect("dir").into());
    let name = value["dir"].as_str().expect("dir").rsplit_once("COREBOX-TEST-").expect("prefix").1;
    let keeper = name.split('-').next().expect("pid").parse().expect("pid");
    Traces { child, pids, paths, keeper }
}

impl Traces {
    /// What of it is still there after a while.
    fn left(&self, paths: bool) -> Vec<String> {
        let look = || {
            let alive = self.pids.iter().filter(|pid| alive(**pid)).map(|pid| format!("pid {pid}"));
            let there = self.paths.iter().filter(|path| paths && path.exists()).map(|path| path.display().to_string());
            alive.chain(there).collect::<Vec<_>>()
        };
        wait_until(LIMIT, || look().is_empty().then_some(()));
        look()
    }
}

fn alive(pid: i64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// One test, because each part leaves something for a moment that the next part's start would sweep.
#[test]
fn nothing_stays_after_sigkill() {
    if !require_root("nothing_stays_after_sigkill") {
        return;
    }
    let mut killed = traces();
    assert!(killed.pids.iter().all(|pid| alive(*pid)) && killed.paths.iter().all(|path| path.exists()));
    killed.child.kill().expect("SIGKILL to the owner");
    killed.child.wait().expect("waits");
    assert_eq!(killed.left(true), Vec::<String>::new());

    let mut orphaned = traces();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(orphaned.keeper), nix::sys::signal::SIGKILL).expect("the keeper");
    assert_eq!(orphaned.left(false), Vec::<String>::new(), "no process survives the keeper");
    orphaned.child.wait().expect("its program died with the nodes");
    Cluster::builder().nodes(1).start().expect("starts").stop().expect("stops");
    assert_eq!(orphaned.left(true), Vec::<String>::new(), "the next start swept the directories");
}

#[test]
fn bad_requests_are_refused() {
    let refused = Cluster::builder().nodes(0).start().expect_err("no nodes");
    assert!(refused.to_string().contains("0 nodes: want 1 to 200"), "{refused}");
    let usage = Command::new(simnode_program().expect("built")).args(["up", "2"]).output().expect("runs");
    assert_eq!(usage.status.code(), Some(2));
}

/// The whole harness for an ordinary user: nodes in a user namespace.
#[test]
fn an_ordinary_user_gets_nodes_too() {
    let name = "an_ordinary_user_gets_nodes_too";
    let text = |path| corebox_sys::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_string());
    if text("/proc/sys/user/max_user_namespaces").is_ok_and(|limit| limit == "0") {
        skip!(name, "user namespaces are off");
        return;
    }
    // The build directory may be root's; the user needs a copy of the program it can reach.
    let dir = std::env::temp_dir().join(format!("simnode-user-{}", std::process::id()));
    corebox_sys::fs::create_dir_all(&dir).expect("makes");
    let program = dir.join("corebox-simnode");
    std::fs::copy(simnode_program().expect("built"), &program).expect("copies");
    let mut user = if nix::unistd::geteuid().is_root() {
        let mut su = Command::new("setpriv");
        su.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        su.arg(&program);
        su
    } else {
        Command::new(&program)
    };
    let script = format!("hostname; id -u; {} rsh $STATE n2 hostname", program.display());
    user.args(["up", "2", "--", "sh", "-c", &script]).current_dir("/");
    let output = user.output().expect("runs");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned());
    std::fs::remove_dir_all(&dir).expect("removes");
    assert_eq!(out, "ctl\n0\nn2\n", "{err}");
    assert!(err.contains("no cgroups of their own"), "says what is missing: {err}");
}
