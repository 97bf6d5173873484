//! The wire-up with real MPI libraries, without containers: ranks are forked by `chroot`, each node is a process of
//! this test binary ([`node`]) in its own namespaces.
//!
//! Needs root and `COREBOX_MPI_ROOTS`: entries `PROTOCOL,ROOT,PROGRAM[,LIMIT]` separated by `;`, where PROTOCOL is `pmix`
//! or `pmi`, ROOT a root directory with an MPI, PROGRAM in it `testdata/mpi/probe.c`, compiled with that MPI, and LIMIT
//! the most ranks per node of several (1 for Debian 12's MPICH 4.0.2, whose UCX hangs in a quarter of all
//! MPI_Finalize else, under its own mpiexec too). `testdata/mpi/pmi2.c`, linked to libpmi2, is run without failures.
//! `COREBOX_MPI_TEST=TEXT` runs only the cases whose description contains the text.

use corebox_mpi::wire::exchange::{Config, Exchange, Secret, Timing};
use corebox_mpi::wire::pmix::{Library, LocalRank, PmixServer, ServerConfig};
use corebox_mpi::wire::{JobShape, PmiServer, Protocol, WireEvent, WireUp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NODE: &str = "COREBOX_TEST_NODE";

/// One node's part of a job; does nothing unless [`run`] started it.
#[test]
fn node() {
    let Ok(text) = std::env::var(NODE) else { return };
    let words: Vec<&str> = text.split(' ').collect();
    let [protocol, root, node, nodes, ppn, program @ ..] = &words[..] else { panic!("{text}") };
    let (node, nodes, ppn) = (node.parse().unwrap(), nodes.parse().unwrap(), ppn.parse().unwrap());
    let code = Node::start(protocol, root, node, nodes, ppn, program).serve();
    println!("\nCODE {code}");
    std::process::exit(0);
}

struct Node {
    shape: JobShape,
    wire: WireUp,
    sockets: Vec<Option<UnixStream>>,
    ends: Receiver<(u32, ExitStatus)>,
    ended: Arc<EventFd>,
    running: HashSet<u32>,
    pids: Arc<Mutex<Vec<u32>>>,
    connected: HashSet<u32>,
    finalized: HashSet<u32>,
    code: Option<i32>,
}

impl Node {
    fn start(protocol: &str, root: &str, node: u32, nodes: u32, ppn: u32, program: &[&str]) -> Self {
        let ranks = (0..nodes).map(|n| (n * ppn..(n + 1) * ppn).collect()).collect();
        let shape = JobShape::new("job.1", node, ranks, vec![0; (nodes * ppn) as usize], 0).unwrap();
        let config = Config {
            job: "job.1".into(),
            secret: Secret::from_bytes([7; 32]),
            node,
            nodes,
            arity: 2,
            timing: Timing::default(),
        };
        let mut exchange = Exchange::new(config).unwrap();
        let addresses: Vec<String> = exchange.addresses().unwrap().iter().map(SocketAddr::to_string).collect();
        println!("\nADDRESSES {}", addresses.join(" "));
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        let parent = line.split_whitespace().map(|address| address.parse().unwrap()).collect();
        let protocol = protocol_server(protocol, &shape);
        exchange.start(parent).unwrap();
        let (sender, ends) = channel();
        let ended = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap());
        let (mut sockets, mut pids) = (Vec::new(), Vec::new());
        for (local, rank) in shape.local_ranks().iter().copied().enumerate() {
            let (mut child, socket) = fork_rank(&protocol, &shape, local, root, program);
            sockets.push(socket);
            pids.push(child.id());
            let (sender, ended) = (sender.clone(), ended.clone());
            std::thread::spawn(move || {
                sender.send((rank, child.wait().unwrap())).unwrap();
                ended.write(1).unwrap();
            });
        }
        let running = shape.local_ranks().iter().copied().collect();
        let pids = Arc::new(Mutex::new(pids));
        obey_stdin(pids.clone());
        let wire = WireUp::new(exchange, protocol);
        let (connected, finalized) = Default::default();
        Self { shape, wire, sockets, ends, ended, running, pids, connected, finalized, code: None }
    }

    /// Serves the ranks until all have ended; the exit code of the node's part.
    fn serve(mut self) -> i32 {
        while !self.running.is_empty() {
            let (readable, hung_up) = self.wait();
            for local in readable {
                let mut buffer = [0; 4096];
                let count = self.sockets[local].as_mut().unwrap().read(&mut buffer).unwrap_or(0);
                if count == 0 {
                    self.sockets[local] = None;
                }
                let events = self.wire.on_pmi_bytes(local, &buffer[..count]);
                self.take(events);
            }
            let events = self.wire.dispatch();
            self.take(events);
            if hung_up {
                let _ = self.ended.read();
            }
            while let Ok((rank, status)) = self.ends.try_recv() {
                self.running.remove(&rank);
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
                println!("\nEND {rank} {code}");
                let silent = self.connected.contains(&rank) && !self.finalized.contains(&rank);
                match code {
                    0 if silent => self.fail(1, &format!("rank {rank} left without finalize")),
                    0 => {}
                    _ => self.fail(code, &format!("rank {rank} ended with {code}")),
                }
            }
        }
        println!("\nDONE");
        self.code.unwrap_or(0)
    }

    fn wait(&self) -> (Vec<usize>, bool) {
        let mut fds = vec![PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.wire.wake_fds().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let first = fds.len();
        let open: Vec<usize> = (0..self.sockets.len()).filter(|local| self.sockets[*local].is_some()).collect();
        let sockets = open.iter().map(|local| self.sockets[*local].as_ref().unwrap().as_fd());
        fds.extend(sockets.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        poll(&mut fds, PollTimeout::NONE).unwrap();
        let ready = |fd: &PollFd| fd.any().unwrap_or(false);
        let readable = open.iter().zip(&fds[first..]).filter(|(_, fd)| ready(fd)).map(|(local, _)| *local).collect();
        (readable, ready(&fds[0]))
    }

    fn take(&mut self, events: Vec<WireEvent>) {
        for event in events {
            match event {
                WireEvent::Write { local, bytes } => {
                    if let Some(socket) = &mut self.sockets[local] {
                        let _ = socket.write_all(&bytes);
                    }
                }
                WireEvent::Connected { rank } => drop(self.connected.insert(rank)),
                WireEvent::Finalized { rank } => drop(self.finalized.insert(rank)),
                WireEvent::Abort { rank, code, message } => self.fail(code, &format!("rank {rank} aborts: {message}")),
                WireEvent::Violation { rank, message } => self.fail(1, &format!("rank {rank} {message}")),
                WireEvent::Log { rank, text } => println!("\nLOG {rank} {text}"),
                WireEvent::LinkLost { node, cause } => self.fail(1, &format!("lost node {node}: {cause}")),
                WireEvent::Ready => println!("\nREADY {}", self.shape.node()),
            }
        }
    }

    fn fail(&mut self, code: i32, why: &str) {
        if self.code.is_none() {
            println!("\nFAIL {code} {why}");
            self.code = Some(code);
            kill(&self.pids.lock().unwrap());
        }
    }
}

fn protocol_server(protocol: &str, shape: &JobShape) -> Protocol {
    if protocol == "pmi" {
        return Protocol::Pmi(Box::new(PmiServer::new(shape.clone())));
    }
    let rank = LocalRank { uid: 0, gid: 0, cpuset: None, locality: None };
    let start = Instant::now();
    let library = Library::find(None).unwrap();
    let loaded = start.elapsed();
    let version = library.version().to_owned();
    let config = ServerConfig {
        shape: shape.clone(),
        hostnames: (0..shape.nodes()).map(|node| format!("node{node}")).collect(),
        // Of this node alone, and at the same path in the root: see in_namespaces.
        tmpdir: PathBuf::from("/mnt"),
        ranks: vec![rank; shape.local_ranks().len()],
        open_mpi_before_4_1: false,
    };
    let server = PmixServer::start(library, config).unwrap();
    println!("\nPMIX {version}: loaded in {loaded:?}, started in {:?}", start.elapsed());
    Protocol::Pmix(Box::new(server))
}

fn fork_rank(
    protocol: &Protocol,
    shape: &JobShape,
    local: usize,
    root: &str,
    program: &[&str],
) -> (Child, Option<UnixStream>) {
    let rank = shape.local_ranks()[local];
    let mut command = Command::new("chroot");
    // The descriptor arrives as standard input, whatever its number here, and is moved to 9.
    command.args([root, "/bin/sh", "-c", "exec 9<&0 </dev/null; exec \"$@\"", "sh"]).args(program).env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/").env("OMPI_ALLOW_RUN_AS_ROOT", "1");
    command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("OMPI_MCA") || name.starts_with("UCX_")) {
        command.env(name, value);
    }
    let mut socket = None;
    match protocol {
        Protocol::Pmi(_) => {
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
            socket = Some(UnixStream::from(ours));
            command.stdin(Stdio::from(theirs)).envs(PmiServer::environment(shape, local, 9));
        }
        Protocol::Pmix(server) => drop(command.stdin(Stdio::null()).envs(server.environment(rank).unwrap())),
        Protocol::None => unreachable!(),
    }
    (command.spawn().unwrap(), socket)
}

/// End of input, or a line, from the launcher: another node has failed.
fn obey_stdin(pids: Arc<Mutex<Vec<u32>>>) {
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        if line.starts_with("KILL") {
            kill(&pids.lock().unwrap());
        }
    });
}

