//! `corebox net`: the site's networks and what containers have of them.

use clap::{Args as ClapArgs, Subcommand};
use corebox_net::admin::{self, Finding, InterfaceStats, View};
use corebox_net::{New, site_edit};
use corebox_spec::Failure;
use serde::Serialize;
use std::io::Write as _;

const GRAMMAR: &str = "\
What --net takes, in `run`, `mpirun` and the site's file:
  host                     the host's network (default)
  none                     nothing but a loopback interface
  netns:PATH               a network namespace that was prepared (/run/netns/NAME)
  NAME                     a network of the site (`corebox net ls`)
  veth                     a routed pair with the fast path; `veth:plain` without it
  veth:bridge=BR           a pair whose host end is a port of that bridge
  macvlan, ipvlan          on the wire of the host's uplink; options parent=IF, bridge|private|vepa|passthru, l2|l3|l3s
  netkit                   as veth, with less on the way (Linux 6.7)
  phys:IF                  the host's interface itself; it comes back
  sriov:IF                 a virtual function; options vf=N|auto, spoofchk=on|off, trust=on|off
Options of interfaces, after `:`, with commas between:
  address=IP/LEN gateway=IP route=NET[@IP] dns=IP search=DOMAIN name=IF mac=MAC mtu=N vlan=N rate=10g
  publish=[IP@]PORT[-PORT_INSIDE][/udp] nat plain";

/// Networks of the site: who may use them, who has which address, what they carry.
#[derive(Debug, ClapArgs)]
#[command(after_help = GRAMMAR)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The networks, and whether you may use them.
    Ls(Output),
    /// One network: its addresses, and who has them on this node.
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Add a network to the site's file (/etc/corebox/networks.toml).
    Create(Create),
    /// Remove a network that nobody uses from the site's file.
    Rm {
        /// Its name.
        name: String,
    },
    /// Try what this kernel has, test the site's file, take back what dead containers left.
    Check(Output),
    /// What the interfaces of containers on this node have carried.
    Stats(Output),
}

#[derive(Debug, ClapArgs)]
struct Output {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct Create {
    /// Its name.
    name: String,
    /// As in --net: KIND[:OPTION,…].
    interface: String,
    /// Its addresses; each node's containers get a share. Once per address family.
    #[arg(long, value_name = "NET")]
    subnet: Vec<String>,
    /// Containers per node that a share has room for (default 62).
    #[arg(long, value_name = "N")]
    per_node: Option<u32>,
    /// Who may use it; `*` is everybody, and without users and groups it is for root.
    #[arg(long = "user", value_name = "USER")]
    users: Vec<String>,
    /// Whose members may use it.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// What a container may send at most.
    #[arg(long, value_name = "BITS")]
    max_rate: Option<String>,
}

/// Runs the subcommand.
///
/// # Errors
/// What the network layer says.
pub fn run(args: Args) -> Result<u8, Failure> {
    match args.command {
        Command::Ls(output) => list(&admin::networks(None).map_err(failed("cannot list the networks"))?, output.json),
        Command::Show { name, output } => {
            show(&admin::networks(Some(&name)).map_err(failed("cannot show the network"))?, output.json)
        }
        Command::Create(create) => {
            let new = New {
                name: create.name,
                interface: create.interface,
                subnets: create.subnet,
                per_node: create.per_node,
                users: create.users,
                groups: create.groups,
                max_rate: create.max_rate,
            };
            let file = site_edit::create(&new).map_err(failed("cannot create the network"))?;
            print(&format!("network `{}` is in {}\n", new.name, file.display()));
            Ok(0)
        }
        Command::Rm { name } => {
            let file = site_edit::remove(&name).map_err(failed("cannot remove the network"))?;
            print(&format!("network `{name}` is no longer in {}\n", file.display()));
            Ok(0)
        }
        Command::Check(output) => check(&admin::check().map_err(failed("cannot check the networks"))?, output.json),
        Command::Stats(output) => stats(&admin::stats().map_err(failed("cannot read the counters"))?, output.json),
    }
}

fn failed(goal: &'static str) -> impl Fn(corebox_net::Error) -> Failure {
    move |error| error.into_failure(goal)
}

/// A reader that closes the pipe has seen enough.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn json<T: Serialize>(what: &T) -> Result<u8, Failure> {
    let text = serde_json::to_string_pretty(what).map_err(|e| Failure::new("cannot print JSON", e))?;
    print(&format!("{text}\n"));
    Ok(0)
}

