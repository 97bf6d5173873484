//! What was decided: [`ContainerPlan`], from what was asked and what the host offers. Nothing here changes anything,
//! and everything that can be refused is refused here.

use crate::cgroup::{self, CgroupPlan};
use crate::environment;
use crate::facts::{HostFacts, IdRange};
use crate::seccomp;
use crate::step::{Stop, goal};
use corebox_images::mount::{Format, format};
use corebox_spec::{
    ContainerSpec, Edits, EnvEdit, Failure, ImageConfig, Mount, MountKind, NetMode, Origin, RootfsMode, Seccomp,
};
use corebox_sys::{fd, process};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

mod decided_mounts;

/// The origin of the binds that show the own cgroup.
pub(crate) const CGROUP_ORIGIN: &str = "cgroup";

/// The image a container is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSource {
    /// The image file: squashfs or EROFS.
    pub path: PathBuf,
    /// Its digest, where the store knows it.
    pub digest: Option<String>,
    /// Process defaults.
    pub config: ImageConfig,
}

/// How the image becomes a root directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootMethod {
    /// A detached mount made by the parent with the kernel's file system.
    Kernel,
    /// FUSE, served inside the container's namespaces.
    Fuse {
        /// squashfuse_ll or squashfuse; `None`: corebox itself, which serves EROFS.
        program: Option<PathBuf>,
    },
    /// Unpacked into a tmpfs of the container.
    Unpack,
}

/// Who the processes are, inside and outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPlan {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// /proc/PID/uid_map.
    pub uid_map: Vec<IdRange>,
    /// /proc/PID/gid_map.
    pub gid_map: Vec<IdRange>,
    /// setgroups(2) is denied, as it must be for who maps a single group; supplementary groups stay.
    pub deny_setgroups: bool,
    /// The root directory is assembled as uid 0 of a namespace around the one the processes see. Only for an
    /// ordinary user with `--writable` who keeps the own ids: the image's files belong to root, and the overlay
    /// copies up (writes) only files whose owner has an id in its own user namespace.
    pub nested: bool,
}

/// What a mount of the container is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlannedKind {
    /// The container's own process file system, with kernel details masked.
    Proc,
    /// A new sysfs, for an own network namespace.
    Sysfs,
    /// A tmpfs with the minimal device nodes and links; the terminal becomes `console`.
    Devices {
        /// The caller's terminal.
        terminal: Option<String>,
    },
    /// An own devpts instance; `gid` is the group of terminals, where it is mapped.
    Terminals {
        /// Group id of new terminals.
        gid: Option<u32>,
    },
    /// POSIX message queues of the IPC namespace.
    MessageQueues,
    /// A recursive bind of a host path.
    Bind {
        /// Host path.
        source: String,
    },
    /// A tmpfs.
    Tmpfs {
        /// Size limit in bytes.
        size: Option<u64>,
        /// Mode of its root.
        mode: u32,
        /// Only when the image has nothing there.
        if_missing: bool,
    },
    /// A generated file.
    File {
        /// Its text.
        content: String,
    },
    /// The image's file with entries added: passwd(5) or group(5).
    Accounts {
        /// Lines to add unless their id is there.
        entries: Vec<String>,
    },
}

/// One mount, in the order of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMount {
    /// Absolute path in the container.
    pub target: String,
    /// What goes there.
    pub kind: PlannedKind,
    /// Read-only, recursively.
    pub read_only: bool,
    /// Device nodes work on it.
    pub devices: bool,
    /// Who asked for it.
    pub origin: Origin,
}

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitPlan {
    /// As getrlimit(2) numbers it.
    pub resource: process::Resource,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
    /// Who asked for it.
    pub origin: Origin,
}

