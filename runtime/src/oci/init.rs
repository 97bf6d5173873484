//! The child's side: from a fresh process in new namespaces to the container's program.

use crate::oci::link::{self, Word};
use crate::oci::plan::Plan;
use crate::oci::plan::mounts::What;
use crate::oci::program::{self, find_program};
use crate::oci::rootfs::Root;
use crate::oci::sources::Sources;
use crate::oci::state::INIT;
use crate::oci::{hooks, terminal};
use crate::step::{Steps, Stop};
use corebox_spec::{Failure, exit};
use corebox_sys::control::{self, Socket};
use corebox_sys::mount::{Change, FsContext, attr, change, open_kernel_file, pivot_root};
use corebox_sys::process::{self, ns};
use corebox_sys::{Errno, fd, fs, identity, mount, scheduling};
use serde_json::Value;
use std::os::fd::OwnedFd;

/// Everything the child got from its maker by being forked.
#[derive(Debug)]
pub(crate) struct Inherited<'a> {
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) socket: Socket,
    /// Opened by the parent, where the child could not.
    pub(crate) sources: Option<Sources>,
    /// Where `start` connects to; none for `run`, which starts at once.
    pub(crate) listener: Option<OwnedFd>,
    /// Takes the terminal's master.
    pub(crate) console: Option<OwnedFd>,
    /// For the hooks in the container; without a pid yet.
    pub(crate) state: Value,
    /// A session keyring of its own.
    pub(crate) keyring: bool,
}

/// Becomes the container's program. Never returns.
pub(crate) fn run(mut inherited: Inherited<'_>) -> ! {
    let mut steps = Steps::new(inherited.plan.id);
    let listener = inherited.listener.take();
    let code = match build(&mut inherited, &mut steps).and_then(|()| report_ready(&inherited, &steps)) {
        Err(failure) => complain(&inherited.socket, failure),
        Ok(()) => match wait_for_start(listener) {
            // Nobody is left to start it, or the maker failed.
            Err(_) => exit::COREBOX,
            Ok(Some(caller)) => complain(&caller, finish(&inherited, &caller)),
            Ok(None) => complain(&inherited.socket, finish(&inherited, &inherited.socket)),
        },
    };
    process::exit_now(code)
}

fn complain(socket: &Socket, failure: Failure) -> u8 {
    let code = failure.code;
    // Nobody is left to hear about it when that fails.
    let _ = link::say(socket, &Word::Failed(crate::message::shortened(failure)));
    code
}

/// The steps, in order.
fn build(inherited: &mut Inherited<'_>, steps: &mut Steps<'_>) -> Result<(), Failure> {
    let plan = inherited.plan;
    let given = inherited.sources.take();
    let (socket, console) = (&inherited.socket, inherited.console.take());
    steps.run("process", "becoming the container's first process", || become_first(plan, socket))?;
    steps.run("namespaces", "setting up the namespaces", || set_up_namespaces(plan, inherited.keyring))?;
    let sources = steps.run("sources", "opening what is bound from the host", || match given {
        Some(sources) => Ok(sources),
        None => Sources::open(plan, None),
    })?;
    let mut root = steps.run("root", "entering the root directory", || Root::enter(plan, &sources))?;
    let grouped =
        steps.run("mounts", "mounting into the root directory", || mount_all(&mut root, plan, &sources, socket))?;
    steps.run("devices", "making devices", || root.make_devices(plan))?;
    let terminal = steps.run("console", "making the terminal", || match console {
        Some(console) => terminal::make(&root, &plan.process, &console).map(Some),
        None => Ok(None),
    })?;
    if !grouped {
        steps.run("cgroup", "entering the cgroups", || enter_cgroups(plan, socket))?;
    }
    steps.run("hooks", "running hooks", || container_hooks(inherited))?;
    steps.run("sysctl", "setting kernel parameters", || set_kernel_parameters(plan, &root))?;
    steps.run("cover", "hiding paths", || root.cover(plan, &sources))?;
    drop(sources);
    steps.run("pivot", "changing the root directory", || change_root(plan, root))?;
    steps.run("identity", "taking the user's identity", || take_identity(plan, terminal.as_ref()))?;
    if plan.process.argv.is_empty() {
        return Ok(());
    }
    find_program(&plan.process).map_err(|f| Failure { goal: crate::step::goal(plan.id), ..f })?;
    Ok(())
}

