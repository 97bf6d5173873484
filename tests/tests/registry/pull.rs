//! What is pulled is what was pushed, from wherever the configuration says.

use crate::proxy::{Fate, Proxy, Request};
use crate::server::{Configured, Registry, layout, plain, ready, write_layout};
use crate::sources::{Tar, gzip};
use crate::support::Scratch;

#[test]
fn what_skopeo_pushes_is_what_corebox_pulls() {
    if !ready("what_skopeo_pushes_is_what_corebox_pulls") {
        return;
    }
    let scratch = Scratch::new("pull");
    let registry = Registry::plain(&scratch);
    let proxy = Proxy::before(&registry.address);
    scratch.configure(&plain(&[&registry.address, &proxy.address]));
    let layout = layout(&scratch);
    registry.fill(&layout, "lab/app:1");
    let imported = scratch.import("imported", &layout);
    scratch.ok(&["rm", "imported"]);
    let said = scratch.succeeds(&["pull", &format!("docker://{}/lab/app:1", proxy.address)]);
    assert!(said.starts_with("app:1 sha256:"), "{said}");
    let image = scratch.inspect("app:1");
    assert_eq!(image["digest"], imported["digest"], "the file is the same as the one made of the layout");
    assert_eq!(image["config"]["cmd"], serde_json::json!(["/bin/x", "y"]));
    assert_eq!(image["origin"]["reference"], format!("{}/lab/app:1", proxy.address));
    assert_eq!(proxy.asked().iter().filter(|request| request.is_blob()).count(), 4, "three layers and the config");
    assert_eq!(scratch.kept(), 0);
    // the same image again, by its digest and under another name: nothing to download
    let pinned = format!("{}/lab/app@{}", proxy.address, image["origin"]["manifest"].as_str().unwrap());
    scratch.succeeds(&["pull", &pinned, "--as", "pinned:2"]);
    assert!(!proxy.asked().iter().any(Request::is_blob));
    assert_eq!(scratch.inspect("pinned:2")["names"], serde_json::json!(["app:1", "pinned:2"]));
    let other = format!("{}/lab/app@sha256:{}", proxy.address, "0".repeat(64));
    assert!(scratch.refused(&["pull", &other]).contains("unknown"));
}

#[test]
fn names_are_searched_for_and_mirrors_asked_first() {
    if !ready("names_are_searched_for_and_mirrors_asked_first") {
        return;
    }
    let scratch = Scratch::new("search");
    let registry = Registry::plain(&scratch);
    registry.fill(&layout(&scratch), "lab/app:1");
    let (mirror, origin) = (Proxy::before(&registry.address), Proxy::before(&registry.address));
    let common = format!("search = ['{0}/other', '{0}/lab']\n", origin.address) + &plain(&[&mirror.address]);
    scratch.configure(&format!(
        "{common}[registry.'{}']\nhttp = true\nmirrors = ['{}']\n",
        origin.address, mirror.address
    ));
    scratch.succeeds(&["pull", "app:1"]);
    let blobs = |proxy: &Proxy| proxy.asked().iter().filter(|request| request.is_blob()).count();
    assert_eq!((blobs(&mirror), scratch.list().len()), (4, 1));
    scratch.ok(&["rm", "app:1"]);
    // a mirror that does not work is passed over
    mirror.rule(|_| Fate::Answer(404, ""));
    scratch.succeeds(&["pull", "app:1"]);
    assert_eq!(blobs(&origin), 4);
    let said = scratch.refused(&["pull", "nothing:1"]);
    for place in ["other/nothing", "lab/nothing"] {
        assert!(said.contains(place), "{place}: {said}");
    }
    // another trouble than absence must not lead to another image of that name
    origin.rule(|request| if request.is_manifest() { Fate::Answer(403, "") } else { Fate::Pass });
    let said = scratch.refused(&["pull", "app:1"]);
    assert!(said.contains("403") && !said.contains("lab/app"), "{said}");
}

#[test]
fn the_image_for_the_machine_is_chosen_from_an_index() {
    if !ready("the_image_for_the_machine_is_chosen_from_an_index") {
        return;
    }
    let scratch = Scratch::new("index");
    let registry = Registry::plain(&scratch);
    scratch.configure(&plain(&[&registry.address]));
    let layers: Vec<_> = (0..4).map(|n| [gzip(&Tar::default().file("level", &[b'0' + n]).end())]).collect();
    let arch = |n: usize, arch| (Some(arch), &layers[n][..], serde_json::json!({}));
    let path =
        write_layout(&scratch, "index", &[arch(0, "arm64"), arch(1, "amd64"), arch(2, "amd64"), arch(3, "amd64")]);
    // the index lies in the registry as the one manifest of a layout
    let index = path.join("index.json");
    let mut json: serde_json::Value = serde_json::from_slice(&corebox_sys::fs::read(&index).unwrap()).unwrap();
    for (n, variant) in [(2, "v2"), (3, "v4")] {
        json["manifests"][n]["platform"]["variant"] = variant.into();
    }
    json["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    let bytes = json.to_string();
    let digest = crate::sources::digest(bytes.as_bytes());
    scratch.file(&format!("index/blobs/sha256/{digest}"), bytes.as_bytes());
    let outer = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": format!("sha256:{digest}"), "size": bytes.len()
    }]});
    scratch.file("index/index.json", outer.to_string().as_bytes());
    registry.fill(&path, "multi:1");
    let reference = registry.docker("multi:1");
    for (platform, chosen) in [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64/v2"),
        ("linux/amd64/v3", "linux/amd64/v2"),
        ("linux/amd64/v4", "linux/amd64/v4"),
        ("linux/arm64", "linux/arm64"),
    ] {
        scratch.succeeds(&["pull", &reference, "--as", "x", "--platform", platform]);
        assert_eq!(scratch.inspect("x")["origin"]["platform"], chosen, "{platform}");
    }
    let said = scratch.refused(&["pull", &reference, "--platform", "linux/s390x"]);
    assert!(
        said.contains("it holds no image for linux/s390x; it has: linux/arm64, linux/amd64, linux/amd64/v2"),
        "{said}"
    );
}

#[test]
fn words_that_are_no_image_of_a_registry_are_refused() {
    let scratch = Scratch::new("words");
    scratch.configure("");
    for (words, said) in [
        (&["pull", "https://ghcr.io/x"][..], "docker:// is the only scheme"),
        (&["pull", "a b"], "is not the name of an image"),
        (&["pull", "oci-archive:x.tar"], "image import"),
        (&["pull", "a.org/x", "--as", "../y"], "is not an image name"),
        (&["pull", "a.org/x", "--platform", "sparc/x/y/z"], "is no platform"),
        (&["login", "a.org/x", "-u", "me", "--password-stdin"], "is not HOST[:PORT]"),
    ] {
        let output = scratch.image(words).stdin(std::process::Stdio::null()).output().unwrap();
        let error = crate::support::failed(&output);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    scratch.configure("serach = ['x']");
    assert!(scratch.refused(&["pull", "a.org/x"]).contains("serach"));
    assert!(!scratch.store().exists(), "something was made");
}
