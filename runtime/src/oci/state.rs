//! What is kept of a container between two commands: one directory below the state root, on a tmpfs.
//!
//! Crash-only: `state.json` names the boot and the process (pid and start time), so what a crash or a reboot left is
//! seen to be stale, and `delete` needs nothing but this file.

use crate::oci::cgroup::Groups;
use crate::oci::config::{self, Config};
use crate::step::Stop;
use corebox_sys::process::exists_since;
use corebox_sys::{Errno, Error, control, fd, fs};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The version of runtime-spec that corebox speaks.
pub const OCI_VERSION: &str = "1.2.1";
/// The socket on which init waits for `start`. It is gone once the program runs.
pub(crate) const START: &str = "start";
const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
/// Longest id.
const LONGEST_ID: usize = 1024;

/// Where states are: `--root`, else /run/corebox-oci, for an ordinary user `$XDG_RUNTIME_DIR/corebox-oci`.
pub fn default_root() -> PathBuf {
    // Root of a user namespace only, as podman's for an ordinary user, owns nothing in /run.
    let root = corebox_sys::user::ids().0 == 0 && crate::facts::in_initial_user_namespace().unwrap_or(true);
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !root);
    own.map_or_else(|| PathBuf::from("/run"), PathBuf::from).join("corebox-oci")
}

/// A process that is told apart from a later one with the same pid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub(crate) since: u64,
}

impl ProcessId {
    pub(crate) fn of(pid: i32) -> corebox_sys::Result<Self> {
        Ok(Self { pid, since: corebox_sys::process::start_time(pid)? })
    }
    /// Whether it exists, and is no zombie.
    pub(crate) fn lives(self) -> bool {
        self.pid > 0 && exists_since(self.pid, self.since)
    }
}

/// `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) boot: String,
    /// Who makes it; as long as there is no `init`, its life decides whether the container is on its way.
    pub(crate) maker: ProcessId,
    pub(crate) init: Option<ProcessId>,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// RFC 3339.
    pub(crate) created: String,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) groups: Groups,
    /// Without a mount namespace of its own its mounts are the host's, below the root directory.
    pub(crate) host_mounts: bool,
}

/// As runtime-spec runtime.md, "State".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its maker is at work.
    Creating,
    /// It waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Its program is stopped by the freezer (runc's word; the specification has none).
    Paused,
    /// It ended, or its maker did.
    Stopped,
}

/// The directory of one container.
#[derive(Debug)]
pub(crate) struct StateDirectory {
    pub(crate) path: PathBuf,
    /// For the socket's address.
    pub(crate) fd: OwnedFd,
}

/// Refuses an id that is no file name.
pub(crate) fn check_id(id: &str) -> Result<(), Stop> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    let valid = !id.is_empty() && id.len() <= LONGEST_ID && id != "." && id != ".." && id.chars().all(allowed);
    if valid {
        return Ok(());
    }
    Err(Stop::new(format!("`{id}` is no container id: letters, digits and `_+-.`")))
}

impl StateDirectory {
    /// Makes it. One whose maker was killed, or that is from before the last boot, is removed first.
    pub(crate) fn make(root: &Path, id: &str) -> Result<Self, Stop> {
        check_id(id)?;
        let path = root.join(id);
        if !root.is_dir() {
            make_root(root)?;
        }
        loop {
            match std::fs::create_dir(&path) {
                Ok(()) => break,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => match Record::read(&path) {
                    Ok(record) if !record.is_abandoned() => {
                        return Err(Stop::new(format!("container `{id}` exists already")).hint(format!(
                            "`corebox oci delete {id}` removes it; `state` and `list` show what it is."
                        )));
                    }
                    Ok(record) => remove(&path, &record.groups),
                    // Killed before it wrote anything: nothing else was made.
                    Err(_) => remove(&path, &Groups::default()),
                },
                Err(e) => return Err(Error::io("make", path.display(), &e).into()),
            }
        }
        Ok(Self { fd: fd::open_path(&path)?, path })
    }

    /// Opens that of a container that is there.
    pub(crate) fn open(root: &Path, id: &str) -> Result<(Self, Record), Stop> {
        check_id(id)?;
        let path = root.join(id);
        let fd = fd::open_path(&path).map_err(|error| missing(error, id, root))?;
        let record = Record::read(&path).map_err(|error| missing(error, id, root))?;
        Ok((Self { path, fd }, record))
    }

