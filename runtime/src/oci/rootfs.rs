//! The root directory of a container and everything that is mounted, made or hidden below it. Targets are resolved
//! below the new root only, and operated on by descriptor, so no link of the root's content leads anywhere else.

use crate::oci::plan::mounts::{PlannedMount, What};
use crate::oci::plan::{Device, Plan};
use crate::oci::sources::{Sources, bind};
use crate::step::Stop;
use corebox_sys::mount::{
    Change, FsContext, attach, attr, change, clone_fd, clone_fd_recursive, open_in_root, propagation, set_attributes,
};
use corebox_sys::place::{self, Node};
use corebox_sys::process::ns;
use corebox_sys::{Errno, fd};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A root directory being furnished.
#[derive(Debug)]
pub(crate) struct Root {
    /// Its mount.
    pub(crate) fd: OwnedFd,
    /// The container's /proc, as it was mounted: nothing lies over it.
    pub(crate) proc: Option<OwnedFd>,
}

impl Root {
    /// Puts the root directory's mount at its place, so that hooks find it there.
    pub(crate) fn enter(plan: &Plan<'_>, sources: &Sources) -> Result<Self, Stop> {
        if plan.namespaces.has(ns::MOUNT) {
            corebox_sys::mount::propagate_all(plan.root_propagation)?;
        }
        let at = match fd::open_path(&plan.rootfs) {
            // The user namespace may not pass the directories above; any other place will do then.
            Err(e) if e.errno == Errno::EACCES => fd::open_path(Path::new("/tmp"))?,
            other => other?,
        };
        if plan.root_propagation == propagation::SHARED {
            private_parent(&at)?;
        }
        attach(&sources.root, &at, plan.rootfs.display())?;
        Ok(Self { fd: fd::copy_above(sources.root.as_raw_fd(), 3)?, proc: None })
    }

    /// Mounts one of the plan's mounts.
    pub(crate) fn mount(&mut self, index: usize, plan: &Plan<'_>, sources: &Sources) -> Result<(), Stop> {
        let mount = &plan.mounts[index];
        self.one(index, mount, plan, sources).map_err(|stop| stop.about(&format!("`mounts[{index}]`")))
    }

    fn one(&mut self, index: usize, mount: &PlannedMount, plan: &Plan<'_>, sources: &Sources) -> Result<(), Stop> {
        let what = mount.target.display();
        match &mount.what {
            What::Cgroup => super::cgroup_mount::mount(self, mount, plan),
            What::Bind { source, recursive } => {
                let own;
                let (tree, directory) = match &sources.binds[index] {
                    Some(opened) => opened,
                    None => {
                        own = bind(source, *recursive)?;
                        &own
                    }
                };
                let at = self.place(&mount.target, *directory)?;
                set(tree, mount)?;
                sources.map_ids(index, tree, mount.id_map.as_ref())?;
                attach(tree, &at, what)?;
                propagate(tree, mount)
            }
            What::New { kind, source } => {
                let at = self.place(&mount.target, true)?;
                let new = new_file_system(kind, source, mount)?;
                sources.map_ids(index, &new, mount.id_map.as_ref())?;
                if kind == "tmpfs" {
                    let said = mount.data.iter().any(|option| option.starts_with("mode="));
                    // Without a word it looks like what it hides (as runc; docker's --tmpfs relies on it).
                    let mode = place::kind(if said { &new } else { &at })?.mode;
                    if mount.copy_up {
                        copy_up(&at, &new)?;
                    }
                    place::set_mode(&new, mode)?;
                }
                if mount.attributes.0 & attr::RDONLY != 0 {
                    set_attributes(&new, attr::RDONLY, false, &what)?;
                }
                attach(&new, &at, what)?;
                propagate(&new, mount)?;
                if kind == "proc" && self.proc.is_none() {
                    self.proc = Some(new);
                }
                Ok(())
            }
        }
    }

    /// The place of a mount; a missing one is made.
    pub(crate) fn place(&self, target: &Path, directory: bool) -> Result<OwnedFd, Stop> {
        let found =
            if directory { place::make_directories(&self.fd, target) } else { place::make_file(&self.fd, target) };
        Ok(found?)
    }