fn kill(pids: &[u32]) {
    for pid in pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), nix::sys::signal::Signal::SIGKILL);
    }
}

/// What a job printed, and the code of its first failure.
struct Outcome {
    lines: Vec<String>,
    code: i32,
    took: Duration,
}

/// Runs a job; `in_node` is put before the command of each node.
fn run(
    protocol: &str,
    root: &str,
    nodes: u32,
    ppn: u32,
    program: &str,
    in_node: impl Fn(u32) -> Vec<String>,
) -> Outcome {
    let start = Instant::now();
    let (sender, lines) = channel();
    let mut children = Vec::new();
    for node in 0..nodes {
        let exe = std::env::current_exe().unwrap().to_string_lossy().into_owned();
        let mut words = in_node(node);
        words.extend([exe, "node".into(), "--exact".into(), "--nocapture".into(), "--test-threads=1".into()]);
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env(NODE, format!("{protocol} {root} {node} {nodes} {ppn} {program}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in output.lines() {
                let _ = sender.send((node, line.unwrap()));
            }
        });
        children.push(child);
    }
    drop(sender);
    let (mut all, mut code, mut addresses, mut done) = (Vec::new(), None, vec![None; nodes as usize], 0);
    while let Ok((node, line)) = lines.recv_timeout(Duration::from_secs(60)) {
        if let Some(found) = line.strip_prefix("ADDRESSES ") {
            addresses[node as usize] = Some(found.to_owned());
            if addresses.iter().all(Option::is_some) {
                for (node, child) in (0..).zip(&mut children) {
                    let parent = Exchange::parent_of(node, nodes, 2).map(|p| addresses[p as usize].clone().unwrap());
                    writeln!(child.stdin.as_mut().unwrap(), "{}", parent.unwrap_or_default()).unwrap();
                }
            }
        } else if let Some(failed) = line.strip_prefix("FAIL ") {
            if code.is_none() {
                code = failed.split(' ').next().unwrap().parse().ok();
                for child in &mut children {
                    let _ = writeln!(child.stdin.as_mut().unwrap(), "KILL");
                }
            }
        } else if line == "DONE" {
            done += 1;
        }
        all.push(format!("{node}: {line}"));
    }
    let took = start.elapsed();
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
    let code = code.unwrap_or(if done == nodes { 0 } else { -1 });
    Outcome { lines: all, code, took }
}

