//! Two writers, a writer killed in the middle, a full disk, missing programs.

use crate::sources::Tar;
use crate::support::{Scratch, failed, files_in};
use corebox_tests::{require_programs, require_root, wait_until};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

fn source(scratch: &Scratch) -> PathBuf {
    scratch.file("env.tar", &Tar::default().file("f", &[1; 100_000]).end())
}

/// Bytes that nothing can compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Whether a file in a directory has any content.
fn has_content(directory: &std::path::Path) -> bool {
    files_in(directory).iter().any(|file| std::fs::metadata(directory.join(file)).is_ok_and(|meta| meta.len() > 0))
}

/// The kernel kills it in the middle of its work: at a size that the file would exceed (setrlimit(2), RLIMIT_FSIZE).
#[test]
fn a_killed_import_leaves_nothing_that_counts() {
    let scratch = Scratch::new("killed");
    let tar = scratch.file("big.tar", &Tar::default().file("noise", &noise(4 << 20)).end());
    let status = Command::new("sh")
        .args(["-c", r#"ulimit -c 0; ulimit -f 2048; exec "$1" image import env "$2""#, "sh"])
        .args([corebox_tests::corebox().unwrap(), tar.clone()])
        .env("COREBOX_STORE", scratch.store())
        .status()
        .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(25), "not killed by SIGXFSZ: {status}");
    let tmp = scratch.store().join("tmp");
    assert_eq!(files_in(&tmp).len(), 1, "the killed import's file should still be there");
    assert!(has_content(&tmp) && scratch.list().is_empty());
    scratch.import("env", &tar);
    assert_eq!(files_in(&tmp), Vec::<String>::new(), "the leftover was not swept");
    assert_eq!(scratch.list().len(), 1);
}

#[test]
fn an_import_whose_mksquashfs_is_killed_leaves_nothing_that_counts() {
    let test = "an_import_whose_mksquashfs_is_killed_leaves_nothing_that_counts";
    if !require_programs(test, &["mkfifo", "mksquashfs"]) {
        return;
    }
    let scratch = Scratch::new("kill");
    let gate = scratch.path.join("gate");
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    // an mksquashfs that makes its file and then waits for the gate to open
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -version ] && exec {} -version\necho half > \"$2\"\nread -r line < {}\n",
        corebox_tests::program("mksquashfs").unwrap().display(),
        gate.display()
    );
    let slow = scratch.executable("slow/mksquashfs", &script);
    let path = format!("{}:{}", slow.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let tar = source(&scratch);
    let mut command = scratch.command(&["import", "--codec", "lz4", "env", tar.to_str().unwrap()]);
    let mut child = command.env("PATH", path).stdout(Stdio::null()).spawn().unwrap();
    let tmp = scratch.store().join("tmp");
    let half = wait_until(Duration::from_secs(30), || files_in(&tmp).pop().filter(|_| has_content(&tmp)));
    child.kill().unwrap();
    child.wait().unwrap();
    // opening a fifo for writing waits for its reader: the script is there and ends now
    corebox_sys::fs::write(&gate, b"\n").unwrap();
    let half = half.expect("the import never began to write");
    assert_eq!(files_in(&tmp), [half.as_str()], "the killed import's file should still be there");
    assert!(scratch.list().is_empty());
    scratch.import("other", &tar);
    assert_eq!(files_in(&tmp), Vec::<String>::new(), "the leftover was not swept");
    assert_eq!(scratch.list().len(), 1);
}

