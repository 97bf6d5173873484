//! Who may pull: TLS, passwords, credential helpers.

use crate::server::{Configured, Registry, layout, ready, skopeo};
use crate::support::{Scratch, failed};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

/// A closed registry with an image in it.
fn closed(scratch: &Scratch) -> Registry {
    let registry = Registry::closed(scratch);
    let layout = layout(scratch);
    let credentials = ["--dest-creds", "ann:secret", "--dest-tls-verify=false"];
    let words = [&["copy"][..], &credentials, &[&format!("oci:{}", layout.display()), &registry.docker("lab/app:1")]];
    skopeo(&words.concat());
    trust(scratch, &registry);
    registry
}

/// The certificate is trusted for this registry.
fn trust(scratch: &Scratch, registry: &Registry) {
    let ca = scratch.path.join("ca.pem");
    scratch.configure(&format!("[registry.'{}']\nca = '{}'\n", registry.address, ca.display()));
}

fn log_in(scratch: &Scratch, registry: &str, password: &str) -> Output {
    let mut command = scratch.image(&["login", registry, "--username", "ann", "--password-stdin"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // it may have failed before it read anything
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).ok();
    child.wait_with_output().unwrap()
}

#[test]
fn a_password_is_needed_checked_kept_and_forgotten() {
    if !ready("a_password_is_needed_checked_kept_and_forgotten") {
        return;
    }
    let scratch = Scratch::new("login");
    let registry = closed(&scratch);
    let reference = registry.docker("lab/app:1");
    let file = scratch.path.join("docker/config.json");
    let said = scratch.refused(&["pull", &reference]);
    assert!(said.contains("401") && said.contains(&format!("corebox image login {}", registry.address)), "{said}");
    let said = failed(&log_in(&scratch, &registry.address, "wrong"));
    assert!(said.contains("wrong user or password") && !file.exists(), "{said}");
    // what docker keeps there stays
    scratch.file("docker/config.json", br#"{"psFormat": "x", "auths": {"other.org": {"auth": "YTpi"}}}"#);
    let output = log_in(&scratch, &registry.address, "secret");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kept: serde_json::Value = serde_json::from_slice(&corebox_sys::fs::read(&file).unwrap()).unwrap();
    assert_eq!((&kept["psFormat"], &kept["auths"]["other.org"]["auth"]), (&"x".into(), &"YTpi".into()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    scratch.succeeds(&["pull", &reference]);
    scratch.ok(&["rm", "app:1"]);
    // a changed password: the old one is refused, and said to be so
    let auth = serde_json::json!({"auths": {&registry.address: {"auth": "YW5uOm9sZA=="}}});
    scratch.file("docker/config.json", auth.to_string().as_bytes());
    assert!(scratch.refused(&["pull", &reference]).contains("401"));
    assert!(scratch.succeeds(&["logout", &registry.address]).contains("forgot"));
    assert!(scratch.succeeds(&["logout", &registry.address]).contains("there was no password"));
    assert!(!scratch.store().join("blobs/sha256").exists() || scratch.list().is_empty());
}

#[test]
fn a_certificate_must_be_trusted() {
    if !ready("a_certificate_must_be_trusted") {
        return;
    }
    let scratch = Scratch::new("tls");
    let registry = closed(&scratch);
    let reference = registry.docker("lab/app:1");
    scratch.configure("");
    let said = scratch.refused(&["pull", &reference]);
    assert!(said.contains("certificate") && said.contains("ca = "), "{said}");
    // plain http is not a way around it
    scratch.configure(&format!("[registry.'{}']\nhttp = true\n", registry.address));
    assert!(failed(&log_in(&scratch, &registry.address, "secret")).contains("cause: "));
    // the system's roots count: here by the variable that OpenSSL knows as well
    scratch.configure("");
    let mut command = scratch.image(&["pull", &reference]);
    let said = failed(&command.env("SSL_CERT_FILE", scratch.path.join("ca.pem")).output().unwrap());
    assert!(said.contains("401"), "{said}");
}

#[test]
fn credential_helpers_are_asked() {
    if !ready("credential_helpers_are_asked") {
        return;
    }
    let scratch = Scratch::new("helper");
    let registry = closed(&scratch);
    let script = "#!/bin/sh\nread -r server\necho \"$1 $server\" >> \"$LOG\"\n\
                  [ \"$1\" = get ] && echo '{\"Username\": \"ann\", \"Secret\": \"secret\"}'; exit 0\n";
    let helper = scratch.executable("bin/docker-credential-test", script);
    let path = format!("{}:{}", helper.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let log = scratch.path.join("log");
    let config = serde_json::json!({"credHelpers": {&registry.address: "test"}});
    scratch.file("docker/config.json", config.to_string().as_bytes());
    let mut command = scratch.image(&["pull", &registry.docker("lab/app:1")]);
    let output = command.env("PATH", &path).env("LOG", &log).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(corebox_sys::fs::read_to_string(&log).unwrap().contains(&format!("get {}", registry.address)));
    let mut command = scratch.image(&["logout", &registry.address]);
    assert!(command.env("PATH", &path).env("LOG", &log).status().unwrap().success());
    assert!(corebox_sys::fs::read_to_string(&log).unwrap().contains(&format!("erase {}", registry.address)));
    // a helper that fails is named
    scratch.executable("bin/docker-credential-test", "#!/bin/sh\necho locked >&2; exit 1\n");
    let mut command = scratch.image(&["pull", &registry.docker("lab/app:1")]);
    let said = failed(&command.env("PATH", &path).output().unwrap());
    assert!(said.contains("docker-credential-test: locked"), "{said}");
}
