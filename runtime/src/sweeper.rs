//! Cleans up after a corebox that was killed: a tiny process that waits for its death.
//!
//! Namespaces, mounts and processes go with init by themselves. A cgroup directory does not, nor do host paths; only
//! where there are such, a sweeper is forked.

use crate::cgroup::remove_directory;
use corebox_sys::process::{self, Forked, SingleThreaded};
use corebox_sys::signal::{SIGKILL, Signals};
use corebox_sys::{Result, fd};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// The running sweeper, as its parent holds it.
#[derive(Debug)]
pub(crate) struct Sweeper {
    pid: i32,
    alarm: OwnedFd,
}

/// Said when there is nothing left to sweep.
const DONE: u8 = b'd';
/// Longest time that init may take to die before the directories are tried.
const PATIENCE: Duration = Duration::from_secs(30);

impl Sweeper {
    /// Forks it.
    pub(crate) fn start(
        single: &SingleThreaded,
        init: &OwnedFd,
        cgroups: &[PathBuf],
        paths: &[PathBuf],
        network: Option<corebox_net::Guard>,
    ) -> Result<Self> {
        let (wait, alarm) = fd::pipe()?;
        match single.fork()? {
            Forked::Parent(pid) => Ok(Self { pid, alarm }),
            Forked::Child => {
                // Whatever fails here leaves what the next start sweeps.
                let code = u8::from(sweep(wait, init, cgroups, paths, network).is_err());
                process::exit_now(code)
            }
        }
    }

    /// Ends it: its work is done.
    pub(crate) fn dismiss(self) {
        let mut alarm = std::fs::File::from(self.alarm);
        // Both can fail only if it is gone already.
        let _ = alarm.write_all(&[DONE]);
        drop(alarm);
        let _ = process::wait(self.pid);
    }
}

fn sweep(
    wait: OwnedFd,
    init: &OwnedFd,
    cgroups: &[PathBuf],
    paths: &[PathBuf],
    network: Option<corebox_net::Guard>,
) -> Result<()> {
    // Nothing of the caller's: its pipes must end when it does, its terminal's signals must not end us.
    let mut keep = vec![wait.as_raw_fd(), init.as_raw_fd()];
    keep.extend(network.as_ref().map(corebox_net::Guard::descriptor));
    fd::close_all_but(&keep)?;
    process::new_session()?;
    let _signals = Signals::block_all()?;
    process::set_name("corebox-sweeper")?;
    let mut word = [0u8; 1];
    let mut wait = std::fs::File::from(wait);
    if wait.read(&mut word).is_ok_and(|length| length == 1 && word[0] == DONE) {
        return Ok(());
    }
    process::signal_pidfd(init, SIGKILL)?;
    fd::poll_readable(&[init.as_fd()], Some(PATIENCE))?;
    if let Some(network) = network {
        network.run();
    }
    for directory in cgroups {
        remove_directory(directory);
    }
    remove_paths(paths);
    Ok(())
}

/// Removes host paths that belong to one container.
pub(crate) fn remove_paths(paths: &[PathBuf]) {
    for path in paths {
        // What is gone is gone; what may not be removed was not ours.
        let _ = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(path)
        } else {
            std::fs::remove_file(path)
        };
    }
}
