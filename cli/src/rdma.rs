//! `corebox rdma`: what RDMA devices this host has, and whether a container can use them.

use corebox_images::Store;
use corebox_rdma::{Hca, Inventory, NetnsMode, select, verify};
use corebox_runtime::{Container, HostFacts, ImageSource, plan};
use corebox_spec::{ContainerSpec, FabricPolicy, Failure, IdSet, RdmaSelect};
use std::io::Write as _;
use std::path::Path;

/// RDMA devices of this host.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List them: where they are, what their ports say, which nodes and interfaces belong to them.
    Ls {
        /// As JSON, with everything that is known.
        #[arg(long)]
        json: bool,
    },
    /// Say whether they work; with an image, from inside a container of it.
    Check {
        /// Those to look at: all, nearest, vf, netdev=IF, or names.
        #[arg(long, default_value = "all", value_name = "WHICH", value_parser = str::parse::<RdmaSelect>)]
        rdma: RdmaSelect,
        /// Image reference.
        image: Option<String>,
    },
}

/// Runs it; `check` ends with 1 when something does not work.
///
/// # Errors
/// The kernel does not list its devices; the container cannot be started.
pub fn run(args: Args) -> Result<u8, Failure> {
    let inventory = Inventory::this().map_err(|e| Failure::new("cannot find the RDMA devices of this host", e))?;
    match args.command {
        Command::Ls { json } => list(&inventory, json),
        Command::Check { rdma, image: None } => check_host(&inventory, &rdma),
        Command::Check { rdma, image: Some(image) } => check_image(&inventory, &rdma, &image),
    }
}

fn list(inventory: &Inventory, json: bool) -> Result<u8, Failure> {
    let text = if json {
        serde_json::to_string_pretty(inventory).map_err(|e| Failure::new("cannot print the RDMA devices", e))? + "\n"
    } else {
        table(inventory)
    };
    // A reader that closes the pipe has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(0)
}

fn table(inventory: &Inventory) -> String {
    let mut lines =
        vec![["device", "port", "state", "rate", "netdev", "numa", "pci", "driver", "node"].map(str::to_owned)];
    lines.extend(inventory.devices.iter().flat_map(rows));
    let mut text = String::new();
    if inventory.devices.is_empty() {
        text.push_str("this host has no RDMA device\n");
    } else {
        let widths: Vec<usize> = (0..9).map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or(0)).collect();
        for line in &lines {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
    }
    for (kind, node) in &inventory.others {
        text.push_str(&format!("{kind}: {}\n", node.path));
    }
    if inventory.netns == Some(NetnsMode::Shared) && !inventory.devices.is_empty() {
        text.push_str(
            "netns mode shared: every network namespace reaches these devices; --rdma chooses what a container gets\n",
        );
    }
    text
}

fn rows(hca: &Hca) -> Vec<[String; 9]> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let function = match (&hca.vf_of, hca.vfs) {
        (Some(physical), _) => Some(format!("{} (vf of {physical})", hca.pci.as_deref().unwrap_or("?"))),
        (None, 0) => hca.pci.clone(),
        (None, count) => Some(format!("{} ({count} vfs)", hca.pci.as_deref().unwrap_or("?"))),
    };
    let row = |port: &corebox_rdma::Port| {
        [
            hca.name.clone(),
            port.number.to_string(),
            if hca.elsewhere { "other netns".into() } else { port.state.clone() },
            format!("{} Gb/s", port.rate),
            or_none(port.netdev.clone()),
            or_none(hca.numa.map(|node| node.to_string())),
            or_none(function.clone()),
            or_none(hca.driver.clone()),
            or_none(hca.uverbs.as_ref().map(|node| node.path.clone())),
        ]
    };
    hca.ports.iter().map(row).collect()
}

fn check_host(inventory: &Inventory, want: &RdmaSelect) -> Result<u8, Failure> {
    let mut check = corebox_rdma::check(inventory, &select(inventory, want, &IdSet::default())?, FabricPolicy::Prefer);
    check.providers.clear(); // of images: the host's programs are not our question
    let found = verify::inside(&check, Path::new("/"));
    for finding in &found {
        println!("{}\n  {}", finding.cause, finding.cure);
    }
    if found.is_empty() {
        println!("{}: fine", check.devices.join(", "));
    }
    Ok(u8::from(!found.is_empty()))
}

/// Starts a container up to the point where its command would run.
fn check_image(inventory: &Inventory, want: &RdmaSelect, reference: &str) -> Result<u8, Failure> {
    let image = Store::open()?.find(reference)?;
    let chosen = select(inventory, want, &IdSet::default())?;
    let edits = corebox_rdma::edits(inventory, &chosen, FabricPolicy::Require);
    let spec = ContainerSpec { name: "rdma-check".into(), ..ContainerSpec::default() };
    let source = ImageSource { path: image.path, digest: Some(image.digest), config: image.facts.config };
    let plan = plan(&spec, &source, &HostFacts::find()?, &[edits])?;
    let mut container = Container::create(&plan, &[])?;
    let ready = container.wait_ready();
    container.kill();
    ready.map_err(|failure| {
        Failure { goal: format!("RDMA does not work in a container of `{reference}`"), ..failure }.code(1)
    })?;
    println!(
        "{}: fine in a container of {reference}",
        chosen.iter().map(|hca| hca.name.as_str()).collect::<Vec<_>>().join(", ")
    );
    Ok(0)
}