/// One container, decided; never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Name for messages and cgroups.
    pub name: String,
    /// The image file.
    pub image: PathBuf,
    /// Its digest.
    pub digest: Option<String>,
    /// Its format.
    pub format: Format,
    /// How it is mounted.
    pub method: RootMethod,
    /// A tmpfs over the image takes writes; the inner option is its size limit in bytes. Without it the root is
    /// read-only, with a read-only overlay only where a mount point is missing in the image.
    pub writable: Option<Option<u64>>,
    /// Ids.
    pub user: UserPlan,
    /// Namespaces that are new.
    pub namespaces: Vec<String>,
    /// Network.
    pub net: NetMode,
    /// What is in an own network namespace, or which one is joined.
    pub network: corebox_net::NetworkPlan,
    /// Host name inside.
    pub hostname: String,
    /// Mounts, in order.
    pub mounts: Vec<PlannedMount>,
    /// Environment of the processes.
    pub env: Vec<EnvEdit>,
    /// Working directory of the processes.
    pub workdir: String,
    /// The image's own command: Entrypoint and Cmd.
    pub command: Vec<String>,
    /// Limits by cgroup.
    pub cgroups: Vec<CgroupPlan>,
    /// Resource limits.
    pub rlimits: Vec<LimitPlan>,
    /// What of the fabric is looked at inside before anything starts.
    #[serde(default)]
    pub fabric: Option<corebox_spec::FabricCheck>,
    /// CPUs the container's processes are bound to; `None`: those we have.
    pub cpus: Option<corebox_spec::IdSet>,
    /// System calls that the processes may make.
    pub seccomp: Seccomp,
    /// Host paths that go with the container, even when corebox is killed.
    pub cleanup_paths: Vec<PathBuf>,
}

impl ContainerPlan {
    /// The environment as `NAME=value`.
    pub fn environment(&self) -> Vec<String> {
        self.env.iter().map(|edit| format!("{}={}", edit.name, edit.value)).collect()
    }
}

/// Decides. `edits` are the contributions of RDMA and the like, in order.
///
/// # Errors
/// A [`Failure`] for whatever the host, the image or the rules refuse, with the cure; nothing was changed.
pub fn plan(
    spec: &ContainerSpec,
    image: &ImageSource,
    facts: &HostFacts,
    edits: &[Edits],
) -> Result<ContainerPlan, Failure> {
    decide(spec, image, facts, edits).map_err(|stop| {
        let mut failure = stop.during(&spec.name, "checking what was asked for", "plan");
        failure.goal = goal(&spec.name);
        failure
    })
}

fn decide(
    spec: &ContainerSpec,
    image: &ImageSource,
    facts: &HostFacts,
    edits: &[Edits],
) -> Result<ContainerPlan, Stop> {
    if let Some((cause, hint)) = &facts.no_user_namespaces {
        return Err(Stop::new(cause).hint(hint));
    }
    let opened = fd::open_read(&image.path)?;
    let format = format(&opened, &image.path)?;
    let method = root_method(spec.rootfs, format, facts, &opened)?;
    let user = user_plan(spec, facts);
    let hostname = hostname(spec, facts)?;
    let cgroups =
        cgroup::plan(&cpu_checked(spec, facts)?.limits, &facts.hierarchies, matches!(method, RootMethod::Fuse { .. }))?;
    let workdir = workdir(spec, image)?;
    seccomp::check(&spec.seccomp)?;
    Ok(ContainerPlan {
        name: spec.name.clone(),
        image: image.path.clone(),
        digest: image.digest.clone(),
        format,
        mounts: decided_mounts::plan(spec, facts, edits, &user, &hostname, &cgroups)?,
        env: environment::plan(spec, image, facts, edits),
        writable: spec.writable,
        namespaces: namespaces(spec.net),
        net: spec.net,
        network: corebox_net::NetworkPlan::default(),
        command: image.config.entrypoint.iter().chain(&image.config.cmd).cloned().collect(),
        rlimits: limits(facts, edits),
        fabric: edits.iter().find_map(|edits| edits.fabric.clone()),
        cpus: spec.limits.cpus.clone(),
        seccomp: spec.seccomp.clone(),
        cleanup_paths: Vec::new(),
        method,
        user,
        hostname,
        workdir,
        cgroups,
    })
}

