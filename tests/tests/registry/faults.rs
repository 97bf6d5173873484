//! A registry in trouble: a clear error, no half image, and the next pull goes on where this one ended.

use crate::proxy::{Fate, Gate, Proxy, Request};
use crate::server::{Configured, Registry, layout, noise, plain, ready, write_layout};
use crate::sources::{Tar, gzip};
use crate::support::{Scratch, files_in};
use corebox_tests::{require_programs, require_root, wait_until};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A registry with an image, behind a proxy.
fn behind_proxy(scratch: &Scratch) -> (Registry, Proxy, String) {
    let registry = Registry::plain(scratch);
    registry.fill(&layout(scratch), "lab/app:1");
    let proxy = Proxy::before(&registry.address);
    scratch.configure(&plain(&[&proxy.address]));
    let reference = format!("docker://{}/lab/app:1", proxy.address);
    (registry, proxy, reference)
}

#[test]
fn each_status_is_said_and_leaves_nothing() {
    if !ready("each_status_is_said_and_leaves_nothing") {
        return;
    }
    let scratch = Scratch::new("status");
    let (_registry, proxy, reference) = behind_proxy(&scratch);
    let denied = r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#;
    for (status, body, expected) in [
        (401, "", "corebox image login"),
        (403, denied, "this user may not do that"),
        (404, "", "check the name and the tag"),
        (429, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slower"}]}"#, "limits how often"),
        (500, "boom", "has trouble"),
        (502, "", "has trouble"),
        (200, "not json", "the manifest"),
        (200, r#"{"schemaVersion":1}"#, "schema version 1"),
    ] {
        proxy.rule(move |request| if request.is_manifest() { Fate::Answer(status, body) } else { Fate::Pass });
        let said = scratch.refused(&["pull", &reference]);
        assert!(said.contains(expected), "{status} {body}: {said}");
        let asked = proxy.asked().iter().filter(|request| request.is_manifest()).count();
        assert_eq!(asked, if status == 429 || status >= 500 { 4 } else { 1 }, "{status}: how often it was asked");
    }
    // the same for a layer, when half of the work is done
    // (one blob comes through, always the same: what has arrived is not asked for again)
    let through = Arc::new(OnceLock::new());
    for (status, tries) in [(403, 1), (404, 1), (500, 4)] {
        let through = through.clone();
        proxy.rule(move |request| {
            let passes = !request.is_blob() || *through.get_or_init(|| request.path.clone()) == request.path;
            if passes { Fate::Pass } else { Fate::Answer(status, "") }
        });
        let said = scratch.refused(&["pull", &reference]);
        assert!(said.contains(&status.to_string()), "{said}");
        assert!(proxy.ranges().len() >= tries, "{status}");
        scratch.assert_no_image();
    }
    proxy.rule(|_| Fate::Pass);
    scratch.succeeds(&["pull", &reference]);
    assert_eq!(scratch.kept(), 0);
}

#[test]
fn passing_trouble_is_outlived() {
    if !ready("passing_trouble_is_outlived") {
        return;
    }
    let scratch = Scratch::new("passing");
    let (_registry, proxy, reference) = behind_proxy(&scratch);
    let mut troubles = 0;
    proxy.rule(move |request| {
        troubles += 1;
        // every request fails at first, each in another way
        match (troubles % 4, request.is_blob()) {
            (1, _) => Fate::Answer(429, ""),
            (2, _) => Fate::Answer(503, ""),
            (3, true) => Fate::Cut(1000),
            _ => Fate::Pass,
        }
    });
    scratch.configure(&plain(&[&proxy.address]).replace("retries = 3", "retries = 30"));
    let output = scratch.output(&["pull", &reference]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("trying again in"), "{said}");
    assert_eq!(scratch.inspect("app:1")["names"], serde_json::json!(["app:1"]));
}

#[test]
fn a_cut_layer_is_resumed() {
    if !ready("a_cut_layer_is_resumed") {
        return;
    }
    let scratch = Scratch::new("cut");
    let (_registry, proxy, reference) = behind_proxy(&scratch);
    // cut again and again: each time something comes, and the next request asks for the rest only
    proxy.rule(|request| if request.is_blob() { Fate::Cut(300_000) } else { Fate::Pass });
    scratch.succeeds(&["pull", &reference]);
    let ranges: Vec<_> = proxy.ranges().into_iter().flatten().collect();
    assert_eq!(ranges, ["bytes=300000-", "bytes=600000-", "bytes=900000-"]);
    let digest = scratch.inspect("app:1")["digest"].clone();
    scratch.ok(&["rm", "app:1"]);
    // a pull that gives up leaves what has come for the next one
    scratch.configure(&plain(&[&proxy.address]).replace("retries = 3", "retries = 0"));
    let said = scratch.refused(&["pull", &reference]);
    assert!(said.contains("next try"), "{said}");
    scratch.assert_no_image();
    let kept = scratch.kept();
    assert!(kept >= 300_000, "{kept} bytes were kept");
    proxy.ranges();
    proxy.rule(|_| Fate::Pass);
    scratch.succeeds(&["pull", &reference]);
    assert!(proxy.ranges().contains(&Some("bytes=300000-".to_owned())));
    assert_eq!((scratch.inspect("app:1")["digest"].clone(), scratch.kept()), (digest, 0));
}

#[test]
fn a_killed_pull_is_resumed() {
    if !ready("a_killed_pull_is_resumed") {
        return;
    }
    let scratch = Scratch::new("killed");
    let (_registry, proxy, reference) = behind_proxy(&scratch);
    let gate = Gate::default();
    let held = gate.clone();
    proxy.rule(move |request| if request.is_blob() { Fate::Hold(500_000, held.clone()) } else { Fate::Pass });
    let mut child = scratch.image(&["pull", &reference]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let arrived = wait_until(Duration::from_secs(30), || (scratch.kept() >= 500_000).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    arrived.expect("nothing arrived");
    gate.open();
    assert_eq!(files_in(&scratch.store().join("leases")).len(), 1, "the lease of the killed pull");
    proxy.ranges();
    proxy.rule(|_| Fate::Pass);
    scratch.succeeds(&["pull", &reference]);
    assert!(proxy.ranges().contains(&Some("bytes=500000-".to_owned())));
    assert_eq!((files_in(&scratch.store().join("leases")), scratch.kept()), (vec![], 0));
}

#[test]
fn a_damaged_layer_is_refused() {
    if !ready("a_damaged_layer_is_refused") {
        return;
    }
    let scratch = Scratch::new("flip");
    let (_registry, proxy, reference) = behind_proxy(&scratch);
    for at in [10, 200_000] {
        proxy.rule(move |request| if request.is_blob() { Fate::Flip(at) } else { Fate::Pass });
        let said = scratch.refused(&["pull", &reference]);
        assert!(said.contains("digest"), "{said}");
        scratch.assert_no_image();
    }
    // a damaged part on the disk is found, and the layer fetched from its beginning
    proxy.rule(|request| if request.is_blob() { Fate::Cut(300_000) } else { Fate::Pass });
    scratch.configure(&plain(&[&proxy.address]).replace("retries = 3", "retries = 0"));
    scratch.refused(&["pull", &reference]);
    let directory = scratch.store().join("layers");
    for file in files_in(&directory) {
        let path = directory.join(file);
        let mut content = corebox_sys::fs::read(&path).unwrap();
        if let Some(byte) = content.get_mut(7) {
            *byte ^= 1;
        }
        corebox_sys::fs::write(&path, content).unwrap();
    }
    proxy.rule(|_| Fate::Pass);
    scratch.succeeds(&["pull", &reference]);
    assert_eq!((scratch.list().len(), scratch.kept()), (1, 0));
}

#[test]
fn a_registry_without_ranges_is_asked_for_the_whole() {
    if !ready("a_registry_without_ranges_is_asked_for_the_whole") {
        return;
    }
    let scratch = Scratch::new("ranges");
    let (_registry, proxy, reference) = behind_proxy(&scratch);
    proxy.rule(|request| match (request.is_blob(), &request.range) {
        (true, None) if request.nth_blob < 4 => Fate::Cut(300_000),
        (true, Some(_)) => Fate::Answer(416, ""),
        _ => Fate::Pass,
    });
    scratch.succeeds(&["pull", &reference]);
    assert_eq!((scratch.list().len(), scratch.kept()), (1, 0));
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    if !ready("what_unpacks_to_too_much_is_refused") {
        return;
    }
    let scratch = Scratch::new("bomb");
    let registry = Registry::plain(&scratch);
    let bomb = [gzip(&Tar::default().file("zeros", &vec![0; 8 << 20]).end())];
    let layout = write_layout(&scratch, "bomb", &[(None, &bomb, serde_json::json!({}))]);
    registry.fill(&layout, "bomb:1");
    scratch.configure(&format!("max-unpacked = '4M'\n{}", plain(&[&registry.address])));
    let said = scratch.refused(&["pull", &registry.docker("bomb:1")]);
    assert!(said.contains("more than 4.0 MiB") && said.contains("max-unpacked"), "{said}");
    assert!(scratch.refused(&["import", "bomb", layout.to_str().unwrap()]).contains("max-unpacked"));
    scratch.assert_no_image();
    assert_eq!(scratch.kept(), 0);
}

#[test]
fn a_full_disk_keeps_what_has_come() {
    let test = "a_full_disk_keeps_what_has_come";
    if !ready(test) || !require_root(test) || !require_programs(test, &["unshare", "mount"]) {
        return;
    }
    let scratch = Scratch::new("full");
    let registry = Registry::plain(&scratch);
    let layers = [gzip(&Tar::default().file("a", &noise(3, 3 << 20)).end())];
    registry.fill(&write_layout(&scratch, "big", &[(None, &layers, serde_json::json!({}))]), "big:1");
    let proxy = Proxy::before(&registry.address);
    scratch.configure(&plain(&[&proxy.address]));
    corebox_sys::fs::create_dir_all(scratch.store()).unwrap();
    let script = r#"
        mount -t tmpfs -o size=2m none "$1"
        "$2" image pull "$3" && exit 1
        find "$1" -type f ! -path '*/layers/*'
        mount -o remount,size=16m "$1"
        "$2" image pull "$3" >/dev/null
        "$2" image ls --json"#;
    let pull = scratch.image(&[]);
    let mut command = Command::new("unshare");
    for (name, value) in pull.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let reference = format!("docker://{}/big:1", proxy.address);
    let args = [scratch.store(), corebox_tests::corebox().unwrap(), reference.into()];
    let output = command.args(["--mount", "sh", "-c", script, "sh"]).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ENOSPC") && said.contains("make room") && said.contains("next try"), "{said}");
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: files of the first try? {}\n{said}", String::from_utf8_lossy(&output.stdout))
    });
    assert_eq!(listed.len(), 1);
    let resumed = proxy.asked().iter().filter(|request| request.range.is_some()).count();
    assert_eq!(resumed, 1, "the second pull asks for the rest only");
}

#[test]
fn an_index_or_manifest_that_lies_is_refused() {
    if !ready("an_index_or_manifest_that_lies_is_refused") {
        return;
    }
    let scratch = Scratch::new("lies");
    let (_registry, proxy, reference) = behind_proxy(&scratch);
    let huge = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":99999999},"layers":[]}"#;
    let chart = r#"{"schemaVersion":2,"artifactType":"application/vnd.x","config":{"mediaType":"a/b","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":2},"layers":[]}"#;
    let path = r#"{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"sha256:../../../../../etc/passwd","size":2},"layers":[]}"#;
    for (body, expected) in [
        (huge, "more than 4 MiB"),
        (chart, "an artifact of type application/vnd.x"),
        (path, "the manifest: Invalid"),
        (r#"{"schemaVersion":2,"manifests":[]}"#, "holds no image for"),
    ] {
        proxy.rule(move |request: &Request| if request.is_manifest() { Fate::Answer(200, body) } else { Fate::Pass });
        let said = scratch.refused(&["pull", &reference]);
        assert!(said.contains(expected), "{said}");
    }
    if scratch.store().exists() {
        scratch.assert_no_image();
    }
}
