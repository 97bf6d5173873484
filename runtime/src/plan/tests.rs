//! Plans of made-up hosts.

use super::*;
use corebox_spec::{Bind, Limits, Mount, Tmpfs};
use corebox_sys::user::Account;
use std::io::Write;

/// A file that starts like an image; removed with it.
struct Image(ImageSource);

impl Image {
    fn make() -> Self {
        let name = format!("corebox-plan-{}-{:?}.sqsh", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().write_all(b"hsqs").unwrap();
        Self(ImageSource { path, digest: None, config: ImageConfig::default() })
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0.path).unwrap();
    }
}

fn user() -> HostFacts {
    let all = vec![IdRange { inside: 0, outside: 0, count: u32::MAX }];
    HostFacts {
        uid: 1000,
        gid: 100,
        account: Some(Account { name: "ann".into(), home: "/home/ann".into() }),
        group: Some("users".into()),
        privileged: false,
        initial_namespace: true,
        uid_ranges: all.clone(),
        gid_ranges: all,
        cpus: "0-3".parse().unwrap(),
        hostname: "n1".into(),
        no_user_namespaces: None,
        no_fuse_device: None,
        free_memory: 1 << 30,
        fuse_program: Some("/usr/bin/squashfuse_ll".into()),
        terminal: None,
        locked_memory: (65536, 131072),
        may_raise_limits: false,
        hierarchies: Vec::new(),
    }
}

fn root() -> HostFacts {
    HostFacts { uid: 0, gid: 0, privileged: true, may_raise_limits: true, ..user() }
}

fn decide_on(spec: &ContainerSpec, facts: &HostFacts, edits: &[Edits]) -> Result<ContainerPlan, Failure> {
    let image = Image::make();
    plan(&ContainerSpec { name: "t".into(), ..spec.clone() }, &image.0, facts, edits)
}

fn refusal(spec: &ContainerSpec, facts: &HostFacts) -> String {
    decide_on(spec, facts, &[]).expect_err("must be refused").to_string()
}

#[test]
fn root_mounts_by_kernel_and_users_by_fuse() {
    let spec = ContainerSpec::default();
    assert_eq!(decide_on(&spec, &root(), &[]).unwrap().method, RootMethod::Kernel);
    let fuse = RootMethod::Fuse { program: Some("/usr/bin/squashfuse_ll".into()) };
    assert_eq!(decide_on(&spec, &user(), &[]).unwrap().method, fuse);
    assert_eq!(
        decide_on(&ContainerSpec { rootfs: RootfsMode::Fuse, ..spec.clone() }, &root(), &[]).unwrap().method,
        fuse
    );
    // Root of a nested user namespace is not trusted with images by the kernel.
    assert_eq!(decide_on(&spec, &HostFacts { initial_namespace: false, ..root() }, &[]).unwrap().method, fuse);
}

#[test]
fn refuses_with_a_cure() {
    let spec = ContainerSpec::default();
    let cases = [
        (refusal(&ContainerSpec { rootfs: RootfsMode::Kernel, ..spec.clone() }, &user()), "--rootfs fuse"),
        (refusal(&spec, &HostFacts { fuse_program: None, ..user() }), "package `squashfuse`"),
        (refusal(&spec, &HostFacts { no_fuse_device: Some("no /dev/fuse".into()), ..user() }), "kernel module `fuse`"),
        (
            refusal(&spec, &HostFacts { no_user_namespaces: Some(("off".into(), "turn on".into())), ..user() }),
            "turn on",
        ),
    ];
    for (text, cure) in cases {
        let hint = text.split("\n\nhint: ").nth(1).unwrap_or_else(|| panic!("no hint: {text}"));
        assert!(hint.contains(cure), "{text}");
    }
}

#[test]
fn refuses_bad_input() {
    let bind = |source: &str, target: &str| ContainerSpec {
        binds: vec![Bind { source: source.into(), target: target.into(), read_only: false }],
        ..ContainerSpec::default()
    };
    let limits = |limits| ContainerSpec { limits, ..ContainerSpec::default() };
    let cases = [
        (bind("/no/such/source", "/x"), "/no/such/source"),
        (bind("relative", "/x"), "`relative` is not an absolute path"),
        (bind("/etc", "relative"), "`relative` is not an absolute path"),
        (bind("/etc", "/a/../b"), "`/a/../b`"),
        (bind("/etc", "/"), "`/`"),
        (ContainerSpec { tmpfs: vec![Tmpfs { target: "x".into(), size: None }], ..Default::default() }, "`x`"),
        (ContainerSpec { hostname: Some("a_b".into()), ..Default::default() }, "`a_b` is not a host name"),
        (ContainerSpec { wdir: Some("here".into()), ..Default::default() }, "`here` is not an absolute path"),
        (
            limits(Limits { cpus: Some("2-5".parse().unwrap()), ..Default::default() }),
            "CPU 4-5 is not ours; we may use 0-3",
        ),
        (limits(Limits { cpus: Some(Default::default()), ..Default::default() }), "names no CPU"),
        (limits(Limits { memory: Some(1 << 30), ..Default::default() }), "no `memory` controller"),
    ];
    for (spec, words) in cases {
        let text = refusal(&spec, &root());
        assert!(text.contains(words) && text.starts_with("error: cannot start container `t`"), "{text}");
    }
}

