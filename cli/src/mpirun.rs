//! `corebox mpirun`: an MPI job over many nodes, one container per node, one core per rank.

use crate::container_options::ContainerOptions;
use clap::{Parser, ValueEnum};
use corebox_mpi::launch::{self, Show};
use corebox_spec::{
    AppSpec, BindTo, Failure, HostSlots, JobSpec, Level, MapBy, MpiFamily, OutputMode, PmiChoice, RankBy, RemoteShell,
    parse_duration, parse_hostfile, parse_hostlist,
};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  corebox mpirun -n 4 lammps lmp -in in.melt              four ranks on this machine
  corebox mpirun --host n[01-04]:16 lammps lmp -in in.lj  16 ranks on each of four nodes, started by ssh
  corebox mpirun --ppn 8 --cpus-per-rank 4 --host n1,n2 env ./hybrid
                                                          MPI + OpenMP: 8 ranks per node, 4 cores each
  corebox mpirun -n 1 env ./master : -n 7 ./worker        two programs in one job (MPMD)
  corebox mpirun --display map --plan -n 4 env ./a        show what would happen, start nothing";

/// Run an MPI job: one container per node, each rank bound to its own core.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Number of ranks; one per slot when left away.
    #[arg(short = 'n', long = "np", value_name = "N")]
    ranks: Option<u32>,
    /// Nodes and their slots: n[01-04]:16,login
    #[arg(long, value_name = "HOSTS", conflicts_with = "hostfile")]
    host: Option<String>,
    /// File of nodes, a line each: HOST [slots=N]
    #[arg(long, value_name = "FILE")]
    hostfile: Option<PathBuf>,
    /// Ranks per node.
    #[arg(long, visible_alias = "npernode", value_name = "N")]
    ppn: Option<u32>,
    /// How ranks are dealt out.
    #[arg(long, value_enum, default_value = "slot")]
    map_by: MapByName,
    /// How ranks are numbered: as mapped, node by node, or round robin over nodes.
    #[arg(long, value_enum, default_value = "map")]
    rank_by: RankByName,
    /// What each rank is bound to; with `core`, SMT siblings stay idle.
    #[arg(long, value_enum, default_value = "core")]
    bind_to: BindToName,
    /// Cores per rank for threads; sets OMP_NUM_THREADS and OMP_PLACES.
    #[arg(long, default_value_t = 1, value_name = "T")]
    cpus_per_rank: u32,
    /// Allow more ranks than cores.
    #[arg(long)]
    oversubscribe: bool,
    /// Prefix each line of output with its rank.
    #[arg(long)]
    tag_output: bool,
    /// Write each rank's output to DIR/rank.N.out and DIR/rank.N.err
    #[arg(long, value_name = "DIR")]
    output: Option<String>,
    /// End the job after this time (90, 5m, 1h30m) with exit code 124.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL when a job is ended.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    grace: Duration,
    /// How long a node may take to answer.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    start_timeout: Duration,
    /// Show the table of ranks, nodes and cores before the start.
    #[arg(long, value_enum, value_delimiter = ',')]
    display: Vec<Display>,
    /// Print the plan as JSON and start nothing.
    #[arg(long)]
    plan: bool,
    /// Print the wall time of each stage.
    #[arg(long)]
    timing: bool,
    /// Wire-up protocol; chosen by the MPI found in the image when left away.
    #[arg(long, value_enum, default_value = "auto")]
    pmi: PmiName,
    /// The MPI that the program uses, when the image holds several.
    #[arg(long, value_enum)]
    mpi: Option<MpiName>,
    /// How to reach other nodes: `ssh`, `local`, or a command that takes HOST COMMAND…
    #[arg(long, value_name = "CMD", default_value = "ssh", overrides_with = "rsh")]
    rsh: String,
    /// Path of corebox on the other nodes, if it is another one there.
    #[arg(long, value_name = "PATH")]
    agent_path: Option<String>,
    #[command(flatten)]
    container: ContainerOptions,
    /// Image reference.
    image: String,
    /// Program and arguments; further programs after a `:`, each with its own -n, --env and --wdir.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

/// Options of the second and further programs.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct FurtherApp {
    /// Number of ranks.
    #[arg(short = 'n', long = "np")]
    ranks: Option<u32>,
    /// Variables of this program.
    #[arg(short = 'e', long = "env")]
    env: Vec<String>,
    /// Its working directory.
    #[arg(short = 'w', long)]
    wdir: Option<String>,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// A command-line word and what it means.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident => $meaning:ty { $($word:ident => $value:expr),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, ValueEnum)]
        enum $name { $($word),+ }
        impl From<$name> for $meaning {
            fn from(name: $name) -> Self {
                match name { $($name::$word => $value),+ }
            }
        }
    };
}

