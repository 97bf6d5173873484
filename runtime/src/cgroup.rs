//! Limits by cgroup, of version 1 and 2 (kernel Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst), with plain
//! files: what is written where is the plan, and the plan can be shown.
//!
//! A cgroup is made only when limits are asked for, as a child of the cgroup we are in: never outside the batch step.

use crate::step::Stop;
use corebox_spec::{IdSet, Limits, RdmaLimit};
use corebox_sys::{Errno, Error, Result, fd, fs};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// One mounted hierarchy and our place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version 2, the unified one.
    pub unified: bool,
    /// Controllers: those of a version 1 hierarchy, or those we may have in a version 2 cgroup.
    pub controllers: Vec<String>,
    /// Its mount point.
    pub mount: PathBuf,
    /// The directory of the cgroup we are in.
    pub own: PathBuf,
}

/// One directory to make, and what to write into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// The cgroup it is made in: ours.
    pub parent: PathBuf,
    /// Files and values, in order.
    pub settings: Vec<(String, String)>,
    /// Version 2 controllers to hand down from `parent` first.
    pub enable: Vec<String>,
    /// On version 2: we are the only process in `parent` and move to this child of it, as a cgroup that hands down
    /// controllers must hold no process itself.
    pub step_aside: Option<String>,
}

/// What version 2 calls our own place when we step aside.
const ASIDE: &str = "corebox-launcher";
/// First part of the names of our cgroups.
const PREFIX: &str = "corebox-";
/// Processes of corebox itself in the container: its init.
const OWN_PROCESSES: u64 = 1;
/// Threads that a FUSE server may have besides.
const FUSE_THREADS: u64 = 16;

/// The hierarchies we are in, from /proc/self/cgroup and /proc/self/mountinfo (cgroups(7)).
///
/// # Errors
/// What reading /proc says.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let (memberships, mounts) = (fs::read_to_string("/proc/self/cgroup")?, fs::read_to_string("/proc/self/mountinfo")?);
    let mut found = parse(&memberships, &mounts);
    for hierarchy in found.iter_mut().filter(|h| h.unified) {
        // Absent in a cgroup that is being removed, and then we have none.
        let controllers = fs::read_to_string(hierarchy.own.join("cgroup.controllers")).unwrap_or_default();
        hierarchy.controllers = controllers.split_whitespace().map(str::to_owned).collect();
    }
    Ok(found)
}

fn parse(memberships: &str, mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let ([_, _, _, root, mount, ..], [kind @ ("cgroup" | "cgroup2"), _, options, ..]) = (&left[..], &right[..])
        else {
            continue;
        };
        let unified = *kind == "cgroup2";
        let own = memberships.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?);
            let this = if unified {
                names.is_empty()
            } else {
                !names.is_empty() && names.split(',').all(|name| options.split(',').any(|o| o == name))
            };
            this.then_some((names, path))
        });
        let Some((names, path)) = own else { continue };
        // The mount shows the tree from `root` on; a place outside of it (`/..`) has no directory here.
        let Some(below) = path.strip_prefix(*root).or((*root == "/").then_some(path)) else { continue };
        if below.split('/').any(|part| part == "..")
            || found
                .iter()
                .any(|h| h.unified == unified && h.controllers.iter().map(String::as_str).eq(names.split(',')))
        {
            continue;
        }
        found.push(Hierarchy {
            unified,
            controllers: names.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect(),
            mount: PathBuf::from(mount),
            own: Path::new(mount).join(below.trim_start_matches('/')),
        });
    }
    found
}