    /// Makes device nodes, the links that programs expect, and those devices of the plan.
    pub(crate) fn make_devices(&self, plan: &Plan<'_>) -> Result<(), Stop> {
        let bound = plan.namespaces.has(ns::USER);
        if plan.own_dev {
            let dev = place::make_directories(&self.fd, Path::new("/dev"))?;
            for (name, minor, major) in DEFAULT_DEVICES {
                let device = Device {
                    path: Path::new("/dev").join(name),
                    node: Node::Character,
                    number: (major, minor),
                    mode: 0o666,
                    owner: (0, 0),
                };
                self.device(&device, bound)?;
            }
            for (name, to) in LINKS {
                place::make_link(&dev, name, to)?;
            }
        }
        plan.devices.iter().try_for_each(|device| self.device(device, bound))
    }

    fn device(&self, device: &Device, bound: bool) -> Result<(), Stop> {
        let name = device.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let parent = place::make_directories(&self.fd, device.path.parent().unwrap_or(Path::new("/")))?;
        let made = if bound {
            Err(corebox_sys::Error::new("make device", &name, Errno::EPERM))
        } else {
            place::make_node(&parent, &name, device.node, device.number, device.mode, device.owner)
        };
        match made {
            Ok(()) => Ok(()),
            Err(e) if e.errno == Errno::EEXIST => self.same_device(device),
            // In a user namespace: the host's own node is bound.
            Err(e) if e.errno == Errno::EPERM && device.node != Node::Fifo => self.bind_device(device),
            Err(e) => Err(e.into()),
        }
    }

    /// What is there already must be the device that is asked for.
    fn same_device(&self, device: &Device) -> Result<(), Stop> {
        let there = place::kind(open_in_root(&self.fd, &device.path)?)?;
        let same_kind = match device.node {
            Node::Character => there.is_character(),
            Node::Block => there.is_block(),
            Node::Fifo => true,
        };
        if same_kind && (device.node == Node::Fifo || there.device == device.number) {
            return Ok(());
        }
        Err(Stop::new(format!("{} is there already and is another thing", device.path.display())))
    }

    fn bind_device(&self, device: &Device) -> Result<(), Stop> {
        let host = corebox_sys::mount::clone_tree(&device.path, false)?;
        let kind = place::kind(&host)?;
        if kind.device != device.number || kind.is_block() != (device.node == Node::Block) {
            return Err(Stop::new(format!("{} of the host is another device", device.path.display())));
        }
        let at = place::make_file(&self.fd, &device.path)?;
        Ok(attach(host, at, device.path.display())?)
    }

