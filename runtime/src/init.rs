//! The child's side: from a fresh process in new namespaces to process 1 of the container.

use crate::message::{Order, Orders, Report, report, shortened};
use crate::mounts::{self, Sources};
use crate::plan::ContainerPlan;
use crate::reaper::Reaper;
use crate::rootfs::{self, OpenImage, Staging};
use crate::seccomp::Program;
use crate::step::{Steps, Stop};
use corebox_images::fuse::FuseServer;
use corebox_spec::{FabricPolicy, Failure, NetMode, exit};
use corebox_sys::control::Socket;
use corebox_sys::process::{self, SingleThreaded, ns};
use corebox_sys::signal::{self, Signals};
use corebox_sys::{affinity, fd, mount, user};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

/// Everything the child got from its parent by being forked.
#[derive(Debug)]
pub(crate) struct Inherited<'a> {
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) socket: Socket,
    pub(crate) image: OpenImage,
    /// What each process of the container installs before it executes its program.
    pub(crate) filters: Vec<Program>,
    pub(crate) keep_fds: &'a [RawFd],
    /// Signals that were ignored when corebox started.
    pub(crate) ignored: Vec<i32>,
}

/// Builds the container around this process and serves as its init. Never returns.
pub(crate) fn run(inherited: Inherited<'_>) -> ! {
    let plan = inherited.plan;
    let mut steps = Steps::new(&plan.name);
    let Inherited { socket, image, filters, keep_fds, ignored, .. } = inherited;
    let mut orders = Orders::default();
    match build(plan, &mut steps, &socket, &mut orders, image, keep_fds) {
        Ok(Some((server, signals, single))) => {
            report(&socket, &Report::Ready { steps: steps.times });
            let container = plan.name.clone();
            Reaper { container, socket, orders, signals, server, single, filters, ignored, running: BTreeMap::new() }
                .serve()
        }
        Ok(None) => process::exit_now(exit::COREBOX),
        Err(failure) => {
            report(&socket, &Report::Failed(shortened(failure)));
            process::exit_now(exit::COREBOX)
        }
    }
}

type Built = (Option<FuseServer>, Signals, SingleThreaded);

/// The steps, in order. `None`: the parent is gone.
fn build(
    plan: &ContainerPlan,
    steps: &mut Steps<'_>,
    socket: &Socket,
    orders: &mut Orders,
    image: OpenImage,
    keep_fds: &[RawFd],
) -> Result<Option<Built>, Failure> {
    steps.run("descriptors", "closing what the container must not inherit", || close_rest(socket, &image, keep_fds))?;
    let go = steps.run("go", "waiting for the parent", || Ok(orders.wait(socket)?))?;
    if go != Some(Order::Go) {
        return Ok(None);
    }
    let (signals, single) = steps.run("process", "becoming process 1", || become_first(plan))?;
    steps.run("namespaces", "setting up the namespaces", || set_up_namespaces(plan))?;
    let sources = steps.run("sources", "opening what is bound from the host", || Sources::open(plan))?;
    let staging = steps.run("staging", "making a place for the root directory", || Staging::create(plan))?;
    let server = steps.run("image", "mounting the image", || staging.mount_image(plan, image, &single))?;
    let root = steps.run("rootfs", "laying out the root directory", || {
        let missing = rootfs::missing(&staging.image, &plan.mounts, &sources)?;
        staging.root(plan, &missing)
    })?;
    steps.run("mounts", "mounting into the root directory", || mounts::attach_all(plan, &sources, &staging, &root))?;
    drop(sources);
    steps.run("pivot", "entering the root directory", || Ok(mount::pivot_root(&root)?))?;
    drop(root);
    steps.run("ids", "taking the caller's ids", || take_ids(plan))?;
    steps.run("privileges", "dropping privileges", drop_privileges)?;
    steps.run("fabric", "looking whether RDMA works inside", || fabric(plan))?;
    Ok(Some((server, signals, single)))
}

/// Only stdio, what the caller named, the socket and the image are left; none of the latter three passes an exec.
fn close_rest(socket: &Socket, image: &OpenImage, keep_fds: &[RawFd]) -> Result<(), Stop> {
    let (OpenImage::Mounted(image) | OpenImage::File(image)) = image;
    let mut keep = vec![0, 1, 2, socket.as_fd().as_raw_fd(), image.as_raw_fd()];
    keep.extend(keep_fds);
    fd::close_all_but(&keep)?;
    for kept in keep_fds {
        fd::set_cloexec(fd::borrow(*kept)?, true)?;
    }
    Ok(())
}

fn become_first(plan: &ContainerPlan) -> Result<(Signals, SingleThreaded), Stop> {
    // Processes of the container must not look into this one: it maps the host's binary (the class of CVE-2019-5736).
    process::set_dumpable(false)?;
    process::set_name("corebox-init")?;
    if let Some(cpus) = &plan.cpus {
        affinity::set_cpus(&cpus.iter().collect::<Vec<u32>>())?;
    }
    Ok((Signals::block_all()?, SingleThreaded::check()?))
}

fn set_up_namespaces(plan: &ContainerPlan) -> Result<(), Stop> {
    // Only now, when the parent has put us into our cgroup: it becomes the root of what we see.
    process::unshare(ns::CGROUP)?;
    process::set_hostname(&plan.hostname)?;
    if plan.net == NetMode::None {
        corebox_net::loopback_up()?;
    }
    mount::make_private()?;
    Ok(())
}

/// In a nested plan: a second user namespace that maps the caller's ids to themselves again. It owns nothing; the
/// image's server stays outside of it.
fn take_ids(plan: &ContainerPlan) -> Result<(), Stop> {
    if !plan.user.nested {
        return Ok(());
    }
    // /proc/self must be ours to write: a process that is not dumpable belongs to root there.
    process::set_dumpable(true)?;
    let (uid, gid) = (plan.user.uid, plan.user.gid);
    process::unshare(ns::USER)?;
    // The /proc of the container, which an image or a bind of the user may have built upon.
    mount::write_proc("self/uid_map", &format!("{uid} 0 1"))?;
    mount::write_proc("self/gid_map", &format!("{gid} 0 1"))?;
    Ok(process::set_dumpable(false)?)
}

fn drop_privileges() -> Result<(), Stop> {
    user::drop_capabilities()?;
    process::no_new_privileges()?;
    Ok(())
}

/// Tries each piece of RDMA as the container's programs will: now, when nothing of root's rights is left.
fn fabric(plan: &ContainerPlan) -> Result<(), Stop> {
    let Some(check) = &plan.fabric else { return Ok(()) };
    let found = corebox_rdma::verify::inside(check, Path::new("/"));
    let Some(first) = found.first() else { return Ok(()) };
    match check.policy {
        FabricPolicy::Require => {
            let causes: Vec<&str> = found.iter().map(|finding| finding.cause.as_str()).collect();
            Err(Stop::new(causes.join("; ")).hint(format!("{} `--fabric prefer` starts without.", first.cure)))
        }
        FabricPolicy::Prefer => {
            for finding in &found {
                eprintln!("corebox: RDMA does not work in `{}`: {}; {}", plan.name, finding.cause, finding.cure);
            }
            Ok(())
        }
        FabricPolicy::Any => Ok(()),
    }
}

/// Signals whose being ignored is inherited on purpose: nohup(1), and background jobs of shells without job control.
pub(crate) fn ignored_signals() -> Vec<i32> {
    signal::ignored(&[signal::SIGHUP, signal::SIGINT, signal::SIGQUIT])
}
