//! `corebox host`: the facts that plans, maps and bindings are made from.

use corebox_host::{Host, UserNamespaces};
use corebox_spec::{Failure, IdSet, format_size};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};

/// Show what this machine is and what of it is ours.
#[derive(clap::Args)]
#[command(
    after_help = "CPUs and NUMA nodes are the kernel's numbers, cores and packages are counted over the machine."
)]
pub struct Args {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: Args) -> Result<u8, Failure> {
    const GOAL: &str = "cannot show this machine";
    let host = Host::this().map_err(|e| Failure::new(GOAL, e))?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&host).map_err(|e| Failure::new(GOAL, e))? + "\n",
        false => text(&host),
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::new(GOAL, format!("write standard output: {e}"))),
        _ => Ok(0),
    }
}

fn text(host: &Host) -> String {
    let mut lines = vec![
        ("host", format!("{} ({}, kernel {})", host.hostname, host.arch, host.kernel)),
        ("boot", host.boot_id.clone()),
        ("memory", format!("{}, ours: numa {}", format_size(host.memory), host.allowed_mems)),
        ("cpus", cpus(host)),
    ];
    lines.extend(kinds(host));
    lines.extend(numa_nodes(host).into_iter().map(|line| ("numa", line)));
    lines.push(("userns", user_namespaces(&host.user_namespaces)));
    let nowhere = "not visible";
    for v1 in &host.cgroups.v1 {
        let directory = v1.directory.as_deref().unwrap_or(nowhere);
        lines.push(("cgroup v1", format!("{}: {directory}", v1.controllers.join(","))));
    }
    if let Some(v2) = &host.cgroups.v2 {
        let controllers =
            if v2.controllers.is_empty() { "no controllers".to_owned() } else { v2.controllers.join(",") };
        lines.push(("cgroup v2", format!("{controllers}: {}", v2.directory.as_deref().unwrap_or(nowhere))));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect()
}

fn cpus(host: &Host) -> String {
    let topology = &host.topology;
    let online: IdSet = topology.select(|_| true);
    let counted = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    format!(
        "{} in {} in {}, ours: {} ({})",
        counted(online.len(), "cpu"),
        counted(topology.cores_of(&online).len(), "core"),
        counted(topology.packages_of(&online).len(), "package"),
        host.allowed_cpus,
        counted(topology.cores(&host.allowed_cpus).len(), "core"),
    )
}

/// One line per performance class, on hybrid machines only.
fn kinds(host: &Host) -> Vec<(&'static str, String)> {
    let mut kinds: BTreeMap<_, IdSet> = BTreeMap::new();
    for cpu in &host.topology.cpus {
        kinds.entry(cpu.kind).or_default().insert(cpu.id);
    }
    let hybrid = kinds.len() > 1;
    kinds.iter().filter(|_| hybrid).map(|(kind, cpus)| ("kind", format!("{}: cpus {cpus}", kind.0))).collect()
}

fn numa_nodes(host: &Host) -> Vec<String> {
    let topology = &host.topology;
    let nodes = topology.numa_of(&topology.select(|_| true)).union(&topology.memory_nodes);
    let line = |node: u32| {
        let cpus = topology.select(|cpu| cpu.numa == node);
        let cpus = if cpus.is_empty() { "no cpus".to_owned() } else { format!("cpus {cpus}") };
        format!("{node}: {cpus}{}", if topology.memory_nodes.contains(node) { "" } else { ", no memory" })
    };
    nodes.iter().map(line).collect()
}

fn user_namespaces(switches: &UserNamespaces) -> String {
    let why = match switches {
        UserNamespaces { max: None, .. } => "not in this kernel",
        UserNamespaces { max: Some(0), .. } => "nobody (user.max_user_namespaces is 0)",
        UserNamespaces { unprivileged_clone: Some(false), .. } => "root only (kernel.unprivileged_userns_clone is 0)",
        UserNamespaces { apparmor_restricted: Some(true), .. } => {
            "root only (kernel.apparmor_restrict_unprivileged_userns is 1)"
        }
        UserNamespaces { max: Some(max), .. } => return format!("everybody (at most {max})"),
    };
    why.to_owned()
}
