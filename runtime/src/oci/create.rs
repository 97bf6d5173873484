//! The parent's side: the ordered steps that make a container, up to "ready".

use crate::oci::cgroup::{self, Groups};
use crate::oci::config::Config;
use crate::oci::init::{self, Inherited};
use crate::oci::join;
use crate::oci::link::{self, Word};
use crate::oci::plan::{self, Plan};
use crate::oci::sources::{self, Sources};
use crate::oci::state::{ProcessId, Record, StateDirectory, Status, boot};
use crate::oci::{hooks, id_maps, program};
use crate::step::{Steps, Stop};
use corebox_spec::Failure;
use corebox_sys::control::{self, Socket};
use corebox_sys::process::{self, Forked, SingleThreaded, ns};
use corebox_sys::signal::SIGKILL;
use corebox_sys::{Errno, fd, fs};
use oci_spec::runtime::Spec;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What `create` and `run` are asked for.
#[derive(Clone, Debug)]
pub struct Create {
    /// Where states are.
    pub root: PathBuf,
    /// The container's id.
    pub id: String,
    /// The directory with config.json.
    pub bundle: PathBuf,
    /// Takes the pid of the container's first process.
    pub pid_file: Option<PathBuf>,
    /// A listening socket that takes the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// How many descriptors after 2 the container inherits.
    pub preserve_fds: u32,
    /// cgroups by systemd.
    pub systemd_cgroup: bool,
    /// No session keyring of its own.
    pub no_new_keyring: bool,
    /// The root directory is changed by moving mounts; pivot_root(2) works wherever corebox does, so this says nothing.
    pub no_pivot: bool,
}

/// A container whose init waits, or runs already.
#[derive(Debug)]
pub struct Made {
    /// The first process, as the host numbers it.
    pub pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) socket: Socket,
    pub(crate) directory: StateDirectory,
    pub(crate) record: Record,
    /// Names and microseconds of the steps, the parent's and init's.
    pub times: Vec<(String, u64)>,
}

/// Makes a container that waits for `start`.
///
/// # Errors
/// The failing step; nothing is left then.
pub fn create(asked: &Create) -> Result<Made, Failure> {
    let console = asked.console_socket.as_deref();
    make(asked, true, |terminal| open_console(terminal, console))
}

/// As [`create`], with `console` giving the socket that takes the terminal's master, and without waiting for `start` if
/// so said.
pub(crate) fn make(
    asked: &Create,
    wait: bool,
    console: impl FnOnce(bool) -> Result<Option<OwnedFd>, Stop>,
) -> Result<Made, Failure> {
    let mut steps = Steps::new(&asked.id);
    // Whatever the caller left open stays out of the container and its hooks.
    let listen = program::given_sockets();
    let first = i32::try_from(listen.saturating_add(asked.preserve_fds)).map_or(i32::MAX, |n| n.saturating_add(3));
    let single = steps
        .run("check", "checking this process", || Ok((fd::close_on_exec_from(first)?, SingleThreaded::check()?).1))?;
    let config = steps.run("config", "reading config.json", || Config::read(&asked.bundle, asked.systemd_cgroup))?;
    let facts = steps.run("facts", "looking at the host", || Ok(cgroup::Facts::find()?))?;
    let mut plan = steps.run("plan", "planning", || plan::plan(&asked.id, &config, &facts))?;
    plan.process.listen = listen;
    let console = steps.run("terminal", "connecting the console", || console(plan.process.terminal))?;
    let directory =
        steps.run("state", "making the state directory", || StateDirectory::make(&asked.root, &asked.id))?;
    let record = record(&plan, &config);
    let mut making = Making { directory, record, init: None };
    let result = populate(asked, wait, &config.spec, &mut plan, &single, console, &mut steps, &mut making, &config);
    match (result, making.init.take()) {
        (Ok(socket), Some((pid, pidfd))) => {
            let Making { directory, record, .. } = making;
            Ok(Made { pid, pidfd, socket, directory, record, times: steps.times })
        }
        (result, init) => {
            making.init = init;
            making.undo(&plan.groups, &config.spec);
            Err(result.err().unwrap_or_else(|| Failure::new(crate::step::goal(&asked.id), "its first process is gone")))
        }
    }
}

/// A container on its way.
#[derive(Debug)]
struct Making {
    directory: StateDirectory,
    record: Record,
    init: Option<(i32, OwnedFd)>,
}

impl Making {
    /// Ends what was begun.
    fn undo(mut self, groups: &Groups, spec: &Spec) {
        if let Some((_, pidfd)) = self.init.take() {
            // Gone already is what is wanted.
            let _ = process::signal_pidfd(&pidfd, SIGKILL);
            let _ = process::wait_pidfd(pidfd.as_fd());
            let state = self.record.state(Status::Stopped);
            let hooks = spec.hooks().as_ref().and_then(|h| h.poststop().as_ref());
            hooks::run_all("poststop", hooks, &state);
        }
        self.directory.remove(groups, &self.record);
    }
}

