//! The test's side of a cluster of simulated nodes.

use crate::simnode::state::{NodeState, State};
use crate::simnode::{KeepRequest, is_private, set_link, sweep_stale};
use crate::snapshot::Snapshot;
use crate::{Result, requirements};
use corebox_spec::Failure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// Asks for a cluster; see [`Cluster::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    request: KeepRequest,
}

impl Builder {
    /// How many nodes, `n1` to `nN` (default 2), besides the controller `ctl`.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.request.nodes = count;
        self
    }
    /// Whether an ssh server runs on every node, with keys for root (default no; needs root and openssh-server).
    #[must_use]
    pub fn ssh(mut self, wanted: bool) -> Self {
        self.request.ssh = wanted;
        self
    }
    /// Whether each node has its own share of the CPUs (default no: each has all). Needed when ranks on different nodes
    /// are bound and must not meet on the same core. With fewer CPUs than nodes, nodes share CPUs.
    #[must_use]
    pub fn split_cpus(mut self, wanted: bool) -> Self {
        self.request.split_cpus = wanted;
        self
    }
    /// Shows a host directory at the same path on every node; needed only below `/tmp`, `/run` and `/dev`, which every
    /// node has for itself. The cluster's own directory, the build directory the directory of `$COREBOX` and
    /// the image store `$COREBOX_STORE` are shown without being asked for.
    #[must_use]
    pub fn bind(mut self, dir: impl AsRef<Path>) -> Self {
        self.request.binds.push(dir.as_ref().to_path_buf());
        self
    }
    /// Builds the cluster (about 0.3 s) and takes the first [`Snapshot`] of each node.
    ///
    /// # Errors
    /// A program or right is missing; bad counts (1 to 200 nodes).
    pub fn start(mut self) -> Result<Cluster> {
        let goal = "cannot start simulated nodes";
        self.check()?;
        sweep_stale();
        let place = |name| std::env::var_os(name).map(PathBuf::from);
        self.request.binds.extend(place("COREBOX").and_then(|path| path.parent().map(PathBuf::from)));
        self.request.binds.extend(place("COREBOX_STORE").filter(|dir| dir.is_dir()));
        let request = serde_json::to_string(&self.request).map_err(|e| Failure::new(goal, e))?;
        let mut keeper = Command::new(requirements::simnode_program()?)
            .arg("keep")
            .arg(request)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Failure::new(goal, e))?;
        let mut file = String::new();
        if let Some(out) = keeper.stdout.take() {
            BufReader::new(out).read_line(&mut file).map_err(|e| Failure::new(goal, e))?;
        }
        if file.trim().is_empty() {
            let _ = keeper.wait();
            return Err(Failure::new(goal, "the keeper ended; its reason is above"));
        }
        let state = State::read(file.trim())?;
        let cluster = Cluster { keeper: Mutex::new(Some(keeper)), state, first: Mutex::default() };
        for node in &cluster.state.nodes {
            let snapshot = Snapshot::take(&cluster.node(&node.name))?;
            cluster.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(snapshot);
        }
        Ok(cluster)
    }

    /// Refuses what cannot work before anything is made.
    fn check(&self) -> Result<()> {
        let goal = "cannot start simulated nodes";
        if !(1..=200).contains(&self.request.nodes) {
            return Err(Failure::new(goal, format_args!("{} nodes: want 1 to 200", self.request.nodes)));
        }
        if self.request.ssh && !nix::unistd::geteuid().is_root() {
            return Err(Failure::new(goal, "ssh between simulated nodes needs root"));
        }
        let ssh: &[&str] = if self.request.ssh { &["sshd", "ssh", "ssh-keygen"] } else { &[] };
        if let Some(dir) = self.request.binds.iter().find(|dir| is_private(dir)) {
            return Err(Failure::new(goal, format_args!("every node has its own {}", dir.display()))
                .hint("name a directory below it."));
        }
        for name in ["ip", "nsenter"].iter().chain(ssh) {
            if requirements::program(name).is_none() {
                return Err(Failure::new(goal, format_args!("the program `{name}` is missing")).hint(
                    "apt-get install util-linux iproute2 openssh-server openssh-client (`./dev` does it for you).",
                ));
            }
        }
        Ok(())
    }
}

/// A controller and N nodes on one machine, each with its own namespaces, cgroups, address, `/tmp`, `/run`, `/dev`.
///
/// Dropping it takes everything down. If the test is killed instead, the keeper (another process, in another session)
/// sees the end of its pipe and does the same; if the keeper is killed too, every node's init sees the end of its
/// pipe, so no process, mount, interface or socket stays, and the next `start` removes the directories left.
#[derive(Debug)]
pub struct Cluster {
    keeper: Mutex<Option<Child>>,
    state: State,
    first: Mutex<Vec<Snapshot>>,
}

impl Cluster {
    /// A cluster of two nodes without ssh, to be adjusted.
    pub fn builder() -> Builder {
        Builder { request: KeepRequest { nodes: 2, ssh: false, split_cpus: false, binds: Vec::new() } }
    }

