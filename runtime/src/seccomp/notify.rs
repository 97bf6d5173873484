//! The listener of a profile with SCMP_ACT_NOTIFY, on its way to the agent that decides (OCI runtime-spec,
//! config-linux.md, "The Container Process State").
//!
//! The process gets the listener when it installs its filter, and is filtered from then on. So it does nothing but tell
//! the descriptor's number ([`announce`]) and wait; the parent takes the descriptor out of it ([`take`]) and sends it
//! ([`send`]). The parent needs to be allowed to trace the process (pidfd_getfd(2)).

use corebox_sys::{Errno, Error, Result, control, seccomp};
use oci_spec::runtime::{ContainerProcessState, LinuxSeccomp, State};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// The name of the listener in the state (runtime-spec, `seccompFd`).
const LISTENER: &str = "seccompFd";

/// In the filtered process: tells the number through `to`, and waits until `done` ends or says a byte. Uses write(2) and
/// read(2) only, and profiles that notify about these are refused.
///
/// # Errors
/// EPIPE when the parent is gone, or what a profile makes of write and read.
pub fn announce(listener: &OwnedFd, mut to: &File, mut done: &File) -> Result<()> {
    let failed = |e: &std::io::Error| Error::io("hand over", "the seccomp listener", e);
    to.write_all(&listener.as_raw_fd().to_ne_bytes()).map_err(|e| failed(&e))?;
    done.read(&mut [0u8; 1]).map(drop).map_err(|e| failed(&e))
}

/// In the parent: the listener of the process behind `pidfd`, whose number comes from `from`.
///
/// # Errors
/// EPIPE when the process ended before; what pidfd_getfd(2) says.
pub fn take(pidfd: impl AsFd, mut from: &File) -> Result<OwnedFd> {
    let mut number = [0u8; size_of::<RawFd>()];
    from.read_exact(&mut number).map_err(|_| Error::new("receive", "the seccomp listener", Errno::EPIPE))?;
    seccomp::take_descriptor(pidfd, RawFd::from_ne_bytes(number))
}

/// Sends a listener to the profile's listenerPath, with the state of the process it is about. `pid` is its number for
/// the agent.
///
/// # Errors
/// What connect(2) and sendmsg(2) say about listenerPath.
pub fn send(profile: &LinuxSeccomp, listener: &OwnedFd, pid: i32, state: State) -> Result<()> {
    let Some(path) = profile.listener_path() else { return Ok(()) };
    let mut message = ContainerProcessState::default();
    message
        .set_version(state.version().clone())
        .set_fds(vec![LISTENER.to_owned()])
        .set_pid(pid)
        .set_metadata(profile.listener_metadata().clone())
        .set_state(state);
    let text = serde_json::to_vec(&message)
        .map_err(|_| Error::new("write", "the state of the container's process", Errno::EINVAL))?;
    control::send_descriptor(path, &text, listener)
}