/// Decides which cgroups to make for these limits.
pub(crate) fn plan(
    limits: &Limits,
    hierarchies: &[Hierarchy],
    fuse: bool,
) -> std::result::Result<Vec<CgroupPlan>, Stop> {
    let own_processes = OWN_PROCESSES + if fuse { FUSE_THREADS } else { 0 };
    let mut wanted: Vec<(&str, Wanted<'_>)> = Vec::new();
    wanted.extend(limits.cpus.as_ref().map(|cpus| ("cpuset", Wanted::Cpus(cpus))));
    wanted.extend(limits.memory.map(|bytes| ("memory", Wanted::Memory(bytes))));
    wanted.extend(limits.pids.map(|pids| ("pids", Wanted::Pids(pids.saturating_add(own_processes)))));
    wanted.extend(limits.rdma.iter().map(|limit| ("rdma", Wanted::Rdma(limit))));
    let mut plans: Vec<CgroupPlan> = Vec::new();
    for (controller, wanted) in wanted {
        let has = |h: &&Hierarchy| h.controllers.iter().any(|c| c == controller);
        let Some(hierarchy) = hierarchies.iter().find(has) else {
            return Err(Stop::new(format!("the cgroup we are in has no `{controller}` controller")).hint(CURE));
        };
        allowed(hierarchy, controller)?;
        let existing = plans.iter().position(|p| p.parent == hierarchy.own);
        let index = existing.unwrap_or_else(|| {
            plans.push(CgroupPlan {
                parent: hierarchy.own.clone(),
                settings: vec![],
                enable: vec![],
                step_aside: None,
            });
            plans.len() - 1
        });
        let plan = &mut plans[index];
        plan.settings.extend(wanted.settings(hierarchy));
        if hierarchy.unified && !handed_down(hierarchy, controller) {
            plan.enable.push(controller.to_owned());
            plan.step_aside = is_inner(&hierarchy.own).then(|| ASIDE.to_owned());
        }
    }
    Ok(plans)
}

const CURE: &str = "your administrator can delegate a cgroup to you; where systemd runs, \
                    `systemd-run --user --scope -p Delegate=yes corebox …` does; in a batch job, ask the batch system \
                    for the limit instead.";

/// One limit.
enum Wanted<'a> {
    Cpus(&'a IdSet),
    Memory(u64),
    Pids(u64),
    Rdma(&'a RdmaLimit),
}

impl Wanted<'_> {
    /// Files and values for it in this hierarchy.
    fn settings(&self, hierarchy: &Hierarchy) -> Vec<(String, String)> {
        let set = |file: &str, value: String| (file.to_owned(), value);
        match (self, hierarchy.unified) {
            (Self::Cpus(cpus), true) => vec![set("cpuset.cpus", cpus.to_string())],
            (Self::Cpus(cpus), false) => {
                // A new version 1 cpuset is empty, and an empty one takes no process: memory nodes too must be set.
                let nodes = fs::read_to_string(hierarchy.own.join("cpuset.effective_mems"))
                    .or_else(|_| fs::read_to_string(hierarchy.own.join("cpuset.mems")))
                    .unwrap_or_default();
                vec![set("cpuset.mems", nodes.trim().to_owned()), set("cpuset.cpus", cpus.to_string())]
            }
            (Self::Memory(bytes), true) => vec![
                set("memory.max", bytes.to_string()),
                // Swap would make the limit a slow-down instead of an end.
                set("memory.swap.max", "0".to_owned()),
            ],
            (Self::Memory(bytes), false) => vec![
                set("memory.limit_in_bytes", bytes.to_string()),
                set("memory.memsw.limit_in_bytes", bytes.to_string()),
            ],
            (Self::Pids(pids), _) => vec![set("pids.max", pids.to_string())],
            // One device per write, in both versions.
            (Self::Rdma(limit), _) => vec![set("rdma.max", rdma_line(limit))],
        }
    }
}

/// `mlx5_0 hca_handle=2 hca_object=max` (cgroup-v2.rst, RDMA).
fn rdma_line(limit: &RdmaLimit) -> String {
    let value = |number: Option<u32>| number.map_or("max".to_owned(), |number| number.to_string());
    format!("{} hca_handle={} hca_object={}", limit.device, value(limit.handles), value(limit.objects))
}

/// Settings that a kernel without swap accounting does not have.
const OPTIONAL: [&str; 2] = ["memory.swap.max", "memory.memsw.limit_in_bytes"];

/// Whether we may make a cgroup with this controller, without trying.
fn allowed(hierarchy: &Hierarchy, controller: &str) -> std::result::Result<(), Stop> {
    let refuse = |error: Error| Stop::new(format!("no permission to limit `{controller}`: {error}")).hint(CURE);
    fd::may_write(&hierarchy.own).map_err(refuse)?;
    fd::may_write(&hierarchy.own.join("cgroup.procs")).map_err(refuse)?;
    if hierarchy.unified && !handed_down(hierarchy, controller) {
        fd::may_write(&hierarchy.own.join("cgroup.subtree_control")).map_err(refuse)?;
        if is_inner(&hierarchy.own) && !we_are_alone(&hierarchy.own) {
            let own = hierarchy.own.display();
            return Err(Stop::new(format!(
                "cgroup {own} holds other processes than corebox, so the kernel lets it hand down no controllers"
            ))
            .hint(CURE));
        }
    }
    Ok(())
}

/// Whether children of our version 2 cgroup have this controller already.
fn handed_down(hierarchy: &Hierarchy, controller: &str) -> bool {
    let file = hierarchy.own.join("cgroup.subtree_control");
    fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|c| c == controller))
}