fn become_first(plan: &Plan<'_>, socket: &Socket) -> Result<(), Stop> {
    process::set_name(INIT)?;
    let user = plan.namespaces.has(ns::USER);
    if user {
        link::expect(socket, &Word::Mapped)?;
        match identity::become_user(0, 0, true) {
            // A map without root: we stay who we are, with all capabilities.
            Err(e) if e.errno == Errno::EINVAL => {}
            other => other?,
        }
    } else {
        // Nobody in the namespaces that we join may look into us before we are the program (CVE-2016-9962).
        process::set_dumpable(false)?;
    }
    Ok(process::new_session()?)
}

fn set_up_namespaces(plan: &Plan<'_>, keyring: bool) -> Result<(), Stop> {
    let spec = plan.spec;
    if keyring {
        identity::new_session_keyring(&format!("_ses.{}", plan.id))?;
    }
    if plan.namespaces.is_new(ns::TIME) {
        process::unshare(ns::TIME)?;
        if !plan.time_offsets.is_empty() {
            process::set_dumpable(true)?;
            fs::write("/proc/self/timens_offsets", &plan.time_offsets)?;
            process::set_dumpable(plan.namespaces.has(ns::USER))?;
        }
    }
    if let Some(name) = spec.hostname().as_ref().filter(|name| !name.is_empty()) {
        process::set_hostname(name)?;
    }
    if let Some(name) = spec.domainname().as_ref().filter(|name| !name.is_empty()) {
        process::set_domainname(name)?;
    }
    if plan.namespaces.is_new(ns::NET) {
        corebox_net::loopback_up()?;
    }
    let linux = spec.linux().as_ref();
    if let Some(personality) = linux.and_then(|l| l.personality().as_ref()) {
        use oci_spec::runtime::LinuxPersonalityDomain as Domain;
        let domain = if personality.domain() == Domain::PerLinux32 { scheduling::LINUX32 } else { scheduling::LINUX };
        scheduling::set_personality(domain)?;
    }
    if let Some(policy) = linux.and_then(|l| l.memory_policy().as_ref()) {
        set_memory_policy(policy)?;
    }
    Ok(())
}

fn set_memory_policy(policy: &oci_spec::runtime::LinuxMemoryPolicy) -> Result<(), Stop> {
    use oci_spec::runtime::{MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode};
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let bit = |flag: &Flag| match flag {
        Flag::MpolFNumaBalancing => 1 << 13,
        Flag::MpolFRelativeNodes => 1 << 14,
        Flag::MpolFStaticNodes => 1 << 15,
    };
    let flags: i32 = policy.flags().iter().flatten().map(bit).sum();
    let nodes: corebox_spec::IdSet = match policy.nodes().as_deref().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map_err(|e| Stop::new(format!("`linux.memoryPolicy.nodes`: {e}")))?,
        None => corebox_spec::IdSet::default(),
    };
    Ok(scheduling::set_memory_policy(mode | flags, &nodes.iter().collect::<Vec<u32>>())?)
}

/// All mounts, in order. Those of cgroups must wait until the maker has put us there, which it does meanwhile. Returns
/// whether that was needed.
fn mount_all(root: &mut Root, plan: &Plan<'_>, sources: &Sources, socket: &Socket) -> Result<bool, Stop> {
    let mut grouped = false;
    for (index, mount) in plan.mounts.iter().enumerate() {
        if mount.what == What::Cgroup && !grouped {
            enter_cgroups(plan, socket)?;
            grouped = true;
        }
        root.mount(index, plan, sources)?;
    }
    Ok(grouped)
}

fn enter_cgroups(plan: &Plan<'_>, socket: &Socket) -> Result<(), Stop> {
    link::expect(socket, &Word::Grouped)?;
    if plan.namespaces.is_new(ns::CGROUP) {
        // Only now: where we are becomes the root of what we see.
        process::unshare(ns::CGROUP)?;
    }
    Ok(())
}

