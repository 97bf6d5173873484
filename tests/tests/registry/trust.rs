//! Signatures of the kind that cosign makes with a pair of keys, and the site's policy.

use crate::proxy::{Fate, Proxy, Request};
use crate::server::{Configured, Registry, plain, ready, sh, skopeo};
use crate::sources::{Tar, mode};
use crate::support::Scratch;
use corebox_tests::{require_programs, require_root};
use std::path::PathBuf;
use std::process::{Command, Output};
use tar::EntryType;

/// A pair of keys, `NAME.key` and `NAME.pub`.
fn keys(scratch: &Scratch, name: &str) -> (String, String) {
    let path = |end: &str| scratch.path.join(format!("{name}.{end}")).display().to_string();
    let (key, public) = (path("key"), path("pub"));
    sh(&format!(
        "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {key}; openssl pkey -in {key} -pubout -out {public}"
    ));
    (key, public)
}

/// An image with a shell's worth of programs in it, called `box`.
fn import_box(scratch: &Scratch) {
    let busybox = corebox_sys::fs::read(corebox_tests::program("busybox").unwrap()).unwrap();
    let directories = ["bin/", "dev/", "etc/", "proc/", "run/", "sys/", "tmp/"];
    let tree = directories.iter().fold(Tar::default(), |tar, dir| tar.dir(dir));
    let tree = tree.entry(b"bin/echo", EntryType::Regular, mode(0o755), b"", &busybox).end();
    scratch.succeeds(&["import", "box", scratch.file("box.tar", &tree).to_str().unwrap()]);
}

#[test]
fn what_is_signed_is_told_from_what_is_not() {
    let test = "what_is_signed_is_told_from_what_is_not";
    if !ready(test) || !require_programs(test, &["busybox"]) {
        return;
    }
    let scratch = Scratch::new("sign");
    let registry = Registry::plain(&scratch);
    let proxy = Proxy::before(&registry.address);
    scratch.configure(&plain(&[&registry.address, &proxy.address]));
    let ((key, public), (other_key, other)) = (keys(&scratch, "site"), keys(&scratch, "other"));
    import_box(&scratch);
    let reference = registry.docker("lab/box:1");
    let said = scratch.succeeds(&["push", "--sign", &key, "box", &reference]);
    let digest = said.split_whitespace().nth(1).unwrap().to_owned();
    scratch.ok(&["rm", "box"]);
    // the signature is where cosign looks for it, and one that openssl accepts
    let directory = scratch.path.join("signature");
    let tag = registry.docker(&format!("lab/box:{}.sig", digest.replace(':', "-")));
    skopeo(&["copy", "--src-tls-verify=false", &tag, &format!("dir:{}", directory.display())]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&corebox_sys::fs::read(directory.join("manifest.json")).unwrap()).unwrap();
    let layer = &manifest["layers"][0];
    let document = directory.join(layer["digest"].as_str().unwrap().trim_start_matches("sha256:"));
    let signature = layer["annotations"]["dev.cosignproject.cosign/signature"].as_str().unwrap();
    sh(&format!(
        "echo {signature} | base64 -d > {0}/raw && openssl dgst -sha256 -verify {public} -signature {0}/raw {1}",
        directory.display(),
        document.display()
    ));
    assert!(corebox_sys::fs::read_to_string(&document).unwrap().contains(&digest));
    let through = format!("docker://{}/lab/box:1", proxy.address);
    let said = scratch.refused(&["pull", "--signed-by", &other, &through]);
    assert!(said.contains("has 1 signatures, none by"), "{said}");
    assert!(scratch.list().is_empty() && scratch.kept() == 0, "something was downloaded");
    scratch.succeeds(&["pull", "--signed-by", &public, &through]);
    assert_eq!(scratch.inspect("box:1")["origin"]["signers"], serde_json::json!([public]));
    // another's signature beside it
    import_box(&scratch);
    scratch.succeeds(&["push", "--sign", &other_key, "box", &reference]);
    for key in [&public, &other] {
        scratch.succeeds(&["pull", "--signed-by", key, &through]);
    }
    // unsigned
    scratch.succeeds(&["push", "box", &registry.docker("lab/plain:1"), "--compress", "none"]);
    let said = scratch.refused(&["pull", "--signed-by", &public, &registry.docker("lab/plain:1")]);
    assert!(said.contains("has 0 signatures"), "{said}");
    // a signature that is about another image: the tag can be moved by whoever may write to the registry
    proxy.rule(|request: &Request| match request.path.ends_with(".sig") || !request.is_manifest() {
        true => Fate::Pass,
        false => Fate::Answer(200, FOREIGN),
    });
    assert!(scratch.refused(&["pull", "--signed-by", &public, &through]).contains("has 0 signatures"));
    let said = scratch.refused(&["push", "--sign", &public, "box", &reference]);
    assert!(said.contains("is not an unencrypted private key"), "{said}");
}