    /// The node `ctl` or `nN`.
    ///
    /// # Panics
    /// There is no such node: a mistake in the test.
    pub fn node(&self, name: &str) -> Node<'_> {
        let index = self.state.nodes.iter().position(|node| node.name == name);
        let Some(index) = index else { panic!("no node `{name}` in this cluster of {}", self.state.nodes.len() - 1) };
        Node { cluster: self, index }
    }

    /// Names of the nodes without the controller.
    pub fn node_names(&self) -> Vec<String> {
        self.state.nodes.iter().skip(1).map(|node| node.name.clone()).collect()
    }

    /// The directory that plays the parallel file system: same path and content on all nodes, writable by all users.
    pub fn pfs(&self) -> PathBuf {
        self.state.dir.join("pfs")
    }

    /// A program to be used like ssh from inside the nodes: `corebox mpirun --rsh PATH`. See `corebox-simnode help`.
    pub fn rsh(&self) -> PathBuf {
        self.state.dir.join("rsh")
    }

    /// The state file that the modes of `corebox-simnode` take.
    pub fn state_file(&self) -> PathBuf {
        self.state.file()
    }

    /// What this cluster cannot do here, in words (empty for root).
    pub fn missing(&self) -> &[String] {
        &self.state.missing
    }

    /// Takes everything down and waits until it is gone.
    ///
    /// # Errors
    /// Something could not be removed; the keeper has said what.
    pub fn stop(self) -> Result<()> {
        self.end()
    }

    fn end(&self) -> Result<()> {
        let keeper = self.keeper.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(mut keeper) = keeper else { return Ok(()) };
        drop(keeper.stdin.take());
        let status = keeper.wait().map_err(|e| Failure::new("cannot wait for the keeper", e))?;
        if status.success() { Ok(()) } else { Err(Failure::new("cannot take the cluster down", status)) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            eprintln!("{failure}");
        }
    }
}

/// One node of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    cluster: &'a Cluster,
    index: usize,
}

impl Node<'_> {
    fn state(&self) -> &NodeState {
        &self.cluster.state.nodes[self.index]
    }

    /// Its name, which is also its host name.
    pub fn name(&self) -> &str {
        &self.state().name
    }

    /// Its address on the cluster's network.
    pub fn address(&self) -> &str {
        &self.state().address
    }

    /// The host's pid of its init.
    pub fn pid(&self) -> i32 {
        self.state().pid
    }

    /// Its cgroup directories as the host sees them, one per hierarchy (empty without root).
    pub fn cgroups(&self) -> &[PathBuf] {
        &self.state().cgroups
    }

    /// A program inside the node, in all its namespaces and cgroups, as root.
    ///
    /// Environment, descriptors and (if it exists there) working directory are those of the [`Command`]. The child is a
    /// helper outside the node that passes signals on and ends as the program ends; killing it kills the program.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.enter(None, program.as_ref())
    }

    /// The same as the user with this number (its own group, no others).
    pub fn command_as(&self, uid: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.enter(Some(uid), program.as_ref())
    }

    fn enter(&self, uid: Option<u32>, program: &std::ffi::OsStr) -> Command {
        let mut command = Command::new(&self.cluster.state.program);
        command.arg("exec").arg(self.cluster.state_file()).arg(self.name());
        if let Some(uid) = uid {
            command.arg("--user").arg(uid.to_string());
        }
        command.arg("--").arg(program);
        command
    }

    /// Node death: SIGKILL to its init, which takes every process of the node with it.
    ///
    /// # Errors
    /// It is dead already.
    pub fn kill(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid()), Signal::SIGKILL)
            .map_err(|e| Failure::new(format!("cannot kill node {}", self.name()), e))
    }

    /// Pulls the node's cable. The remote shell of [`Cluster::rsh`] does not need the cable; ssh does.
    ///
    /// # Errors
    /// What ip-link(8) says.
    pub fn cut_link(&self) -> Result<()> {
        set_link(&self.cluster.state.nodes[0], self.state(), false)
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// What ip-link(8) says.
    pub fn restore_link(&self) -> Result<()> {
        set_link(&self.cluster.state.nodes[0], self.state(), true)
    }

    /// What is there now and was not when the cluster started, one line each; for a dead node, processes that still
    /// stand in its cgroups.
    ///
    /// # Errors
    /// The node cannot be entered though it lives.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        if kill(Pid::from_raw(self.pid()), None).is_err() {
            return Ok(self.processes_in_cgroups());
        }
        let now = Snapshot::take(self)?;
        let first = self.cluster.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(first[self.index].diff(&now))
    }

    /// Waits until nothing is left over; gives what still is after `limit`.
    ///
    /// # Errors
    /// The node cannot be entered though it lives.
    pub fn wait_clean(&self, limit: std::time::Duration) -> Result<Vec<String>> {
        let mut last = Ok(Vec::new());
        crate::wait_until(limit, || {
            last = self.leftovers();
            matches!(&last, Ok(list) if list.is_empty()).then_some(())
        });
        last
    }

    fn processes_in_cgroups(&self) -> Vec<String> {
        let files = self.cgroups().iter().map(|dir| dir.join("cgroup.procs"));
        let texts = files.filter_map(|file| corebox_sys::fs::read_to_string(file).ok());
        let mut pids: Vec<String> =
            texts.flat_map(|text| text.lines().map(|pid| format!("process {pid}")).collect::<Vec<_>>()).collect();
        pids.sort();
        pids.dedup();
        pids
    }
}
