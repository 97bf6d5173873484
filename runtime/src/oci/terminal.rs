//! The container's terminal: made inside, its master sent out.

use crate::oci::plan::process::ProcessPlan;
use crate::oci::rootfs::Root;
use crate::step::Stop;
use corebox_sys::mount::{attach, clone_fd, open_in_root};
use corebox_sys::{control, fd, place, terminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Makes a terminal in the container's own devpts, binds it to /dev/console, and sends its master over `console`.
pub(crate) fn make(root: &Root, process: &ProcessPlan, console: &OwnedFd) -> Result<OwnedFd, Stop> {
    let peer = open(&root.fd, process, console)?;
    // A file of the root directory's own, by descriptor: no link can lead the mount elsewhere (CVE-2025-52565).
    let at = place::make_file(&root.fd, Path::new("/dev/console"))?;
    let same = clone_fd(peer.as_fd(), "the terminal")?;
    attach(same, at, "/dev/console")?;
    Ok(peer)
}

/// Makes a terminal in the devpts below `root` and sends its master over `console`. Returns its other side.
pub(crate) fn open(root: &OwnedFd, process: &ProcessPlan, console: &OwnedFd) -> Result<OwnedFd, Stop> {
    let place = open_in_root(root, Path::new("/dev/pts/ptmx"))
        .map_err(|e| Stop::from(e).hint("a terminal needs a mount of type `devpts` on /dev/pts in config.json."))?;
    if place::file_system(&place)? != place::magic::DEVPTS {
        return Err(Stop::new("/dev/pts/ptmx of the container is not on a devpts"));
    }
    let master = fd::reopen_read_write(&place)?;
    if let Some((rows, columns)) = process.console_size {
        terminal::set_size(&master, rows, columns)?;
    }
    let peer = terminal::open_peer(&master)?;
    let owner = (process.uid, place::kind(&peer)?.gid);
    match place::give(&peer, owner) {
        // The user has no id on a devpts of another user namespace; the terminal works as it is.
        Err(e) if matches!(e.errno, corebox_sys::Errno::EINVAL | corebox_sys::Errno::EPERM) => {}
        other => other?,
    }
    control::pass_descriptor(console, &master, b"/dev/ptmx")?;
    Ok(peer)
}
