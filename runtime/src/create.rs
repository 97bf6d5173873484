//! The parent's side: the ordered steps that make a container, up to its "go".

use crate::cgroup::Cgroups;
use crate::facts::IdRange;
use crate::init::{self, Inherited};
use crate::message::{self, Order};
use crate::plan::{ContainerPlan, PlannedKind, RootMethod};
use crate::rootfs::OpenImage;
use crate::seccomp;
use crate::step::{Steps, Stop};
use crate::sweeper::Sweeper;
use corebox_spec::{Failure, NetMode};
use corebox_sys::control::{self, Socket};
use corebox_sys::process::{self, Forked, SingleThreaded, ns};
use corebox_sys::signal::SIGKILL;
use corebox_sys::{Errno, fd, fs};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// What the parent holds of a container whose init is on its way.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) cgroups: Cgroups,
    pub(crate) sweeper: Option<Sweeper>,
    pub(crate) network: corebox_net::Attached,
    pub(crate) times: Vec<(String, u64)>,
}

/// The steps, in order. When one fails, init is killed and nothing is left.
pub(crate) fn create(plan: &ContainerPlan, keep_fds: &[RawFd]) -> Result<(Created, Socket), Failure> {
    let mut steps = Steps::new(&plan.name);
    let single = steps.run("check", "checking this process", || check(keep_fds))?;
    let image = steps.run("image", "opening the image", || open_image(plan))?;
    let filters = steps.run("filters", "preparing the system call filter", || Ok(seccomp::programs(&plan.seccomp)?))?;
    let cgroups = steps.run("cgroup", "naming the cgroups", || Ok(Cgroups::name(&plan.cgroups, &plan.name)?))?;
    let (ours, theirs) = steps.run("socket", "connecting to the container", || Ok(control::pair()?))?;
    let forked = steps.run("clone", "creating the namespaces", || clone(plan, &single))?;
    let Forked::Parent((pid, pidfd)) = forked else {
        drop(ours);
        let plan = &with_own_cgroups(plan, &cgroups);
        init::run(Inherited { plan, socket: theirs, image, filters, keep_fds, ignored: init::ignored_signals() })
    };
    drop((theirs, image));
    let mut created = Created { pid, pidfd, cgroups, sweeper: None, network: Default::default(), times: Vec::new() };
    match release(plan, &single, &ours, &mut steps, &mut created) {
        Ok(()) => {
            created.times = steps.times;
            Ok((created, ours))
        }
        Err(failure) => {
            created.destroy(&plan.cleanup_paths);
            Err(failure)
        }
    }
}

/// What only the parent may do for the child, and then its "go".
fn release(
    plan: &ContainerPlan,
    single: &SingleThreaded,
    socket: &Socket,
    steps: &mut Steps<'_>,
    created: &mut Created,
) -> Result<(), Failure> {
    let pid = created.pid;
    steps.run("ids", "mapping user and group ids", || map_ids(plan, pid))?;
    steps.run("limits", "setting resource limits", || set_limits(plan, pid))?;
    steps.run("sweeper", "starting the sweeper", || start_sweeper(plan, single, created))?;
    steps.run("cgroup", "creating the cgroup", || created.cgroups.create(&plan.cgroups, pid))?;
    steps.run("network", "connecting the network", || {
        created.network = corebox_net::attach(&plan.network, &plan.name, pid)?;
        Ok(())
    })?;
    steps.run("go", "releasing the container", || {
        for part in message::parts(&Order::Go)? {
            socket.send(&part, true)?;
        }
        Ok(())
    })
}

impl Created {
    /// Kills init, which takes every process and mount of the container with it, and removes what the host has of it.
    /// Returns how init ended, the first time.
    pub(crate) fn destroy(&mut self, cleanup_paths: &[PathBuf]) -> Option<i32> {
        // Gone already is what is wanted.
        let _ = process::signal_pidfd(&self.pidfd, SIGKILL);
        let status = process::wait_pidfd(self.pidfd.as_fd()).ok();
        self.network.detach();
        self.cgroups.remove();
        crate::sweeper::remove_paths(cleanup_paths);
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.dismiss();
        }
        status
    }
}

