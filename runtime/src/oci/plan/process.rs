//! The `process` of config.json, or of `exec --process`.

use crate::oci::label;
use crate::step::Stop;
use corebox_spec::IdSet;
use corebox_sys::identity;
use corebox_sys::process::Resource;
use corebox_sys::scheduling::Policy;
use corebox_sys::user::Capability;
use oci_spec::runtime::{
    Capabilities, ExecCPUAffinity, IOPriorityClass, LinuxCapabilities, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    PosixRlimitType, Process, Scheduler, Spec,
};
use std::path::PathBuf;

/// One process as it will be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessPlan {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: Option<u32>,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) no_new_privileges: bool,
    pub(crate) rlimits: Vec<(Resource, u64, u64)>,
    pub(crate) oom_score: Option<i32>,
    pub(crate) apparmor: Option<String>,
    pub(crate) selinux: Option<String>,
    /// Class and priority of ioprio_set(2).
    pub(crate) io_priority: Option<(u32, u32)>,
    pub(crate) policy: Option<Policy>,
    /// CPUs before and after the process is moved into the container's cgroup (`exec` only).
    pub(crate) affinity: (Option<IdSet>, Option<IdSet>),
    /// How many descriptors from 3 on are sockets that a service manager listens on for it (sd_listen_fds(3)).
    pub(crate) listen: u32,
    pub(crate) terminal: bool,
    /// Rows and columns.
    pub(crate) console_size: Option<(u16, u16)>,
}

/// The five sets of capabilities(7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapabilitySets {
    pub(crate) bounding: Vec<Capability>,
    pub(crate) effective: Vec<Capability>,
    pub(crate) permitted: Vec<Capability>,
    pub(crate) inheritable: Vec<Capability>,
    pub(crate) ambient: Vec<Capability>,
}

/// The process of config.json.
///
/// # Errors
/// What is refused, by name.
pub(crate) fn plan(spec: &Spec) -> Result<ProcessPlan, Stop> {
    match spec.process() {
        Some(process) => from(process),
        // Only `start` needs one (runtime-spec, config.md, "Process").
        None => Ok(ProcessPlan { cwd: PathBuf::from("/"), ..ProcessPlan::default() }),
    }
}

/// Any process.
///
/// # Errors
/// What is refused, by name.
pub(crate) fn from(process: &Process) -> Result<ProcessPlan, Stop> {
    let argv = process.args().clone().unwrap_or_default();
    if argv.first().is_none_or(String::is_empty) {
        return Err(Stop::new("`process.args` is empty: no program is named"));
    }
    if !process.cwd().is_absolute() {
        return Err(Stop::new(format!("`process.cwd` is {:?}, which is no absolute path", process.cwd())));
    }
    let texts = argv.iter().chain(process.env().iter().flatten());
    if let Some(text) = texts.into_iter().find(|text| text.contains('\0')) {
        return Err(Stop::new(format!("`process` has a NUL character in {text:?}")));
    }
    let user = process.user();
    Ok(ProcessPlan {
        argv,
        env: process.env().clone().unwrap_or_default(),
        cwd: process.cwd().clone(),
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        capabilities: process.capabilities().as_ref().map(capabilities).transpose()?.unwrap_or_default(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        rlimits: rlimits(process)?,
        oom_score: oom_score(process)?,
        apparmor: label::apparmor(process.apparmor_profile().as_ref())?,
        selinux: label::selinux(process.selinux_label().as_ref(), "process.selinuxLabel")?,
        io_priority: io_priority(process)?,
        policy: process.scheduler().as_ref().map(policy).transpose()?,
        affinity: process.exec_cpu_affinity().as_ref().map(affinity).transpose()?.unwrap_or_default(),
        listen: 0,
        terminal: process.terminal().unwrap_or(false),
        console_size: process.console_size().as_ref().map(|size| (short(size.height()), short(size.width()))),
    })
}

fn short(number: u64) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn capabilities(sets: &LinuxCapabilities) -> Result<CapabilitySets, Stop> {
    let known = identity::all_capabilities();
    let set = |names: &Option<Capabilities>| -> Result<Vec<Capability>, Stop> {
        let mut found = Vec::new();
        for name in names.iter().flatten() {
            let name = name.to_string();
            let capability = identity::capability(&name)
                .ok_or_else(|| Stop::new(format!("`process.capabilities`: no capability is called {name}")))?;
            // What an older kernel lacks nobody can have: as runc, go on without it.
            if known.contains(&capability) {
                found.push(capability);
            }
        }
        Ok(found)
    };
    Ok(CapabilitySets {
        bounding: set(sets.bounding())?,
        effective: set(sets.effective())?,
        permitted: set(sets.permitted())?,
        inheritable: set(sets.inheritable())?,
        ambient: set(sets.ambient())?,
    })
}

fn rlimits(process: &Process) -> Result<Vec<(Resource, u64, u64)>, Stop> {
    let mut limits: Vec<(Resource, u64, u64)> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let resource = resource(limit.typ());
        if limits.iter().any(|(known, ..)| *known == resource) {
            return Err(Stop::new(format!("`process.rlimits` names {} twice", limit.typ())));
        }
        limits.push((resource, limit.soft(), limit.hard()));
    }
    Ok(limits)
}

