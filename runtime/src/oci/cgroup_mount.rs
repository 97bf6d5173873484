//! Mounts of type `cgroup`: what the container sees of its own cgroups.

use crate::oci::cgroup::Group;
use crate::oci::plan::Plan;
use crate::oci::plan::mounts::PlannedMount;
use crate::oci::rootfs::Root;
use crate::step::Stop;
use corebox_sys::mount::{FsContext, attach, attr, clone_tree, set_attributes};
use corebox_sys::process::ns;
use corebox_sys::{Errno, place};
use std::os::fd::OwnedFd;

/// Mounts them: version 2 as one file system, version 1 as a tmpfs with one directory for each hierarchy.
pub(crate) fn mount(root: &Root, mount: &PlannedMount, plan: &Plan<'_>) -> Result<(), Stop> {
    let attributes = mount.attributes.0;
    let own_namespace = plan.namespaces.has(ns::CGROUP);
    let at = root.place(&mount.target, true)?;
    let groups = &plan.groups;
    if groups.unified {
        let Some(group) = groups.directories.first() else { return Ok(()) };
        return Ok(attach(unified(group, attributes, own_namespace)?, at, mount.target.display())?);
    }
    let context = FsContext::open("tmpfs")?;
    context.set("mode", "0755")?;
    let directory = context.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    attach(&directory, at, mount.target.display())?;
    for group in &groups.directories {
        one(&directory, group, attributes, own_namespace)?;
    }
    if attributes & attr::RDONLY != 0 {
        set_attributes(&directory, attr::RDONLY, false, mount.target.display())?;
    }
    Ok(())
}

fn unified(group: &Group, attributes: u64, own_namespace: bool) -> Result<OwnedFd, Stop> {
    if own_namespace {
        match FsContext::open("cgroup2")?.mount(attributes) {
            // A user namespace around: the host's, from our cgroup on.
            Err(e) if e.errno == Errno::EPERM || e.errno == Errno::EBUSY => {}
            other => return Ok(other?),
        }
    }
    let own = clone_tree(&group.path, false)?;
    set_attributes(&own, attributes, false, group.path.display())?;
    Ok(own)
}

fn one(directory: &OwnedFd, group: &Group, attributes: u64, own_namespace: bool) -> Result<(), Stop> {
    let Some(name) = group.mount.file_name().map(|name| name.to_string_lossy().into_owned()) else { return Ok(()) };
    let at = place::make_directories(directory, std::path::Path::new(&name))?;
    let made = if own_namespace { new(group, attributes) } else { Err(Errno::EPERM) };
    let tree = match made {
        Ok(tree) => tree,
        // As in a user namespace that does not own the hierarchy: the directory itself. Missing: it was not made for us.
        Err(_) => match clone_tree(&group.path, false) {
            Err(e) if e.errno == Errno::ENOENT => return Ok(()),
            other => {
                let tree = other?;
                set_attributes(&tree, attributes, false, group.path.display())?;
                tree
            }
        },
    };
    attach(tree, at, &name)?;
    // `cpu` for `cpu,cpuacct`, as every program looks for it.
    for controller in group.controllers.iter().filter(|c| **c != name && !c.contains('=')) {
        place::make_link(directory, controller, &name)?;
    }
    Ok(())
}

fn new(group: &Group, attributes: u64) -> Result<OwnedFd, Errno> {
    let context = FsContext::open("cgroup").map_err(|e| e.errno)?;
    for controller in &group.controllers {
        match controller.strip_prefix("name=") {
            Some(name) => context.flag("none").and_then(|c| c.set("name", name)),
            None => context.flag(controller),
        }
        .map_err(|e| e.errno)?;
    }
    context.mount(attributes).map_err(|e| e.errno)
}
