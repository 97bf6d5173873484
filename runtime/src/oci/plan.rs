//! What was decided from config.json: [`Plan`]. Whatever can be refused is refused here, by the name it has in
//! config.json and before anything is made.

pub(crate) mod mounts;
pub(crate) mod process;
mod refusals;

use crate::facts::IdRange;
use crate::oci::cgroup::{self, Groups, Settings};
use crate::oci::config::Config;
use crate::seccomp::{self, Cache, Program};
use crate::step::Stop;
use corebox_sys::mount::propagation;
use corebox_sys::place::Node;
use corebox_sys::process::ns;
use mounts::PlannedMount;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, LinuxSeccomp, Spec};
use process::ProcessPlan;
use std::path::{Path, PathBuf};

/// A container as it will be made.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) id: &'a str,
    pub(crate) spec: &'a Spec,
    /// Absolute.
    pub(crate) rootfs: PathBuf,
    pub(crate) root_read_only: bool,
    pub(crate) root_propagation: u64,
    pub(crate) namespaces: Namespaces,
    pub(crate) uid_map: Vec<IdRange>,
    pub(crate) gid_map: Vec<IdRange>,
    /// /proc/PID/timens_offsets.
    pub(crate) time_offsets: String,
    pub(crate) mounts: Vec<PlannedMount>,
    /// /dev is not bound from the host: it gets the default devices and links.
    pub(crate) own_dev: bool,
    pub(crate) devices: Vec<Device>,
    /// Files below /proc/sys and their values.
    pub(crate) sysctl: Vec<(PathBuf, &'a str)>,
    pub(crate) process: ProcessPlan,
    /// The filter of system calls.
    pub(crate) filter: Option<Program>,
    pub(crate) groups: Groups,
    pub(crate) settings: Settings,
}

/// New namespaces, and those that exist.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// Flags of [`ns`].
    pub(crate) new: u64,
    /// Kind and path.
    pub(crate) join: Vec<(u64, PathBuf)>,
}

impl Namespaces {
    pub(crate) fn is_new(&self, kind: u64) -> bool {
        self.new & kind != 0
    }
    /// New or joined.
    pub(crate) fn has(&self, kind: u64) -> bool {
        self.is_new(kind) || self.join.iter().any(|(joined, _)| *joined == kind)
    }
}

/// A device node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) node: Node,
    pub(crate) number: (u64, u64),
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
}

/// Decides.
///
/// # Errors
/// What is refused, by name.
pub(crate) fn plan<'a>(id: &'a str, config: &'a Config, facts: &cgroup::Facts) -> Result<Plan<'a>, Stop> {
    let spec = &config.spec;
    refusals::check(spec)?;
    let none = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&none);
    let namespaces = namespaces(linux)?;
    let (uid_map, gid_map) = (ids(linux.uid_mappings().as_ref()), ids(linux.gid_mappings().as_ref()));
    refusals::check_namespaces(spec, &namespaces, &uid_map, &gid_map)?;
    let root = spec.root().as_ref().ok_or_else(|| Stop::new("config.json has no `root`"))?;
    let mounts = mounts::plan(spec, &config.bundle)?;
    let resources = linux.resources().as_ref();
    let groups = Groups::plan(linux.cgroups_path().as_deref(), id, config.systemd_cgroup, facts)?;
    Ok(Plan {
        id,
        spec,
        rootfs: rootfs(&config.bundle, root.path())?,
        root_read_only: root.readonly().unwrap_or(false),
        root_propagation: root_propagation(linux.rootfs_propagation().as_deref())?,
        time_offsets: time_offsets(linux),
        own_dev: !mounts.iter().any(|m| m.target == Path::new("/dev") && m.is_bind()),
        mounts,
        devices: devices(linux)?,
        sysctl: sysctl(spec),
        process: process::plan(spec)?,
        filter: filter(linux.seccomp().as_ref())?,
        settings: cgroup::settings(resources, &groups, facts)?,
        groups,
        namespaces,
        uid_map,
        gid_map,
    })
}

/// The compiled seccomp profile.
pub(crate) fn filter(profile: Option<&LinuxSeccomp>) -> Result<Option<Program>, Stop> {
    let program = profile.map(|profile| seccomp::cached(profile, Cache::of_caller().as_ref())).transpose();
    program.map_err(|error| {
        let hint = error.hint();
        let stop = Stop::new(format!("`linux.seccomp`: {error}"));
        hint.map_or(stop.clone(), |hint| stop.hint(hint))
    })
}