/// As getrlimit(2) numbers them on every architecture that corebox is built for.
fn resource(kind: PosixRlimitType) -> Resource {
    use PosixRlimitType as T;
    match kind {
        T::RlimitCpu => 0,
        T::RlimitFsize => 1,
        T::RlimitData => 2,
        T::RlimitStack => 3,
        T::RlimitCore => 4,
        T::RlimitRss => 5,
        T::RlimitNproc => 6,
        T::RlimitNofile => 7,
        T::RlimitMemlock => 8,
        T::RlimitAs => 9,
        T::RlimitLocks => 10,
        T::RlimitSigpending => 11,
        T::RlimitMsgqueue => 12,
        T::RlimitNice => 13,
        T::RlimitRtprio => 14,
        T::RlimitRttime => 15,
    }
}

fn oom_score(process: &Process) -> Result<Option<i32>, Stop> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(Stop::new(format!("`process.oomScoreAdj` is {score}, not between -1000 and 1000")))
        }
        score => Ok(score),
    }
}

fn io_priority(process: &Process) -> Result<Option<(u32, u32)>, Stop> {
    let Some(asked) = process.io_priority() else { return Ok(None) };
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(asked.priority()) {
        Ok(priority @ 0..=7) => Ok(Some((class, priority))),
        _ => Err(Stop::new(format!("`process.ioPriority.priority` is {}, not between 0 and 7", asked.priority()))),
    }
}

fn policy(asked: &Scheduler) -> Result<Policy, Stop> {
    use LinuxSchedulerPolicy as P;
    let policy = match asked.policy() {
        P::SchedOther => 0,
        P::SchedFifo => 1,
        P::SchedRr => 2,
        P::SchedBatch => 3,
        P::SchedIso => return Err(Stop::new("`process.scheduler.policy`: Linux has no SCHED_ISO")),
        P::SchedIdle => 5,
        P::SchedDeadline => 6,
    };
    let bit = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let priority = u32::try_from(asked.priority().unwrap_or(0))
        .map_err(|_| Stop::new("`process.scheduler.priority` is negative"))?;
    Ok(Policy {
        policy,
        flags: asked.flags().iter().flatten().map(bit).sum(),
        nice: asked.nice().unwrap_or(0),
        priority,
        runtime: asked.runtime().unwrap_or(0),
        deadline: asked.deadline().unwrap_or(0),
        period: asked.period().unwrap_or(0),
        ..Policy::default()
    })
}

fn affinity(asked: &ExecCPUAffinity) -> Result<(Option<IdSet>, Option<IdSet>), Stop> {
    let set = |text: &Option<String>| -> Result<Option<IdSet>, Stop> {
        let text = text.as_ref().filter(|text| !text.is_empty());
        let parsed = text.map(|text| text.parse().map_err(|e| Stop::new(format!("`process.execCPUAffinity`: {e}"))));
        parsed.transpose()
    };
    Ok((set(asked.initial())?, set(asked.cpu_affinity_final())?))
}
