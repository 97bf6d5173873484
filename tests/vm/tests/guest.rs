//! What every other suite in a guest relies on.

use corebox_sys::fs;
use corebox_tests::vm::{Need, require};
use std::path::Path;

#[test]
fn the_guest_has_what_suites_declare() {
    let modules = ["ipvlan", "macvlan", "veth", "erofs", "overlay"].map(Need::Module);
    let programs = ["criu", "crun", "fuse-overlayfs", "nft", "squashfuse", "mksquashfs"].map(Need::Program);
    let cgroup = Need::Cgroup2(&["cpuset", "cpu", "io", "memory", "pids", "rdma"]);
    let needs: Vec<Need> = [&[cgroup, Need::Rdma, Need::Kernel(6, 12)], &modules[..], &programs[..]].concat();
    if !require("the_guest_has_what_suites_declare", &needs) {
        assert!(std::env::var_os("COREBOX_VM").is_none(), "a guest without what it is made for");
        return;
    }
    let port = Path::new("/sys/class/infiniband/rxe0/ports/1/state");
    assert_eq!(fs::read_to_string(port).expect("a port"), "4: ACTIVE\n");
    let own = fs::read_to_string("/proc/self/cgroup").expect("a cgroup");
    assert_eq!(own, "0::/\n", "cgroup version 2 alone");
}

#[test]
fn the_host_is_read_only() {
    if !require("the_host_is_read_only", &[]) {
        return;
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(here.join("Cargo.toml").exists());
    let error = fs::write(here.join("written"), "").expect_err("read-only");
    assert_eq!(error.errno, corebox_sys::Errno::EROFS);
}
