//! Two users on two nodes, one store on the parallel file system: an image is downloaded once.

use crate::proxy::{Fate, Gate, Proxy, Request};
use crate::server::{config, noise, plain, ready, write_layout};
use crate::sources::{Tar, gzip};
use crate::support::{Scratch, files_in};
use corebox_tests::{Cluster, require_root, wait_until};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// Two users who are not root.
const USERS: [(&str, u32); 2] = [("n1", 1001), ("n2", 1002)];

/// What the tests of this file share.
struct Site {
    cluster: Cluster,
    scratch: Scratch,
    proxy: Proxy,
    registry: Child,
    program: PathBuf,
}

impl Site {
    fn new(test: &str) -> Self {
        let cluster = Cluster::builder().start().unwrap();
        let scratch = Scratch::new(test);
        let layers = [gzip(&Tar::default().file("a", &noise(5, 2 << 20)).end())];
        let layout = write_layout(&scratch, "layout", &[(None, &layers, serde_json::json!({}))]);
        // the registry and the proxy are on the controller; its files are the host's
        let controller = cluster.node("ctl");
        let yml = cluster.pfs().join("registry.yml");
        let text = corebox_sys::fs::read_to_string(config(&scratch, "127.0.0.1:5000", "", "")).unwrap();
        let data = cluster.pfs().join("registry");
        corebox_sys::fs::write(
            &yml,
            text.replace(scratch.path.join("registry").to_str().unwrap(), data.to_str().unwrap()),
        )
        .unwrap();
        let mut registry = controller.command("docker-registry");
        let registry = registry.arg("serve").arg(&yml).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let namespace = PathBuf::from(format!("/proc/{}/ns/net", controller.pid()));
        let proxy = Proxy::inside("127.0.0.1:5000", &format!("{}:5001", controller.address()), namespace);
        let copy = cluster.pfs().join("layout");
        copy_tree(&layout, &copy);
        let to = format!("docker://{}/lab/app:1", proxy.address);
        let filled = wait_until(LIMIT, || {
            let mut skopeo = controller.command("skopeo");
            skopeo.args([
                "--insecure-policy",
                "copy",
                "--dest-tls-verify=false",
                &format!("oci:{}", copy.display()),
                &to,
            ]);
            skopeo.output().unwrap().status.success().then_some(())
        });
        filled.expect("the registry does not answer");
        let toml = format!("lease = '2s'\n{}", plain(&[&proxy.address]));
        corebox_sys::fs::write(cluster.pfs().join("images.toml"), toml).unwrap();
        let store = cluster.pfs().join("store");
        corebox_sys::fs::create_dir_all(&store).unwrap();
        std::fs::set_permissions(&store, PermissionsExt::from_mode(0o777)).unwrap();
        let program = cluster.pfs().join("corebox");
        let script = r#"cp "$1" "$2" && chmod 755 "$2""#;
        let mut copy = Command::new("sh");
        copy.args(["-c", script, "sh"]).arg(corebox_tests::corebox().unwrap()).arg(&program);
        assert!(copy.status().unwrap().success());
        proxy.asked();
        Self { cluster, scratch, proxy, registry, program }
    }

    fn store(&self) -> PathBuf {
        self.cluster.pfs().join("store")
    }

    /// `corebox image ARGS…` of one of the users.
    fn image(&self, user: usize, args: &[&str]) -> Command {
        let (node, uid) = USERS[user];
        let mut command = self.cluster.node(node).command_as(uid, &self.program);
        command.arg("image").args(args).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
        command.env("COREBOX_STORE", self.store()).env("COREBOX_IMAGES_CONFIG", self.cluster.pfs().join("images.toml"));
        command.current_dir(self.cluster.pfs());
        command
    }

    fn pull(&self, user: usize) -> Child {
        let reference = format!("docker://{}/lab/app:1", self.proxy.address);
        let mut command = self.image(user, &["pull", &reference, "--as", USERS[user].0]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Bytes of layers in the store.
    fn arrived(&self) -> u64 {
        let directory = self.store().join("layers");
        files_in(&directory)
            .iter()
            .filter_map(|file| std::fs::metadata(directory.join(file)).ok())
            .map(|m| m.len())
            .sum()
    }

    /// Until the gate opens, a layer stops after a megabyte.
    fn hold_layers(&self) -> Gate {
        let gate = Gate::default();
        let held = gate.clone();
        self.proxy.rule(move |request: &Request| match request.is_blob() && request.range.is_none() {
            true => Fate::Hold(1 << 20, held.clone()),
            false => Fate::Pass,
        });
        gate
    }

    fn end(mut self) {
        self.registry.kill().ok();
        self.registry.wait().ok();
        self.cluster.stop().unwrap();
        drop(self.scratch);
    }
}

fn copy_tree(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}

/// The first line that a pull says, and the rest of what it says.
fn first_line(child: &mut Child) -> (String, BufReader<std::process::ChildStderr>) {
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    (line, said)
}

#[test]
fn the_second_waits_and_nothing_is_downloaded_twice() {
    let test = "the_second_waits_and_nothing_is_downloaded_twice";
    if !ready(test) || !require_root(test) {
        return;
    }
    let site = Site::new("shared");
    let gate = site.hold_layers();
    let mut first = site.pull(0);
    // the config blob is small enough to pass; the layer stops after a megabyte
    wait_until(LIMIT, || (site.arrived() >= 1 << 20).then_some(())).expect("nothing arrived");
    let mut second = site.pull(1);
    let (line, _rest) = first_line(&mut second);
    assert!(line.contains(" on n1, who is fetching it: ") && line.contains(" of 2.0 MiB"), "{line}");
    gate.open();
    assert!(first.wait().unwrap().success());
    assert!(second.wait().unwrap().success());
    let blobs = site.proxy.asked().iter().filter(|request| request.is_blob()).count();
    assert_eq!(blobs, 2, "one layer and one config, once");
    let listed = site.image(1, &["ls", "--json"]).output().unwrap();
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((listed.len(), &listed[0]["names"]), (1, &serde_json::json!(["n1", "n2"])));
    assert_eq!((files_in(&site.store().join("leases")), site.arrived()), (vec![], 0));
    site.end();
}

#[test]
fn the_second_takes_over_when_the_first_is_killed() {
    let test = "the_second_takes_over_when_the_first_is_killed";
    if !ready(test) || !require_root(test) {
        return;
    }
    let site = Site::new("killed-first");
    let gate = site.hold_layers();
    let mut first = site.pull(0);
    wait_until(LIMIT, || (site.arrived() >= 1 << 20).then_some(())).expect("nothing arrived");
    let mut second = site.pull(1);
    let (line, _rest) = first_line(&mut second);
    assert!(line.contains(" on n1, who is fetching it: "), "{line}");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(second.wait().unwrap().success(), "the second did not take over");
    gate.open();
    let ranges: Vec<_> = site.proxy.ranges().into_iter().flatten().collect();
    assert_eq!(ranges, ["bytes=1048576-"], "it goes on where the first one ended");
    assert_eq!((files_in(&site.store().join("leases")), site.arrived()), (vec![], 0));
    site.end();
}
