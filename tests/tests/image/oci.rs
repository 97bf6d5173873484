//! OCI layouts and archives.

use crate::sources::{Layout, Tar, gzip, zstd};
use crate::support::{Scratch, cat, listing, ready};
use serde_json::json;

fn layers() -> Vec<Vec<u8>> {
    let base = Tar::default()
        .dir("usr/")
        .file("usr/lib/old.so", b"old")
        .file("usr/lib/kept.so", b"kept")
        .symlink("lib", "usr/lib")
        .file("etc/gone", b"gone")
        .file("etc/conf.d/one", b"1")
        .file("etc/conf.d/two", b"2")
        .file("opt/tree/deep/file", b"deep")
        .file("data", b"shared")
        .end();
    let middle = Tar::default()
        .file("etc/.wh.gone", b"")
        .file("etc/conf.d/.wh..wh..opq", b"")
        .file("etc/conf.d/three", b"3")
        .file("opt/.wh.tree", b"")
        .symlink("opt/tree", "/usr")
        .file("lib/new.so", b"new")
        .hard_link("data-link", "data")
        .file(".wh..wh.plnk", b"")
        .end();
    let top =
        Tar::default().file(".wh.data", b"").file("usr/lib/.wh.old.so", b"").file("usr/lib/kept.so", b"KEPT").end();
    vec![gzip(&base), zstd(&middle), top]
}

fn config() -> serde_json::Value {
    json!({"Env": ["PATH=/usr/bin", "A=b"], "Entrypoint": ["/entry"], "Cmd": ["x", "y z"], "WorkingDir": "/work", "User": "1000"})
}

fn native() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[test]
fn layers_add_up_as_the_specification_says() {
    if !ready("layers_add_up_as_the_specification_says") {
        return;
    }
    let scratch = Scratch::new("oci");
    let layout = Layout::new(&[(None, &layers(), config())]);
    let image = scratch.import("archive", &scratch.file("env.oci", &layout.archive()));
    let found = listing(&image);
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "",
            "data-link",
            "etc",
            "etc/conf.d",
            "etc/conf.d/three",
            "lib",
            "opt",
            "opt/tree",
            "usr",
            "usr/lib",
            "usr/lib/kept.so",
            "usr/lib/new.so"
        ]
    );
    assert_eq!(cat(&image, "data-link"), b"shared");
    assert_eq!(cat(&image, "usr/lib/kept.so"), b"KEPT");
    assert_eq!(
        image["config"],
        json!({"env": ["PATH=/usr/bin", "A=b"], "entrypoint": ["/entry"], "cmd": ["x", "y z"], "working_dir": "/work", "user": "1000"})
    );
    let directory = scratch.import("layout", &layout.write(&scratch, "layout"));
    assert_eq!(directory["digest"], image["digest"]);
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    if !ready("the_image_for_this_machine_is_chosen") {
        return;
    }
    let scratch = Scratch::new("arch");
    let mine = [Tar::default().file("mine", b"m").end()];
    let other = [Tar::default().file("other", b"o").end()];
    let both = Layout::new(&[(Some("riscv64"), &other, json!({})), (Some(native()), &mine, json!({}))]);
    let image = scratch.import("both", &scratch.file("both.oci", &both.archive()));
    assert!(listing(&image).contains_key("mine"));
    scratch.ok(&["rm", "both"]);
    let foreign = Layout::new(&[(Some("riscv64"), &other, json!({})), (Some("mips"), &mine, json!({}))]);
    let said = scratch.import_fails(&scratch.file("foreign.oci", &foreign.archive()));
    assert!(said.contains("it has: linux/riscv64, linux/mips"), "{said}");
}

#[test]
fn a_damaged_blob_is_refused() {
    let scratch = Scratch::new("damaged");
    let layout = || Layout::new(&[(None, &layers(), config())]);
    // the files of a layout: oci-layout, three layers, config, manifest, index
    for (index, what) in [(1, "layer 1 of 3"), (3, "layer 3 of 3"), (4, "the image config"), (5, "the manifest")] {
        let mut layout = layout();
        let content = &mut layout.files[index].1;
        let at = content.len() - 3;
        content[at] ^= 1;
        let said = scratch.import_fails(&scratch.file("x.oci", &layout.archive()));
        assert!(said.contains(what), "{what}: {said}");
        let honest = ["digest", "corrupt", "deflate", "checksum"].iter().any(|word| said.contains(word));
        assert!(honest, "{what}: {said}");
    }
    // bytes after the end of the compressed stream count as well
    let mut longer = layout();
    longer.files[3].1.extend_from_slice(&[0; 512]);
    let said = scratch.import_fails(&longer.write(&scratch, "longer"));
    assert!(said.contains("layer 3 of 3") && said.contains("bytes instead of"), "{said}");
    let mut missing = layout();
    missing.files.remove(2);
    assert!(scratch.import_fails(&scratch.file("y.oci", &missing.archive())).contains("is missing"));
    let mut wrong = layout();
    wrong.files.last_mut().unwrap().1 = b"{\"schemaVersion\":2}".to_vec();
    assert!(scratch.import_fails(&scratch.file("z.oci", &wrong.archive())).contains("index.json"));
}
