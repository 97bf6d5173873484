//! The cgroups of an OCI container: where they are ([`Groups`]), what is written into them ([`Settings`]), their life.
//!
//! Version 1 and hybrid: one directory in each version 1 hierarchy. Version 2 (cgroup2 on /sys/fs/cgroup): one directory.

mod devices;
mod life;
mod numbers;
mod settings;

pub(crate) use life::{
    attach, create, is_frozen, kill_all, members, order_for_update, remove, set_frozen, write_settings,
};
pub(crate) use numbers::numbers;
pub(crate) use settings::{Settings, settings};

use crate::cgroup::{Hierarchy, hierarchies};
use crate::step::Stop;
use corebox_sys::{Result, fd, place, user};
use serde::{Deserialize, Serialize};
use std::path::{Component, Path, PathBuf};

/// Where cgroup file systems are by convention (file-hierarchy(7), runtime-spec config-linux.md).
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// What this host has.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) hierarchies: Vec<Hierarchy>,
    /// Version 2 alone.
    pub(crate) unified: bool,
    /// We are not root of the host: a cgroup that nobody delegated to us is no error unless a limit needs it.
    pub(crate) unprivileged: bool,
}

impl Facts {
    /// Looks.
    pub(crate) fn find() -> Result<Self> {
        let mut hierarchies = hierarchies()?;
        let unified =
            fd::open_path(Path::new(ROOT)).and_then(place::file_system).is_ok_and(|m| m == place::magic::CGROUP2);
        hierarchies.retain(|h| h.unified == unified && h.mount.starts_with(ROOT));
        let unprivileged = user::ids().0 != 0 || !crate::facts::in_initial_user_namespace()?;
        Ok(Self { hierarchies, unified, unprivileged })
    }
}

/// The directories of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Groups {
    pub(crate) unified: bool,
    /// One in each hierarchy.
    pub(crate) directories: Vec<Group>,
    /// Failures to make or enter one are no failure unless a limit needs it.
    pub(crate) lenient: bool,
}

/// One directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// The hierarchy's mount point.
    pub(crate) mount: PathBuf,
    /// Its controllers; of version 2, none.
    pub(crate) controllers: Vec<String>,
    pub(crate) path: PathBuf,
    /// The first directory that had to be made for it: up to there empty ones go with the container.
    pub(crate) made_from: Option<PathBuf>,
}

impl Groups {
    /// Decides where they are: `linux.cgroupsPath`, from the hierarchy's root if it is absolute, else from our own
    /// cgroup; without one, the container's id.
    pub(crate) fn plan(
        asked: Option<&Path>,
        id: &str,
        systemd: bool,
        facts: &Facts,
    ) -> std::result::Result<Self, Stop> {
        if systemd {
            return Err(Stop::new("`--systemd-cgroup`: systemd does not run here, or corebox cannot talk to it")
                .hint("without it, corebox makes the cgroups itself (podman: --cgroup-manager cgroupfs)."));
        }
        let asked = asked.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(id));
        if asked.components().any(|part| part == Component::ParentDir) {
            return Err(Stop::new(format!("`linux.cgroupsPath` {} leads out with `..`", asked.display())));
        }
        let directory = |h: &Hierarchy| Group {
            mount: h.mount.clone(),
            controllers: if h.unified { Vec::new() } else { h.controllers.clone() },
            path: match asked.strip_prefix("/") {
                Ok(from_root) => h.mount.join(from_root),
                Err(_) => h.own.join(asked),
            },
            made_from: None,
        };
        let directories = facts.hierarchies.iter().map(directory).collect();
        Ok(Self { unified: facts.unified, directories, lenient: facts.unprivileged })
    }

    /// Those that `exec --cgroup` names: `PATH` below each of them, or `CONTROLLER[,CONTROLLER...]:PATH` below that of
    /// these controllers (version 1), the others as they are. They must be there.
    ///
    /// # Errors
    /// A path that leads out or is not there, an unknown controller, one named twice.
    pub(crate) fn below(&self, asked: &[String]) -> std::result::Result<Self, Stop> {
        let mut below = self.clone();
        let mut taken = vec![false; self.directories.len()];
        for text in asked {
            let refuse = |why: String| Stop::new(format!("`--cgroup {text}`: {why}"));
            let (controllers, path) = match text.split_once(':') {
                Some((controllers, path)) => (controllers.split(',').collect(), path),
                None => (Vec::new(), text.as_str()),
            };
            if controllers.is_empty() && asked.len() > 1 {
                return Err(refuse("a path without controllers is for all of them, so it must be the only one".into()));
            }
            if !controllers.is_empty() && self.unified {
                return Err(refuse("cgroup version 2 has one path for all controllers".into()));
            }
            let inside = Path::new(path.trim_start_matches('/'));
            if inside.components().any(|part| part == Component::ParentDir) {
                return Err(refuse("it leads out with `..`".into()));
            }
            let mut indexes: Vec<usize> = (0..self.directories.len()).filter(|_| controllers.is_empty()).collect();
            for controller in controllers {
                let index =
                    self.with(controller).ok_or_else(|| refuse(format!("no controller `{controller}` here")))?;
                if taken[index] {
                    return Err(refuse(format!("`{controller}`, or one of the same hierarchy, is named twice")));
                }
                taken[index] = true;
                indexes.push(index);
            }
            for index in indexes {
                let group = &mut below.directories[index];
                if !group.exists() {
                    continue;
                }
                group.path.push(inside);
                if !group.path.is_dir() {
                    return Err(refuse(format!("{} is not there", group.path.display()))
                        .hint("make it first: from inside the container, or with mkdir."));
                }
            }
        }
        Ok(below)
    }

    /// The directory with this controller: its index.
    pub(crate) fn with(&self, controller: &str) -> Option<usize> {
        if self.unified {
            return self.directories.first().is_some_and(Group::exists).then_some(0);
        }
        self.directories.iter().position(|group| group.exists() && group.controllers.iter().any(|c| c == controller))
    }

    /// The directory to look for members in.
    pub(crate) fn any(&self) -> Option<&Group> {
        let index = self.with("freezer").or_else(|| self.with("pids"));
        index.map_or_else(|| self.directories.iter().find(|g| g.exists()), |index| self.directories.get(index))
    }
}

impl Group {
    /// It could be made, or nobody tried yet.
    fn exists(&self) -> bool {
        !self.path.as_os_str().is_empty()
    }
}
