//! `corebox oci`, and `corebox-oci`: the command line of OCI runtimes, with runc's grammar.

mod describe;
mod lifecycle;
mod log;
mod make;
mod resources;
mod show;

use clap::{Parser, Subcommand, ValueEnum};
use corebox_runtime::oci;
use corebox_spec::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run OCI bundles: the runtime for podman, containerd and CRI-O.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options before the command.
#[derive(Debug, clap::Args)]
struct Global {
    /// Where the state of containers is kept (on a tmpfs) [default: /run/corebox-oci, or below $XDG_RUNTIME_DIR].
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File that errors are appended to, too.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How they are written there.
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    log_format: Format,
    /// Accepted for the callers of runc; corebox says what is wrong in any case.
    #[arg(long)]
    debug: bool,
    /// Make cgroups through systemd.
    #[arg(long)]
    systemd_cgroup: bool,
    /// Accepted for the callers of runc (true, false, auto); corebox sees for itself what it may do.
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rootless: Option<String>,
    /// Accepted for the callers of older runc.
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
    /// Print how long each step of create and run took.
    #[arg(long)]
    timing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(make::CreateArgs),
    Run(make::RunArgs),
    Start(lifecycle::StartArgs),
    State(lifecycle::IdArgs),
    Kill(lifecycle::KillArgs),
    Delete(lifecycle::DeleteArgs),
    Exec(make::ExecArgs),
    List(show::ListArgs),
    Ps(show::PsArgs),
    Pause(lifecycle::PauseArgs),
    Resume(lifecycle::ResumeArgs),
    Update(resources::UpdateArgs),
    Events(resources::EventsArgs),
    Spec(describe::SpecArgs),
    Features(describe::FeaturesArgs),
    Checkpoint(lifecycle::CheckpointArgs),
    Restore(lifecycle::CheckpointArgs),
}

impl Global {
    fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(oci::default_root)
    }
}

/// Runs it.
///
/// # Errors
/// What the command says; written to `--log` already.
pub fn run(args: Args) -> Result<u8, Failure> {
    let Args { global, command } = args;
    let result = match command {
        Command::Create(args) => make::create(&global, args),
        Command::Run(args) => make::run(&global, args),
        Command::Start(args) => lifecycle::start(&global, &args),
        Command::State(args) => show::state(&global, &args),
        Command::Kill(args) => lifecycle::kill(&global, &args),
        Command::Delete(args) => lifecycle::delete(&global, &args),
        Command::Exec(args) => make::exec(&global, args),
        Command::List(args) => show::list(&global, &args),
        Command::Ps(args) => show::ps(&global, &args),
        Command::Pause(args) => lifecycle::pause(&global, &args.id),
        Command::Resume(args) => lifecycle::resume(&global, &args.id),
        Command::Update(args) => resources::update(&global, &args),
        Command::Events(args) => resources::events(&global, &args),
        Command::Spec(args) => describe::spec(&args),
        Command::Features(_) => describe::features(),
        Command::Checkpoint(args) => lifecycle::refuse_checkpoint("checkpoint", &args),
        Command::Restore(args) => lifecycle::refuse_checkpoint("restore", &args),
    };
    result.inspect_err(|failure| log::write(global.log.as_deref(), global.log_format, failure))
}

/// The command line when the program is called `corebox-oci`.
#[derive(Parser)]
#[command(name = "corebox-oci", version, max_term_width = 110, disable_help_subcommand = true)]
struct Alone {
    #[command(flatten)]
    args: Args,
}

/// Whether the program was called by this name.
#[allow(dead_code)] // by the program that has this name it is not asked
pub fn is_called_so(name: Option<&std::ffi::OsStr>) -> bool {
    name.is_some_and(|name| std::path::Path::new(name).file_name().is_some_and(|name| name == "corebox-oci"))
}

/// `main` of `corebox-oci`.
pub fn main() -> ExitCode {
    let parsed = Alone::parse_or_exit();
    // Who reads a log shows the last line of standard error, too.
    let short = parsed.args.global.log.is_some();
    let said = |failure: &Failure| if short { log::one_line(failure) } else { failure.to_string() };
    match run(parsed.args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{}", said(&failure));
            ExitCode::from(failure.code)
        }
    }
}

impl Alone {
    fn parse_or_exit() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            let wrong = error.use_stderr();
            // Nothing is left to tell the user when standard error is closed.
            let _ = error.print();
            std::process::exit(if wrong { corebox_spec::exit::COREBOX.into() } else { 0 })
        })
    }
}
