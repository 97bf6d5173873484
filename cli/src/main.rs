//! `corebox`: the command. One file per subcommand, each with its `Args` and a `run` that returns the exit code.

mod container_options;
mod host;
mod image;
mod mpirun;
mod net;
mod oci;
mod rdma;
mod reference;
mod run;

use clap::{Parser, Subcommand};
use corebox_spec::Failure;
use corebox_sys::own_program;
use std::process::ExitCode;

/// OS-level virtualization for HPC: packaged environments at the speed of the bare node.
#[derive(Parser)]
#[command(name = "corebox", version, max_term_width = 110, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Host(host::Args),
    Image(image::Args),
    Net(net::Args),
    Rdma(rdma::Args),
    Run(Box<run::Args>),
    Mpirun(Box<mpirun::Args>),
    Oci(Box<oci::Args>),
    Completion(reference::CompletionArgs),
    Man(reference::ManArgs),
    /// Serve a job on this node over standard input and output (started by `mpirun`).
    #[command(hide = true)]
    Agent,
}

fn dispatch(command: Command) -> Result<u8, Failure> {
    if matches!(command, Command::Run(_) | Command::Agent) {
        own_program::protect("corebox").map_err(|e| {
            Failure::new("cannot keep this program from the container", e)
                .hint("install corebox where its users cannot write it.")
        })?;
    }
    match command {
        Command::Host(args) => host::run(args),
        Command::Image(args) => image::run(args),
        Command::Net(args) => net::run(args),
        Command::Rdma(args) => rdma::run(args),
        Command::Run(args) => run::run(*args),
        Command::Mpirun(args) => mpirun::run(*args),
        Command::Oci(args) => oci::run(*args),
        Command::Completion(args) => {
            reference::completion::<Cli>(&args);
            Ok(0)
        }
        Command::Man(args) => reference::man::<Cli>(&args).map(|()| 0),
        Command::Agent => Ok(corebox_mpi::agent::run()),
    }
}

/// The only place that prints errors.
fn main() -> ExitCode {
    if oci::is_called_so(std::env::args_os().next().as_deref()) {
        return oci::main();
    }
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let wrong = error.use_stderr();
        // Nothing is left to tell the user when standard error is closed.
        let _ = error.print();
        std::process::exit(if wrong { corebox_spec::exit::COREBOX.into() } else { 0 })
    });
    match dispatch(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}
