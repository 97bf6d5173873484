//! `corebox image bootstrap` with a real Debian mirror, as root and as an ordinary user; without a network these are
//! skipped.

use crate::support::{Scratch, cat, failed, files_in, listing, ready};
use corebox_tests::{require_programs, require_root, skip, wait_until};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Whether a bootstrap failed because the mirror is out of reach.
fn no_network(test: &str, output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    let signs = [
        "Temporary failure resolving",
        "Could not resolve",
        "Could not connect",
        "Network is unreachable",
        "connection timed out",
    ];
    let unreachable = !output.status.success() && signs.iter().any(|sign| said.contains(sign));
    if unreachable {
        skip!(test, "no Debian mirror can be reached");
    }
    unreachable
}

#[test]
fn root_gets_an_image_of_packages() {
    let test = "root_gets_an_image_of_packages";
    if !ready(test) || !require_programs(test, &["mmdebstrap"]) {
        return;
    }
    let scratch = Scratch::new("bootstrap-root");
    let note = scratch.file("it's a note", b"note");
    let args = ["bootstrap", "deb", "--suite", "bookworm", "--variant", "essential", "-p", "libopenmpi3,libmpich12"];
    let mut command = scratch.command(&args);
    command.arg("--copy-in").arg(&note).arg("/opt/a dir").args(["--run", "echo \"$(id -u) $PWD\" > /opt/ran"]);
    let output = command.output().unwrap();
    if no_network(test, &output) {
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = scratch.inspect("deb");
    let found: Vec<_> = image["mpi"].as_array().unwrap().iter().map(|mpi| (&mpi["family"], &mpi["version"])).collect();
    assert_eq!(found, [(&"open-mpi".into(), &"4.1.4".into()), (&"mpich".into(), &"4.0.2".into())]);
    assert_eq!(image["arch"], std::env::consts::ARCH);
    assert_eq!(cat(&image, "opt/a dir/it's a note"), b"note");
    assert_eq!(cat(&image, "opt/ran"), b"0 /\n");
    let files = listing(&image);
    assert!(files[""].starts_with("drwxr-xr-x 0/0"), "{}", files[""]);
    assert_eq!(files["dev/null"], "crw-rw-rw- 0/0 1, 3");
    assert!(files["usr/bin/passwd"].starts_with("-rwsr-xr-x 0/0"), "{}", files["usr/bin/passwd"]);
}

#[test]
fn an_ordinary_user_gets_one_with_the_right_owners() {
    let test = "an_ordinary_user_gets_one_with_the_right_owners";
    let programs = ["mmdebstrap", "fakechroot", "fakeroot", "setpriv"];
    if !ready(test) || !require_programs(test, &programs) {
        return;
    }
    let scratch = Scratch::new("bootstrap-user");
    corebox_sys::fs::create_dir_all(scratch.store()).unwrap();
    std::os::unix::fs::chown(scratch.store(), Some(65534), Some(65534)).unwrap();
    let program = scratch.public_program();
    let bootstrap = |package: &str| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(["image", "bootstrap", "deb", "--suite", "bookworm", "--variant", "essential", "-p", package])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", "/nonexistent")
            .env("COREBOX_STORE", scratch.store())
            .output()
            .unwrap()
    };
    let output = bootstrap("hostname");
    if no_network(test, &output) {
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = listing(&scratch.inspect("deb"));
    let foreign: Vec<_> = files.iter().filter(|(_, line)| line.contains("65534")).collect();
    assert!(foreign.is_empty(), "files of the caller: {foreign:?}");
    assert!(files["usr/sbin/unix_chkpwd"].starts_with("-rwxr-sr-x 0/42"), "{}", files["usr/sbin/unix_chkpwd"]);
    assert_eq!(files["dev/null"], "crw-rw-rw- 0/0 1, 3");
    let said = failed(&bootstrap("no-such-package-anywhere"));
    assert!(said.contains("Unable to locate package no-such-package-anywhere"), "{said}");
    assert_eq!(files_in(&scratch.store().join("tmp")), Vec::<String>::new());
    assert_eq!(scratch.list().len(), 1);
}

#[test]
fn a_killed_bootstrap_leaves_nothing() {
    let test = "a_killed_bootstrap_leaves_nothing";
    if !require_root(test) || !require_programs(test, &["mmdebstrap", "setpriv"]) {
        return;
    }
    let scratch = Scratch::new("bootstrap-kill");
    let tmp = scratch.path.join("tmp");
    corebox_sys::fs::create_dir_all(&tmp).unwrap();
    let mut command = scratch.command(&["bootstrap", "deb", "--suite", "bookworm", "--variant", "essential"]);
    let mut child = command.env("TMPDIR", &tmp).stdout(Stdio::null()).spawn().unwrap();
    let begun = wait_until(Duration::from_secs(60), || files_in(&tmp.join(files_in(&tmp).pop()?)).pop());
    child.kill().unwrap();
    child.wait().unwrap();
    begun.expect("mmdebstrap never began");
    let clean = wait_until(Duration::from_secs(60), || files_in(&tmp).is_empty().then_some(()));
    assert!(clean.is_some(), "left behind: {:?}", files_in(&tmp));
    assert!(scratch.list().is_empty());
}

#[test]
fn words_that_mmdebstrap_would_misread_are_refused() {
    let scratch = Scratch::new("bootstrap-words");
    for words in [
        &["--suite=-x"][..],
        &["--suite=a b"],
        &["--suite=x", "--package=-y"],
        &["--suite=x", "--mirror=--setup-hook=z"],
    ] {
        let said = scratch.fails(&[&["bootstrap", "x"], words].concat());
        assert!(said.contains("is not "), "{words:?}: {said}");
    }
    let said = scratch.fails(&["bootstrap", "x", "--suite=x", "--copy-in", "/does/not/exist", "/opt"]);
    assert!(said.contains("/does/not/exist: ENOENT"), "{said}");
    let said = scratch.fails(&["bootstrap", "../x", "--suite=x"]);
    assert!(said.contains("is not an image name"), "{said}");
    assert!(!scratch.store().exists(), "something was made");
}