#[test]
fn an_import_in_progress_is_not_swept() {
    let test = "an_import_in_progress_is_not_swept";
    if !require_programs(test, &["mkfifo", "mksquashfs"]) {
        return;
    }
    let scratch = Scratch::new("sweep");
    let gate = scratch.path.join("gate");
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    // one that waits for the gate, and then does its work
    let real = corebox_tests::program("mksquashfs").unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -version ] || {{ echo half > \"$2\"; read -r line < {}; rm \"$2\"; }}\nexec {} \"$@\"\n",
        gate.display(),
        real.display()
    );
    let slow = scratch.executable("slow/mksquashfs", &script);
    let path = format!("{}:{}", slow.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let tar = source(&scratch);
    let mut command = scratch.command(&["import", "--codec", "lz4", "slow", tar.to_str().unwrap()]);
    let child = command.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let tmp = scratch.store().join("tmp");
    wait_until(Duration::from_secs(30), || has_content(&tmp).then_some(())).expect("the import never began to write");
    scratch.import("fast", &tar);
    scratch.ok(&["rm", "fast"]);
    assert_eq!(files_in(&tmp).len(), 1, "a live import's file was swept");
    corebox_sys::fs::write(&gate, b"\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(scratch.inspect("slow")["names"], serde_json::json!(["slow"]));
}

#[test]
fn writers_and_removers_at_once_agree() {
    let scratch = Scratch::new("race");
    let tar = source(&scratch);
    let tar = tar.to_str().unwrap();
    for round in 0..3 {
        let writers: Vec<_> = (0..6)
            .map(|n| {
                scratch
                    .command(&["import", &format!("n{n}"), tar])
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        // names come and go meanwhile; whether one is there at this moment is chance
        for n in [0, 1, 0, 1, 0, 1] {
            scratch.run(&["rm", &format!("n{n}")]);
        }
        for writer in writers {
            let output = writer.wait_with_output().unwrap();
            assert!(output.status.success(), "round {round}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let images = scratch.list();
        assert_eq!(images.len(), 1, "round {round}: {images:?}");
        for n in 2..6 {
            scratch.inspect(&format!("n{n}"));
        }
        scratch.ok(&["rm", images[0]["digest"].as_str().unwrap()]);
        scratch.assert_empty();
    }
}

#[test]
fn a_full_disk_leaves_no_half_image() {
    let test = "a_full_disk_leaves_no_half_image";
    if !require_root(test) || !require_programs(test, &["unshare", "mount", "mksquashfs"]) {
        return;
    }
    let scratch = Scratch::new("full");
    let tar = scratch.file("big.tar", &Tar::default().file("noise", &noise(4 << 20)).end());
    corebox_sys::fs::create_dir_all(scratch.store()).unwrap();
    let script = r#"mount -t tmpfs -o size=1m none "$1" &&
        { "$2" image import --codec "$4" x "$3"; echo "status $?"; find "$1" -type f; }"#;
    for codec in ["none", "lz4"] {
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([scratch.store(), corebox_tests::corebox().unwrap(), tar.clone(), codec.into()])
            .env("COREBOX_STORE", scratch.store())
            .output()
            .unwrap();
        let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(out, "status 125\n", "{codec}: {said}");
        assert!(said.contains("No space left") && said.contains("make room"), "{codec}: {said}");
    }
}

#[test]
fn missing_programs_are_named_before_anything_is_made() {
    let test = "missing_programs_are_named_before_anything_is_made";
    if !require_programs(test, &["mksquashfs"]) {
        return;
    }
    let scratch = Scratch::new("programs");
    let tar = source(&scratch);
    let empty = scratch.path.join("no-programs");
    corebox_sys::fs::create_dir_all(&empty).unwrap();
    let mut command = scratch.command(&["import", "--codec", "zstd", "x", tar.to_str().unwrap()]);
    let said = failed(&command.env("PATH", &empty).output().unwrap());
    assert!(said.contains("mksquashfs is not installed") && said.contains("squashfs-tools"), "{said}");
    let old = scratch.executable("old/mksquashfs", "#!/bin/sh\necho 'mksquashfs version 4.4 (2019/08/29)'\n");
    let mut command = scratch.command(&["import", "--codec", "zstd", "x", tar.to_str().unwrap()]);
    let path = format!("{}:/usr/bin:/bin", old.parent().unwrap().display());
    let said = failed(&command.env("PATH", path).output().unwrap());
    assert!(said.contains("4.4") && said.contains("4.5 or newer"), "{said}");
    assert!(!scratch.store().exists(), "something was made");
}
