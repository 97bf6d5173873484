//! What can be booted here: QEMU, an accelerator, and a guest that `tests/vm/image` made.

use crate::{Result, program};
use corebox_spec::Failure;
use corebox_sys::fs;
use std::path::{Path, PathBuf};

/// A guest that is ready to boot.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// `vmlinuz`, `initrd`, `root.sqsh` are in it.
    pub(crate) directory: PathBuf,
    /// Its kernel's release.
    pub(crate) kernel: String,
    /// QEMU's program and what must come before all options.
    pub(crate) qemu: Vec<PathBuf>,
    /// Whether the processor can virtualize; else it is emulated.
    pub(crate) kvm: bool,
    /// Has a network card whose virtual functions can be given away.
    pub(crate) sriov: bool,
}

impl Guest {
    /// The guest that `$COREBOX_VM_GUEST` names.
    ///
    /// # Errors
    /// The [`Failure`]'s cause says in one line what is missing.
    pub(crate) fn find() -> Result<Self> {
        let fail = |cause: String| Failure::new("cannot start a virtual machine", cause);
        if std::env::consts::ARCH != "x86_64" {
            return Err(fail(format!("guests are for x86_64, this is {}", std::env::consts::ARCH)));
        }
        let name = std::env::var("COREBOX_VM_GUEST").unwrap_or_else(|_| "bookworm".into());
        let directory = images().join(&name);
        let kernel = fs::read_to_string(directory.join("kernel")).map_err(|_| {
            fail(format!("there is no guest {}", directory.display())).hint(format!("./dev images vm-{name}"))
        })?;
        // A guest may bring its own QEMU, with devices that the host's does not have.
        let own = directory.join("qemu/start");
        let sriov = own.is_file();
        let host = || program("qemu-system-x86_64").map(|path| vec![path]);
        let qemu = if sriov { Some(vec![own]) } else { host() };
        let qemu = qemu.ok_or_else(|| {
            fail("needs the program `qemu-system-x86_64`".into()).hint("Debian: apt-get install qemu-system-x86")
        })?;
        Ok(Self { directory, kernel: kernel.trim().to_owned(), qemu, kvm: kvm(), sriov })
    }
}

/// Where `./dev` keeps guests: its cache.
fn images() -> PathBuf {
    if let Some(images) = std::env::var_os("COREBOX_VM_IMAGES") {
        return images.into();
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let own = if nix::unistd::geteuid().is_root() { Some("/var/cache".into()) } else { home() };
    cache.or(own).unwrap_or_default().join("corebox-dev/vm")
}

/// /dev/kvm alone says little: a sandbox may have one that emulates instruction by instruction and stops at the first
/// it does not know. What counts is a processor that says that it can.
fn kvm() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| ["vmx", "svm"].contains(&flag))
        && corebox_sys::fd::may_read_write(Path::new("/dev/kvm")).is_ok()
}
