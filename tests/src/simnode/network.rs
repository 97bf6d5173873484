//! The cluster's network: a bridge in the controller's network namespace, one cable (veth(4)) to each node.
//!
//! Nothing is added to the host's network; every cluster uses the same addresses because none can see another.

use super::state::NodeState;
use crate::Result;
use corebox_spec::Failure;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// The controller's address is `.254`, node N has `.N`.
const PREFIX: &str = "10.77.0.";

/// Address of a node by its place: 0 is the controller.
pub fn address(index: usize) -> String {
    format!("{PREFIX}{}", if index == 0 { 254 } else { index })
}

/// Lays the cables of all nodes (the controller first) and brings them up.
pub fn connect(nodes: &[NodeState]) -> Result<()> {
    let (controller, others) = nodes.split_first().ok_or_else(|| Failure::new("no nodes", "an empty cluster"))?;
    let mut script = String::from("link set lo up\nlink add name bridge0 type bridge forward_delay 0 stp_state 0\n");
    let _ = writeln!(script, "addr add {}/24 dev bridge0\nlink set bridge0 up", controller.address);
    for node in others {
        let link = node.link.as_deref().unwrap_or("link");
        let _ = writeln!(script, "link add {link} type veth peer name eth0 netns {}", node.pid);
        let _ = writeln!(script, "link set {link} master bridge0 up");
    }
    batch(controller, &script)?;
    for node in others {
        batch(node, &format!("link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n", node.address))?;
    }
    Ok(())
}

/// Pulls (`up` false) or puts back a node's cable, at the bridge's end.
pub fn set_link(controller: &NodeState, node: &NodeState, up: bool) -> Result<()> {
    let link = node.link.as_deref().ok_or_else(|| Failure::new("the controller has no cable", &node.name))?;
    batch(controller, &format!("link set {link} {}\n", if up { "up" } else { "down" }))
}

/// Runs an ip-batch(8) script in a node's network namespace; pids in it are the host's.
fn batch(node: &NodeState, script: &str) -> Result<()> {
    let failed =
        |cause: &dyn std::fmt::Display| Failure::new(format!("cannot set up the network of {}", node.name), cause);
    let mut nsenter = Command::new("nsenter");
    if !nix::unistd::geteuid().is_root() {
        nsenter.arg(format!("--user=/proc/{}/ns/user", node.pid)).arg("--preserve-credentials");
    }
    nsenter.arg(format!("--net=/proc/{}/ns/net", node.pid)).args(["--", "ip", "-batch", "-"]);
    nsenter.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let mut child = nsenter
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&format!("nsenter: {e}")))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes()).map_err(|e| failed(&e))?;
    }
    let output = child.wait_with_output().map_err(|e| failed(&e))?;
    if output.status.success() { Ok(()) } else { Err(failed(&String::from_utf8_lossy(&output.stderr).trim())) }
}