/// How the image becomes a root directory.
fn root_method(asked: RootfsMode, format: Format, facts: &HostFacts, image: &OwnedFd) -> Result<RootMethod, Stop> {
    let kernel = facts.privileged && facts.initial_namespace;
    match asked {
        RootfsMode::Kernel if !kernel => {
            Err(Stop::new("the kernel mounts images only for root of the initial user namespace (CAP_SYS_ADMIN)")
                .hint("`--rootfs fuse` works for ordinary users."))
        }
        RootfsMode::Kernel => Ok(RootMethod::Kernel),
        RootfsMode::Auto if kernel => Ok(RootMethod::Kernel),
        RootfsMode::Auto | RootfsMode::Fuse => fuse_method(format, facts),
        RootfsMode::Unpack => unpack_method(format, facts, image),
    }
}

fn fuse_method(format: Format, facts: &HostFacts) -> Result<RootMethod, Stop> {
    if let Some(cause) = &facts.no_fuse_device {
        return Err(Stop::new(cause).hint(
            "images are mounted by FUSE for ordinary users; your administrator loads the kernel module `fuse` and \
             makes /dev/fuse accessible (mode 0666). `--rootfs unpack` needs neither, but memory.",
        ));
    }
    if format == Format::Erofs {
        return Ok(RootMethod::Fuse { program: None });
    }
    let Some(program) = &facts.fuse_program else {
        return Err(Stop::new(
            "neither squashfuse_ll nor squashfuse is installed, and the kernel mounts images for root only",
        )
        .hint(
            "import the image again without --codec, or your administrator installs the package `squashfuse` (Debian, \
             Fedora, SUSE).",
        ));
    };
    Ok(RootMethod::Fuse { program: Some(program.clone()) })
}

/// Refused where it would not fit: the job's own memory is worth more than a root directory in it.
fn unpack_method(format: Format, facts: &HostFacts, image: &OwnedFd) -> Result<RootMethod, Stop> {
    if format != Format::Erofs {
        return Err(Stop::new("a compressed image cannot be unpacked into memory")
            .hint("import the image again without --codec, or leave --rootfs away."));
    }
    let size = fd::size(image)?;
    let most = facts.free_memory / 2;
    if size > most {
        let (size, most) = (corebox_spec::format_size(size), corebox_spec::format_size(most));
        return Err(Stop::new(format!("unpacked into memory the image takes {size}; half of what is free is {most}"))
            .hint("leave `--rootfs unpack` away: a mounted image takes only the memory of what is used of it."));
    }
    Ok(RootMethod::Unpack)
}

/// Which ids the container has.
fn user_plan(spec: &ContainerSpec, facts: &HostFacts) -> UserPlan {
    if facts.privileged {
        return UserPlan {
            uid: facts.uid,
            gid: facts.gid,
            uid_map: facts.uid_ranges.clone(),
            gid_map: facts.gid_ranges.clone(),
            deny_setgroups: false,
            nested: false,
        };
    }
    let (uid, gid) = if spec.as_root { (0, 0) } else { (facts.uid, facts.gid) };
    let nested = spec.writable.is_some() && !spec.as_root && facts.uid != 0;
    let (first_uid, first_gid) = if nested { (0, 0) } else { (uid, gid) };
    let single = |inside, outside| vec![IdRange { inside, outside, count: 1 }];
    UserPlan {
        uid,
        gid,
        uid_map: single(first_uid, facts.uid),
        gid_map: single(first_gid, facts.gid),
        deny_setgroups: true,
        nested,
    }
}

