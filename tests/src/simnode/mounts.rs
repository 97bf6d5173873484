//! A node's own view of the file system: its `/dev`, `/tmp`, `/run`, `/dev/shm`, `/proc`, `/sys` and cgroups.
//!
//! Everything else (the programs, home directories, the image store) is the host's, as on nodes that boot from one
//! shared image. Called by the node's init, as pid 1 of the new namespaces.

use super::cgroups::Hierarchy;
use super::init::InitRequest;
use crate::Result;
use corebox_spec::Failure;
use corebox_sys::fs;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Directories that every node has for itself.
const PRIVATE: [&str; 3] = ["/dev", "/run", "/tmp"];

/// Character devices of a node: name, major, minor (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u64, u64); 8] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
    ("kmsg", 1, 11),
];
/// How many loop devices a node sees; the kernel makes them on demand, but only in the host's `/dev`.
const LOOPS: u64 = 64;

/// Builds the view. Ordered: what later steps need from hidden places is opened first.
pub fn build(request: &InitRequest, hierarchies: &[Hierarchy]) -> Result<()> {
    umask(Mode::empty());
    bind_flags("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let kept: Vec<(PathBuf, File)> =
        request.keep.iter().filter(|p| hidden(p)).map(|p| pin(p)).collect::<Result<_>>()?;
    let old_dev = pin(Path::new("/dev"))?.1;
    let sys_cgroup = pin(Path::new("/sys/fs/cgroup")).ok();
    file_system("tmpfs", "/tmp", "mode=1777")?;
    file_system("tmpfs", "/run", "mode=0755")?;
    dev(request, &old_dev)?;
    for (path, file) in &kept {
        directory(path)?;
        bind(&through(file), path)?;
    }
    directory(Path::new("/run/lock"))?;
    for (source, target) in &request.files {
        bind(source, target)?;
    }
    sys(request, hierarchies, sys_cgroup.map(|(_, file)| file).as_ref())?;
    file_system("proc", "/proc", "")?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Whether this is a directory that every node has for itself.
pub fn is_private(path: &Path) -> bool {
    PRIVATE.iter().any(|dir| path == Path::new(dir))
}

/// Whether a node's own file systems cover this path.
fn hidden(path: &Path) -> bool {
    PRIVATE.iter().any(|dir| path.starts_with(dir))
}

/// Opens a path only to find it again after something was mounted over it.
fn pin(path: &Path) -> Result<(PathBuf, File)> {
    let file = OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_PATH.bits()).open(path);
    Ok((path.to_path_buf(), file.map_err(|e| failed("open", path, &e))?))
}

/// The path by which the kernel finds an open file again (proc(5), magic links).
fn through(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The node's `/dev`: own nodes as root, the host's bound one by one in a user namespace, where mknod(2) is refused.
fn dev(request: &InitRequest, old: &File) -> Result<()> {
    file_system("tmpfs", "/dev", "mode=0755,size=1m")?;
    for (name, major, minor) in DEVICES {
        node(request, old, name, SFlag::S_IFCHR, 0o666, (major, minor))?;
    }
    node(request, old, "loop-control", SFlag::S_IFCHR, 0o660, (10, 237))?;
    if !request.user_namespace {
        for index in 0..LOOPS {
            node(request, old, &format!("loop{index}"), SFlag::S_IFBLK, 0o660, (7, index))?;
        }
    }
    let infiniband = through(old).join("infiniband");
    if infiniband.is_dir() {
        directory(Path::new("/dev/infiniband"))?;
        bind(&infiniband, Path::new("/dev/infiniband"))?;
    }
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        directory(Path::new(dir))?;
    }
    file_system("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620")?;
    file_system("tmpfs", "/dev/shm", "mode=1777")?;
    file_system("mqueue", "/dev/mqueue", "")?;
    let links =
        [("pts/ptmx", "ptmx"), ("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")];
    for (to, name) in links {
        let path = Path::new("/dev").join(name);
        symlink(to, &path).map_err(|e| failed("symlink", &path, &e))?;
    }
    Ok(())
}

/// One device node; what the host does not have is left out.
fn node(
    request: &InitRequest,
    old: &File,
    name: &str,
    kind: SFlag,
    mode: u32,
    (major, minor): (u64, u64),
) -> Result<()> {
    let path = Path::new("/dev").join(name);
    if !request.user_namespace {
        return mknod(&path, kind, Mode::from_bits_truncate(mode), makedev(major, minor))
            .map_err(|e| Failure::new(format!("cannot make {}", path.display()), e));
    }
    let source = through(old).join(name);
    if !source.exists() {
        return Ok(());
    }
    fs::write(&path, "").map_err(|e| Failure::new("cannot make a place for a device", e))?;
    bind(&source, &path)
}

/// The node's `/sys`, which follows its network namespace, and its cgroups, whose roots are the node's own.
fn sys(request: &InitRequest, hierarchies: &[Hierarchy], cgroup: Option<&File>) -> Result<()> {
    if request.user_namespace {
        return Ok(()); // no cgroups of our own there; the host's /sys stays
    }
    file_system("sysfs", "/sys", "")?;
    let Some(cgroup) = cgroup else { return Ok(()) };
    let base = Path::new("/sys/fs/cgroup");
    if let Some(unified) = hierarchies.iter().find(|h| h.fstype == "cgroup2" && h.mountpoint == base) {
        return file_system(&unified.fstype, "/sys/fs/cgroup", "");
    }
    file_system("tmpfs", "/sys/fs/cgroup", "mode=0755")?;
    for hierarchy in hierarchies {
        directory(&hierarchy.mountpoint)?;
        let named = hierarchy.controllers.starts_with("name=");
        let data = if named { format!("none,{}", hierarchy.controllers) } else { hierarchy.controllers.clone() };
        file_system(&hierarchy.fstype, &hierarchy.mountpoint.to_string_lossy(), &data)?;
    }
    for entry in std::fs::read_dir(through(cgroup)).into_iter().flatten().flatten() {
        if let Ok(to) = std::fs::read_link(entry.path()) {
            let path = base.join(entry.file_name());
            symlink(to, &path).map_err(|e| failed("symlink", &path, &e))?; // cpu -> cpu,cpuacct
        }
    }
    Ok(())
}

/// Mounts a new file system.
fn file_system(kind: &str, target: &str, data: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), Some(data))
        .map_err(|e| Failure::new(format!("cannot mount {kind} ({data}) on {target}"), e))
}

/// Binds a file or directory, with what is mounted below it.
fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| Failure::new(format!("cannot bind {} on {}", source.display(), target.display()), e))
}

/// Changes flags of a mount.
fn bind_flags(target: &str, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .map_err(|e| Failure::new(format!("cannot change the mount {target}"), e))
}

/// Makes a directory and its parents, readable by all.
fn directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Failure::new("cannot make a directory of the node", e))?;
    let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)); // someone else's is fine as it is
    Ok(())
}

fn failed(call: &'static str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new("cannot build the node's file system", corebox_sys::Error::io(call, path.display(), error))
}
