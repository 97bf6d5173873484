//! Further names, garbage, damage and space.

use crate::sources::{Tar, mode};
use crate::support::{Scratch, files_in, ready};
use corebox_tests::{require_programs, require_root, wait_until};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;
use tar::EntryType;

fn import(scratch: &Scratch, name: &str, content: &str) -> String {
    let tar = scratch.file(&format!("{content}.tar"), &Tar::default().file("f", content.as_bytes()).end());
    scratch.import(name, &tar)["digest"].as_str().unwrap().to_owned()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_tag_is_a_further_name() {
    if !ready("a_tag_is_a_further_name") {
        return;
    }
    let scratch = Scratch::new("tag");
    let one = import(&scratch, "one", "1");
    let two = import(&scratch, "two", "2");
    assert_eq!(scratch.ok(&["tag", "one", "also:x"]), format!("also:x {one}\n"));
    assert_eq!(scratch.inspect("one")["names"], json!(["also:x", "one"]));
    // a name that is there is moved
    scratch.ok(&["tag", "two", "also:x"]);
    assert_eq!(
        (&scratch.inspect("also:x")["digest"], &scratch.inspect("one")["names"]),
        (&two.into(), &json!(["one"]))
    );
    assert!(scratch.fails(&["tag", "three", "x"]).contains("no such image"));
    assert!(scratch.fails(&["tag", "one", "../x"]).contains("is not an image name"));
}

#[test]
fn garbage_is_what_has_had_no_name_for_long() {
    if !ready("garbage_is_what_has_had_no_name_for_long") {
        return;
    }
    let scratch = Scratch::new("gc");
    let old = import(&scratch, "a", "old");
    let new = import(&scratch, "a", "new");
    let kept = parsed(&scratch.ok(&["gc", "--json"]));
    assert_eq!((&kept["removed"], &kept["kept"][0]["digest"]), (&json!([]), &json!(old)), "it has just lost its name");
    let dry = parsed(&scratch.ok(&["gc", "--json", "--older-than", "0", "--dry-run"]));
    assert_eq!(dry["removed"], json!([old]));
    assert_eq!(scratch.list().len(), 2);
    let layer = scratch.store().join(format!("layers/{},key,{}", "a".repeat(64), "gone-host,00000000,1,1,1,00"));
    corebox_sys::fs::write(&layer, b"part").unwrap();
    scratch.ok(&["gc", "--older-than", "0"]);
    let left: Vec<_> = scratch.list().iter().map(|image| image["digest"].clone()).collect();
    assert_eq!(left, [new]);
    assert!(layer.exists(), "another node's pull may be alive");
    assert_eq!(parsed(&scratch.ok(&["gc", "--json", "--older-than", "0"]))["removed"], json!([]));
    assert_eq!(files_in(&scratch.store().join("facts")).len(), 1);
}

#[test]
fn what_runs_is_not_removed() {
    let test = "what_runs_is_not_removed";
    if !ready(test) || !require_root(test) || !require_programs(test, &["busybox"]) {
        return;
    }
    let scratch = Scratch::new("pinned");
    let busybox = corebox_sys::fs::read(corebox_tests::program("busybox").unwrap()).unwrap();
    let tree =
        ["bin/", "dev/", "etc/", "proc/", "run/", "sys/", "tmp/"].iter().fold(Tar::default(), |tar, dir| tar.dir(dir));
    let tree = tree.entry(b"bin/cat", EntryType::Regular, mode(0o755), b"", &busybox).end();
    let digest = scratch.import("box", &scratch.file("box.tar", &tree))["digest"].clone();
    let other = import(&scratch, "other", "x");
    let mut command = std::process::Command::new(corebox_tests::corebox().unwrap());
    command.args(["run", "--no-cwd", "box", "cat"]).env("COREBOX_STORE", scratch.store());
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = running.stdin.take().unwrap();
    input.write_all(b"here\n").unwrap();
    let pins = scratch.store().join("pins");
    let said = |pin: &String| std::fs::metadata(pins.join(pin)).is_ok_and(|pin| pin.len() > 0);
    let pin = || files_in(&pins).first().is_some_and(said);
    wait_until(Duration::from_secs(20), || pin().then_some(())).expect("no pin");
    let said = scratch.fails(&["rm", "box"]);
    assert!(said.contains("in use by container `box`") && said.contains("--force"), "{said}");
    // its name goes to another image: still it stays
    scratch.ok(&["tag", &other, "box"]);
    let done = parsed(&scratch.ok(&["gc", "--json", "--older-than", "0"]));
    assert!(done["kept"][0]["reason"].as_str().unwrap().starts_with("in use by container `box`"), "{done}");
    // SIGKILL leaves a pin, which does not count
    running.kill().unwrap();
    running.wait().unwrap();
    drop(input);
    let done = parsed(&scratch.ok(&["gc", "--json", "--older-than", "0"]));
    assert_eq!((&done["removed"], files_in(&pins)), (&json!([digest]), vec![]));
}

#[test]
fn damage_is_found_by_reading() {
    if !ready("damage_is_found_by_reading") {
        return;
    }
    let scratch = Scratch::new("verify");
    let good = import(&scratch, "good", "1");
    import(&scratch, "bad", "2");
    assert_eq!(scratch.ok(&["verify"]).lines().count(), 2);
    let path = scratch.inspect("bad")["path"].as_str().unwrap().to_owned();
    let mut content = corebox_sys::fs::read(&path).unwrap();
    let last = content.len() - 1;
    content[last] ^= 1;
    corebox_sys::fs::write(&path, content).unwrap();
    let said = scratch.fails(&["verify", "bad"]);
    assert!(said.contains("is damaged: its digest is"), "{said}");
    let output = scratch.run(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(125));
    let json = parsed(&String::from_utf8(output.stdout).unwrap());
    assert_eq!((&json["good"], json["damaged"].as_array().unwrap().len()), (&json!([good]), 1));
}

#[test]
fn space_is_counted() {
    if !ready("space_is_counted") {
        return;
    }
    let scratch = Scratch::new("df");
    import(&scratch, "a", "old");
    import(&scratch, "a", "new");
    let usage = parsed(&scratch.ok(&["df", "--json"]));
    let number = |key: &str| usage[0][key].as_u64().unwrap();
    assert_eq!((number("images"), number("layer_bytes"), number("temporary_bytes")), (2, 0, 0));
    assert_eq!(number("image_bytes"), 2 * number("unnamed_bytes"), "two images of one size");
    assert!(number("free_bytes") > 0);
    assert!(scratch.ok(&["df"]).contains("UNNAMED"));
}
