//! The program `corebox-simnode`: what runs around and inside simulated nodes.
//!
//! `keep` is the one process that owns a cluster: it builds it, serves the remote shell, and takes everything down
//! when its standard input ends. Per node it starts `node`, which joins the node's cgroups, makes its namespaces and
//! starts `init`, the node's pid 1. `exec` and `rsh` bring programs into a node.

mod cgroups;
mod enter;
mod init;
mod keeper;
mod mounts;
mod network;
mod rsh;
mod ssh;
pub mod state;

pub(crate) use keeper::{KeepRequest, sweep_stale};
pub(crate) use mounts::is_private;
pub(crate) use network::set_link;

use crate::{Cluster, Result};
use corebox_spec::Failure;
use std::process::ExitCode;

const HELP: &str = "\
corebox-simnode up N [--state FILE] [--ssh] [--split-cpus] [--bind DIR]... -- CMD...
    run CMD in the controller of N nodes
    (with the path of the state file in $STATE too)
corebox-simnode exec STATE NODE [--user UID] -- CMD...                run CMD in a node (from outside the nodes)
corebox-simnode rsh STATE [-l UID] HOST WORD...                       a remote shell like ssh, for use in nodes
corebox-simnode facts                                                 what this node holds, as JSON

`rsh` joins its words with spaces and gives them to `sh -c` on the other node, as ssh does; the other side
gets a login environment and the home directory, sees the end of its standard input when the local process
dies, and its exit status comes back (255 after a signal, or when the node is gone).
";

/// Runs one mode of the program; the arguments are those after the program's name.
pub fn main(args: Vec<String>) -> ExitCode {
    let (mode, rest) = match args.split_first() {
        Some((mode, rest)) => (mode.as_str(), rest),
        None => ("help", &[][..]),
    };
    let done = match mode {
        "keep" => keeper::main(rest),
        "node" => init::stage(rest),
        "init" => init::main(rest),
        "exec" => enter::exec(rest),
        "inner" => enter::inner(rest),
        "rsh" => rsh::client(rest),
        "facts" => facts(),
        "up" => up(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Failure::new(format!("unknown mode `{other}`"), "see `corebox-simnode help`")),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("{failure}");
        ExitCode::from(failure.code)
    })
}

/// Prints what this node holds, for [`crate::Snapshot`].
fn facts() -> Result<ExitCode> {
    let facts = crate::snapshot::facts_of_this_node();
    println!("{}", serde_json::to_string(&facts).map_err(|e| Failure::new("cannot print facts", e))?);
    Ok(ExitCode::SUCCESS)
}

/// `up N [--state FILE] [--ssh] [--bind DIR] -- CMD…`: a cluster for the time of one command.
fn up(args: &[String]) -> Result<ExitCode> {
    let usage = || Failure::new("cannot read the command line of `up`", "see `corebox-simnode help`").code(2);
    let split = args.iter().position(|word| word == "--").ok_or_else(usage)?;
    let (options, command) = (&args[..split], &args[split + 1..]);
    let (program, words) = command.split_first().ok_or_else(usage)?;
    let mut builder = Cluster::builder();
    let mut link = None;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "--ssh" => builder = builder.ssh(true),
            "--split-cpus" => builder = builder.split_cpus(true),
            "--bind" => builder = builder.bind(options.next().ok_or_else(usage)?),
            "--state" => link = Some(options.next().ok_or_else(usage)?),
            count => builder = builder.nodes(count.parse().map_err(|_| usage())?),
        }
    }
    let cluster = builder.start()?;
    if let Some(link) = link {
        let _ = std::fs::remove_file(link);
        std::os::unix::fs::symlink(cluster.state_file(), link)
            .map_err(|e| Failure::new(format!("cannot make the state file {link}"), e))?;
    }
    for missing in cluster.missing() {
        eprintln!("note: {missing}");
    }
    let status = cluster.node("ctl").command(program).args(words).env("STATE", cluster.state_file()).status();
    let down = cluster.stop();
    if let Some(link) = link {
        let _ = std::fs::remove_file(link);
    }
    let status = status.map_err(|e| Failure::new(format!("cannot run `{program}`"), e))?;
    down?;
    Ok(ExitCode::from(enter::shell_code(status)))
}
