//! What is known about a running cluster: the state file that every mode of `corebox-simnode` reads.

use crate::Result;
use corebox_spec::Failure;
use corebox_sys::fs;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A running cluster, as `state.json` in its directory describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The cluster's own directory, at the same path on every node.
    pub dir: PathBuf,
    /// The program that made it.
    pub program: PathBuf,
    /// Made without root, inside a user namespace: no cgroups, no device nodes of its own.
    pub user_namespace: bool,
    /// What this cluster cannot do, in words for the reader.
    pub missing: Vec<String>,
    /// The controller first, then `n1`….
    pub nodes: Vec<NodeState>,
}

/// One simulated node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeState {
    /// `ctl` or `nN`.
    pub name: String,
    /// Host's pid of its init.
    pub pid: i32,
    /// Its address.
    pub address: String,
    /// Name of the bridge's end of its cable in the controller (`None` for the controller itself).
    pub link: Option<String>,
    /// The host's CPUs it has; empty: all.
    pub cpus: Vec<usize>,
    /// Its cgroup directories as the host sees them, one per hierarchy.
    pub cgroups: Vec<PathBuf>,
}

impl State {
    /// Reads a state file.
    ///
    /// # Errors
    /// It cannot be read or is not one of ours.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let goal = || format!("cannot read the cluster's state {}", path.as_ref().display());
        let text = fs::read_to_string(&path).map_err(|e| Failure::new(goal(), e))?;
        serde_json::from_str(&text).map_err(|e| Failure::new(goal(), e))
    }

    /// Writes it to `state.json` in the cluster's directory.
    ///
    /// # Errors
    /// What open(2) or write(2) say.
    pub fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Failure::new("cannot write the state", e))?;
        let part = self.dir.join("state.part");
        fs::write(&part, text)
            .and_then(|()| fs::rename(&part, self.file()))
            .map_err(|e| Failure::new("cannot write the cluster's state", e))
    }

    /// Path of the state file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Path of the remote shell's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("rsh.sock")
    }

    /// The node of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&NodeState> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let names: Vec<_> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            Failure::new(format!("no node `{name}`"), format_args!("the cluster has {}", names.join(", "))).code(255)
        })
    }
}
