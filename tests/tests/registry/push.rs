//! What corebox pushes, other tools pull.

use crate::proxy::{Fate, Proxy};
use crate::server::{Configured, Registry, plain, ready, skopeo};
use crate::sources::{Meta, Tar, mode};
use crate::support::Scratch;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use tar::EntryType;

/// A tree with one of everything.
fn tree() -> Vec<u8> {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    let meta = Meta { owner: (1000, 3_000_000), xattrs: &[("user.note", b"\x00\xff=\n")], ..mode(0o4755) };
    let device = Meta { device: (8, 300), ..mode(0o660) };
    Tar::default()
        .entry(b"./", EntryType::Directory, mode(0o711), b"", b"")
        .dir("bin/")
        .entry(b"bin/set", EntryType::Regular, meta, b"", b"setuid")
        .dir(&format!("{}/", "d".repeat(120)))
        .file(&long, b"long")
        .hard_link("bin/again", "bin/set")
        .symlink("up", "../../etc/passwd")
        .symlink("far", &"x/".repeat(90))
        .entry(b"disk", EntryType::Block, device, b"", b"")
        .entry(b"pipe", EntryType::Fifo, mode(0o600), b"", b"")
        .file("sm\u{e4}ll", &[7; 5000])
        .file("empty", b"")
        .end()
}

/// Path → all that a tar says about it.
fn entries(tar: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(tar);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
        let header = entry.header().clone();
        let numbers = (header.mode().unwrap() & 0o7777, entry.header().uid().unwrap(), header.mtime().unwrap());
        let gid = entry.pax_extensions().unwrap().and_then(|pax| {
            pax.flatten().find(|record| record.key() == Ok("gid")).map(|record| record.value().unwrap().to_owned())
        });
        let gid = gid.unwrap_or_else(|| header.gid().unwrap().to_string());
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
        let device = (header.device_major().unwrap_or(None), header.device_minor().unwrap_or(None));
        let xattrs: Vec<_> = entry
            .pax_extensions()
            .unwrap()
            .into_iter()
            .flatten()
            .flatten()
            .filter(|record| record.key_bytes().starts_with(b"SCHILY"))
            .map(|record| (record.key().unwrap().to_owned(), record.value_bytes().to_vec()))
            .collect();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let kind = header.entry_type();
        let device = if kind.is_block_special() { device } else { (None, None) };
        found.insert(path, format!("{kind:?} {numbers:?} {gid} {link:?} {device:?} {xattrs:?} {}", content.len()));
    }
    found
}

/// The one layer of an image that skopeo has copied to a directory, unpacked.
fn layer(directory: &Path) -> Vec<u8> {
    let manifest: serde_json::Value =
        serde_json::from_slice(&corebox_sys::fs::read(directory.join("manifest.json")).unwrap()).unwrap();
    let layer = &manifest["layers"][0];
    let hex = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
    let stored = corebox_sys::fs::read(directory.join(hex)).unwrap();
    assert_eq!(layer["size"], stored.len());
    let mut tar = Vec::new();
    match layer["mediaType"].as_str().unwrap().rsplit('.').next().unwrap() {
        "tar+gzip" => drop(flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut tar).unwrap()),
        "tar+zstd" => tar = zstd::decode_all(&stored[..]).unwrap(),
        _ => tar = stored,
    }
    tar
}