/// Own mount, process, host name and IPC namespaces with /proc, /sys and /dev in the root; the network if given.
fn in_namespaces(root: &str, node: u32, network: bool) -> Vec<String> {
    let script = format!(
        "hostname node{node}; mount -t proc proc {root}/proc; mount --rbind /sys {root}/sys; \
         mount -t tmpfs tmpfs {root}/dev; for n in null zero urandom random full; do : > {root}/dev/$n; \
         mount --bind /dev/$n {root}/dev/$n; done; mkdir {root}/dev/shm; mount -t tmpfs tmpfs {root}/dev/shm; \
         mount -t tmpfs tmpfs {root}/tmp; mount -t tmpfs tmpfs /mnt; mount --bind /mnt {root}/mnt; exec \"$@\""
    );
    let mut words: Vec<String> = Vec::new();
    if network {
        words.extend(["ip", "netns", "exec", &format!("cbwire{node}")].map(str::to_owned));
    }
    let unshare =
        ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-c", &script, "sh"];
    words.extend(unshare.map(str::to_owned));
    words
}

/// Two network namespaces with a veth pair between them, gone when dropped.
struct Cable;

impl Cable {
    fn lay() -> Self {
        let cable = Self;
        cable.remove();
        for node in 0..2 {
            sh(&format!("ip netns add cbwire{node}"));
        }
        sh("ip link add eth0 netns cbwire0 type veth peer name eth0 netns cbwire1");
        for node in 0..2 {
            sh(&format!("ip -n cbwire{node} addr add 10.77.0.{}/24 dev eth0", node + 1));
            sh(&format!("ip -n cbwire{node} link set eth0 up && ip -n cbwire{node} link set lo up"));
        }
        cable
    }
    fn remove(&self) {
        for node in 0..2 {
            let _ = Command::new("ip").args(["netns", "del", &format!("cbwire{node}")]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.remove();
    }
}

fn sh(command: &str) {
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
}

fn count(outcome: &Outcome, text: &str) -> usize {
    outcome.lines.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn real_mpi_libraries_find_each_other() {
    let Ok(roots) = std::env::var("COREBOX_MPI_ROOTS") else {
        eprintln!("SKIP real_mpi_libraries_find_each_other: COREBOX_MPI_ROOTS is not set");
        return;
    };
    let only = std::env::var("COREBOX_MPI_TEST").unwrap_or_default();
    let _cable = Cable::lay();
    let mut wrong = Vec::new();
    for entry in roots.split(';') {
        let mut fields = entry.split(',');
        let [Some(protocol), Some(root), Some(program), limit] = [(); 4].map(|()| fields.next()) else {
            panic!("{entry}")
        };
        let limit = limit.map_or(u32::MAX, |limit| limit.parse().unwrap());
        let cases = [
            (1, 2, "bandwidth", 0),
            (1, 1, "", 0),
            (1, 4, "", 0),
            (1, 2, "abort 7", 7),
            (1, 2, "exit 3", 3),
            (1, 2, "die 9", 137),
            (1, 2, "no-finalize", 1),
            (2, 1, "bandwidth", 0),
            (2, 2, "", 0),
            (2, 2, "abort 7", 7),
            (2, 2, "die 11", 139),
        ];
        for (nodes, ppn, mode, expected) in cases {
            let what = format!("{protocol} {program} {nodes}x{ppn} {mode}");
            let cannot = program.ends_with("pmi2") && !["", "bandwidth"].contains(&mode);
            if !what.contains(&only) || nodes > 1 && ppn > limit || cannot {
                continue;
            }
            let program = format!("{program} {mode}");
            let outcome = run(protocol, root, nodes, ppn, program.trim(), |node| in_namespaces(root, node, nodes > 1));
            let size = (nodes * ppn) as usize;
            // A rank that dies is noticed by its peers over the network before its own end is (a core dump takes its
            // time): Open MPI 5's then abort with 14, and who is first is open.
            let died = mode.starts_with("die") && count(&outcome, &format!("END {} {expected}", size - 1)) == 1;
            let right = (outcome.code == expected || died && outcome.code == 14)
                && count(&outcome, "allreduce right") == size
                && count(&outcome, "allgather right") == size
                && count(&outcome, &format!(" of {size}, local")) == size
                && count(&outcome, &format!(" of {ppn}, on node")) == size
                && count(&outcome, "WRONG") == 0;
            eprintln!("{what}: code {} in {:?} {}", outcome.code, outcome.took, if right { "ok" } else { "WRONG" });
            if !right || std::env::var_os("COREBOX_MPI_VERBOSE").is_some() {
                eprintln!(
                    "{}",
                    outcome.lines.iter().filter(|l| l.len() > 3).map(|l| format!("    {l}\n")).collect::<String>()
                );
            }
            if !right {
                wrong.push(what);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
