//! `update` and `events`: limits of a container that runs, and what it uses.

use crate::oci::cgroup::{self, Facts};
use crate::oci::config;
use crate::oci::state::{StateDirectory, Status};
use crate::step::Stop;
use corebox_spec::Failure;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};
use std::path::Path;

/// Changes the limits of a container to those in `resources`, which is JSON of `linux.resources`.
///
/// # Errors
/// A container that does not run; limits that this host does not have, or that are too small for what is used.
pub fn update(root: &Path, id: &str, resources: &[u8]) -> Result<(), Failure> {
    let update = || -> Result<(), Stop> {
        let (directory, record) = StateDirectory::open(root, id)?;
        if directory.status(&record) == Status::Stopped {
            return Err(Stop::new("it is stopped: container not running"));
        }
        let resources: LinuxResources = config::parse(resources, "the resources")?;
        let mut settings = cgroup::settings(Some(&resources), &record.groups, &Facts::find()?)?;
        cgroup::order_for_update(&record.groups, &mut settings);
        cgroup::write_settings(&record.groups, &settings)
    };
    update().map_err(|stop| stop.into_failure(format!("cannot update container `{id}`")))
}

/// What a container uses, as one event of the kind `stats`.
///
/// # Errors
/// A container that does not run.
pub fn stats(root: &Path, id: &str) -> Result<Value, Failure> {
    let look = || -> Result<Value, Stop> {
        let (directory, record) = StateDirectory::open(root, id)?;
        if directory.status(&record) == Status::Stopped {
            return Err(Stop::new("it is stopped: container not running"));
        }
        Ok(json!({"type": "stats", "id": id, "data": cgroup::numbers(&record.groups)}))
    };
    look().map_err(|stop| stop.into_failure(format!("cannot look at container `{id}`")))
}
