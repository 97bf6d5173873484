//! Names, digests, removal, and stores that are damaged or closed.

use crate::sources::Tar;
use crate::support::{Scratch, failed, files_in};
use corebox_tests::{require_programs, require_root};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn source(scratch: &Scratch, content: &str) -> std::path::PathBuf {
    scratch.file(&format!("{content}.tar"), &Tar::default().file("f", content.as_bytes()).end())
}

#[test]
fn images_are_found_by_name_and_digest() {
    let scratch = Scratch::new("find");
    let one = scratch.import("lammps", &source(&scratch, "one"));
    scratch.import("lammps:2", &source(&scratch, "two"));
    let digest = one["digest"].as_str().unwrap();
    let hex = digest.trim_start_matches("sha256:");
    for reference in ["lammps", "lammps:latest", digest, &digest[..7 + 8], &hex[..12]] {
        assert_eq!(scratch.inspect(reference)["digest"], one["digest"], "{reference}");
    }
    assert_ne!(scratch.inspect("lammps:2")["digest"], one["digest"]);
    let said = scratch.fails(&["inspect", "lamps"]);
    assert!(said.contains("did you mean `lammps`"), "{said}");
    assert!(scratch.fails(&["inspect", "x/y"]).contains("is not an image name"));
    assert!(scratch.fails(&["inspect", "sha256:12"]).contains("is not a digest"));
    assert!(scratch.fails(&["inspect", "sha256:00000000"]).contains("no such image"));
    let table = scratch.ok(&["ls"]);
    assert!(table.lines().any(|line| line.starts_with("lammps:2 ")), "{table}");
}

#[test]
fn an_image_goes_with_its_last_name() {
    let scratch = Scratch::new("rm");
    let image = scratch.import("a", &source(&scratch, "one"));
    scratch.import("b", &source(&scratch, "one"));
    assert_eq!(scratch.ok(&["rm", "a"]), "");
    assert_eq!(scratch.inspect("b")["names"], serde_json::json!(["b"]));
    assert_eq!(scratch.ok(&["rm", "b"]), format!("removed {}\n", image["digest"].as_str().unwrap()));
    scratch.assert_empty();
    assert!(scratch.fails(&["rm", "b"]).contains("no such image"));
    scratch.import("a", &source(&scratch, "one"));
    scratch.import("b", &source(&scratch, "one"));
    scratch.ok(&["rm", image["digest"].as_str().unwrap()]);
    scratch.assert_empty();
}

#[test]
fn damage_is_named_and_does_not_hide_the_rest() {
    let scratch = Scratch::new("damage");
    let good = scratch.import("good", &source(&scratch, "good"));
    let bad = scratch.import("bad", &source(&scratch, "bad"));
    let hex = bad["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let facts = scratch.store().join(format!("facts/{hex}.json"));
    let blob = scratch.store().join(format!("blobs/sha256/{hex}.erofs"));
    let listed_with_error = |expected: &str| {
        let output = scratch.run(&["ls", "--json"]);
        assert!(failed(&output).contains(expected), "{}", String::from_utf8_lossy(&output.stderr));
        let listed: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(listed, std::slice::from_ref(&good));
        assert!(scratch.fails(&["inspect", "bad"]).contains(expected));
    };
    corebox_sys::fs::write(&facts, b"{\"digest\":").unwrap();
    listed_with_error("the store is damaged");
    std::fs::remove_file(&facts).unwrap();
    listed_with_error("is missing");
    scratch.import("bad", &source(&scratch, "bad"));
    assert_eq!(scratch.list().len(), 2);
    std::fs::set_permissions(&blob, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&blob).unwrap().set_len(10).unwrap();
    listed_with_error("has 10 bytes instead of");
    std::fs::remove_file(&blob).unwrap();
    listed_with_error("is missing");
    corebox_sys::fs::write(scratch.store().join("names/bad:latest"), b"rubbish").unwrap();
    assert!(scratch.fails(&["inspect", "bad"]).contains("holds no digest"));
}

#[test]
fn a_closed_store_says_so() {
    let test = "a_closed_store_says_so";
    if !require_root(test) || !require_programs(test, &["setpriv"]) {
        return;
    }
    let scratch = Scratch::new("closed");
    scratch.import("mine", &source(&scratch, "one"));
    let program = scratch.public_program();
    let tar = source(&scratch, "two");
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("image").args(args);
        command.env("COREBOX_STORE", scratch.store()).output().unwrap()
    };
    // readable for all, written by root: the store of a site
    assert!(as_nobody(&["inspect", "mine"]).status.success());
    let said = failed(&as_nobody(&["import", "x", tar.to_str().unwrap()]));
    assert!(said.contains("EACCES") && said.contains("COREBOX_STORE"), "{said}");
    assert!(failed(&as_nobody(&["rm", "mine"])).contains("EACCES"));
    std::fs::set_permissions(scratch.store(), PermissionsExt::from_mode(0o700)).unwrap();
    for args in [&["ls"][..], &["inspect", "mine"], &["rm", "mine"], &["import", "x", tar.to_str().unwrap()]] {
        let said = failed(&as_nobody(args));
        assert!(said.contains("EACCES") && said.contains("hint: "), "{args:?}: {said}");
    }
    assert_eq!(scratch.list().len(), 1);
    assert_eq!(files_in(&scratch.store().join("tmp")), Vec::<String>::new());
}
