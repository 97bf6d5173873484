//! The life of a container through the API, on the real kernel. A program of its own without the test harness, as
//! `Container::create` needs a process with one thread. Needs root, busybox and mksquashfs; else it says SKIP.

use corebox_runtime::{Container, Event, Grouping, HostFacts, ImageSource, ProcessPlan, plan};
use corebox_spec::{ContainerSpec, Failure, IdSet, Limits, Outcome};
use corebox_sys::{affinity, fd, fs, signal};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const TESTS: [(&str, Test); 9] = [
    ("starts_binds_and_reports", starts_binds_and_reports),
    ("starts_many_side_by_side", starts_many_side_by_side),
    ("keeps_only_named_descriptors", keeps_only_named_descriptors),
    ("says_what_cannot_be_executed", says_what_cannot_be_executed),
    ("signals_one_and_all", signals_one_and_all),
    ("reaps_orphans", reaps_orphans),
    ("reports_the_death_of_init", reports_the_death_of_init),
    ("refuses_unkept_descriptors_and_threads", refuses_unkept_descriptors_and_threads),
    ("removes_cleanup_paths", removes_cleanup_paths),
];

/// The command line of a test program as `cargo test` and nextest use it: `--list`, `--ignored`, `NAME`, `--exact`.
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let filter = arguments.iter().find(|argument| !argument.starts_with('-') && *argument != "terse");
    let wanted = |name: &str| {
        !has("--ignored") && filter.is_none_or(|f| if has("--exact") { name == f } else { name.contains(f.as_str()) })
    };
    let tests: Vec<_> = TESTS.iter().filter(|(name, _)| wanted(name)).collect();
    if has("--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    match (missing(), tests.is_empty()) {
        (Some(missing), false) => tests.iter().for_each(|(name, _)| eprintln!("SKIP {name}: {missing}")),
        (None, false) => {
            let fixture = Fixture::build();
            for (name, test) in &tests {
                test(&fixture);
                println!("test {name} ... ok");
            }
        }
        (_, true) => {}
    }
    println!("test result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out", tests.len());
}

fn missing() -> Option<String> {
    if corebox_sys::user::ids().0 != 0 {
        return Some("needs root".into());
    }
    ["busybox", "mksquashfs"]
        .into_iter()
        .find(|program| Command::new(program).arg("--help").output().is_err())
        .map(|program| format!("needs the program `{program}`"))
}

type Test = fn(&Fixture);

struct Fixture {
    directory: PathBuf,
}

