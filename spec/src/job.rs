//! What was asked of a parallel job: [`JobSpec`].

use crate::{ContainerSpec, HostSlots};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A level of the machine that ranks are mapped by or bound to (hwloc's and PRRTE's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// A processor package (socket).
    Package,
    /// A NUMA node.
    Numa,
    /// CPUs sharing a level 3 cache.
    L3,
    /// A physical core.
    Core,
}

/// `--map-by`: how ranks are dealt to nodes and objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapBy {
    /// Round robin over nodes.
    Node,
    /// Fill a node's slots, then the next.
    Slot,
    /// Fill nodes, round robin over their objects of this level.
    Object(Level),
}

/// `--rank-by`: how ranks are numbered once placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankBy {
    /// In the order they were mapped.
    #[default]
    Map,
    /// Consecutive numbers on one node first.
    Slot,
    /// Round robin over nodes.
    Node,
}

/// `--bind-to`: what each rank is bound to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindTo {
    /// One physical core, first hardware thread; siblings stay idle.
    #[default]
    Core,
    /// One hardware thread.
    Hwthread,
    /// All our CPUs of a NUMA node.
    Numa,
    /// All our CPUs of a package.
    Package,
    /// All CPUs given to us.
    None,
}

/// `--pmi`: the wire-up protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PmiChoice {
    /// From the MPI family found in the image.
    #[default]
    Auto,
    /// PMIx through the host's libpmix.
    Pmix,
    /// PMI-1.
    Pmi1,
    /// No wire-up: independent processes.
    None,
}

/// How agents are started on other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemoteShell {
    /// A child process on this node only.
    Local,
    /// ssh.
    Ssh,
    /// `CMD… HOST AGENT…`, split at white space.
    Command(Vec<String>),
}

/// What happens to the ranks' output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputMode {
    /// Prefix each line with `[rank]`.
    pub tag: bool,
    /// Write `DIR/rank.N.out` and `.err` instead of the terminal.
    pub directory: Option<String>,
}

/// One program of the job (several with `:` on the command line, MPMD).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSpec {
    /// Number of ranks; `None`: one per slot.
    pub ranks: Option<u32>,
    /// Program and arguments, resolved inside the image.
    pub argv: Vec<String>,
    /// `NAME=value` (or `NAME`) for this program only.
    pub env: Vec<String>,
    /// Working directory of this program; `None`: the job's.
    pub wdir: Option<String>,
}

/// What was asked of a job. What was decided is `mpi-launcher`'s `JobMap` and `NodePlan`.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// Image reference as typed.
    pub image: String,
    /// The programs.
    pub apps: Vec<AppSpec>,
    /// Hosts; empty: this node.
    pub hosts: Vec<HostSlots>,
    /// Ranks per node, if given.
    pub ppn: Option<u32>,
    /// Mapping.
    pub map_by: MapBy,
    /// Numbering.
    pub rank_by: RankBy,
    /// Binding.
    pub bind_to: BindTo,
    /// Cores (or hardware threads with `--bind-to hwthread`) per rank, for threads.
    pub cpus_per_rank: u32,
    /// More ranks than cores allowed.
    pub oversubscribe: bool,
    /// Working directory of the ranks in the container; `None`: the image's or the caller's.
    pub wdir: Option<String>,
    /// Output.
    pub output: OutputMode,
    /// End the job after this long (exit code 124).
    pub timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL at the end of a failed job.
    pub grace: Duration,
    /// How long an agent may take until it answers.
    pub start_timeout: Duration,
    /// Wire-up.
    pub pmi: PmiChoice,
    /// The MPI in the image to wire up when it holds several.
    pub mpi: Option<crate::MpiFamily>,
    /// How to reach other nodes.
    pub remote_shell: RemoteShell,
    /// Path of corebox on the other nodes; `None`: the path of this program.
    pub agent_path: Option<String>,
    /// The container on each node.
    pub container: ContainerSpec,
}
