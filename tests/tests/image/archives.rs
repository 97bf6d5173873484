//! What other tools have saved: docker archives and squashfs images.

use crate::sources::{Layout, Tar, gzip, mode};
use crate::support::{Scratch, ready};
use corebox_tests::require_programs;
use serde_json::json;
use std::process::Command;
use tar::EntryType;

/// What `docker save` writes for these layers (as tars) and digests.
fn saved(layers: &[Vec<u8>], diff_ids: &[String]) -> Tar {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"], "Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}
    });
    let names: Vec<_> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["app:1"], "Layers": names}]);
    let tar = Tar::default().file("config.json", config.to_string().as_bytes());
    let tar = names.iter().zip(layers).fold(tar, |tar, (name, layer)| tar.file(name, layer));
    tar.file("manifest.json", manifest.to_string().as_bytes())
}

fn digests(layers: &[Vec<u8>]) -> Vec<String> {
    layers.iter().map(|layer| format!("sha256:{}", crate::sources::digest(layer))).collect()
}

#[test]
fn docker_archives_are_read() {
    if !ready("docker_archives_are_read") {
        return;
    }
    let scratch = Scratch::new("docker-archive");
    let layers = vec![
        Tar::default().dir("etc/").file("etc/a", b"1").file("gone", b"x").end(),
        Tar::default().file(".wh.gone", b"").file("etc/b", b"2").end(),
    ];
    let layout = Layout::new(&[(None, &layers, json!({"Env": ["A=b"], "Cmd": ["/x"]}))]);
    let wanted = scratch.import("wanted", &layout.write(&scratch, "layout"));
    let archive = saved(&layers, &digests(&layers)).end();
    let image = scratch.import("docker", &scratch.file("docker.tar", &archive));
    assert_eq!((&image["digest"], &image["config"]), (&wanted["digest"], &wanted["config"]));
    // some tools compress the layers; their digests are those of the tars all the same
    let packed: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    let image = scratch.import("packed", &scratch.file("packed.tar", &saved(&packed, &digests(&layers)).end()));
    assert_eq!(image["digest"], wanted["digest"]);
    for name in ["wanted", "docker", "packed"] {
        scratch.ok(&["rm", name]);
    }
    let mut wrong = digests(&layers);
    wrong.swap(0, 1);
    let said = scratch.import_fails(&scratch.file("wrong.tar", &saved(&layers, &wrong).end()));
    assert!(said.contains("layer 1 of 2") && said.contains("digest"), "{said}");
    let said = scratch.import_fails(&scratch.file("less.tar", &saved(&layers, &digests(&layers)[..1]).end()));
    assert!(said.contains("2 layers, and 1 in the config"), "{said}");
    let two = Tar::default()
        .file("manifest.json", br#"[{"Config":"a","Layers":[]},{"Config":"b","Layers":[],"RepoTags":["y:2"]}]"#);
    assert!(scratch.import_fails(&scratch.file("two.tar", &two.end())).contains("several images"));
    let out = Tar::default().file("manifest.json", br#"[{"Config":"../../etc/passwd","Layers":[]}]"#);
    assert!(scratch.import_fails(&scratch.file("out.tar", &out.end())).contains("is missing"));
}

#[test]
fn squashfs_images_of_other_tools_are_read() {
    let test = "squashfs_images_of_other_tools_are_read";
    if !ready(test) || !require_programs(test, &["sqfs2tar"]) {
        return;
    }
    let scratch = Scratch::new("squashfs");
    let tree = Tar::default()
        .entry(b"./", EntryType::Directory, mode(0o750), b"", b"")
        .dir("bin/")
        .entry(b"bin/su", EntryType::Regular, mode(0o4755), b"", b"x")
        .hard_link("bin/also", "bin/su")
        .symlink("sh", "bin/su")
        .file("zeros", &[0; 70_000])
        .end();
    let tar = scratch.file("tree.tar", &tree);
    let first = scratch.import("first", &tar);
    // a squashfs file, as another tool would have made it
    let squashed = scratch.path.join("env.sqsh");
    let script = r#"mksquashfs - "$2" -tar -root-mode 0750 -quiet -no-progress < "$1""#;
    let made = Command::new("sh").args(["-c", script, "sh"]).args([&tar, &squashed]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let image = scratch.import("second", &squashed);
    let show = |image: &serde_json::Value| crate::support::listing(image);
    assert_eq!(show(&image), show(&first));
    // cut off
    let half = corebox_sys::fs::read(&squashed).unwrap();
    let said = scratch.fails(&["import", "half", scratch.file("half.sqsh", &half[..200]).to_str().unwrap()]);
    assert!(said.contains("sqfs2tar failed"), "{said}");
    assert_eq!(scratch.list().len(), if image["digest"] == first["digest"] { 1 } else { 2 });
    let mut command = scratch.command(&["import", "x", squashed.to_str().unwrap()]);
    let said = crate::support::failed(&command.env("PATH", "/nonexistent").output().unwrap());
    assert!(said.contains("squashfs-tools-ng"), "{said}");
}
