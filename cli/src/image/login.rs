//! `corebox image login` and `logout`.

use super::print;
use corebox_images::{Config, LoginRequest};
use corebox_spec::Failure;
use std::io::{BufRead, IsTerminal, Write};

/// Check and keep the user and password of a registry.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  corebox image login registry.site.org
  corebox image login -u robot --password-stdin registry.site.org:5000 < token

Credentials are kept where docker and podman keep them: in the first of $REGISTRY_AUTH_FILE,
$XDG_RUNTIME_DIR/containers/auth.json and $DOCKER_CONFIG/config.json (~/.docker/config.json) that is there, or in the
credential helper that this file names.")]
pub struct LoginArgs {
    /// HOST[:PORT]
    registry: String,
    /// User name [default: asked for]
    #[arg(short, long)]
    username: Option<String>,
    /// Read the password or token from standard input
    #[arg(long)]
    password_stdin: bool,
}

/// Forget the user and password of a registry.
#[derive(clap::Args)]
pub struct LogoutArgs {
    /// HOST[:PORT]
    registry: String,
}

/// Logs in.
pub fn login(args: &LoginArgs) -> Result<u8, Failure> {
    let goal = format!("cannot log in to {}", args.registry);
    let config = Config::load()?;
    let failed = |error: std::io::Error| Failure::new(&goal, format!("read the terminal: {error}"));
    let must_ask = args.username.is_none() || !args.password_stdin;
    if must_ask && !std::io::stdin().is_terminal() {
        return Err(Failure::new(&goal, "standard input is no terminal that could be asked")
            .hint("give `--username USER --password-stdin`, and the password on standard input"));
    }
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask("Username: ").map_err(failed)?,
    };
    let password = match args.password_stdin {
        true => line(&mut std::io::stdin().lock()).map_err(failed)?,
        false => rpassword::prompt_password("Password: ").map_err(failed)?,
    };
    let request = LoginRequest { registry: args.registry.clone(), user, password };
    let place = corebox_images::login(&config, &request)?;
    print(&format!("logged in to {}; the password is in {place}\n", args.registry))
}

/// Logs out.
pub fn logout(args: &LogoutArgs) -> Result<u8, Failure> {
    let known = corebox_images::logout(&args.registry)?;
    print(&match known {
        true => format!("forgot the password for {}\n", args.registry),
        false => format!("there was no password for {}\n", args.registry),
    })
}

fn ask(prompt: &str) -> std::io::Result<String> {
    let mut stderr = std::io::stderr();
    stderr.write_all(prompt.as_bytes())?;
    stderr.flush()?;
    line(&mut std::io::stdin().lock())
}

/// One line without its end.
fn line(input: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
