//! `create`, `run`, `exec`.

use super::Global;
use corebox_runtime::oci::{self, Ran};
use corebox_spec::Failure;
use std::io::Write as _;
use std::path::PathBuf;

/// What `create` and `run` have in common.
#[derive(Debug, clap::Args)]
pub struct BundleArgs {
    /// Directory with config.json.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Socket that takes the master of the container's terminal.
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File that takes the pid of the container's first process.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// How many descriptors after 2 the container inherits.
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Accepted for the callers of runc: pivot_root works wherever corebox does.
    #[arg(long)]
    no_pivot: bool,
    /// No session keyring of its own.
    #[arg(long)]
    no_new_keyring: bool,
    /// Name of the container.
    id: String,
}

impl BundleArgs {
    fn request(self, global: &Global) -> oci::Create {
        oci::Create {
            root: global.root(),
            id: self.id,
            bundle: self.bundle,
            pid_file: self.pid_file,
            console_socket: self.console_socket,
            preserve_fds: self.preserve_fds,
            systemd_cgroup: global.systemd_cgroup,
            no_new_keyring: self.no_new_keyring,
            no_pivot: self.no_pivot,
        }
    }
}

/// Make a container from a bundle; `start` runs its program.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    bundle: BundleArgs,
}

/// Make a container from a bundle and run its program.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Do not wait for its end.
    #[arg(short, long)]
    detach: bool,
    /// Accepted for the callers of runc.
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

/// Run one more process in a container.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Socket that takes the master of the process's terminal.
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Working directory in the container.
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// A variable, as NAME=VALUE; repeatable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// User, as UID[:GID].
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Supplementary group; repeatable.
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// File with the whole process, as config.json has it.
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Do not wait for its end.
    #[arg(short, long)]
    detach: bool,
    /// File that takes its pid.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// SELinux label.
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile.
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// No exec gives it privileges.
    #[arg(long)]
    no_new_privs: bool,
    /// A further capability; repeatable.
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// How many descriptors after 2 it inherits.
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Also in a paused container; it runs when that is resumed.
    #[arg(long)]
    ignore_paused: bool,
    /// cgroup below the container's to run in; with CONTROLLER, only that one's (cgroup version 1); repeatable then.
    #[arg(long, value_name = "[CONTROLLER[,CONTROLLER]:]PATH")]
    cgroup: Vec<String>,
    /// Accepted for the callers of runc.
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// Name of the container.
    id: String,
    /// Program and arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs `create`.
pub fn create(global: &Global, args: CreateArgs) -> Result<u8, Failure> {
    let made = oci::create(&args.bundle.request(global))?;
    print_times(global, &made.times);
    Ok(0)
}

/// Runs `run`; the result is the program's own exit code.
pub fn run(global: &Global, args: RunArgs) -> Result<u8, Failure> {
    let ran = oci::run(&args.bundle.request(global), args.detach, |times| print_times(global, times))?;
    Ok(code(&ran))
}

/// Runs `exec`; the result is the program's own exit code.
pub fn exec(global: &Global, args: ExecArgs) -> Result<u8, Failure> {
    let asked = oci::Exec {
        root: global.root(),
        id: args.id,
        process: args.process,
        argv: args.command,
        tty: args.tty,
        user: args.user,
        additional_gids: args.additional_gids,
        cwd: args.cwd,
        env: args.env,
        capabilities: args.cap,
        no_new_privileges: args.no_new_privs,
        apparmor: args.apparmor,
        process_label: args.process_label,
        pid_file: args.pid_file,
        console_socket: args.console_socket,
        detach: args.detach,
        preserve_fds: args.preserve_fds,
        ignore_paused: args.ignore_paused,
        cgroups: args.cgroup,
    };
    oci::exec(&asked).map(|ran| code(&ran))
}

fn code(ran: &Ran) -> u8 {
    match ran {
        Ran::Detached => 0,
        Ran::Ended(outcome) => outcome.code(),
    }
}

fn print_times(global: &Global, times: &[(String, u64)]) {
    for (step, microseconds) in times.iter().filter(|_| global.timing) {
        let _ = writeln!(std::io::stderr(), "{microseconds:>8} us  {step}");
    }
}
