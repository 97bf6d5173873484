//! One run of QEMU: from a program to its exit code.

use super::guest::Guest;
use super::job::Job;
use crate::Result;
use corebox_spec::Failure;
use corebox_sys::{fd, fs, process};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

const PREFIX: &str = "corebox-vm-";
/// The kernel's command line. Without the checks of the emulated clock, the self-tests of ciphers and the mitigations,
/// an emulated processor is there in half the time; -1: a panic ends the machine.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable cryptomgr.notests nokaslr mitigations=off";
/// Lines of the console that are shown when the machine died.
const CONSOLE_LINES: usize = 100;

/// How often a program is started anew because the emulator slipped.
const SLIPS: usize = 2;
/// What the kernel says when it meets a breakpoint of its own making that is not there any more. Linux replaces instructions by
/// way of int3 while other processors run (arch/x86/kernel/alternative.c, text_poke_bp_batch); an emulated processor may
/// still have the int3 translated when the kernel has finished. No processor does that, and no program can cause it.
const SLIPPED: &str = "Oops: int3:";

/// Runs the program in a new machine; the result is its exit code, 128+N after signal N. When the emulator slipped the
/// program starts again, in another machine, and standard error says so.
///
/// # Errors
/// The machine cannot be started, died, or took too long: code 125, with the end of its console.
pub(crate) fn run(guest: &Guest, program: &str, args: &[String]) -> Result<u8> {
    for _ in 0..SLIPS {
        match once(guest, program, args)? {
            Verdict::Code(code) => return Ok(code),
            Verdict::Died { slipped: true, .. } => {
                eprintln!("corebox-vm: the emulator ran an instruction that was replaced; once more, in a new machine");
            }
            Verdict::Died { failure, .. } => return Err(failure),
        }
    }
    match once(guest, program, args)? {
        Verdict::Code(code) => Ok(code),
        Verdict::Died { failure, .. } => Err(failure),
    }
}

/// How one machine ended.
enum Verdict {
    /// The program ended, with this code.
    Code(u8),
    /// The machine did, and whether the emulator is to blame.
    Died { failure: Failure, slipped: bool },
}

fn once(guest: &Guest, program: &str, args: &[String]) -> Result<Verdict> {
    let failed = |what: &'static str| move |e: std::io::Error| Failure::new(what, e);
    sweep();
    let place = Place::new()?;
    let job = Job::new(program, args, &guest.kernel)?;
    job.write(&place.0)?;
    let (out, guest_out) = UnixStream::pair().map_err(failed("cannot make a socket"))?;
    let (err, guest_err) = UnixStream::pair().map_err(failed("cannot make a socket"))?;
    for end in [&guest_out, &guest_err] {
        fd::set_cloexec(end, false).map_err(|e| Failure::new("cannot hand a socket to QEMU", e))?;
    }
    let mut qemu = start(guest, &job, &place.0, [&guest_out, &guest_err])?;
    drop((guest_out, guest_err)); // so that the streams end with the machine
    let relays = [
        std::thread::spawn(move || relay(out, std::io::stdout())),
        std::thread::spawn(move || relay(err, std::io::stderr())),
    ];
    let ended = wait(&mut qemu);
    for relay in relays {
        let _ = relay.join();
    }
    verdict(&place.0, ended?, guest)
}

/// How QEMU ended; `None`: we killed it at the limit.
type Ended = Option<ExitStatus>;

fn start(guest: &Guest, job: &Job, place: &Path, ports: [&UnixStream; 2]) -> Result<Child> {
    let log = std::fs::File::create(place.join("qemu.log")).map_err(|e| Failure::new("cannot start QEMU", e))?;
    // When the runner is killed the machine goes with it.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(&guest.qemu)
        .args(options(guest, job, place, ports))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| Failure::new("cannot start QEMU", e).hint("needs setpriv, of util-linux"))
}

