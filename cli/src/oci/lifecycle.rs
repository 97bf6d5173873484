//! `start`, `kill`, `delete`, `pause`, `resume`.

use super::Global;
use corebox_runtime::oci;
use corebox_spec::Failure;
use corebox_sys::signal;

/// Print the state of a container as JSON.
#[derive(Debug, clap::Args)]
pub struct IdArgs {
    /// Name of the container.
    pub id: String,
}

/// Run the program of a created container.
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// Name of the container.
    pub id: String,
}

/// Stop all processes of a container with the freezer.
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    /// Name of the container.
    pub id: String,
}

/// Continue a paused container.
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// Name of the container.
    pub id: String,
}

/// Send a signal to the first process of a container.
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// To all its processes.
    #[arg(short, long)]
    all: bool,
    /// Name of the container.
    id: String,
    /// Name or number.
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

/// Remove a container that has ended.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// End it first; one that does not exist is no error.
    #[arg(short, long)]
    force: bool,
    /// Name of the container.
    id: String,
}

/// Refused: corebox does not save containers.
#[derive(Debug, clap::Args)]
pub struct CheckpointArgs {
    /// Options of runc and the name of the container.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS", hide = true)]
    rest: Vec<String>,
}

/// Refuses `checkpoint` and `restore`: nothing is done.
///
/// # Errors
/// Always.
pub fn refuse_checkpoint(verb: &str, args: &CheckpointArgs) -> Result<u8, Failure> {
    let name = args.rest.last().filter(|word| !word.starts_with('-')).map_or("a container", String::as_str);
    let cause = format!("`{verb}` is not supported: corebox does not drive CRIU");
    Err(Failure::new(format!("cannot {verb} `{name}`"), cause).hint(
        "let the program save its own state, as MPI programs do; runc and crun checkpoint with the package `criu`.",
    ))
}

/// Runs `start`.
pub fn start(global: &Global, args: &StartArgs) -> Result<u8, Failure> {
    warn(&oci::start(&global.root(), &args.id)?);
    Ok(0)
}

/// Runs `kill`.
pub fn kill(global: &Global, args: &KillArgs) -> Result<u8, Failure> {
    let number = signal::number(&args.signal).ok_or_else(|| {
        Failure::new(format!("cannot kill container `{}`", args.id), format!("`{}` is no signal", args.signal))
    })?;
    oci::kill(&global.root(), &args.id, number, args.all)?;
    Ok(0)
}

/// Runs `delete`.
pub fn delete(global: &Global, args: &DeleteArgs) -> Result<u8, Failure> {
    warn(&oci::delete(&global.root(), &args.id, args.force)?);
    Ok(0)
}

/// Runs `pause`.
pub fn pause(global: &Global, id: &str) -> Result<u8, Failure> {
    oci::pause(&global.root(), id).map(|()| 0)
}

/// Runs `resume`.
pub fn resume(global: &Global, id: &str) -> Result<u8, Failure> {
    oci::resume(&global.root(), id).map(|()| 0)
}

/// The specification: a failing hook after the fact is a warning, and the command succeeds.
fn warn(words: &[String]) {
    words.iter().for_each(|words| eprintln!("warning: {words}"));
}
