use super::*;
use oci_spec::runtime::LinuxSeccomp;

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

/// What a filter answers, by running its instructions (the subset of classic BPF that filters have).
fn answer(program: &Program, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    data.extend(args.iter().flat_map(|a| a.to_ne_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let Instruction { code, jt, jf, k } = program.instructions[at];
        let branch = |yes: bool| 1 + usize::from(if yes { jt } else { jf });
        at += match code {
            0x20 => {
                let offset = k as usize;
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
                1
            }
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x45 => branch(accumulator & k != 0),
            0x54 => {
                accumulator &= k;
                1
            }
            0x05 => 1 + k as usize,
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        };
    }
}

const X86_64: u32 = 0xc000_003e;
const AARCH64: u32 = 0xc000_00b7;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

fn compiled(json: &str) -> Program {
    compile(&profile(json)).unwrap_or_else(|e| panic!("{json}: {e}"))
}

/// For these architectures alone, whatever this machine is.
fn compiled_for(json: &str, tokens: &[u32]) -> Program {
    let library = corebox_sys::libseccomp_ffi::Libseccomp::load().unwrap();
    let profile = profile(json);
    assemble::compile_for(&profile, &library, tokens, assemble::check(&profile).unwrap()).unwrap()
}

fn rule(action: &str, more: &str) -> String {
    format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["getppid"],"action":"{action}"{more}}}]}}"#)
}

const GETPPID: u32 = 110;

