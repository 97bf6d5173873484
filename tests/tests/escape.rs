//! The published escapes of container runtimes, tried on corebox: one test per class. Each was seen to fail without the
//! guard it is about (docs/design/security.md names the guards).

use corebox_tests::{Result, corebox, require_programs, require_root, skip};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// An id that no account has.
const USER: &str = "47115";
struct Fixture {
    directory: PathBuf,
    corebox: PathBuf,
    image: PathBuf,
}

fn fixture() -> &'static Result<Fixture> {
    static FIXTURE: OnceLock<Result<Fixture>> = OnceLock::new();
    FIXTURE.get_or_init(build)
}

fn build() -> Result<Fixture> {
    let directory = corebox_tests::fixture_directory("escape");
    let root = busybox_root(&directory, "root");
    // What the kernel starts as the interpreter of a dynamically linked program: the image's, whoever's program it is.
    let loader = root.join("lib64/ld-linux-x86-64.so.2");
    corebox_sys::fs::create_dir_all(root.join("lib64")).expect("a directory");
    compile(&directory, include_str!("escape/loader.c"), &loader);
    script(&root.join("evil"), "#!/proc/self/exe\n");
    let image = pack(&directory, "image", &root);
    let program = directory.join("corebox");
    std::fs::copy(corebox()?, &program).expect("a copy of corebox");
    Ok(Fixture { corebox: program, image, directory })
}

fn busybox_root(directory: &Path, name: &str) -> PathBuf {
    let root = directory.join(name);
    for name in ["bin", "etc", "data", "tmp", "sys", "dev"] {
        corebox_sys::fs::create_dir_all(root.join(name)).expect("a directory");
    }
    let busybox = corebox_tests::program("busybox").expect("checked before");
    std::fs::copy(busybox, root.join("bin/busybox")).expect("a copy of busybox");
    for name in ["sh", "cat", "ls", "stat", "true", "readlink", "unshare", "mkdir", "id"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    corebox_sys::fs::write(root.join("etc/motd"), "of the image\n").expect("a file");
    root
}

/// A program that needs nothing of the image.
fn compile(directory: &Path, text: &str, program: &Path) {
    let source = directory.join("loader.c");
    corebox_sys::fs::write(&source, text).expect("a source");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-o"]).arg(program).arg(&source);
    let made = gcc.output().expect("gcc runs");
    assert!(made.status.success(), "{}", text_of(&made.stderr));
}

fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    corebox_sys::fs::write(path, text).expect("a script");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
}

fn pack(directory: &Path, name: &str, root: &Path) -> PathBuf {
    let image = directory.join(format!("{name}.sqsh"));
    let made = Command::new("mksquashfs").args([root, &image]).args(["-noappend", "-all-root", "-quiet"]).output();
    assert!(made.expect("mksquashfs runs").status.success());
    std::fs::remove_dir_all(root).expect("the copy is ours");
    image
}

/// The fixture, or a SKIP line.
fn ready(test: &str) -> Option<&'static Fixture> {
    if !require_root(test) || !require_programs(test, &["busybox", "mksquashfs", "gcc", "unshare", "script"]) {
        return None;
    }
    match fixture() {
        Ok(fixture) => Some(fixture),
        Err(failure) => {
            skip!(test, "{}", failure.to_string().replace('\n', " "));
            None
        }
    }
}

impl Fixture {
    fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.run_image(&self.image, options, command)
    }

    fn run_image(&self, image: &Path, options: &[&str], command: &[&str]) -> Output {
        let mut corebox = Command::new(&self.corebox);
        corebox.arg("run").args(options).arg(image).args(command).current_dir("/").stdin(Stdio::null());
        corebox.output().expect("corebox runs")
    }

    /// In a shell of its own mount namespace; `$COREBOX` and `$IMAGE` are those of the fixture.
    fn prepared(&self, script: &str) -> Output {
        let mut shell = Command::new("unshare");
        shell
            .args(["-m", "sh", "-c", script])
            .env("COREBOX", &self.corebox)
            .env("IMAGE", &self.image)
            .env("USER_ID", USER);
        shell.current_dir(&self.directory).stdin(Stdio::null()).output().expect("unshare runs")
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        corebox_sys::fs::create_dir_all(&path).expect("a directory");
        path
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, text_of(&output.stderr));
    text_of(&output.stdout)
}

