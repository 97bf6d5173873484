//! Tests in a virtual machine: a kernel of our choice with cgroup version 2, Soft-RoCE and every module of Debian.
//!
//! `corebox-vm PROGRAM ARG…` boots a machine, runs the program in it as root, and ends as the program ended: its output
//! is ours, byte for byte, and its exit status too. It is cargo's runner for whole test binaries: one machine per
//! binary. The host's source tree, build directory and image store are at the same paths, read-only; everything else
//! is a Debian system in memory that is gone afterwards.
//!
//! A test in such a binary says what it needs with [`require`]. `docs/design/test-harness.md` has an example to copy.

mod guest;
mod job;
mod machine;
mod need;

pub use need::{Need, require, soft_roce};

use crate::Result;
use corebox_spec::Failure;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Set in the guest by the runner, to the kernel's release.
pub(crate) const INSIDE: &str = "COREBOX_VM";

const HELP: &str = "\
corebox-vm PROGRAM ARG...   run a program in a virtual machine; a PROGRAM without `/` is the guest's own
corebox-vm --check          whether this machine can; prints the reason why not, and ends with 1

COREBOX_VM_GUEST    bookworm (Linux 6.12, the default) or trixie (a newer kernel, and an SR-IOV network card)
COREBOX_VM_IMAGES   directory of the guests (`./dev images vm-bookworm`); default: corebox-dev/vm of the cache
COREBOX_VM_LIMIT    seconds after which the machine is killed (600)
COREBOX_VM_MEMORY   the guest's memory in MiB (1024)
";

/// The program `corebox-vm`; the arguments are those after its name.
pub fn main(args: Vec<String>) -> ExitCode {
    let done = match args.split_first() {
        None => Err(Failure::new("cannot run nothing", "see `corebox-vm --help`").code(2)),
        Some((word, _)) if word == "--help" => {
            print!("{HELP}");
            Ok(0)
        }
        Some((word, _)) if word == "--check" => check(),
        Some((program, rest)) if runs_no_test(program, rest) => Err(outside(program, rest)),
        Some((program, rest)) => guest::Guest::find().and_then(|guest| machine::run(&guest, program, rest)),
    };
    done.map_or_else(
        |failure| {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        },
        ExitCode::from,
    )
}

fn check() -> Result<u8> {
    let guest = guest::Guest::find();
    if let Err(failure) = &guest {
        println!("{}", failure.cause);
    }
    Ok(u8::from(guest.is_err()))
}

/// Whether this is a test binary of cargo's whose filter leaves nothing to run: that needs no machine.
fn runs_no_test(program: &str, args: &[String]) -> bool {
    if std::env::var_os("CARGO_MANIFEST_DIR").is_none() || !program.contains('/') {
        return false;
    }
    let list = Command::new(program).args(args).arg("--list").output();
    list.is_ok_and(|output| output.status.success() && String::from_utf8_lossy(&output.stdout).contains("\n0 tests,"))
        || args.iter().any(|arg| arg == "--list")
}

/// Becomes the program, without a machine; returns when it cannot.
fn outside(program: &str, args: &[String]) -> Failure {
    let error = Command::new(program).args(args).exec();
    Failure::new(format!("cannot run {program}"), error)
}