/// Some other manifest.
const FOREIGN: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":2},"layers":[]}"#;

/// Runs a script in a mount namespace where `/etc/corebox/policy.toml` is this; `$1` is corebox.
fn with_policy(scratch: &Scratch, policy: &str, script: &str) -> Output {
    let file = scratch.file("policy.toml", policy.as_bytes());
    let prepare = r#"
        rm -rf "$3" && cp -a /etc "$3" && mkdir -p "$3/corebox" && cp "$2" "$3/corebox/policy.toml" && mount --bind "$3" /etc
    "#;
    let mut command = Command::new("unshare");
    for (name, value) in scratch.image(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let args = [corebox_tests::corebox().unwrap(), file, scratch.path.join("etc")];
    let script = format!("set -e\n{prepare}\nset +e\n{script}");
    command.args(["--mount", "sh", "-c", &script, "sh"]).args(args).output().unwrap()
}

#[test]
fn the_policy_decides_what_is_pulled_and_run() {
    let test = "the_policy_decides_what_is_pulled_and_run";
    if !ready(test) || !require_root(test) || !require_programs(test, &["busybox", "unshare", "mount"]) {
        return;
    }
    let scratch = Scratch::new("policy");
    let registry = Registry::plain(&scratch);
    scratch.configure(&plain(&[&registry.address]));
    let (key, public) = keys(&scratch, "site");
    import_box(&scratch);
    scratch.succeeds(&["push", "--sign", &key, "box", &registry.docker("apps/signed:1")]);
    scratch.succeeds(&["push", "--compress", "none", "box", &registry.docker("apps/unsigned:1")]);
    let path = PathBuf::from(scratch.inspect("box")["path"].as_str().unwrap());
    let policy = format!(
        "default = 'refuse'\n[signer.site]\nkey = '{public}'\n[[rule]]\nregistry = '{}/apps'\nsigners = ['site']\n\
         [[rule]]\npath = '{}/allowed'\n",
        registry.address,
        scratch.path.display()
    );
    let run = |script: &str| {
        let output = with_policy(&scratch, &policy, script);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let (out, said) = run(r#""$1" run --no-cwd box echo ran"#);
    assert!(out.is_empty() && said.contains("cannot run image `box`") && said.contains("no rule of"), "{said}");
    let (out, said) = run(&format!(r#""$1" image pull {}"#, registry.docker("apps/unsigned:1")));
    assert!(out.is_empty() && said.contains("none by site"), "{said}");
    let (out, said) = run(&format!(r#""$1" image pull {}"#, registry.docker("other/x:1")));
    assert!(out.is_empty() && said.contains("error: "), "{said}");
    let script = format!(
        r#""$1" image pull {} >/dev/null && "$1" run --no-cwd signed:1 echo ran"#,
        registry.docker("apps/signed:1")
    );
    let (out, said) = run(&script);
    assert_eq!(out, "ran\n", "{said}");
    assert_eq!(scratch.inspect("signed:1")["origin"]["signers"], serde_json::json!(["site"]));
    // the word of a user about where an image comes from does not count
    let facts = scratch.store().join("facts");
    sh(&format!("chown 1001 {}/*.json", facts.display()));
    let (out, said) = run(r#""$1" run --no-cwd signed:1 echo ran"#);
    assert!(out.is_empty() && said.contains("cannot run image"), "{said}");
    // files below a path that the policy names, and not what a link leads out to
    let allowed = scratch.path.join("allowed");
    sh(&format!("mkdir {0} && cp {1} {0}/box.erofs && ln -s {1} {0}/link.erofs", allowed.display(), path.display()));
    let (out, said) = run(&format!(r#""$1" run --no-cwd {}/box.erofs echo ran"#, allowed.display()));
    assert_eq!(out, "ran\n", "{said}");
    let (out, said) = run(&format!(r#""$1" run --no-cwd {}/link.erofs echo ran"#, allowed.display()));
    assert!(out.is_empty() && said.contains("no rule of"), "{said}");
    // a policy that is not understood allows nothing
    let output = with_policy(&scratch, "defualt = 'refuse'", r#""$1" run --no-cwd box echo ran"#);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout.is_empty() && said.contains("defualt"), "{said}");
}
