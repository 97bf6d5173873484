//! Archives that lie: each is refused with its reason, and nothing of it is kept.

use crate::sources::{Layout, Meta, Tar, gzip, mode, pax_record};
use crate::support::{Scratch, cat, listing, ready};
use tar::EntryType;

#[test]
fn lies_are_refused() {
    let scratch = Scratch::new("hostile");
    let long = "n".repeat(256);
    let mut bad_pax = Vec::new();
    pax_record(&mut bad_pax, b"size", b"-1");
    let mut sparse = Vec::new();
    for (key, value) in [("GNU.sparse.size", "10"), ("GNU.sparse.map", "0,4,2,4")] {
        pax_record(&mut sparse, key.as_bytes(), value.as_bytes());
    }
    let pax = |data: &[u8]| Tar::default().raw(b"pax", EntryType::XHeader, mode(0), b"", data.len() as u64).data(data);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("leads out of the image", Tar::default().file("../../etc/cron.d/x", b"x").end()),
        ("leads out of the image", Tar::default().file("a/../../x", b"x").end()),
        ("leads out of the image", Tar::default().file("a", b"x").hard_link("b", "../../etc/shadow").end()),
        ("is not in the archive before it", Tar::default().hard_link("b", "/etc/shadow").end()),
        ("is a directory", Tar::default().dir("d/").hard_link("b", "d").end()),
        ("longer than 255 bytes", Tar::default().file(&long, b"x").end()),
        ("longer than 4095 bytes", Tar::default().file(&"d/".repeat(2100), b"x").end()),
        ("is not a directory", Tar::default().file("f", b"x").file("f/g", b"y").end()),
        ("form a loop", Tar::default().symlink("a", "b").symlink("b", "a").file("a/f", b"y").end()),
        ("root directory", Tar::default().file("./", b"x").symlink("/", "x").end()),
        (
            "device number",
            Tar::default().entry(b"d", EntryType::Char, Meta { device: (5000, 0), ..mode(0o600) }, b"", b"").end(),
        ),
        (
            "uid",
            Tar::default().entry(b"f", EntryType::Regular, Meta { owner: (1 << 33, 0), ..mode(0o600) }, b"", b"").end(),
        ),
        ("type `V` is not supported", Tar::default().raw(b"v", EntryType::new(b'V'), mode(0), b"", 0).end()),
        ("longer than 1 MiB", Tar::default().raw(b"long", EntryType::GNULongName, mode(0), b"", 1 << 40).end()),
        ("longer than 1 MiB", Tar::default().raw(b"pax", EntryType::XHeader, mode(0), b"", 1 << 34).end()),
        ("field size", pax(&bad_pax).file("f", b"x").end()),
        ("pax record", pax(b"9999 path=x\n").file("f", b"x").end()),
        ("pax record", pax(b"x path=x\n").file("f", b"x").end()),
        ("sparse", pax(&sparse).file("f", b"12345678").end()),
        ("truncated", Tar::default().raw(b"f", EntryType::Regular, mode(0o644), b"", 1 << 50).data(b"little").bytes),
        ("holds no files", Tar::default().dir("./").end()),
        ("not a tar file", vec![b'x'; 4096]),
        ("compressed with xz", b"\xfd7zXZ\0rest".to_vec()),
        ("squashfs", b"hsqs....".to_vec()),
    ];
    for (reason, archive) in cases {
        for (form, bytes) in [("plain", archive.clone()), ("gzip", gzip(&archive))] {
            if form == "gzip" && (reason.contains("xz") || reason == "squashfs") {
                continue;
            }
            let said = scratch.import_fails(&scratch.file("bad.tar", &bytes));
            assert!(said.contains(reason), "{form}, expected {reason:?}: {said}");
        }
    }
}

#[test]
fn a_cut_archive_is_refused_wherever_it_is_cut() {
    let scratch = Scratch::new("cut");
    let whole = Tar::default().dir("d/").file("d/a", &[7; 1000]).file("b", &[8; 513]).end();
    let content = whole.len() - 1024;
    for cut in [1, 511, 512, 700, 1024, 1300, 2048, 2560, content - 1, content] {
        let said = scratch.import_fails(&scratch.file("cut.tar", &whole[..cut]));
        assert!(said.contains("truncated"), "at {cut}: {said}");
    }
    let packed = gzip(&whole);
    for cut in [11, packed.len() / 2, packed.len() - 1] {
        let said = scratch.import_fails(&scratch.file("cut.tar.gz", &packed[..cut]));
        assert!(said.contains("truncated"), "at {cut}: {said}");
    }
}

#[test]
fn links_cannot_lead_out() {
    if !ready("links_cannot_lead_out") {
        return;
    }
    let scratch = Scratch::new("links");
    let victim = scratch.file("victim/file", b"untouched");
    let outside = victim.parent().unwrap().to_str().unwrap();
    let tar = Tar::default()
        .symlink("out", outside)
        .symlink("up", "../../../../../..")
        .file("out/file", b"inside")
        .file("up/top", b"top")
        .end();
    let image = scratch.import("links", &scratch.file("links.tar", &tar));
    assert_eq!(corebox_sys::fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(cat(&image, &format!("{}/file", outside.trim_start_matches('/'))), b"inside");
    assert!(listing(&image).contains_key("top"));
}

#[test]
fn whiteouts_cannot_lead_out_either() {
    if !ready("whiteouts_cannot_lead_out_either") {
        return;
    }
    let scratch = Scratch::new("whiteouts");
    let base = Tar::default().file("kept", b"k").symlink("loop", "loop").end();
    let top = Tar::default()
        .file("loop/.wh.x", b"")
        .file("none/.wh..wh..opq", b"")
        .file(".wh.", b"")
        .file(".wh.none", b"")
        .end();
    let layout = Layout::new(&[(None, &[base, top], serde_json::json!({}))]);
    let image = scratch.import("w", &scratch.file("w.oci", &layout.archive()));
    assert_eq!(listing(&image).keys().map(String::as_str).collect::<Vec<_>>(), ["", "kept", "loop"]);
    // in a plain tar such names mean nothing special
    let plain = Tar::default().file("kept", b"k").file(".wh.kept", b"w").end();
    assert!(listing(&scratch.import("p", &scratch.file("p.tar", &plain))).contains_key(".wh.kept"));
}
