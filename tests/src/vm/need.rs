//! What a test needs of the guest it runs in. What can be made there is made on the first demand.

use super::guest::Guest;
use crate::{program, skip};
use corebox_sys::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

/// One thing a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// cgroup version 2 alone, with these controllers in the root's children.
    Cgroup2(&'static [&'static str]),
    /// An RDMA device: Soft-RoCE `rxe0` on the dummy interface `roce0`, 10.88.0.1/24.
    Rdma,
    /// A kernel module, or the same built in.
    Module(&'static str),
    /// A program of the guest (`packages` in tests/vm/image).
    Program(&'static str),
    /// A kernel of at least this version.
    Kernel(u32, u32),
    /// A network card with virtual functions (igb); the guest `trixie` has one.
    Sriov,
}

/// Whether this process runs in a guest that has all this; prints the SKIP line of `test` if not.
///
/// Outside of a guest nothing is touched: a test may do what it likes with its machine after this.
#[must_use]
pub fn require(test: &str, needs: &[Need]) -> bool {
    let lacking = match std::env::var(super::INSIDE) {
        Ok(kernel) => needs.iter().find_map(|need| need.lacking(&kernel)),
        Err(_) => Some(match Guest::find() {
            Ok(_) => "runs in a virtual machine: `./dev vm`".to_owned(),
            Err(failure) => format!("needs a virtual machine: {}", failure.cause),
        }),
    };
    if let Some(reason) = &lacking {
        skip!(test, "{reason}");
    }
    lacking.is_none()
}

impl Need {
    /// What is missing, in words.
    fn lacking(self, kernel: &str) -> Option<String> {
        match self {
            Self::Cgroup2(controllers) => {
                let there = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap_or_default();
                let missing = |name: &&&str| !there.split_whitespace().any(|word| word == **name);
                controllers.iter().find(missing).map(|name| format!("no cgroup2 controller `{name}` in {there:?}"))
            }
            Self::Rdma => soft_roce(0).err(),
            Self::Module(name) => run("modprobe", &[name]).err(),
            Self::Program(name) => program(name).is_none().then(|| format!("the guest has no `{name}`")),
            Self::Kernel(major, minor) => {
                let mut parts = kernel.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
                let own = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
                let old = own < (major, minor);
                old.then(|| format!("needs Linux {major}.{minor}, this is {kernel}: COREBOX_VM_GUEST=trixie"))
            }
            Self::Sriov => {
                let found = Path::new("/sys/bus/pci/drivers/igb").exists() || run("modprobe", &["igb"]).is_ok();
                let card = found
                    && fs::list("/sys/bus/pci/drivers/igb")
                        .is_ok_and(|names| names.iter().any(|n| n.starts_with("0000:")));
                (!card).then(|| "needs an SR-IOV network card: COREBOX_VM_GUEST=trixie".to_owned())
            }
        }
    }
}

/// Makes the Soft-RoCE device `rxeN` on a dummy interface `roceN` (10.88.N.1/24), unless it is there.
///
/// # Errors
/// What the kernel or the tools say, in words.
pub fn soft_roce(index: u8) -> Result<(), String> {
    // Tests are threads.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let (device, interface) = (format!("rxe{index}"), format!("roce{index}"));
    if Path::new("/sys/class/infiniband").join(&device).exists() {
        return Ok(());
    }
    // rxe asks the crypto layer for crc32 by name, so modprobe does not know that it needs this one. Newer kernels have
    // it built in.
    let _ = run("modprobe", &["crc32_generic"]);
    run("modprobe", &["-a", "rdma_rxe", "ib_umad", "rdma_ucm"])?;
    run("ip", &["link", "add", &interface, "type", "dummy"])?;
    run("ip", &["address", "add", &format!("10.88.{index}.1/24"), "dev", &interface])?;
    run("ip", &["link", "set", &interface, "up"])?;
    run("rdma", &["link", "add", &device, "type", "rxe", "netdev", &interface])
}

fn run(name: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(name).args(args).output().map_err(|e| format!("{name}: {e}"))?;
    let said = || String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    if output.status.success() { Ok(()) } else { Err(format!("{name} {}: {}", args.join(" "), said())) }
}