#[test]
fn maps_ids() {
    let ids = |spec: ContainerSpec, facts: &HostFacts| decide_on(&spec, facts, &[]).unwrap().user;
    let own = ids(ContainerSpec::default(), &user());
    assert_eq!((own.uid, own.gid, own.deny_setgroups, own.nested), (1000, 100, true, false));
    assert_eq!(own.uid_map, [IdRange { inside: 1000, outside: 1000, count: 1 }]);
    let zero = ids(ContainerSpec { as_root: true, ..Default::default() }, &user());
    assert_eq!((zero.uid, &zero.gid_map[..]), (0, &[IdRange { inside: 0, outside: 100, count: 1 }][..]));
    let writes = ids(ContainerSpec { writable: Some(None), ..Default::default() }, &user());
    assert!(writes.nested && writes.uid == 1000 && writes.uid_map[0] == IdRange { inside: 0, outside: 1000, count: 1 });
    let all = ids(ContainerSpec { as_root: true, writable: Some(None), ..Default::default() }, &root());
    assert!(!all.nested && !all.deny_setgroups && all.uid_map == root().uid_ranges);
}

#[test]
fn orders_mounts_and_names_origins() {
    let edits = Edits {
        mounts: vec![Mount {
            target: "/dev/infiniband".into(),
            kind: MountKind::Bind { source: "/dev".into() },
            read_only: false,
            devices: true,
            origin: Origin("RDMA".into()),
        }],
        raise_memlock: true,
        ..Default::default()
    };
    let spec = ContainerSpec {
        binds: vec![Bind { source: "/etc".into(), target: "/data".into(), read_only: true }],
        cwd_bind: Some("/usr".into()),
        shm_size: Some(1 << 20),
        ..Default::default()
    };
    let plan = decide_on(&spec, &user(), &[edits]).unwrap();
    let at =
        |target: &str| plan.mounts.iter().position(|m| m.target == target).unwrap_or_else(|| panic!("no {target}"));
    assert!(at("/proc") < at("/dev") && at("/dev") < at("/dev/shm") && at("/dev/shm") < at("/dev/infiniband"));
    assert!(at("/tmp") < at("/usr") && at("/dev/infiniband") < at("/data"));
    let of = |target: &str| &plan.mounts[at(target)];
    assert_eq!(
        (of("/dev/shm").origin.0.as_str(), &of("/dev/shm").kind),
        ("--shm-size", &PlannedKind::Tmpfs { size: Some(1 << 20), mode: 0o1777, if_missing: false })
    );
    assert!(of("/data").read_only && of("/dev/infiniband").devices && !of("/data").devices);
    assert_eq!(of("/usr").origin.0, "working directory");
    assert_eq!(plan.workdir, "/usr");
    assert_eq!(
        plan.rlimits,
        [LimitPlan { resource: process::LOCKED_MEMORY, soft: 131072, hard: 131072, origin: Origin("RDMA".into()) }]
    );
    // What is planned can be shown and sent, unchanged.
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<ContainerPlan>(&text).unwrap(), plan);
}

#[test]
fn a_bind_that_has_the_working_directory_keeps_it() {
    let spec = ContainerSpec {
        binds: vec![Bind { source: "/usr".into(), target: "/usr".into(), read_only: true }],
        cwd_bind: Some("/usr/share".into()),
        ..Default::default()
    };
    let plan = decide_on(&spec, &user(), &[]).unwrap();
    assert!(!plan.mounts.iter().any(|m| m.target == "/usr/share"));
    assert_eq!(plan.workdir, "/usr/share");
}

#[test]
fn variables_have_one_value_and_an_origin() {
    let mut image = Image::make();
    image.0.config.env = vec!["PATH=/image/bin".into(), "A=image".into(), "B=image".into(), "C=image".into()];
    let edits = Edits {
        env: vec![EnvEdit { name: "C".into(), value: "edit".into(), origin: Origin("RDMA".into()) }],
        ..Default::default()
    };
    let spec = ContainerSpec {
        caller_env: vec!["B=caller".into(), "TERM=x".into()],
        env: vec!["A=asked".into()],
        ..Default::default()
    };
    let plan = plan(&spec, &image.0, &user(), &[edits]).unwrap();
    let of = |name: &str| {
        let found: Vec<_> =
            plan.env.iter().filter(|e| e.name == name).map(|e| (e.value.as_str(), e.origin.0.as_str())).collect();
        assert_eq!(found.len(), 1, "{name}");
        found[0]
    };
    assert_eq!(of("PATH"), ("/image/bin", "image"));
    assert_eq!(of("A"), ("asked", "--env"));
    assert_eq!(of("B").0, "caller");
    assert_eq!(of("C"), ("edit", "RDMA"));
    assert_eq!(of("TERM"), ("x", "caller: session"));
    assert_eq!(of("HOME"), ("/home/ann", "caller's account"));
}
