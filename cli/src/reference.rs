//! Completion scripts and man pages, generated from the definition of the options.

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;
use corebox_spec::Failure;
use corebox_sys::fs;
use std::path::PathBuf;

/// Print a completion script.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  corebox completion bash > /etc/bash_completion.d/corebox")]
pub struct CompletionArgs {
    /// For which shell.
    #[arg(value_enum)]
    shell: ShellName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShellName {
    Bash,
    Zsh,
    Fish,
}

/// Write the man pages, one per subcommand.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  corebox man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Directory to write to; made if it is missing.
    directory: PathBuf,
}

/// Prints the completion script of one shell.
pub fn completion<C: CommandFactory>(args: &CompletionArgs) {
    let shell = match args.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    clap_complete::generate(shell, &mut C::command(), "corebox", &mut std::io::stdout());
}

/// Writes `corebox.1`, `corebox-run.1`, ….
///
/// # Errors
/// When the directory cannot be made or written to.
pub fn man<C: CommandFactory>(args: &ManArgs) -> Result<(), Failure> {
    let failed = |cause: &dyn std::fmt::Display| Failure::new("cannot write the man pages", cause);
    fs::create_dir_all(&args.directory).map_err(|e| failed(&e))?;
    clap_mangen::generate_to(C::command(), &args.directory).map_err(|e| failed(&e))
}