/// The root cgroup, which has no `cgroup.type`, may hold processes and hand down controllers; inner ones may not.
fn is_inner(cgroup: &Path) -> bool {
    cgroup.join("cgroup.type").exists()
}

fn we_are_alone(cgroup: &Path) -> bool {
    let own = std::process::id().to_string();
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|text| text.split_whitespace().eq([own.as_str()]))
}

/// The cgroups of one container; see [`Cgroups::remove`].
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    /// Their directories, in the order of the plans.
    pub(crate) directories: Vec<PathBuf>,
}

impl Cgroups {
    /// Decides their names.
    pub(crate) fn name(plans: &[CgroupPlan], container: &str) -> Result<Self> {
        if plans.is_empty() {
            return Ok(Self::default());
        }
        let name = directory_name(container)?;
        Ok(Self { directories: plans.iter().map(|plan| plan.parent.join(&name)).collect() })
    }

    /// Makes and sets them, and moves `pid` into them. What crashed predecessors left there is swept first.
    pub(crate) fn create(&self, plans: &[CgroupPlan], pid: i32) -> std::result::Result<(), Stop> {
        for (plan, directory) in plans.iter().zip(&self.directories) {
            sweep(&plan.parent);
            create_one(plan, directory, pid)?;
        }
        Ok(())
    }