impl Fixture {
    fn build() -> Self {
        let directory = std::env::temp_dir().join(format!("corebox-api-{}", std::process::id()));
        let bin = directory.join("root/bin");
        fs::create_dir_all(&bin).unwrap();
        let busybox = String::from_utf8(Command::new("sh").args(["-c", "command -v busybox"]).output().unwrap().stdout);
        std::fs::copy(busybox.unwrap().trim(), bin.join("busybox")).unwrap();
        for name in ["sh", "true", "sleep", "cat", "ls"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let made = Command::new("mksquashfs")
            .args([directory.join("root"), directory.join("image.sqsh")])
            .args(["-noappend", "-all-root", "-quiet"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Self { directory }
    }

    fn container(&self, spec: ContainerSpec, keep: &[i32]) -> Container {
        let mut container = Container::create(&self.plan(spec), keep).unwrap();
        container.wait_ready().unwrap();
        container
    }

    fn plan(&self, spec: ContainerSpec) -> corebox_runtime::ContainerPlan {
        let image = ImageSource { path: self.directory.join("image.sqsh"), digest: None, config: Default::default() };
        plan(&spec, &image, &HostFacts::find().unwrap(), &[]).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn spec() -> ContainerSpec {
    ContainerSpec { name: "api".into(), ..ContainerSpec::default() }
}

fn process(id: u32, argv: &[&str]) -> ProcessPlan {
    let argv = argv.iter().map(|a| (*a).to_owned()).collect();
    ProcessPlan { env: vec!["PATH=/bin".into()], group: Grouping::OwnGroup, ..ProcessPlan::new(id, argv) }
}

fn script(id: u32, text: &str) -> ProcessPlan {
    process(id, &["sh", "-c", text])
}

/// Takes events until `enough` of them came, at most 20 s.
fn events(container: &mut Container, mut enough: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let start = Instant::now();
    let mut taken = Vec::new();
    loop {
        match container.next_event().unwrap() {
            Some(event) => {
                let last = enough(&event);
                taken.push(event);
                if last {
                    return taken;
                }
            }
            None => {
                fd::poll_readable(&[container.control_fd()], Some(Duration::from_secs(1))).unwrap();
                assert!(start.elapsed() < Duration::from_secs(20), "no more events after {taken:?}");
            }
        }
    }
}

/// Waits until `count` processes ended: their outcomes by id.
fn outcomes(container: &mut Container, count: usize) -> (BTreeMap<u32, Outcome>, Vec<Event>) {
    let mut left = count;
    let taken = events(container, |event| {
        left -= usize::from(matches!(event, Event::Exited { .. } | Event::ExecFailed { .. }));
        left == 0
    });
    let ended = taken.iter().filter_map(|event| match event {
        Event::Exited { id, outcome } => Some((*id, *outcome)),
        _ => None,
    });
    (ended.collect(), taken)
}

/// The event of init being there must have been taken by `wait_ready`; then each process is bound as told, and says so.
fn starts_binds_and_reports(fixture: &Fixture) {
    let all: IdSet = affinity::cpus().unwrap().into_iter().collect();
    let last: IdSet = [all.iter().next_back().unwrap()].into_iter().collect();
    let node: IdSet = affinity::memory_nodes().unwrap().into_iter().take(1).collect();
    let (mut read, write) = pipe();
    let mut container = fixture.container(spec(), &[write.as_raw_fd()]);
    let plan = ProcessPlan {
        cpus: Some(last.clone()),
        mems: Some(node.clone()),
        stdio: [0, write.as_raw_fd(), 2],
        ..script(7, "grep Cpus_allowed_list /proc/self/status; head -1 /proc/self/numa_maps; exit 3")
    };
    let plan = ProcessPlan {
        argv: plan.argv.iter().map(|a| a.replace("grep", "busybox grep").replace("head", "busybox head")).collect(),
        ..plan
    };
    container.start(&[plan]).unwrap();
    let (ended, taken) = outcomes(&mut container, 1);
    assert_eq!(ended[&7], Outcome::Exited(3));
    let Event::Started { id: 7, pid, cpus, mems } = &taken[0] else { panic!("{taken:?}") };
    assert_eq!((cpus, mems), (&last, &node));
    assert!(*pid > 1 && *pid != container.init_pid().unwrap());
    drop(write);
    let mut said = String::new();
    read.read_to_string(&mut said).unwrap();
    assert!(said.contains(&format!("Cpus_allowed_list:\t{last}\n")), "{said}");
    assert!(said.contains(&format!("bind:{node}")), "{said}");
    let pid = container.init_pid().unwrap();
    container.kill();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(container.next_event().unwrap(), Some(Event::Gone));
    assert_eq!(container.next_event().unwrap(), None);
}

/// All of 64 processes run at the same time: each waits until the last one has come.
fn starts_many_side_by_side(fixture: &Fixture) {
    let mut container = fixture.container(spec(), &[]);
    let text = "echo > /tmp/$0; while [ $(ls /tmp | busybox wc -l) -lt 64 ]; do busybox usleep 1000; done";
    let plans: Vec<ProcessPlan> = (0..64).map(|id| process(id, &["sh", "-c", text, &id.to_string()])).collect();
    container.start(&plans).unwrap();
    let (ended, taken) = outcomes(&mut container, 64);
    assert!(ended.len() == 64 && ended.values().all(|o| o.success()), "{ended:?}");
    let mut started = std::collections::BTreeSet::new();
    for event in &taken {
        match event {
            Event::Started { id, .. } => assert!(started.insert(*id)),
            Event::Exited { id, .. } => assert!(started.contains(id), "{id} ended before it started"),
            other => panic!("{other:?}"),
        }
    }
}

fn pipe() -> (std::fs::File, std::os::fd::OwnedFd) {
    let (read, write) = fd::pipe().unwrap();
    (read.into(), write)
}

/// A descriptor that is kept reaches only the process that names it, under its number; others reach none, and do not
/// keep the caller's pipes open.
fn keeps_only_named_descriptors(fixture: &Fixture) {
    let (mut kept_read, kept_write) = pipe();
    let (mut other_read, other_write) = pipe();
    fd::set_cloexec(&other_write, false).unwrap();
    let (kept, other) = (kept_write.as_raw_fd(), other_write.as_raw_fd());
    let mut container = fixture.container(spec(), &[kept]);
    drop(other_write);
    let mut nothing = Vec::new();
    other_read.read_to_end(&mut nothing).unwrap();
    assert!(nothing.is_empty(), "the container holds a pipe it was not given");
    let named = ProcessPlan {
        keep_fds: vec![kept],
        ..script(1, &format!("echo named >&{kept}; [ ! -e /proc/self/fd/{other} ]"))
    };
    let unnamed = script(2, &format!("[ ! -e /proc/self/fd/{kept} ]"));
    container.start(&[named, unnamed]).unwrap();
    let (ended, _) = outcomes(&mut container, 2);
    assert!(ended.values().all(|o| o.success()), "{ended:?}");
    container.kill();
    drop(kept_write);
    let mut said = String::new();
    kept_read.read_to_string(&mut said).unwrap();
    assert_eq!(said, "named\n");
}

fn says_what_cannot_be_executed(fixture: &Fixture) {
    let mut container = fixture.container(spec(), &[]);
    let nowhere = ProcessPlan { cwd: "/nowhere".into(), ..process(3, &["true"]) };
    let cpu = ProcessPlan { cpus: Some("60000".parse().unwrap()), ..process(4, &["true"]) };
    let plans = [
        process(0, &["nosuch"]),
        process(1, &["/etc/hosts"]),
        process(2, &["/nosuch"]),
        nowhere,
        cpu,
        process(5, &["true"]),
    ];
    container.start(&plans).unwrap();
    let (ended, taken) = outcomes(&mut container, 6);
    assert_eq!(ended, BTreeMap::from([(5, Outcome::Exited(0))]), "no Exited follows an ExecFailed");
    let failure = |wanted: u32| -> &Failure {
        let found = taken.iter().find_map(|event| match event {
            Event::ExecFailed { id, failure } if *id == wanted => Some(failure),
            _ => None,
        });
        found.unwrap()
    };
    assert_eq!([0, 1, 2, 3, 4].map(|id| failure(id).code), [127, 126, 127, 125, 125]);
    assert!(failure(0).cause.contains("/bin") && failure(3).cause.contains("/nowhere"));
    assert!(failure(4).cause.contains("60000"), "{}", failure(4));
}

fn signals_one_and_all(fixture: &Fixture) {
    let mut container = fixture.container(spec(), &[]);
    let text = "trap 'exit 41' TERM; sleep 1000 & wait";
    container.start(&[script(1, text), process(2, &["sleep", "1000"]), process(3, &["sleep", "1000"])]).unwrap();
    // The trap is set when the child of the shell is there.
    let ready = |container: &Container| {
        let init = container.init_pid().unwrap();
        let children = fs::read(format!("/proc/{init}/task/{init}/children")).unwrap();
        let text = String::from_utf8(children).unwrap();
        text.split_whitespace()
            .any(|pid| fs::read(format!("/proc/{pid}/task/{pid}/children")).is_ok_and(|children| !children.is_empty()))
    };
    let start = Instant::now();
    while !ready(&container) && start.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    container.signal(Some(1), signal::SIGTERM).unwrap();
    let (ended, _) = outcomes(&mut container, 1);
    assert_eq!(ended, BTreeMap::from([(1, Outcome::Exited(41))]));
    container.signal(None, signal::SIGKILL).unwrap();
    let (ended, _) = outcomes(&mut container, 2);
    assert_eq!(ended.into_values().map(Outcome::code).collect::<Vec<_>>(), [137, 137]);
    container.signal(Some(99), signal::SIGTERM).unwrap();
}

/// An orphan ends and is reaped: no zombie is left of it.
fn reaps_orphans(fixture: &Fixture) {
    let mut container = fixture.container(spec(), &[]);
    container
        .start(&[script(1, "(sh -c 'echo $$ > /tmp/pid; exec sleep 0.1' &) ; while [ ! -s /tmp/pid ]; do :; done")])
        .unwrap();
    outcomes(&mut container, 1);
    container.start(&[script(2, "p=$(cat /tmp/pid); while [ -d /proc/$p ]; do busybox usleep 1000; done")]).unwrap();
    let (ended, _) = outcomes(&mut container, 1);
    assert_eq!(ended[&2], Outcome::Exited(0));
}

fn reports_the_death_of_init(fixture: &Fixture) {
    let mut container = fixture.container(spec(), &[]);
    container.start(&[process(1, &["sleep", "1000"])]).unwrap();
    events(&mut container, |event| matches!(event, Event::Started { .. }));
    corebox_sys::process::kill(container.init_pid().unwrap(), signal::SIGKILL).unwrap();
    let taken = events(&mut container, |event| *event == Event::Gone);
    let Event::Failed(failure) = &taken[0] else { panic!("{taken:?}") };
    assert!(failure.to_string().contains("container `api` is lost") && failure.cause.contains("SIGKILL"), "{failure}");
    assert_eq!(container.init_pid(), None);
    assert!(container.start(&[process(2, &["true"])]).is_err());
}

fn refuses_unkept_descriptors_and_threads(fixture: &Fixture) {
    let mut container = fixture.container(spec(), &[]);
    let bad = ProcessPlan { keep_fds: vec![9], ..process(1, &["true"]) };
    assert!(container.start(&[bad]).unwrap_err().cause.contains("descriptor 9"));
    drop(container);
    let plan = fixture.plan(spec());
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let refused = Container::create(&plan, &[]).unwrap_err();
    assert!(refused.cause.contains("2 threads"), "{refused}");
    drop(stop);
    assert!(thread.join().unwrap().is_err());
}

fn removes_cleanup_paths(fixture: &Fixture) {
    let path = fixture.directory.join("scratch");
    fs::create_dir_all(path.join("deep")).unwrap();
    let mut plan = fixture.plan(ContainerSpec { limits: Limits { pids: Some(50), ..Limits::default() }, ..spec() });
    plan.cleanup_paths.push(path.clone());
    let mut container = Container::create(&plan, &[]).unwrap();
    container.wait_ready().unwrap();
    let cgroups = || walk(Path::new("/sys/fs/cgroup"), &format!("-{}.", std::process::id()));
    assert_eq!(cgroups().len(), 1);
    drop(container);
    assert!(!path.exists());
    assert!(cgroups().is_empty());
}

/// Directories below `root` whose name holds `part`.
fn walk(root: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains(part) {
                found.push(entry.path());
            }
            found.extend(walk(&entry.path(), part));
        }
    }
    found
}