fn options(guest: &Guest, job: &Job, place: &Path, ports: [&UnixStream; 2]) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut add = |text: String| words.extend(text.split(' ').map(OsString::from));
    let memory = std::env::var("COREBOX_VM_MEMORY").unwrap_or_else(|_| "1024".into());
    // Two processors: programs that spin for each other (RDMA) crawl on one.
    add(format!("-nodefaults -no-user-config -display none -no-reboot -M q35 -smp 2 -m {memory}"));
    add(if guest.kvm { "-accel kvm -cpu host" } else { "-accel tcg,thread=multi -cpu max" }.to_owned());
    add("-device virtio-blk-pci,drive=root -device virtio-serial-pci -object rng-random,id=rng,filename=/dev/urandom"
        .into());
    add("-device virtio-rng-pci,rng=rng".into());
    for (index, port) in ports.iter().enumerate() {
        add(format!("-chardev socket,id=port{index},fd={}", port.as_raw_fd()));
        add(format!("-device virtserialport,chardev=port{index},nr={}", index + 1));
    }
    if guest.sriov {
        add("-device pcie-root-port,id=port,slot=1 -netdev hubport,id=net,hubid=0".into());
        add("-device igb,bus=port,netdev=net,romfile=".into());
    }
    let mut pair = |option: &str, value: String| words.extend([option.into(), value.into()]);
    let file = |name: &str| escaped(&guest.directory.join(name));
    pair("-kernel", guest.directory.join("vmlinuz").display().to_string());
    pair("-initrd", guest.directory.join("initrd").display().to_string());
    pair("-append", COMMAND_LINE.to_owned());
    pair("-drive", format!("file={},if=none,format=raw,readonly=on,id=root", file("root.sqsh")));
    pair("-serial", format!("file:{}", place.join("console").display()));
    let mut share = |tag: &str, path: &Path, options: &str| {
        let path = escaped(path);
        pair("-fsdev", format!("local,id={tag},path={path},security_model=none,multidevs=remap{options}"));
        pair("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    };
    share("vm", place, "");
    for (index, path) in job.shares.iter().enumerate() {
        share(&format!("share{index}"), path, ",readonly=on");
    }
    words
}

/// QEMU's options double a comma in a value.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Carries bytes as they come. Who closed our output does not stop the program.
fn relay(mut from: UnixStream, mut to: impl Write) {
    let mut buffer = [0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
    }
}

fn wait(qemu: &mut Child) -> Result<Ended> {
    let failed = |e| Failure::new("cannot wait for QEMU", e);
    let limit = std::env::var("COREBOX_VM_LIMIT").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let pidfd = process::open_pid(qemu.id() as i32).map_err(failed)?;
    let ended = fd::poll_readable(&[pidfd.as_fd()], Some(Duration::from_secs(limit))).map_err(failed)?[0];
    if !ended {
        let _ = qemu.kill();
    }
    let status = qemu.wait().map_err(|e| Failure::new("cannot wait for QEMU", e))?;
    Ok(ended.then_some(status))
}

/// QEMU's own exit status says nothing about the program; the guest's file does, and it is there or it is not.
fn verdict(place: &Path, ended: Ended, guest: &Guest) -> Result<Verdict> {
    if let Ok(text) = fs::read_to_string(place.join("status")) {
        let code = text.trim().parse().map_err(|e| Failure::new("cannot read the guest's status", e))?;
        return Ok(Verdict::Code(code));
    }
    let text = |name: &str| String::from_utf8_lossy(&fs::read(place.join(name)).unwrap_or_default()).into_owned();
    let cause = match ended {
        None => "its time is over (COREBOX_VM_LIMIT)".to_owned(),
        Some(status) => format!("QEMU ended ({status}) {}", text("qemu.log").trim()),
    };
    let console = text("console");
    let lines: Vec<&str> = console.lines().collect();
    eprintln!("{}", lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n"));
    let failure =
        Failure::new("the virtual machine died before the program ended", cause).hint("its last words are above");
    Ok(Verdict::Died { failure, slipped: !guest.kvm && console.contains(SLIPPED) })
}

/// The machine's own directory on the host; removed with it.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|e| Failure::new("cannot make the machine's directory", e))?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes the directories of runners that were killed.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
