//! What a user can say about the container, for `run` and `mpirun` alike.

use clap::ValueEnum;
use corebox_runtime::environment;
use corebox_spec::network::NetCores;
use corebox_spec::{
    Bind, ContainerSpec, FabricPolicy, Failure, IdSet, Limits, NetArgument, NetworkSpec, RdmaLimit, RdmaSelect,
    RootfsMode, Seccomp, Tmpfs, parse_size,
};
use corebox_sys::fs;
use std::path::{Component, Path, PathBuf};

/// Options of the container.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Container")]
pub struct ContainerOptions {
    /// Be uid 0 and gid 0 inside (of the own ids only).
    #[arg(long)]
    as_root: bool,
    /// How the image becomes the root directory: mounted by the kernel (root only), served by FUSE, or unpacked into
    /// memory.
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    rootfs: RootfsName,
    /// Let the image be written to, in memory, for this run; at most SIZE.
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    writable: Option<String>,
    /// Network: host (default), none, netns:PATH, a network of the site, or an interface of its own: veth, macvlan,
    /// ipvlan, netkit, phys:IF, sriov:IF, each with `:OPTION,…` (see `corebox net --help`). Repeatable for interfaces.
    #[arg(long, value_name = "NET", value_parser = str::parse::<NetArgument>)]
    net: Vec<NetArgument>,
    /// CPUs that do the kernel's work for the container's interfaces: `near` for those that share a cache with the
    /// container's and are not its own, or a set such as 4-7.
    #[arg(long, value_name = "CPUS", default_value = "kernel", value_parser = str::parse::<NetCores>)]
    net_cores: NetCores,
    /// Host name inside.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Size of /dev/shm (default: half of the memory).
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    shm_size: Option<u64>,
    /// Bind a host path; DST is SRC when left away.
    #[arg(short = 'v', long = "volume", value_name = "SRC:DST[:ro]", value_parser = parse_bind)]
    volumes: Vec<Bind>,
    /// Mount an empty tmpfs.
    #[arg(long, value_name = "DST[:SIZE]", value_parser = parse_tmpfs)]
    tmpfs: Vec<Tmpfs>,
    /// Working directory (default: the present one if it is bound, else the image's, else /).
    #[arg(short = 'w', long, value_name = "DIR")]
    pub wdir: Option<String>,
    /// Set a variable, or hand on the caller's.
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Do not bind the present directory.
    #[arg(long)]
    no_cwd: bool,
    /// CPUs the container may use, such as 0-3,8.
    #[arg(long, value_name = "IDSET", value_parser = str::parse::<IdSet>)]
    cpus: Option<IdSet>,
    /// Memory limit.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    mem: Option<u64>,
    /// Limit of processes and threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    /// RDMA devices of the host to expose: all, none, nearest (to the container's CPUs), vf (virtual functions),
    /// netdev=IF, or names.
    #[arg(long, default_value = "all", value_name = "WHICH", value_parser = str::parse::<RdmaSelect>)]
    rdma: RdmaSelect,
    /// Hide the host's RDMA devices: --rdma none.
    #[arg(long, conflicts_with = "rdma")]
    no_rdma: bool,
    /// System calls the processes may make: `default` refuses what no HPC program needs, `none` refuses nothing, FILE
    /// is a seccomp profile as in an OCI config.json.
    #[arg(long, value_name = "default|none|FILE", default_value = "default")]
    seccomp: String,
    /// Limit an HCA's resources for this container.
    #[arg(long = "rdma-limit", value_name = "DEV:handles=N,objects=M", value_parser = str::parse::<RdmaLimit>)]
    rdma_limits: Vec<RdmaLimit>,
    /// Look whether the RDMA devices work inside before anything starts: refuse if they do not, say so, or do not look.
    #[arg(long, value_enum, default_value = "any", value_name = "POLICY")]
    fabric: FabricName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RootfsName {
    Auto,
    Kernel,
    Fuse,
    Unpack,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FabricName {
    Require,
    Prefer,
    Any,
}

impl ContainerOptions {
    /// What was asked of the container, with the environment of a job; `run` takes more of its caller.
    ///
    /// # Errors
    /// `--env NAME` of a variable that is not set, a size that is none.
    pub fn spec(&self) -> Result<ContainerSpec, Failure> {
        let wrong = |cause: String| Failure::new("cannot read the options of the container", cause);
        let writable = match self.writable.as_deref() {
            None => None,
            Some("") => Some(None),
            Some(size) => Some(Some(parse_size(size).map_err(|e| wrong(format!("--writable: {e}")))?)),
        };
        let (net, network) = NetworkSpec::of(&self.net).map_err(|e| wrong(format!("--net: {e}")))?;
        Ok(ContainerSpec {
            name: String::new(),
            as_root: self.as_root,
            rootfs: match self.rootfs {
                RootfsName::Auto => RootfsMode::Auto,
                RootfsName::Kernel => RootfsMode::Kernel,
                RootfsName::Fuse => RootfsMode::Fuse,
                RootfsName::Unpack => RootfsMode::Unpack,
            },
            writable,
            net,
            network: NetworkSpec { cores: self.net_cores.clone(), busy: self.cpus.clone(), ..network },
            hostname: self.hostname.clone(),
            shm_size: self.shm_size,
            binds: self.volumes.iter().map(absolute).collect(),
            tmpfs: self.tmpfs.clone(),
            cwd_bind: if self.no_cwd { None } else { present_directory() },
            wdir: self.wdir.clone(),
            env: environment::asked_for(&self.env, |name| std::env::var(name).ok())
                .map_err(|cause| wrong(format!("--env: {cause}")))?,
            caller_env: environment::for_job(caller_variables()),
            limits: Limits {
                cpus: self.cpus.clone(),
                memory: self.mem,
                pids: self.pids,
                rdma: self.rdma_limits.clone(),
            },
            rdma: if self.no_rdma { RdmaSelect::None } else { self.rdma.clone() },
            fabric: match self.fabric {
                FabricName::Require => FabricPolicy::Require,
                FabricName::Prefer => FabricPolicy::Prefer,
                FabricName::Any => FabricPolicy::Any,
            },
            seccomp: seccomp(&self.seccomp).map_err(|cause| wrong(format!("--seccomp: {cause}")))?,
        })
    }
}

/// A profile is read here, so that its path need not be on the nodes of a job.
fn seccomp(asked: &str) -> Result<Seccomp, String> {
    match asked {
        "default" => Ok(Seccomp::Default),
        "none" => Ok(Seccomp::None),
        path => fs::read_to_string(path).map(Seccomp::Profile).map_err(|e| e.to_string()),
    }
}

/// Our environment; variables that are no text are not handed on.
pub fn caller_variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// `SRC:DST[:ro]` or `SRC`.
fn parse_bind(text: &str) -> Result<Bind, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts[..] {
        [source] => (source, source, false),
        [source, mode @ ("ro" | "rw")] => (source, source, mode == "ro"),
        [source, target] | [source, target, "rw"] => (source, target, false),
        [source, target, "ro"] => (source, target, true),
        _ => return Err("it is SRC:DST, SRC:DST:ro or SRC".to_owned()),
    };
    if source.is_empty() || target.is_empty() {
        return Err("SRC or DST is empty".to_owned());
    }
    Ok(Bind { source: source.to_owned(), target: target.to_owned(), read_only })
}

/// `DST[:SIZE]`.
fn parse_tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (target, size) = text.split_once(':').map_or((text, None), |(target, size)| (target, Some(size)));
    let size = size.map(parse_size).transpose().map_err(|e| e.to_string())?;
    Ok(Tmpfs { target: target.to_owned(), size })
}