/// The steps that leave something behind.
#[allow(clippy::too_many_arguments)] // the list of steps needs them all, and nobody else calls it
fn populate(
    asked: &Create,
    wait: bool,
    spec: &Spec,
    plan: &mut Plan<'_>,
    single: &SingleThreaded,
    console: Option<OwnedFd>,
    steps: &mut Steps<'_>,
    making: &mut Making,
    config: &Config,
) -> Result<Socket, Failure> {
    steps.run("record", "writing the state", || {
        making.directory.keep(config)?;
        making.directory.write(&making.record)
    })?;
    let listener =
        steps.run("listen", "opening the start socket", || wait.then(|| making.directory.listen()).transpose())?;
    let sources = steps.run("sources", "opening what is bound from the host", || {
        sources::by_parent(plan).then(|| Sources::open(plan, Some(single))).transpose()
    })?;
    let (ours, theirs) = steps.run("socket", "connecting to the container", || Ok(control::pair()?))?;
    let state = making.record.state(Status::Creating);
    let keyring = !asked.no_new_keyring;
    let forked = steps.run("clone", "creating the namespaces", || join::clone(plan, single, &ours, &theirs))?;
    let Forked::Parent((pid, pidfd)) = forked else {
        drop(ours);
        init::run(Inherited { plan, socket: theirs, sources, listener, console, state, keyring })
    };
    drop((theirs, sources, listener, console));
    making.init = Some((pid, pidfd));
    steps.run("ids", "mapping user and group ids", || map_ids(plan, pid, &ours))?;
    steps.run("limits", "setting resource limits", || program::from_outside(&plan.process, pid))?;
    steps.run("cgroup", "creating the cgroups", || enter_cgroups(plan, making, pid, &ours))?;
    steps.run("init", "waiting for the container", || Ok(()))?;
    attend(&making.record, spec, pid, &ours, steps)?;
    steps.run("ready", "writing the pid", || {
        making.record.init = Some(ProcessId::of(pid)?);
        making.directory.write(&making.record)?;
        asked.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, pid))?;
        Ok(link::say(&ours, &Word::Ready)?)
    })?;
    Ok(ours)
}

/// Listens to init until it is ready.
fn attend(record: &Record, spec: &Spec, pid: i32, socket: &Socket, steps: &mut Steps<'_>) -> Result<(), Failure> {
    let lost = |e: corebox_sys::Error| Stop::from(e).during(&record.id, "waiting for the container", "init");
    loop {
        match link::hear(socket).map_err(lost)? {
            Some(Word::Times(times)) => steps.times.extend(times.into_iter().map(|(n, t)| (format!("init: {n}"), t))),
            Some(Word::Hooks) => {
                let mut record = record.clone();
                record.init = Some(ProcessId::of(pid).map_err(lost)?);
                steps.run("host-hooks", "running hooks", || host_hooks(&record, spec))?;
                link::say(socket, &Word::Hooks).map_err(lost)?;
            }
            Some(Word::Ready) => return Ok(()),
            Some(Word::Failed(failure)) => return Err(failure),
            Some(_) => {}
            None => return Err(crate::reaper::silent_end(&record.id, false, None, false)),
        }
    }
}

fn host_hooks(record: &Record, spec: &Spec) -> Result<(), Stop> {
    let Some(all) = spec.hooks() else { return Ok(()) };
    let state = record.state(Status::Creating);
    // Programs written for these know no `creating`.
    let created = record.state(Status::Created);
    #[allow(deprecated)] // of the specification; podman's and NVIDIA's hooks still come so
    hooks::run("prestart", all.prestart().as_ref(), &created)?;
    hooks::run("createRuntime", all.create_runtime().as_ref(), &state)
}

fn record(plan: &Plan<'_>, config: &Config) -> Record {
    Record {
        id: plan.id.to_owned(),
        boot: boot(),
        maker: ProcessId::of(process::id()).unwrap_or_default(),
        init: None,
        bundle: config.bundle.clone(),
        rootfs: plan.rootfs.clone(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        annotations: plan.spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        groups: plan.groups.clone(),
        host_mounts: !plan.namespaces.has(ns::MOUNT),
    }
}

fn map_ids(plan: &Plan<'_>, pid: i32, socket: &Socket) -> Result<(), Stop> {
    if plan.namespaces.is_new(ns::USER) {
        id_maps::write(pid, &plan.uid_map, &plan.gid_map)?;
    }
    if plan.namespaces.has(ns::USER) {
        link::say(socket, &Word::Mapped)?;
    }
    Ok(())
}

fn enter_cgroups(plan: &mut Plan<'_>, making: &mut Making, pid: i32, socket: &Socket) -> Result<(), Stop> {
    let result = cgroup::create(&mut plan.groups, &plan.settings);
    making.record.groups = plan.groups.clone();
    result?;
    cgroup::attach(&plan.groups, pid)?;
    match link::say(socket, &Word::Grouped) {
        // It ended meanwhile, and says why to who listens next.
        Err(e) if e.errno == Errno::EPIPE => Ok(()),
        other => Ok(other?),
    }
}

/// Atomically: who waits for the file never reads half of it.
pub(crate) fn write_pid(path: &Path, pid: i32) -> Result<(), Stop> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, pid.to_string())?;
    Ok(fs::rename(&new, path)?)
}

/// The console socket, which must be given exactly where a terminal is asked for.
pub(crate) fn open_console(terminal: bool, path: Option<&Path>) -> Result<Option<OwnedFd>, Stop> {
    match (terminal, path) {
        (true, Some(path)) => Ok(Some(control::connect_stream(path)?)),
        (false, None) => Ok(None),
        (true, None) => Err(Stop::new("`process.terminal` is true, and no --console-socket takes the terminal")),
        (false, Some(_)) => Err(Stop::new("--console-socket is given, and `process.terminal` is false")),
    }
}

impl Made {
    /// Waits until the program runs (`run` without `start`).
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn wait_running(&self, spec: &Spec) -> Result<(), Failure> {
        let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let state = self.record.state(Status::Running);
        let answer = program::await_exec(&self.socket, &self.pidfd, self.pid, profile, &state);
        match answer.map_err(|stop| stop.during(&self.record.id, "waiting for the program", "exec"))? {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}