fn joined<T: ToString>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

fn list(views: &[View], as_json: bool) -> Result<u8, Failure> {
    if as_json {
        return json(&views);
    }
    let mut text =
        format!("{:<16} {:<8} {:<10} {:<34} {:>6} {:>6}  {}\n", "NAME", "KIND", "ON", "SUBNET", "USED", "ROOM", "FOR");
    for view in views {
        let parent = view.parent.as_deref().unwrap_or("-");
        let mine = if view.refused.is_none() { "" } else { " (not you)" };
        text += &format!(
            "{:<16} {:<8} {:<10} {:<34} {:>6} {:>6}  {}{mine}\n",
            view.name,
            view.kind,
            parent,
            joined(&view.subnets),
            view.leases.len(),
            view.size,
            joined(&view.allowed)
        );
    }
    print(&text);
    Ok(0)
}

fn show(views: &[View], as_json: bool) -> Result<u8, Failure> {
    if as_json {
        return json(&views.first());
    }
    let mut text = String::new();
    for view in views {
        text += &format!("network {} ({})\n", view.name, view.place.as_deref().unwrap_or("built in"));
        text += &format!("  kind    {}\n  on      {}\n", view.kind, view.parent.as_deref().unwrap_or("-"));
        text += &format!(
            "  subnet  {}\n  share   {} ({} containers)\n",
            joined(&view.subnets),
            joined(&view.share),
            view.size
        );
        text += &format!("  for     {}\n", joined(&view.allowed));
        if let Some(reason) = &view.refused {
            text += &format!("  not you {reason}\n");
        }
        for lease in &view.leases {
            text += &format!(
                "  in use  {} by container `{}` (pid {})\n",
                joined(&lease.addresses),
                lease.container,
                lease.owner.pid
            );
        }
    }
    print(&text);
    Ok(0)
}

fn check(findings: &[Finding], as_json: bool) -> Result<u8, Failure> {
    if as_json {
        return json(&findings);
    }
    let line = |finding: &Finding| match &finding.missing {
        None => format!("{:<20} works\n", finding.name),
        Some(reason) => format!("{:<20} no: {reason}\n", finding.name),
    };
    print(&findings.iter().map(line).collect::<String>());
    let broken = findings
        .iter()
        .any(|f| f.missing.is_some() && ["configuration", "leases and records"].contains(&f.name.as_str()));
    Ok(u8::from(broken))
}

fn stats(all: &[InterfaceStats], as_json: bool) -> Result<u8, Failure> {
    if as_json {
        return json(&all);
    }
    let mut text = format!(
        "{:<16} {:>8} {:<8} {:<12} {:>12} {:>14} {:>12} {:>14} {:>8}\n",
        "CONTAINER", "PID", "IF", "NETWORK", "RX PACKETS", "RX BYTES", "TX PACKETS", "TX BYTES", "DROPPED"
    );
    for one in all {
        let c = &one.counters;
        text += &format!(
            "{:<16} {:>8} {:<8} {:<12} {:>12} {:>14} {:>12} {:>14} {:>8}\n",
            one.container,
            one.pid,
            one.interface,
            one.network,
            c.rx_packets,
            c.rx_bytes,
            c.tx_packets,
            c.tx_bytes,
            c.rx_dropped + c.tx_dropped
        );
    }
    print(&text);
    Ok(0)
}