/// A source relative to where the user stands; the target stays as typed, or follows a lone source.
fn absolute(bind: &Bind) -> Bind {
    let Ok(here) = std::env::current_dir() else { return bind.clone() };
    let whole = |path: &str| {
        here.join(path).components().filter(|c| *c != Component::CurDir).collect::<PathBuf>().display().to_string()
    };
    let source = whole(&bind.source);
    let target = if bind.target == bind.source { source.clone() } else { bind.target.clone() };
    Bind { source, target, read_only: bind.read_only }
}

/// Directories that belong to the system, with all below them: the image has its own.
const SYSTEM: [&str; 11] =
    ["/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr"];
/// Directories that hold those of users and data; only they themselves are not bound.
const PARENTS: [&str; 8] = ["/", "/dev", "/home", "/media", "/mnt", "/opt", "/srv", "/var"];

/// Where the user stands, unless that is a directory that an image has its own of.
fn present_directory() -> Option<String> {
    let here = std::env::current_dir().ok()?;
    is_users(&here).then(|| here.to_str().map(str::to_owned)).flatten()
}

fn is_users(directory: &Path) -> bool {
    !PARENTS.iter().any(|parent| directory == Path::new(parent))
        && !SYSTEM.iter().any(|system| directory.starts_with(system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_binds_and_tmpfs() {
        let bind = |text: &str| parse_bind(text).map(|b| (b.source, b.target, b.read_only));
        let found = |s: &str, t: &str, ro| Ok((s.to_owned(), t.to_owned(), ro));
        assert_eq!(bind("/a:/b:ro"), found("/a", "/b", true));
        assert_eq!(bind("/a:/b"), found("/a", "/b", false));
        assert_eq!(bind("/a:ro"), found("/a", "/a", true));
        assert_eq!(bind("data"), found("data", "data", false));
        for wrong in ["", ":", "a:", ":b", "a:b:c", "a:b:ro:x"] {
            assert!(bind(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_tmpfs("/x:1M").unwrap(), Tmpfs { target: "/x".into(), size: Some(1 << 20) });
        assert!(parse_tmpfs("/x:y").is_err());
    }

    #[test]
    fn knows_system_directories() {
        for system in ["/", "/usr", "/usr/share/x", "/home", "/etc"] {
            assert!(!is_users(Path::new(system)), "{system}");
        }
        for users in ["/home/me", "/tmp", "/scratch/job", "/usrlocal", "/var/tmp/x", "/dev/shm/x"] {
            assert!(is_users(Path::new(users)), "{users}");
        }
    }
}
