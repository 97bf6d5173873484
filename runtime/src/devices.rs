//! The container's /dev: a tmpfs with the few nodes that every program expects (those of the OCI runtime-spec,
//! config-linux.md, "Default Devices"), bound from the host, as mknod(2) is refused in a user namespace.

use crate::mountpoints::make_file;
use crate::step::Stop;
use corebox_sys::fd;
use corebox_sys::mount::{FsContext, attach, attr, clone_tree, open_in_root, set_attributes};
use std::os::fd::OwnedFd;
use std::path::Path;

const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Directories that other mounts of the plan go to.
const DIRECTORIES: [&str; 3] = ["pts", "shm", "mqueue"];

/// Device nodes of the host, opened as mounts before the new root hides their paths.
#[derive(Debug)]
pub(crate) struct HostDevices {
    nodes: Vec<(&'static str, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

impl HostDevices {
    /// Opens them.
    pub(crate) fn open(terminal: Option<&str>) -> Result<Self, Stop> {
        let mut nodes = Vec::with_capacity(NODES.len());
        for name in NODES {
            nodes.push((name, device(&Path::new("/dev").join(name))?));
        }
        let terminal = terminal.map(console).transpose()?;
        Ok(Self { nodes, terminal })
    }

    /// A tmpfs with all of them, attached at `place` in `staging`-visible path `at`.
    pub(crate) fn mount(&self, place: &OwnedFd, root: &OwnedFd) -> Result<(), Stop> {
        let context = FsContext::open("tmpfs")?;
        context.set("mode", "0755")?.set("size", "1m")?;
        // Devices of a user namespace's own tmpfs never work, so NODEV takes nothing; NOEXEC as on every host.
        let mount = context.mount(attr::NOSUID | attr::NOEXEC)?;
        attach(&mount, place, "/dev")?;
        let here = Path::new("/proc/self/fd").join(number(&mount));
        for name in DIRECTORIES {
            corebox_sys::fs::create_dir_all(here.join(name))?;
        }
        for (name, to) in LINKS {
            let path = here.join(name);
            std::os::unix::fs::symlink(to, &path).map_err(|e| corebox_sys::Error::io("link", path.display(), &e))?;
        }
        let console = self.terminal.iter().map(|fd| ("console", fd));
        for (name, node) in self.nodes.iter().map(|(name, fd)| (*name, fd)).chain(console) {
            make_file(&here.join(name))?;
            attach(node, open_in_root(root, &Path::new("/dev").join(name))?, name)?;
        }
        Ok(())
    }
}

/// The caller's terminal, which must be the one on standard input: a path can come to mean another file between the
/// look and the bind (CVE-2025-52565).
fn console(path: &str) -> Result<OwnedFd, Stop> {
    let node = device(Path::new(path))?;
    if fd::is_same_device(&node, fd::borrow(0)?) {
        Ok(node)
    } else {
        Err(Stop::new(format!("{path} is not the terminal on standard input any more")))
    }
}

/// A detached bind of one device node.
fn device(path: &Path) -> Result<OwnedFd, Stop> {
    let node = clone_tree(path, false)?;
    set_attributes(&node, attr::NOSUID, false, path.display())?;
    Ok(node)
}

fn number(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd().to_string()
}