fn namespaces(net: NetMode) -> Vec<String> {
    let mut names = vec!["user", "mount", "pid", "ipc", "uts", "cgroup"];
    if net == NetMode::None {
        names.push("net");
    }
    names.into_iter().map(str::to_owned).collect()
}

fn hostname(spec: &ContainerSpec, facts: &HostFacts) -> Result<String, Stop> {
    let Some(name) = &spec.hostname else { return Ok(facts.hostname.clone()) };
    let good = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && !name.starts_with(['-', '.']);
    if good {
        Ok(name.clone())
    } else {
        Err(Stop::new(format!("`{name}` is not a host name (letters, digits, `-` and `.`, at most 64)")))
    }
}

/// `--cpus` must be CPUs that we have: a cpuset outside of them would be an error later, or an empty set.
fn cpu_checked<'a>(spec: &'a ContainerSpec, facts: &HostFacts) -> Result<&'a ContainerSpec, Stop> {
    if let Some(cpus) = &spec.limits.cpus {
        if cpus.is_empty() {
            return Err(Stop::new("--cpus names no CPU"));
        }
        let missing = cpus.difference(&facts.cpus);
        if !missing.is_empty() {
            return Err(Stop::new(format!("--cpus {cpus}: CPU {missing} is not ours; we may use {}", facts.cpus))
                .hint("choose among those, or ask the batch system for more."));
        }
    }
    Ok(spec)
}

/// `--wdir`, the caller's directory if it is bound, the image's, `/`.
fn workdir(spec: &ContainerSpec, image: &ImageSource) -> Result<String, Stop> {
    let asked = [&spec.wdir, &spec.cwd_bind, &image.config.working_dir];
    let workdir = asked.into_iter().flatten().find(|d| !d.is_empty()).map_or("/", String::as_str);
    if workdir.starts_with('/') {
        Ok(workdir.to_owned())
    } else {
        Err(Stop::new(format!("working directory `{workdir}` is not an absolute path")))
    }
}

/// Locked memory as high as we may, where RDMA registers memory.
fn limits(facts: &HostFacts, edits: &[Edits]) -> Vec<LimitPlan> {
    if !edits.iter().any(|e| e.raise_memlock) {
        return Vec::new();
    }
    let hard = if facts.may_raise_limits { u64::MAX } else { facts.locked_memory.1 };
    vec![LimitPlan { resource: process::LOCKED_MEMORY, soft: hard, hard, origin: Origin("RDMA".to_owned()) }]
}

impl From<&Mount> for PlannedMount {
    fn from(mount: &Mount) -> Self {
        let kind = match &mount.kind {
            MountKind::Bind { source } => PlannedKind::Bind { source: source.clone() },
            MountKind::Tmpfs { size, mode } => PlannedKind::Tmpfs { size: *size, mode: *mode, if_missing: false },
            MountKind::File { content } => PlannedKind::File { content: content.clone() },
        };
        Self {
            target: mount.target.clone(),
            kind,
            read_only: mount.read_only,
            devices: mount.devices,
            origin: mount.origin.clone(),
        }
    }
}

/// Refuses a bind whose source is not there, or a target that is no absolute path below `/`.
fn checked(mount: PlannedMount) -> Result<PlannedMount, Stop> {
    let target = Path::new(&mount.target);
    let has_place = target.components().count() > 1 && target.is_absolute();
    if !has_place || mount.target.contains('\0') || target.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Stop::new(format!(
            "mount target `{}` is not an absolute path below / (without `..`)",
            mount.target
        )));
    }
    if let PlannedKind::Bind { source } = &mount.kind {
        if !source.starts_with('/') {
            return Err(Stop::new(format!("bind source `{source}` is not an absolute path")));
        }
        fd::open_path(Path::new(source))
            .map_err(|e| Stop::new(e).hint(format!("what `{}` binds must exist on the host.", mount.origin.0)))?;
    }
    Ok(mount)
}

#[cfg(test)]
mod tests;