    /// Keeps the configuration as it was.
    pub(crate) fn keep(&self, config: &Config) -> Result<(), Stop> {
        Ok(fs::write(self.path.join(CONFIG), &config.text)?)
    }

    /// The configuration as it was.
    pub(crate) fn kept(&self) -> Result<Spec, Stop> {
        config::parse(&fs::read(self.path.join(CONFIG))?, "the kept config.json")
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Stop> {
        let text = serde_json::to_vec(record).map_err(Stop::new)?;
        let new = self.path.join(".state");
        fs::write(&new, text)?;
        Ok(fs::rename(&new, self.path.join(STATE))?)
    }

    /// A socket for `start` to find.
    pub(crate) fn listen(&self) -> Result<OwnedFd, Stop> {
        Ok(control::listen(&self.fd, START)?)
    }

    /// Removes it, the cgroups, and mounts that are the host's.
    pub(crate) fn remove(&self, groups: &Groups, record: &Record) {
        if record.host_mounts {
            // One for the root directory, with all below.
            let _ = corebox_sys::mount::detach(&record.rootfs);
        }
        remove(&self.path, groups);
    }

    /// What the container is doing.
    pub(crate) fn status(&self, record: &Record) -> Status {
        let Some(init) = record.init.filter(|_| record.boot == boot()) else {
            return if record.is_abandoned() { Status::Stopped } else { Status::Creating };
        };
        if !init.lives() {
            return Status::Stopped;
        }
        // Between the program's exec and the removal of the socket, `start` may have been killed.
        let waits = self.path.join(START).exists() && corebox_sys::process::name_of(init.pid).as_deref() == Some(INIT);
        if waits {
            Status::Created
        } else if crate::oci::cgroup::is_frozen(&record.groups) {
            Status::Paused
        } else {
            Status::Running
        }
    }
}

/// The name of init until it is the program.
pub(crate) const INIT: &str = "corebox-init";

fn make_root(root: &Path) -> Result<(), Stop> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(root);
    Ok(made.map_err(|e| Error::io("make the state directory", root.display(), &e))?)
}

fn missing(error: Error, id: &str, root: &Path) -> Stop {
    if error.errno == Errno::ENOENT {
        return Stop::new(format!("container `{id}` does not exist in {}", root.display()));
    }
    error.into()
}

/// The cgroups go first: without the record nobody would find them.
fn remove(path: &Path, groups: &Groups) {
    crate::oci::cgroup::remove(groups);
    // Renamed first, so that a directory half removed is not taken for a container.
    let gone = path.with_file_name(format!(".{}.gone", path.file_name().unwrap_or_default().to_string_lossy()));
    let _ = corebox_sys::fs::rename(path, &gone);
    let _ = std::fs::remove_dir_all(&gone);
}

/// The boot id: pids repeat after a boot.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Record {
    fn read(directory: &Path) -> corebox_sys::Result<Self> {
        let path = directory.join(STATE);
        serde_json::from_slice(&fs::read(&path)?).map_err(|_| Error::new("read", path.display(), Errno::EBADMSG))
    }

    /// On its way, and nobody makes it any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.boot != boot() || self.init.is_none() && !self.maker.lives()
    }

    /// As the specification prints it; `status` and `pid` as they are.
    pub(crate) fn state(&self, status: Status) -> Value {
        let pid = self.init.filter(|_| status != Status::Stopped).map_or(0, |init| init.pid);
        json!({
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": status,
            "pid": pid,
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "created": self.created,
            "owner": "root",
            "annotations": self.annotations,
        })
    }
}

/// All containers below a root, with those that cannot be read left out.
pub(crate) fn all(root: &Path) -> Result<Vec<(StateDirectory, Record)>, Stop> {
    let names = fs::list(root)?;
    Ok(names.iter().filter(|id| !id.starts_with('.')).filter_map(|id| StateDirectory::open(root, id).ok()).collect())
}

/// The same in the specification's own type, for the agent of a seccomp listener.
pub(crate) fn of_specification(state: &Value) -> Result<oci_spec::runtime::State, Stop> {
    serde_json::from_value(state.clone()).map_err(|e| Stop::new(format!("the state of the container: {e}")))
}