fn check(keep_fds: &[RawFd]) -> Result<SingleThreaded, Stop> {
    for fd in keep_fds {
        fd::borrow(*fd)?;
    }
    Ok(SingleThreaded::check()?)
}

/// Opened with the caller's rights, before anything changes them.
fn open_image(plan: &ContainerPlan) -> Result<OpenImage, Stop> {
    let file = fd::open_read(&plan.image)?;
    match plan.method {
        RootMethod::Fuse { .. } | RootMethod::Unpack => Ok(OpenImage::File(file)),
        RootMethod::Kernel => {
            corebox_images::mount::detached(&file, plan.format).map(OpenImage::Mounted).map_err(|e| {
                let hint = match e.errno {
                    Errno::ENODEV => {
                        Some(format!("your administrator loads the kernel module `{}`; ", plan.format.name()))
                    }
                    Errno::ENOENT | Errno::ENXIO => {
                        Some("there are no loop devices here (`modprobe loop`); ".to_owned())
                    }
                    _ => None,
                };
                match hint {
                    Some(hint) => Stop::from(e).hint(format!("{hint}`--rootfs fuse` needs neither.")),
                    None => e.into(),
                }
            })
        }
    }
}

fn clone(plan: &ContainerPlan, single: &SingleThreaded) -> Result<Forked<(i32, OwnedFd)>, Stop> {
    let net = if plan.net == NetMode::None { ns::NET } else { 0 };
    let flags = ns::USER | ns::MOUNT | ns::PID | ns::IPC | ns::UTS | net;
    let visit = corebox_net::visit(&plan.network)?;
    let forked = single.clone_into(flags);
    if !matches!(forked, Ok(Forked::Child)) {
        visit.leave()?;
    }
    forked.map_err(|e| {
        let errno = e.errno;
        let stop = Stop::from(e);
        match errno {
            Errno::EPERM | Errno::EACCES => stop.hint(
                "your administrator can allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 (Debian), \
                 kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), and a container around us must permit them.",
            ),
            Errno::ENOSPC => {
                stop.hint("your administrator raises sysctl user.max_user_namespaces (and max_mnt_namespaces, …).")
            }
            _ => stop,
        }
    })
}

/// The plan binds our present cgroup to where the container looks for its own; with limits, its own is a new one.
fn with_own_cgroups(plan: &ContainerPlan, cgroups: &Cgroups) -> ContainerPlan {
    let mut plan = plan.clone();
    for (limited, directory) in plan.cgroups.iter().zip(&cgroups.directories) {
        let parent = limited.parent.display().to_string();
        for mount in plan.mounts.iter_mut().filter(|m| m.origin.0 == crate::plan::CGROUP_ORIGIN) {
            if let PlannedKind::Bind { source } = &mut mount.kind
                && *source == parent
            {
                *source = directory.display().to_string();
            }
        }
    }
    plan
}

/// Writes the maps for the child (user_namespaces(7)). For who maps a single group, setgroups must be denied first.
fn map_ids(plan: &ContainerPlan, pid: i32) -> Result<(), Stop> {
    let text = |ranges: &[IdRange]| -> String {
        ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect()
    };
    if plan.user.deny_setgroups {
        fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    }
    fs::write(format!("/proc/{pid}/uid_map"), text(&plan.user.uid_map))?;
    fs::write(format!("/proc/{pid}/gid_map"), text(&plan.user.gid_map))?;
    Ok(())
}

/// From outside, as raising a hard limit needs a capability of the initial user namespace.
fn set_limits(plan: &ContainerPlan, pid: i32) -> Result<(), Stop> {
    for limit in &plan.rlimits {
        process::set_limit(pid, limit.resource, limit.soft, limit.hard)?;
    }
    Ok(())
}

fn start_sweeper(plan: &ContainerPlan, single: &SingleThreaded, created: &mut Created) -> Result<(), Stop> {
    let guard = corebox_net::Guard::new(&plan.network, created.pid)?;
    if created.cgroups.directories.is_empty() && plan.cleanup_paths.is_empty() && guard.is_none() {
        return Ok(());
    }
    let directories = &created.cgroups.directories;
    created.sweeper = Some(Sweeper::start(single, &created.pidfd, directories, &plan.cleanup_paths, guard)?);
    Ok(())
}