/// Lets the host's hooks run, and runs those of the container's namespaces: before the root directory is changed.
fn container_hooks(inherited: &Inherited<'_>) -> Result<(), Stop> {
    let Some(hooks) = inherited.plan.spec.hooks() else { return Ok(()) };
    link::say(&inherited.socket, &Word::Hooks)?;
    link::expect(&inherited.socket, &Word::Hooks)?;
    let mut state = inherited.state.clone();
    state["pid"] = process::id().into();
    hooks::run("createContainer", hooks.create_container().as_ref(), &state)
}

/// Written through a mount of proc that nothing lies over (CVE-2025-52881).
fn set_kernel_parameters(plan: &Plan<'_>, root: &Root) -> Result<(), Stop> {
    if plan.sysctl.is_empty() {
        return Ok(());
    }
    let own;
    let proc = match &root.proc {
        Some(proc) => proc,
        None => {
            own = FsContext::open("proc")?.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
            &own
        }
    };
    for (file, value) in &plan.sysctl {
        let name = format!("`linux.sysctl` {}", file.display());
        let open = open_kernel_file(proc, file, true).map_err(|e| Stop::from(e).about(&name))?;
        fd::write_all(&open, value.as_bytes(), &name)?;
    }
    Ok(())
}

fn change_root(plan: &Plan<'_>, root: Root) -> Result<(), Stop> {
    if plan.namespaces.has(ns::MOUNT) {
        pivot_root(&root.fd)?;
    } else {
        // As runc does where no mount namespace is asked for.
        mount::change_root(&root.fd)?;
    }
    if plan.root_read_only {
        mount::set_attributes(&root.fd, attr::RDONLY, false, "the root directory")?;
    }
    let propagation = plan.root_propagation;
    if plan.spec.linux().as_ref().is_some_and(|l| l.rootfs_propagation().is_some()) {
        change(&root.fd, &Change { propagation, ..Change::default() }, false, "the root directory")?;
    }
    Ok(())
}

fn take_identity(plan: &Plan<'_>, terminal: Option<&OwnedFd>) -> Result<(), Stop> {
    if let Some(terminal) = terminal {
        corebox_sys::terminal::become_terminal(terminal)?;
    }
    // With the rights of root first: the directory may be closed to the user, as it may be to a shell that su(1) starts.
    let early = program::enter_directory(&plan.process.cwd);
    program::take_identity(&plan.process)?;
    match early {
        Ok(()) => Ok(()),
        Err(_) => program::enter_directory(&plan.process.cwd),
    }
}

/// Tells the maker, and waits until it has written down who we are.
fn report_ready(inherited: &Inherited<'_>, steps: &Steps<'_>) -> Result<(), Failure> {
    let tell = || -> Result<(), Stop> {
        link::say(&inherited.socket, &Word::Times(steps.times.clone()))?;
        link::say(&inherited.socket, &Word::Ready)?;
        Ok(link::expect(&inherited.socket, &Word::Ready)?)
    };
    tell().map_err(|stop| stop.during(inherited.plan.id, "reporting to corebox", "ready"))
}

/// Waits for `start`: its connection. `None`: there is nothing to wait for.
fn wait_for_start(listener: Option<OwnedFd>) -> Result<Option<Socket>, corebox_sys::Error> {
    listener.map(control::accept).transpose()
}

/// The last steps, up to the exec; returns only with the reason why not.
fn finish(inherited: &Inherited<'_>, caller: &Socket) -> Failure {
    let plan = inherited.plan;
    let mut steps = Steps::new(plan.id);
    let state = &inherited.state;
    let mut last = || -> Result<std::path::PathBuf, Failure> {
        steps.run("start-hooks", "running hooks", || start_hooks(plan, state))?;
        let program = find_program(&plan.process)?;
        steps.run("privileges", "dropping privileges", || {
            program::restrict(&plan.process, plan.filter.as_ref(), caller)
        })?;
        Ok(program)
    };
    let program = match last() {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    program::execute(&program, &plan.process)
}

fn start_hooks(plan: &Plan<'_>, state: &Value) -> Result<(), Stop> {
    let Some(hooks) = plan.spec.hooks().as_ref().and_then(|h| h.start_container().as_ref()) else { return Ok(()) };
    let mut state = state.clone();
    state["pid"] = process::id().into();
    state["status"] = "created".into();
    hooks::run("startContainer", Some(hooks), &state)
}