    /// Hides and write-protects paths; those that are not there need neither.
    pub(crate) fn cover(&self, plan: &Plan<'_>, sources: &Sources) -> Result<(), Stop> {
        let Some(linux) = plan.spec.linux() else { return Ok(()) };
        let mut empty: Option<OwnedFd> = None;
        for path in linux.masked_paths().iter().flatten() {
            let Some(place) = self.find(Path::new(path))? else { continue };
            if place::kind(&place)?.is_directory() {
                let cover = match &empty {
                    None => empty_directory()?,
                    Some(attached) => clone_fd(attached.as_fd(), path)?,
                };
                attach(&cover, place, path)?;
                empty.get_or_insert(cover);
            } else if let Some(null) = &sources.null {
                attach(clone_attached(null, path)?, place, path)?;
            }
        }
        for path in linux.readonly_paths().iter().flatten() {
            let Some(place) = self.find(Path::new(path))? else { continue };
            let same = clone_fd_recursive(place.as_fd(), path)?;
            set_attributes(&same, attr::RDONLY, false, path)?;
            attach(same, place, path)?;
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> Result<Option<OwnedFd>, Stop> {
        match open_in_root(&self.fd, path) {
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(None),
            other => Ok(Some(other?)),
        }
    }
}

/// Name, minor and major number (runtime-spec config-linux.md, "Default Devices").
const DEFAULT_DEVICES: [(&str, u64, u64); 6] =
    [("null", 3, 1), ("zero", 5, 1), ("full", 7, 1), ("random", 8, 1), ("urandom", 9, 1), ("tty", 0, 5)];
/// As the specification's "Dev symbolic links" (runtime-linux.md).
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// The device that hides a file is needed several times, and before kernel 6.15 only an attached mount can be copied.
fn clone_attached(null: &OwnedFd, path: &str) -> Result<OwnedFd, Stop> {
    match clone_fd(null.as_fd(), path) {
        Err(e) if e.errno == Errno::EINVAL => Ok(corebox_sys::mount::clone_tree(Path::new("/dev/null"), false)?),
        other => Ok(other?),
    }
}

fn empty_directory() -> Result<OwnedFd, Stop> {
    let context = FsContext::open("tmpfs")?;
    context.set("size", "0")?.set("nr_inodes", "1")?.set("mode", "0555")?;
    Ok(context.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)?)
}

/// A new file system; mounts that a user namespace may not make are taken from the host where that is the same.
fn new_file_system(kind: &str, source: &str, mount: &PlannedMount) -> Result<OwnedFd, Stop> {
    let context = FsContext::open(kind.to_owned()).map_err(|error| {
        let unknown = error.errno == Errno::ENODEV;
        let stop = Stop::from(error);
        if unknown {
            stop.hint(format!("this kernel has no file system `{kind}`: see /proc/filesystems."))
        } else {
            stop
        }
    })?;
    context.set("source", source)?;
    for option in &mount.data {
        match option.split_once('=') {
            Some((key, value)) => context.set(key, value)?,
            None => context.flag(option)?,
        };
    }
    // Read-only comes later: `tmpcopyup` still writes.
    let attributes = (mount.attributes.0 | mount.recursive.0) & !attr::RDONLY;
    match context.mount(attributes) {
        // The kernel makes a new sysfs only for who owns the network namespace: show the present one.
        Err(e) if e.errno == Errno::EPERM && kind == "sysfs" => {
            let host = corebox_sys::mount::clone_tree(Path::new("/sys"), true)?;
            set_attributes(&host, attributes | attr::RDONLY, true, "/sys")?;
            Ok(host)
        }
        Err(e) if e.errno == Errno::EPERM && kind == "mqueue" => {
            let host = corebox_sys::mount::clone_tree(Path::new("/dev/mqueue"), true)?;
            set_attributes(&host, attributes, true, "/dev/mqueue")?;
            Ok(host)
        }
        other => Ok(other?),
    }
}

/// Attributes of a bind, before it is attached.
fn set(tree: &OwnedFd, mount: &PlannedMount) -> Result<(), Stop> {
    let what = mount.target.display();
    for ((set, clear), recursive) in [(mount.attributes, false), (mount.recursive, true)] {
        if set != 0 {
            set_attributes(tree, set, recursive, &what)?;
        }
        if clear != 0 {
            match change(tree, &Change { clear, ..Change::default() }, recursive, &what) {
                // Locked by the user namespace that it comes from: it stays.
                Err(e) if e.errno == Errno::EPERM && !recursive => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn propagate(tree: &OwnedFd, mount: &PlannedMount) -> Result<(), Stop> {
    for (how, recursive) in &mount.propagation {
        change(tree, &Change { propagation: *how, ..Change::default() }, *recursive, mount.target.display())?;
    }
    Ok(())
}

/// Copies what a tmpfs is going to hide into it (`tmpcopyup`).
fn copy_up(hidden: &OwnedFd, tmpfs: &OwnedFd) -> Result<(), Stop> {
    let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}/.", fd.as_raw_fd()));
    // The program names them by their numbers.
    let shared = |on: bool| [hidden, tmpfs].into_iter().try_for_each(|fd| fd::set_cloexec(fd, on));
    shared(false)?;
    // GNU or busybox: both keep modes, owners, times and links with -a.
    let copied = std::process::Command::new("cp").arg("-a").args([path(hidden), path(tmpfs)]).output();
    shared(true)?;
    match copied {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Stop::new(format!("`tmpcopyup`: {}", String::from_utf8_lossy(&output.stderr).trim()))),
        Err(e) => Err(Stop::new(format!("`tmpcopyup`: cannot run cp: {e}"))),
    }
}

/// pivot_root(2) wants the mount above the new root not to be shared.
fn private_parent(at: &OwnedFd) -> Result<(), Stop> {
    // Only the root of a mount can be changed; a place inside one is made the root of its own first.
    let same = clone_fd_recursive(at.as_fd(), "the root directory")?;
    attach(&same, at, "the root directory")?;
    Ok(change(&same, &Change { propagation: propagation::PRIVATE, ..Change::default() }, false, "the root directory")?)
}