fn rootfs(bundle: &Path, path: &Path) -> Result<PathBuf, Stop> {
    let path = bundle.join(path);
    let found = std::fs::canonicalize(&path).map_err(|e| {
        Stop::from(corebox_sys::Error::io("open the root directory", path.display(), &e))
            .hint("`root.path` of config.json names it, relative to the bundle.")
    })?;
    if !found.is_dir() {
        return Err(Stop::new(format!("root directory {}: ENOTDIR (Not a directory)", path.display())));
    }
    Ok(found)
}

fn flag(kind: LinuxNamespaceType) -> u64 {
    match kind {
        LinuxNamespaceType::Mount => ns::MOUNT,
        LinuxNamespaceType::Cgroup => ns::CGROUP,
        LinuxNamespaceType::Uts => ns::UTS,
        LinuxNamespaceType::Ipc => ns::IPC,
        LinuxNamespaceType::User => ns::USER,
        LinuxNamespaceType::Pid => ns::PID,
        LinuxNamespaceType::Network => ns::NET,
        LinuxNamespaceType::Time => ns::TIME,
    }
}

fn namespaces(linux: &Linux) -> Result<Namespaces, Stop> {
    let mut found = Namespaces::default();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = flag(namespace.typ());
        if found.has(kind) {
            return Err(Stop::new(format!("`linux.namespaces` names `{}` twice", namespace.typ())));
        }
        match namespace.path() {
            // An empty path is none (runc, and what Go programs write).
            Some(path) if !path.as_os_str().is_empty() => found.join.push((kind, path.clone())),
            _ => found.new |= kind,
        }
    }
    // The user namespace is joined last: before, we may still have the rights that joining the others takes.
    found.join.sort_by_key(|(kind, _)| (*kind == ns::USER, *kind == ns::MOUNT));
    Ok(found)
}

fn ids(mappings: Option<&Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    let range = |m: &LinuxIdMapping| IdRange { inside: m.container_id(), outside: m.host_id(), count: m.size() };
    mappings.into_iter().flatten().map(range).collect()
}

/// What the host's mounts are to the container, and its own to the host's; without a word: what the host mounts later
/// appears, nothing goes back (as runc and crun do).
fn root_propagation(asked: Option<&str>) -> Result<u64, Stop> {
    Ok(match asked {
        None | Some("" | "slave" | "rslave") => propagation::SLAVE,
        Some("private" | "rprivate") => propagation::PRIVATE,
        Some("shared" | "rshared") => propagation::SHARED,
        Some("unbindable" | "runbindable") => propagation::UNBINDABLE,
        Some(other) => {
            return Err(Stop::new(format!("`linux.rootfsPropagation` is `{other}`, which is no propagation")));
        }
    })
}

fn time_offsets(linux: &Linux) -> String {
    let line = |(clock, offset): (&String, &oci_spec::runtime::LinuxTimeOffset)| {
        format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
    };
    linux.time_offsets().iter().flatten().map(line).collect()
}

fn devices(linux: &Linux) -> Result<Vec<Device>, Stop> {
    linux.devices().iter().flatten().map(device).collect()
}

fn device(device: &LinuxDevice) -> Result<Device, Stop> {
    let node = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => Node::Character,
        LinuxDeviceType::B => Node::Block,
        LinuxDeviceType::P => Node::Fifo,
        LinuxDeviceType::A => {
            return Err(Stop::new(format!("`linux.devices`: {} has no type to make", device.path().display())));
        }
    };
    let number = |n: i64| {
        u64::try_from(n).map_err(|_| Stop::new(format!("`linux.devices`: {} has number {n}", device.path().display())))
    };
    let numbers = if node == Node::Fifo { (0, 0) } else { (number(device.major())?, number(device.minor())?) };
    Ok(Device {
        path: device.path().clone(),
        node,
        number: numbers,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

/// `net.ipv4.ip_forward` is the file `net/ipv4/ip_forward`; with a `/` in it, a name is a path already (sysctl(8)).
fn sysctl(spec: &Spec) -> Vec<(PathBuf, &str)> {
    let settings = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    let file = |name: &str| PathBuf::from(if name.contains('/') { name.to_owned() } else { name.replace('.', "/") });
    settings.into_iter().flatten().map(|(name, value)| (Path::new("sys").join(file(name)), value.as_str())).collect()
}