#[test]
fn every_action_is_the_kernels() {
    for (action, errno, expected) in [
        ("SCMP_ACT_KILL", "", 0),
        ("SCMP_ACT_KILL_THREAD", "", 0),
        ("SCMP_ACT_KILL_PROCESS", "", 0x8000_0000),
        ("SCMP_ACT_TRAP", "", 0x0003_0000),
        ("SCMP_ACT_ERRNO", "", EPERM),
        ("SCMP_ACT_ERRNO", r#","errnoRet":38"#, ENOSYS),
        ("SCMP_ACT_ERRNO", r#","errnoRet":0"#, 0x0005_0000),
        ("SCMP_ACT_TRACE", r#","errnoRet":7"#, 0x7ff0_0007),
        ("SCMP_ACT_LOG", "", 0x7ffc_0000),
    ] {
        let program = compiled_for(&rule(action, errno), &[X86_64]);
        assert_eq!(answer(&program, X86_64, GETPPID, [0; 6]), expected, "{action} {errno}");
        assert_eq!(answer(&program, X86_64, GETPPID - 1, [0; 6]), ALLOW, "{action}");
        assert!(!program.notifies());
    }
    let notify = rule("SCMP_ACT_NOTIFY", "").replacen('{', r#"{"listenerPath":"/x","#, 1);
    let program = compiled_for(&notify, &[X86_64]);
    assert_eq!(answer(&program, X86_64, GETPPID, [0; 6]), 0x7fc0_0000);
    assert!(program.notifies());
}

#[test]
fn conditions_are_compared() {
    let with = |args: &str| compiled_for(&rule("SCMP_ACT_ERRNO", &format!(r#","args":[{args}]"#)), &[X86_64]);
    let one = |op: &str, value: u64, two: u64| {
        with(&format!(r#"{{"index":1,"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{op}"}}"#))
    };
    let large = 1u64 << 40;
    for (op, value, two, refused, allowed) in [
        ("EQ", large, 0, vec![large], vec![0, large + 1, large >> 32]),
        ("NE", 5, 0, vec![4, large + 5], vec![5]),
        ("LT", large, 0, vec![0, large - 1], vec![large, u64::MAX]),
        ("LE", large, 0, vec![large, 1], vec![large + 1]),
        ("GT", large, 0, vec![large + 1], vec![large, 0]),
        ("GE", large, 0, vec![large, u64::MAX], vec![large - 1]),
        ("MASKED_EQ", 0xf0, 0x30, vec![0x30, 0x3f, 0xf3f], vec![0x40, 0]),
    ] {
        let program = one(op, value, two);
        for (values, expected) in [(refused, EPERM), (allowed, ALLOW)] {
            for argument in values {
                assert_eq!(answer(&program, X86_64, GETPPID, [0, argument, 0, 0, 0, 0]), expected, "{op} {argument}");
            }
        }
    }
    let condition = |index: u32, value: u32| format!(r#"{{"index":{index},"value":{value},"op":"SCMP_CMP_EQ"}}"#);
    let alternatives = with(&[condition(0, 1), condition(0, 2)].join(","));
    let together = with(&[condition(0, 1), condition(1, 2)].join(","));
    for (program, args, expected) in [
        (&alternatives, [1, 0, 0, 0, 0, 0], EPERM),
        (&alternatives, [2, 0, 0, 0, 0, 0], EPERM),
        (&alternatives, [3, 0, 0, 0, 0, 0], ALLOW),
        (&together, [1, 2, 0, 0, 0, 0], EPERM),
        (&together, [1, 3, 0, 0, 0, 0], ALLOW),
    ] {
        assert_eq!(answer(program, X86_64, GETPPID, args), expected, "{args:?}");
    }
}

#[test]
fn architectures_have_their_own_numbers() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_AARCH64"],
                   "syscalls":[{"names":["getppid"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let program = compiled(json);
    let x86 = 0x4000_0003;
    for (arch, number) in [(X86_64, 110), (x86, 64), (AARCH64, 173)] {
        assert_eq!(answer(&program, arch, number, [0; 6]), EPERM, "{arch:#x}");
        assert_eq!(answer(&program, arch, number + 1, [0; 6]), ALLOW, "{arch:#x}");
    }
    assert_eq!(answer(&program, 0x4000_0028, 64, [0; 6]), 0, "a call of an architecture that is not named kills");
}

#[test]
fn calls_newer_than_the_profile_are_enosys() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32","SCMP_ARCH_X86"],
                   "syscalls":[{"names":["openat2","no_such_call"],"action":"SCMP_ACT_ALLOW"}]}"#;
    let program = compiled(json);
    let x32 = 0x4000_0000;
    for (arch, number, expected) in [
        (X86_64, 437, ALLOW),
        (X86_64, 436, EPERM),
        (X86_64, 438, ENOSYS),
        (X86_64, x32 | 437, ALLOW),
        (X86_64, x32 | 436, EPERM),
        (X86_64, x32 | 438, ENOSYS),
        (0x4000_0003, 437, ALLOW),
        (0x4000_0003, 438, ENOSYS),
        (0x4000_0003, 5, EPERM),
    ] {
        assert_eq!(answer(&program, arch, number, [0; 6]), expected, "{arch:#x} {number:#x}");
    }
    let asked = compiled_for(&json.replace(r#""syscalls""#, r#""defaultErrnoRet":13,"syscalls""#), &[X86_64]);
    assert_eq!(answer(&asked, X86_64, 500, [0; 6]), ENOSYS);
    assert_eq!(answer(&asked, X86_64, 436, [0; 6]), 0x0005_000d);
    let permissive = compiled_for(&json.replace("SCMP_ACT_ERRNO", "SCMP_ACT_LOG"), &[X86_64]);
    assert_eq!(answer(&permissive, X86_64, 500, [0; 6]), 0x7ffc_0000);
}

#[test]
fn flags_are_those_of_seccomp() {
    let flags = |names: &str| compiled(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":[{names}]}}"#)).flags;
    assert_eq!(flags(r#""SECCOMP_FILTER_FLAG_TSYNC""#), 1);
    assert_eq!(flags(r#""SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW""#), 6);
    let notify = rule("SCMP_ACT_NOTIFY", "").replacen(
        '{',
        r#"{"listenerPath":"/x","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"#,
        1,
    );
    assert_eq!(compiled(&notify).flags, 32 | 8);
}

#[test]
fn refuses_what_cannot_be_by_its_word() {
    let many = |action: &str| format!(r#"{{"defaultAction":"{action}"}}"#);
    for (json, word) in [
        (many("SCMP_ACT_NOTIFY"), "default action"),
        (rule("SCMP_ACT_NOTIFY", ""), "listenerPath"),
        (rule("SCMP_ACT_ERRNO", r#","errnoRet":4096"#), "4096"),
        (rule("SCMP_ACT_ERRNO", r#","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]"#), "argument 6"),
        (rule("SCMP_ACT_NOTIFY", "").replace("getppid", "write"), "read and write"),
        (rule("SCMP_ACT_ERRNO", "").replace(r#""getppid""#, ""), "names no system call"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#.into(),
            "WAIT_KILLABLE",
        ),
    ] {
        let error = compile(&profile(&json)).expect_err(&json).to_string();
        assert!(error.contains(word), "{json}: {error}");
    }
}

struct Scratch(std::path::PathBuf);
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
fn scratch(name: &str) -> Scratch {
    let dir = std::env::temp_dir().join(format!("corebox-{name}-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    Scratch(dir)
}

#[test]
fn a_cached_program_is_the_compiled_one() {
    let dir = scratch("seccomp-cache");
    let cache = Cache::below(&dir.0);
    let profile = profile(&rule("SCMP_ACT_ERRNO", ""));
    let bytes = |program: &Program| corebox_sys::seccomp::bytes(&program.instructions);
    let fresh = bytes(&compile(&profile).unwrap());
    assert_eq!(bytes(&cached(&profile, Some(&cache)).unwrap()), fresh);
    let files = corebox_sys::fs::list(dir.0.join("seccomp")).unwrap();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(bytes(&cached(&profile, Some(&cache)).unwrap()), fresh);
}

/// Replaces the cached program by one that allows everything, in ways that must not count (and one that must, to see
/// that the cache is used at all).
#[test]
fn what_others_could_have_written_does_not_count() {
    use sha2::{Digest, Sha256};
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = scratch("seccomp-trust");
    let cache = Cache::below(&dir.0);
    let profile = profile(&rule("SCMP_ACT_ERRNO", ""));
    cached(&profile, Some(&cache)).unwrap();
    let folder = dir.0.join("seccomp");
    let file = folder.join(&corebox_sys::fs::list(&folder).unwrap()[0]);
    let mode = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let allow = corebox_sys::seccomp::bytes(&[Instruction { code: 6, jt: 0, jf: 0, k: ALLOW }]);
    let evil = [Sha256::digest(&allow).as_slice(), &allow].concat();
    let length = || cached(&profile, Some(&cache)).unwrap().len();
    let plant = |bytes: &[u8]| {
        let _ = std::fs::remove_file(&file);
        corebox_sys::fs::write(&file, bytes).unwrap();
        mode(&file, 0o600);
    };
    plant(&evil);
    assert_eq!(length(), 1, "the planted program is used where nothing speaks against it");

    mode(&file, 0o620);
    assert!(length() > 1, "writable by the group");
    plant(&evil);
    mode(&folder, 0o777);
    assert!(length() > 1, "in a directory that others write to");
    mode(&folder, 0o700);

    let elsewhere = dir.0.join("elsewhere");
    corebox_sys::fs::write(&elsewhere, &evil).unwrap();
    let _ = std::fs::remove_file(&file);
    symlink(&elsewhere, &file).unwrap();
    assert!(length() > 1, "a symbolic link");
    let _ = std::fs::remove_file(&file);
    std::fs::hard_link(&elsewhere, &file).unwrap();
    assert!(length() > 1, "a file with a second name");
    plant(&evil[..evil.len() - 1]);
    assert!(length() > 1, "torn");
    plant(&[&[0u8; 32], &allow[..]].concat());
    assert!(length() > 1, "with a digest of something else");
}

const X86: u32 = 0x4000_0003;
const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp");

/// The filters in the tree are what libseccomp makes of the profiles. Another libseccomp may know more names and write
/// other instructions, so the comparison is of the version they were made with.
#[test]
fn compiled_filters_are_those_of_the_profiles() {
    let library = corebox_sys::libseccomp_ffi::Libseccomp::load().unwrap();
    let write = std::env::var_os("COREBOX_WRITE_FILTERS").is_some();
    if library.version() != (2, 5, 4) && !write {
        eprintln!(
            "SKIP compiled_filters_are_those_of_the_profiles: needs libseccomp 2.5.4, here is {:?}",
            library.version()
        );
        return;
    }
    for (name, json) in [("default", ours::DEFAULT), ("terminal", ours::TERMINAL)] {
        for (arch, token) in [("x86_64", X86_64), ("aarch64", AARCH64)] {
            let fresh = corebox_sys::seccomp::bytes(&compiled_for(json, &[token]).instructions);
            let path = format!("{TREE}/{name}-{arch}.bpf");
            if write {
                corebox_sys::fs::write(&path, &fresh).unwrap();
            }
            assert!(
                corebox_sys::fs::read(&path).unwrap() == fresh,
                "{path}: write it again with COREBOX_WRITE_FILTERS=1"
            );
        }
    }
}

#[test]
fn the_default_lets_hpc_programs_work_and_refuses_the_rest() {
    let filter = compiled_for(ours::DEFAULT, &[X86_64]);
    let call = |number: u32, args: [u64; 6]| answer(&filter, X86_64, number, args);
    let first = |argument: u64| [argument, 0, 0, 0, 0, 0];
    // perf_event_open, mbind, set_mempolicy, move_pages, migrate_pages, process_vm_readv, process_vm_writev, ptrace, kcmp,
    // pidfd_getfd, shmget, mlockall, sched_setaffinity, execve, clone as fork, and as a thread
    for number in [298, 237, 238, 279, 256, 310, 311, 101, 312, 438, 29, 151, 203, 59, 56] {
        assert_eq!(call(number, first(17)), ALLOW, "call {number}");
    }
    assert_eq!(call(56, first(0x3d_0f00)), ALLOW, "a thread");
    for (number, name) in [
        (165, "mount"),
        (166, "umount2"),
        (155, "pivot_root"),
        (161, "chroot"),
        (428, "open_tree"),
        (429, "move_mount"),
        (442, "mount_setattr"),
        (308, "setns"),
        (321, "bpf"),
        (175, "init_module"),
        (246, "kexec_load"),
        (169, "reboot"),
        (103, "syslog"),
        (154, "modify_ldt"),
        (172, "iopl"),
        (304, "open_by_handle_at"),
        (278, "vmsplice"),
        (167, "swapon"),
        (323, "userfaultfd for the kernel's faults"),
        (300, "fanotify_init"),
    ] {
        assert_eq!(call(number, [0; 6]), EPERM, "{name}");
    }
    for (number, name) in [(435, "clone3"), (425, "io_uring_setup"), (250, "keyctl"), (9999, "a call of the future")] {
        assert_eq!(call(number, [0; 6]), ENOSYS, "{name}");
    }
    for flag in [0x2_0000u64, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(call(56, first(flag | 17)), EPERM, "clone {flag:#x}");
        assert_eq!(call(272, first(flag)), EPERM, "unshare {flag:#x}");
    }
    assert_eq!(call(272, first(0x80)), EPERM, "unshare of the clock");
    assert_eq!(call(272, first(0x600)), ALLOW, "unshare of files and directories");
    for (family, expected) in [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (27, ALLOW), (38, EPERM), (40, EPERM)]
    {
        assert_eq!(call(41, first(family)), expected, "socket {family}");
        assert_eq!(call(41, first(family | 1 << 40)), expected, "the kernel looks at 32 bits of {family}");
    }
    assert_eq!(call(323, first(1)), ALLOW, "userfaultfd for own faults");
    assert_eq!(call(135, first(0x4_0000)), ALLOW, "personality without random addresses");
    assert_eq!(call(135, first(0x40_0000)), EPERM, "personality that reads what it may only execute");
    assert_eq!(answer(&filter, X86, 20, [0; 6]), 0, "32-bit calls");
    assert_eq!(call(0x4000_0000 | 39, [0; 6]), 0, "x32 calls");
}

#[test]
fn nobody_types_on_the_callers_terminal() {
    let filter = compiled_for(ours::TERMINAL, &[X86_64]);
    let ioctl = |request: u64| answer(&filter, X86_64, 16, [0, request, 0, 0, 0, 0]);
    for (request, expected) in [(0x5412, EPERM), (0x541c, EPERM), (0x5401, ALLOW), (0xc018_1b01, ALLOW)] {
        assert_eq!(ioctl(request), expected, "{request:#x}");
        assert_eq!(ioctl(request | 1 << 32), expected, "the kernel looks at 32 bits of {request:#x}");
    }
}

#[test]
fn profiles_of_engines_are_refused_by_their_words() {
    use corebox_spec::Seccomp;
    let said = |text: &str| check(&Seccomp::Profile(text.to_owned())).unwrap_err().to_string();
    for (text, word) in [
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}"#.to_owned(), "archMap"),
        (rule("SCMP_ACT_ERRNO", r#","includes":{"caps":["CAP_SYS_ADMIN"]}"#), "includes"),
        (rule("SCMP_ACT_NOTIFY", "").replacen('{', r#"{"listenerPath":"/x","#, 1), "corebox oci"),
        ("{}".to_owned(), "defaultAction"),
        ("x".to_owned(), "runtime-spec"),
    ] {
        assert!(said(&text).contains(word), "{text}: {}", said(&text));
    }
    let empty = rule("SCMP_ACT_ERRNO", r#","includes":{},"excludes":{}"#);
    assert_eq!(check(&Seccomp::Profile(empty)), Ok(()));
}