/// Refused by corebox, with this word, and nothing ran.
fn refused(output: &Output, word: &str) {
    assert_eq!(output.status.code(), Some(125), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    assert!(text_of(&output.stderr).contains(word), "{word}: {}", text_of(&output.stderr));
    assert_eq!(text_of(&output.stdout), "");
}

/// CVE-2019-5736: an image makes the runtime execute itself, with a loader of the image, which then holds the host's
/// file open until nobody executes it any more.
#[test]
fn the_hosts_program_cannot_be_overwritten() {
    let Some(f) = ready("the_hosts_program_cannot_be_overwritten") else { return };
    if !cfg!(target_arch = "x86_64") {
        skip!("the_hosts_program_cannot_be_overwritten", "the attack is written for x86-64");
        return;
    }
    assert_eq!(said(&f.run(&[], &["/evil"])), "the program is on a read-only file system\n");
}

/// The same class, by way of process 1, which is a fork of the host's program.
#[test]
fn the_first_process_shows_nothing() {
    let Some(f) = ready("the_first_process_shows_nothing") else { return };
    let script = "for name in exe root cwd fd/0 fd/3; do readlink /proc/1/$name && echo open; done; \
                  for name in environ maps auxv mem; do cat /proc/1/$name && echo open; done; true";
    let output = f.run(&[], &["sh", "-c", script]);
    assert_eq!(said(&output), "", "{}", text_of(&output.stderr));
}

/// CVE-2024-21626: a directory of the host that is open in the runtime, as working directory or inherited.
#[test]
fn no_descriptor_leads_to_the_host() {
    let Some(f) = ready("no_descriptor_leads_to_the_host") else { return };
    let inherited = f.prepared(r#"exec 7</; exec "$COREBOX" run "$IMAGE" sh -c 'ls /proc/self/fd | wc -l'"#);
    // Standard input, output and error, and the directory that ls reads.
    assert_eq!(said(&inherited).trim(), "4");
    for number in 3..12 {
        let way = format!("/proc/self/fd/{number}");
        let output = f.run(&["-w", &way], &["ls", "-a", "."]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{way}: {}", text_of(&output.stdout));
    }
    // A launcher's descriptor passes through on purpose; as a directory it is a way out.
    let script = r#"exec 7</; export PMI_FD=7; exec "$COREBOX" run -w /proc/self/fd/7 "$IMAGE" ls -a ."#;
    refused(&f.prepared(script), "below the root directory");
    let inside = f.run(&["-w", "/data/../data"], &["sh", "-c", "busybox pwd"]);
    assert_eq!(said(&inside), "/data\n");
}

/// CVE-2025-31133: what hides a kernel detail must be the null device, or hides nothing.
#[test]
fn kernel_details_are_hidden() {
    let Some(f) = ready("kernel_details_are_hidden") else { return };
    let script = "for name in keys timer_list kcore sched_debug latency_stats; do \
                    [ ! -e /proc/$name ] || echo $(stat -c %t:%T /proc/$name) $(cat /proc/$name | wc -c); done; \
                  for name in /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/kernel/debug /sys/kernel/security \
                    /sys/kernel/tracing /sys/fs/bpf /sys/fs/pstore; do [ ! -e $name ] || ls -A $name; done";
    let shown = said(&f.run(&[], &["sh", "-c", script]));
    assert!(shown.contains("1:3 0\n"), "nothing was hidden: {shown}");
    assert!(shown.lines().all(|line| line == "1:3 0"), "{shown}");
    let planted =
        r#"echo secret >planted; mount --bind planted /dev/null; exec "$COREBOX" run "$IMAGE" cat /proc/keys"#;
    refused(&f.prepared(planted), "not the null device");
}

/// As CVE-2025-31133: the kernel's switches.
#[test]
fn the_kernels_switches_are_read_only() {
    let Some(f) = ready("the_kernels_switches_are_read_only") else { return };
    let script = "for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/overcommit_memory \
                    /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/uevent_helper /sys/power/state \
                    /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release; do \
                    if [ -e $file ] && (: >>$file) 2>/dev/null; then echo $file; fi; done; echo done";
    assert_eq!(said(&f.run(&[], &["sh", "-c", script])), "done\n");
}

/// CVE-2025-52565: the path of the terminal means another file by the time it is bound.
#[test]
fn the_console_is_the_callers_terminal() {
    let Some(f) = ready("the_console_is_the_callers_terminal") else { return };
    let on_terminal = |text: &str| {
        script(&f.directory.join("terminal.sh"), &format!("#!/bin/sh\n{text}\n"));
        f.prepared("exec script -qec ./terminal.sh /dev/null")
    };
    let honest = on_terminal(r#"$COREBOX run $IMAGE stat -c %t /dev/console"#);
    assert_eq!(said(&honest).trim(), "88", "{}", text_of(&honest.stderr));
    let moved = on_terminal(r#"mount --bind /dev/zero $(tty); $COREBOX run $IMAGE stat -c %t:%T /dev/console"#);
    assert!(!moved.status.success() && text_of(&moved.stdout).contains("is not the terminal"), "{moved:?}");
}

/// CVE-2025-52881: what corebox writes to /proc must reach the kernel, and not a file that somebody put there.
#[test]
fn proc_is_the_kernels() {
    let Some(f) = ready("proc_is_the_kernels") else { return };
    let root = busybox_root(&f.directory, "linked");
    std::os::unix::fs::symlink("/data", root.join("proc")).expect("a link");
    let image = pack(&f.directory, "linked", &root);
    refused(&f.run_image(&image, &[], &["true"]), "symbolic link at /proc");

    if !require_programs("proc_is_the_kernels (user)", &["setpriv", "squashfuse"]) {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        skip!("proc_is_the_kernels (user)", "needs /dev/fuse");
        return;
    }
    // An ordinary user's writable root is assembled in a namespace of its own, which ends with a map of the ids.
    let fake = f.directory("fake/self");
    for name in ["uid_map", "gid_map"] {
        corebox_sys::fs::write(fake.join(name), "").expect("a file");
    }
    let output = f.prepared(
        r#"chown -R "$USER_ID:$USER_ID" fake && mount --make-rprivate / && mount -t tmpfs none /mnt &&
           mknod -m 666 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse && chmod 666 /mnt/fuse && umount -l /mnt &&
           exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups --bounding-set=-all --inh-caps=-all \
               "$COREBOX" run --writable -v "$PWD/fake:/proc" "$IMAGE" true"#,
    );
    for name in ["uid_map", "gid_map"] {
        assert_eq!(corebox_sys::fs::read(fake.join(name)).expect("a file"), b"", "{name} was written by corebox");
    }
    refused(&output, "where no procfs is");
}

/// CVE-2021-30465 and its like: a mount's target goes through links that lead out of the root.
#[test]
fn mounts_stay_below_the_root() {
    let Some(f) = ready("mounts_stay_below_the_root") else { return };
    let (shared, payload) = (f.directory("shared"), f.directory.join("payload"));
    corebox_sys::fs::write(&payload, "payload\n").expect("a file");
    let volume = |source: &Path, target: &str| format!("{}:{target}", source.display());
    for (name, to) in [("absolute", "/"), ("upwards", "../../../../../..")] {
        let link = shared.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(to, link).expect("a link");
        let target = format!("/data/{name}/etc/motd");
        let options = ["-v", &volume(&shared, "/data"), "-v", &volume(&payload, &target)];
        assert_eq!(said(&f.run(&options, &["cat", "/etc/motd"])), "payload\n", "{name} left the root");
    }
    let magic = f.run(&["-v", &volume(&payload, "/proc/self/root/etc/motd")], &["cat", "/etc/motd"]);
    refused(&magic, "ELOOP");
}

/// The way by which most exploits of the kernel begin.
#[test]
fn no_namespace_is_made_inside() {
    let Some(f) = ready("no_namespace_is_made_inside") else { return };
    let unshare = ["unshare", "-U", "id", "-u"];
    let denied = f.run(&[], &unshare);
    assert!(!denied.status.success() && text_of(&denied.stderr).contains("not permitted"), "{denied:?}");
    assert_eq!(said(&f.run(&["--seccomp", "none"], &unshare)), "65534\n");
}

#[test]
fn a_profile_of_the_users_own_counts() {
    let Some(f) = ready("a_profile_of_the_users_own_counts") else { return };
    let profile = f.directory.join("profile.json");
    let path = profile.to_str().expect("a path");
    let write = |text: &str| corebox_sys::fs::write(&profile, text).expect("a file");
    write(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#,
    );
    let output = f.run(&["--seccomp", path], &["mkdir", "/tmp/x"]);
    assert!(text_of(&output.stderr).contains("No space left"), "{output:?}");
    assert_eq!(said(&f.run(&[], &["mkdir", "/tmp/x"])), "");
    write(r#"{"defaultAction":"SCMP_ACT_NONSENSE"}"#);
    refused(&f.run(&["--seccomp", path], &["true"]), "SCMP_ACT_NONSENSE");
    refused(&f.run(&["--seccomp", "/no/such/file"], &["true"]), "/no/such/file");
}
