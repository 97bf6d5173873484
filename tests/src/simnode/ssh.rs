//! Throw-away ssh between the nodes: one host key, one key of root, no passwords, each server on its node's address.

use super::state::NodeState;
use crate::Result;
use corebox_spec::Failure;
use corebox_sys::fs;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The port, as the kernel prints it in `/proc/net/tcp` (hexadecimal), and the state LISTEN.
const LISTENING: (&str, &str) = (":0016", "0A");

/// Makes keys and the client's configuration in `DIR/ssh`; gives the configuration file.
pub fn prepare(dir: &Path, nodes: &[NodeState]) -> Result<PathBuf> {
    let ssh = dir.join("ssh");
    let failed = |e: corebox_sys::Error| Failure::new("cannot prepare ssh between the nodes", e);
    fs::create_dir_all(&ssh).map_err(failed)?;
    for key in ["host", "root"] {
        keygen(&ssh.join(key))?;
    }
    let host = fs::read_to_string(ssh.join("host.pub")).map_err(failed)?;
    let (mut known, mut names) = (String::new(), String::new());
    for node in nodes {
        let _ = writeln!(known, "{},{} {}", node.name, node.address, host.trim());
        let _ = write!(names, "{} {} ", node.name, node.address);
    }
    fs::write(ssh.join("known_hosts"), known).map_err(failed)?;
    let client = ssh.join("config");
    let text = format!(
        "Host {names}\n  IdentityFile {0}/root\n  IdentitiesOnly yes\n  UserKnownHostsFile {0}/known_hosts\n  \
         StrictHostKeyChecking yes\n  BatchMode yes\n  ConnectTimeout 5\n",
        ssh.display()
    );
    fs::write(&client, text).map_err(failed)?;
    Ok(client)
}

/// Writes the server's configuration of one node.
pub fn server(dir: &Path, node: &NodeState) -> Result<PathBuf> {
    let file = dir.join("ssh").join(format!("sshd_{}", node.name));
    let text = format!(
        "ListenAddress {1}\nHostKey {0}/host\nAuthorizedKeysFile {0}/root.pub\nPidFile none\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\nUseDNS no\nMaxStartups 500\n\
         MaxSessions 500\nSubsystem sftp internal-sftp\n",
        dir.join("ssh").display(),
        node.address
    );
    fs::write(&file, text).map_err(|e| Failure::new("cannot configure the ssh server", e))?;
    Ok(file)
}

/// In the node: starts the server, a child of init that stays in the foreground.
pub fn start(config: &Path) -> Result<()> {
    let failed = |e: corebox_sys::Error| Failure::new("cannot start the ssh server", e);
    fs::create_dir_all("/run/sshd").map_err(failed)?; // its empty directory for privilege separation
    Command::new("/usr/sbin/sshd")
        .args(["-D", "-f"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(corebox_sys::Error::io("execve", "/usr/sbin/sshd", &e)))?;
    Ok(())
}

/// From outside: waits until the node's server listens.
pub fn wait_listening(node: &NodeState) -> Result<()> {
    let table = format!("/proc/{}/net/tcp", node.pid);
    let found = crate::wait_until(Duration::from_secs(10), || {
        let text = fs::read_to_string(&table).ok()?;
        text.lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace().skip(1);
                Some((fields.next()?, fields.nth(1)?))
            })
            .any(|(local, state)| local.ends_with(LISTENING.0) && state == LISTENING.1)
            .then_some(())
    });
    found.ok_or_else(|| Failure::new(format!("cannot start the ssh server of {}", node.name), "it does not listen"))
}

fn keygen(file: &Path) -> Result<()> {
    let failed = |cause: &dyn std::fmt::Display| Failure::new(format!("cannot make the key {}", file.display()), cause);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "simulated node", "-f"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(&format!("ssh-keygen: {e}")))?;
    if !made.status.success() {
        return Err(failed(&String::from_utf8_lossy(&made.stderr)));
    }
    std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).map_err(|e| failed(&e))
}