words!(
    /// Words of `--map-by`.
    MapByName => MapBy {
        Node => MapBy::Node,
        Slot => MapBy::Slot,
        Package => MapBy::Object(Level::Package),
        Numa => MapBy::Object(Level::Numa),
        L3 => MapBy::Object(Level::L3),
        Core => MapBy::Object(Level::Core),
    }
);
words!(
    /// Words of `--rank-by`.
    RankByName => RankBy { Map => RankBy::Map, Slot => RankBy::Slot, Node => RankBy::Node }
);
words!(
    /// Words of `--bind-to`.
    BindToName => BindTo {
        Core => BindTo::Core,
        Hwthread => BindTo::Hwthread,
        Numa => BindTo::Numa,
        Package => BindTo::Package,
        None => BindTo::None,
    }
);
words!(
    /// Words of `--pmi`.
    PmiName => PmiChoice { Auto => PmiChoice::Auto, Pmix => PmiChoice::Pmix, Pmi1 => PmiChoice::Pmi1, None => PmiChoice::None }
);
words!(
    /// Words of `--mpi`.
    MpiName => MpiFamily {
        OpenMpi => MpiFamily::OpenMpi,
        Mpich => MpiFamily::Mpich,
        IntelMpi => MpiFamily::IntelMpi,
        Mvapich => MpiFamily::Mvapich,
    }
);

/// Words of `--display`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Display {
    /// Which rank goes where.
    Map,
    /// Which cores each rank is bound to (the same table).
    Bind,
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever stops the job before its ranks run.
pub fn run(args: Args) -> Result<u8, Failure> {
    launch::block_signals();
    let show = Show { plan: args.plan, table: !args.display.is_empty(), timing: args.timing };
    launch::run(&job(args)?, show)
}

fn job(args: Args) -> Result<JobSpec, Failure> {
    let hosts = hosts(&args)?;
    let container = args.container.spec()?;
    let programs: Vec<&[String]> = args.command.split(|word| word == ":").collect();
    let mut apps = vec![AppSpec { ranks: args.ranks, argv: programs[0].to_vec(), env: Vec::new(), wdir: None }];
    for words in &programs[1..] {
        apps.push(further_app(words)?);
    }
    Ok(JobSpec {
        image: args.image,
        apps,
        hosts,
        ppn: args.ppn,
        map_by: args.map_by.into(),
        rank_by: args.rank_by.into(),
        bind_to: args.bind_to.into(),
        cpus_per_rank: args.cpus_per_rank,
        oversubscribe: args.oversubscribe,
        wdir: args.container.wdir.clone(),
        output: OutputMode { tag: args.tag_output, directory: args.output },
        timeout: args.timeout,
        grace: args.grace,
        start_timeout: args.start_timeout,
        pmi: args.pmi.into(),
        mpi: args.mpi.map(Into::into),
        remote_shell: match args.rsh.as_str() {
            "ssh" => RemoteShell::Ssh,
            "local" => RemoteShell::Local,
            command => RemoteShell::Command(command.split_whitespace().map(str::to_owned).collect()),
        },
        agent_path: args.agent_path,
        container,
    })
}

fn further_app(words: &[String]) -> Result<AppSpec, Failure> {
    let app = FurtherApp::try_parse_from(words).map_err(|e| {
        let text = e.to_string();
        Failure::new(
            "cannot read the program after `:`",
            text.trim_start_matches("error: ").lines().next().unwrap_or(""),
        )
        .hint("as in `corebox mpirun -n 1 IMAGE ./a : -n 3 --env X=1 ./b`; the image is named once.")
    })?;
    Ok(AppSpec { ranks: app.ranks, argv: app.command, env: app.env, wdir: app.wdir })
}

/// The nodes named, else those of the batch system's allocation, else none (this machine).
fn hosts(args: &Args) -> Result<Vec<HostSlots>, Failure> {
    let refused = |cause: String| Failure::new("cannot read the list of nodes", cause);
    if let Some(list) = &args.host {
        return parse_hostlist(list).map_err(|e| refused(e.to_string()));
    }
    if let Some(path) = &args.hostfile {
        let text = corebox_sys::fs::read_to_string(path).map_err(|e| refused(e.to_string()))?;
        return parse_hostfile(&text).map_err(|e| refused(format!("{}: {e}", path.display())));
    }
    let allocated = corebox_schedulers::allocation(|name| std::env::var(name).ok())?;
    Ok(allocated.map(|allocated| allocated.hosts).unwrap_or_default())
}
