//! Starting agents: a child here, or `RSH… HOST AGENT` for another node.

use corebox_spec::{Failure, JobSpec, RemoteShell};
use std::process::{Child, Command, Stdio};

/// Starts the agent of one node with pipes on its three streams.
///
/// The agent gets its own process group: the terminal's Ctrl-C must reach the launcher alone, which then decides.
/// Nothing secret is on the command line; everything travels over stdin.
///
/// # Errors
/// When the remote shell is not there.
pub fn start(spec: &JobSpec, host: &str, here: bool) -> Result<Child, Failure> {
    let own = std::env::current_exe().map_err(|e| Failure::new("cannot start the agents", format!("own path: {e}")))?;
    let agent = spec.agent_path.clone().unwrap_or_else(|| own.display().to_string());
    let (program, arguments): (String, Vec<String>) = match &spec.remote_shell {
        RemoteShell::Local => (own.display().to_string(), Vec::new()),
        RemoteShell::Ssh if here => (own.display().to_string(), Vec::new()),
        // -T: no terminal; BatchMode: a question nobody can answer is an error; ServerAlive: a dead network ends ssh too
        RemoteShell::Ssh => (
            "ssh".into(),
            ["-T", "-x", "-oBatchMode=yes", "-oServerAliveInterval=5", "-oServerAliveCountMax=2", host, &quote(&agent)]
                .map(String::from)
                .to_vec(),
        ),
        RemoteShell::Command(words) => {
            let (first, rest) =
                words.split_first().ok_or_else(|| Failure::new("cannot start the agents", "--rsh is empty"))?;
            (first.clone(), rest.iter().cloned().chain([host.to_owned(), quote(&agent)]).collect())
        }
    };
    let mut command = Command::new(&program);
    command.args(arguments).arg("agent").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().map_err(|e| {
        let failure = Failure::new(format!("cannot start an agent on {host}"), format!("run `{program}`: {e}"));
        match program.as_str() {
            "ssh" => failure.hint("install the package openssh-client, or name another remote shell with --rsh."),
            _ => failure,
        }
    })
}

/// Whether `host` is this machine, as far as names tell.
pub fn is_here(host: &str) -> bool {
    let own = nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let short = |name: &str| name.split('.').next().unwrap_or("").to_owned();
    matches!(host, "localhost" | "127.0.0.1" | "::1") || host == own || (!own.is_empty() && short(host) == short(&own))
}

/// The remote side of ssh-like tools is a shell: a path with odd characters must arrive as one word.
fn quote(word: &str) -> String {
    if word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=@%:,".contains(c)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn quotes_for_a_remote_shell() {
        assert_eq!(super::quote("/opt/corebox/bin/corebox"), "/opt/corebox/bin/corebox");
        assert_eq!(super::quote("/my dir/it's"), r"'/my dir/it'\''s'");
    }
}