    /// Whether the kernel killed a process in them because memory was at its limit.
    pub(crate) fn out_of_memory(&self) -> bool {
        // Version 1 and version 2 (memory.oom_control, memory.events): a line `oom_kill N`.
        let count = |directory: &PathBuf, file: &str| {
            let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        self.directories.iter().any(|d| count(d, "memory.oom_control") + count(d, "memory.events") > 0)
    }

    /// Removes them once their processes are gone; gives up after a few seconds (then the next start sweeps).
    pub(crate) fn remove(&mut self) {
        for directory in self.directories.drain(..) {
            remove_directory(&directory);
        }
    }
}

fn create_one(plan: &CgroupPlan, directory: &Path, pid: i32) -> Result<()> {
    if let Some(aside) = &plan.step_aside {
        let place = plan.parent.join(aside);
        fs::create_dir_all(&place)?;
        fs::write(place.join("cgroup.procs"), std::process::id().to_string())?;
    }
    for controller in &plan.enable {
        fs::write(plan.parent.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    std::fs::create_dir(directory).map_err(|e| Error::io("create cgroup", directory.display(), &e))?;
    for (file, value) in &plan.settings {
        match fs::write(directory.join(file), value) {
            Err(_) if OPTIONAL.contains(&file.as_str()) => {}
            other => other?,
        }
    }
    fs::write(directory.join("cgroup.procs"), pid.to_string())
}

/// Removes a cgroup. Its last process is reaped, but the kernel may hold it a moment longer (EBUSY).
pub(crate) fn remove_directory(directory: &Path) {
    let start = Instant::now();
    while let Err(error) = std::fs::remove_dir(directory) {
        if error.raw_os_error() != Some(Errno::EBUSY as i32) || start.elapsed() > Duration::from_secs(5) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `corebox-NAME.COUNT-PID.STARTTIME.BOOT`: says whether its maker still lives. One maker may have several.
fn directory_name(name: &str) -> Result<String> {
    let pid = std::process::id();
    let start = start_time(pid).ok_or_else(|| Error::new("read the start time of", pid, Errno::ESRCH))?;
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).take(64).collect();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(format!("{PREFIX}{name}.{count}-{pid}.{start}.{}", boot()?))
}

/// Containers with cgroups that this process made.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The first part of the boot id: pids and start times repeat after a boot.
fn boot() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.chars().take(8).collect())
}

/// Field 22 of /proc/PID/stat, counted after the command's closing parenthesis (proc_pid_stat(5)).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the maker of a cgroup of this name is gone; a foreign name is never ours to remove.
fn is_stale(name: &str, boot: &str) -> bool {
    let parse = || -> Option<(u32, u64, &str)> {
        let mut parts = name.strip_prefix(PREFIX)?.rsplit_once('-')?.1.splitn(3, '.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?))
    };
    parse().is_some_and(|(pid, start, made_in)| made_in != boot || start_time(pid) != Some(start))
}

/// Removes cgroups below `parent` whose maker died with its sweeper. rmdir(2) refuses those with processes in them.
fn sweep(parent: &Path) {
    let (Ok(boot), Ok(entries)) = (boot(), std::fs::read_dir(parent)) else { return };
    for entry in entries.flatten() {
        if is_stale(&entry.file_name().to_string_lossy(), &boot) {
            // One in use, or not ours to remove, stays.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        35 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        41 31 0:38 /job /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn finds_our_place_in_each_hierarchy() {
        let found = parse("4:cpuset:/\n3:cpu,cpuacct:/a/b\n0::/job/step_0\n", MOUNTS);
        let places: Vec<_> = found.iter().map(|h| (h.unified, h.own.display().to_string())).collect();
        assert_eq!(
            places,
            [
                (false, "/sys/fs/cgroup/cpuset/".to_owned()),
                (false, "/sys/fs/cgroup/cpu,cpuacct/a/b".to_owned()),
                (true, "/sys/fs/cgroup/unified/step_0".to_owned()),
            ]
        );
        assert_eq!(found[1].controllers, ["cpu", "cpuacct"]);
        // Outside of what is mounted: not ours.
        assert!(parse("0::/../x\n", MOUNTS).is_empty());
    }

    #[test]
    fn refuses_what_may_not_be_limited() {
        let limits = Limits { pids: Some(5), ..Limits::default() };
        let none = plan(&limits, &[], false).unwrap_err();
        assert_eq!(none, Stop::new("the cgroup we are in has no `pids` controller").hint(CURE));
        assert!(plan(&Limits::default(), &[], false).unwrap().is_empty());
    }

    #[test]
    fn knows_stale_names() {
        let (pid, boot) = (std::process::id(), boot().unwrap());
        let mine = directory_name("a-b/c").unwrap();
        let start = start_time(pid).unwrap();
        assert!(mine.starts_with("corebox-a_b_c.") && mine.ends_with(&format!("-{pid}.{start}.{boot}")), "{mine}");
        assert!(!is_stale(&mine, &boot));
        assert!(is_stale(&mine, "otherone"));
        assert!(is_stale(&format!("corebox-x-{pid}.1.{boot}"), &boot));
        for foreign in ["corebox-launcher", "user.slice", "corebox-x-1", "corebox-"] {
            assert!(!is_stale(foreign, &boot), "{foreign}");
        }
    }
}