#[test]
fn what_corebox_pushes_is_what_skopeo_pulls() {
    if !ready("what_corebox_pushes_is_what_skopeo_pulls") {
        return;
    }
    let scratch = Scratch::new("push");
    let registry = Registry::plain(&scratch);
    scratch.configure(&plain(&[&registry.address]));
    let source = scratch.file("env.tar", &tree());
    scratch.succeeds(&["import", "env", source.to_str().unwrap()]);
    let mut wanted = entries(&tree());
    // which of the two names of a file comes first is no fact about it: here the sorted one
    let first = wanted.remove("bin/set").unwrap();
    wanted.remove("bin/again").unwrap();
    for compress in ["gzip", "zstd", "none"] {
        let reference = registry.docker(&format!("lab/{compress}:1"));
        let said = scratch.succeeds(&["push", "--compress", compress, "env", &reference]);
        let directory = scratch.path.join(compress);
        skopeo(&["copy", "--src-tls-verify=false", &reference, &format!("dir:{}", directory.display())]);
        let digest = crate::sources::digest(&corebox_sys::fs::read(directory.join("manifest.json")).unwrap());
        assert_eq!(said, format!("{} sha256:{digest}\n", reference.trim_start_matches("docker://")));
        let mut found = entries(&layer(&directory));
        assert_eq!(found.remove("bin/again").as_ref(), Some(&first));
        let link = found.remove("bin/set").unwrap();
        assert!(link.starts_with("Link ") && link.contains("Some(\"bin/again\")"), "{link}");
        assert_eq!(found, wanted, "{compress}");
        scratch.succeeds(&["pull", &reference, "--as", compress]);
    }
    // what was pushed and pulled is one image, and pushing that gives the same bytes again
    let digest = scratch.inspect("gzip")["digest"].clone();
    assert_eq!((&scratch.inspect("zstd")["digest"], &scratch.inspect("none")["digest"]), (&digest, &digest));
    let again = registry.docker("lab/again:1");
    scratch.succeeds(&["push", "--compress", "none", "gzip", &again]);
    skopeo(&["copy", "--src-tls-verify=false", &again, &format!("dir:{}", scratch.path.join("again").display())]);
    assert_eq!(layer(&scratch.path.join("again")), layer(&scratch.path.join("none")));
}

#[test]
fn a_config_survives_the_way_there_and_back() {
    if !ready("a_config_survives_the_way_there_and_back") {
        return;
    }
    let scratch = Scratch::new("push-config");
    let registry = Registry::plain(&scratch);
    scratch.configure(&plain(&[&registry.address]));
    let layout = crate::server::layout(&scratch);
    scratch.succeeds(&["import", "env", layout.to_str().unwrap()]);
    let reference = registry.docker("lab/env:1");
    scratch.succeeds(&["push", "env", &reference]);
    let config: serde_json::Value =
        serde_json::from_str(&skopeo(&["inspect", "--config", "--tls-verify=false", &reference])).unwrap();
    assert_eq!(config["config"], serde_json::json!({"Env": ["A=b"], "Cmd": ["/bin/x", "y"]}));
    scratch.succeeds(&["pull", &reference, "--as", "back"]);
    assert_eq!(scratch.inspect("back")["config"], scratch.inspect("env")["config"]);
}

#[test]
fn what_cannot_be_pushed_is_said() {
    if !ready("what_cannot_be_pushed_is_said") {
        return;
    }
    let scratch = Scratch::new("push-not");
    let registry = Registry::plain(&scratch);
    let proxy = Proxy::before(&registry.address);
    scratch.configure(&plain(&[&proxy.address]));
    let source = scratch.file("env.tar", &tree());
    scratch.succeeds(&["import", "env", source.to_str().unwrap()]);
    scratch.succeeds(&["import", "--codec", "zstd", "small", source.to_str().unwrap()]);
    let reference = format!("docker://{}/lab/env:1", proxy.address);
    for (words, expected) in [
        (["push", "nothing", &reference], "no such image"),
        (["push", "small", &reference], "without --codec"),
        (["push", "env", "env:1"], "names no registry"),
        (
            ["push", "env", "a.org/x@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
            "computes the digest",
        ),
    ] {
        let said = scratch.refused(&words);
        assert!(said.contains(expected), "{words:?}: {said}");
    }
    for (method, status, expected) in
        [("POST", 403, "this user may not"), ("PATCH", 500, "has trouble"), ("PUT", 403, "403")]
    {
        proxy.rule(move |request| if request.method == method { Fate::Answer(status, "") } else { Fate::Pass });
        let said = scratch.refused(&["push", "env", &reference]);
        assert!(said.contains(expected), "{method} {status}: {said}");
    }
    proxy.rule(|_| Fate::Pass);
    assert!(scratch.refused(&["pull", &reference]).contains("unknown"), "nothing may have that name yet");
}
