//! `linux.resources` as files and values of the cgroup file systems (runtime-spec config-linux.md; kernel
//! Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst).

use super::devices::{self, Rule};
use super::{Facts, Groups};
use crate::step::Stop;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// What is written where.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) files: Vec<Setting>,
    /// In order; none: devices are not restricted.
    pub(super) devices: Vec<Rule>,
}

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// As config.json calls it.
    pub(crate) name: &'static str,
    /// Index of the directory.
    pub(crate) group: usize,
    pub(crate) file: String,
    pub(crate) value: String,
    /// A kernel without this file loses nothing that the other files do not give.
    pub(crate) optional: bool,
}

impl Settings {
    /// Whether this directory must be there.
    pub(super) fn need(&self, group: usize) -> bool {
        self.files.iter().any(|setting| setting.group == group)
    }
    pub(super) fn any(&self) -> bool {
        !self.files.is_empty() || !self.devices.is_empty()
    }
    /// Applies the device rules.
    pub(super) fn restrict_devices(&self, groups: &Groups) -> Result<(), Stop> {
        devices::apply(&self.devices, groups)
    }
}

/// Collects settings; a controller that is not there is refused by name.
struct Writer<'a> {
    groups: &'a Groups,
    /// Controllers of version 2 that can be had.
    available: Vec<String>,
    found: Vec<Setting>,
}

impl Writer<'_> {
    fn set(
        &mut self,
        name: &'static str,
        controller: &str,
        file: impl Into<String>,
        value: impl ToString,
    ) -> Result<(), Stop> {
        let has = !self.groups.unified || self.available.iter().any(|c| c == controller);
        let Some(group) = self.groups.with(controller).filter(|_| has) else {
            return Err(Stop::new(format!(
                "`linux.resources.{name}`: this host has no cgroup controller `{controller}`"
            )));
        };
        self.found.push(Setting { name, group, file: file.into(), value: value.to_string(), optional: false });
        Ok(())
    }
    fn set_optional(
        &mut self,
        name: &'static str,
        controller: &str,
        file: &str,
        value: impl ToString,
    ) -> Result<(), Stop> {
        self.set(name, controller, file, value)?;
        self.found.iter_mut().last().into_iter().for_each(|setting| setting.optional = true);
        Ok(())
    }
}

/// Decides.
///
/// # Errors
/// What this host cannot limit, by name.
pub(crate) fn settings(resources: Option<&LinuxResources>, groups: &Groups, facts: &Facts) -> Result<Settings, Stop> {
    let Some(resources) = resources else { return Ok(Settings::default()) };
    let available = if facts.unified { controllers(facts) } else { Vec::new() };
    let mut writer = Writer { groups, available, found: Vec::new() };
    let w = &mut writer;
    if let Some(memory) = resources.memory() {
        if groups.unified { memory_v2(w, memory) } else { memory_v1(w, memory) }?;
    }
    if let Some(cpu) = resources.cpu() {
        if groups.unified { cpu_v2(w, cpu) } else { cpu_v1(w, cpu) }?;
        cpuset(w, cpu)?;
    }
    // Zero is what Go programs write for "not set"; below, for no limit.
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        w.set(
            "pids.limit",
            "pids",
            "pids.max",
            if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() },
        )?;
    }
    if let Some(io) = resources.block_io() {
        if groups.unified { io_v2(w, io) } else { io_v1(w, io) }?;
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        let file = if groups.unified { "max" } else { "limit_in_bytes" };
        w.set("hugepageLimits", "hugetlb", format!("hugetlb.{}.{file}", huge.page_size()), huge.limit())?;
    }
    network(w, resources)?;
    for (device, limit) in resources.rdma().iter().flatten() {
        let part = |name: &str, value: Option<u32>| value.map(|v| format!(" {name}={v}")).unwrap_or_default();
        let value =
            format!("{device}{}{}", part("hca_handle", limit.hca_handles()), part("hca_object", limit.hca_objects()));
        w.set("rdma", "rdma", "rdma.max", value)?;
    }
    unified(w, resources)?;
    let devices = devices::rules(resources.devices().as_ref())?;
    Ok(Settings { files: writer.found, devices })
}

/// What the root of version 2 can hand down.
fn controllers(facts: &Facts) -> Vec<String> {
    let file = facts.hierarchies.first().map(|h| h.mount.join("cgroup.controllers"));
    let text = file.and_then(|file| corebox_sys::fs::read_to_string(file).ok()).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn memory_v1(w: &mut Writer<'_>, memory: &LinuxMemory) -> Result<(), Stop> {
    let limit = memory.limit().filter(|bytes| *bytes != 0);
    let swap = memory.swap().filter(|bytes| *bytes != 0);
    if let Some(limit) = limit {
        w.set("memory.limit", "memory", "memory.limit_in_bytes", limit)?;
    }
    if let Some(swap) = swap {
        w.set_optional("memory.swap", "memory", "memory.memsw.limit_in_bytes", swap)?;
    }
    if let Some(soft) = memory.reservation().filter(|bytes| *bytes != 0) {
        w.set("memory.reservation", "memory", "memory.soft_limit_in_bytes", soft)?;
    }
    #[allow(deprecated)] // of the specification; old kernels have it
    if let Some(kernel) = memory.kernel().filter(|bytes| *bytes != 0) {
        w.set_optional("memory.kernel", "memory", "memory.kmem.limit_in_bytes", kernel)?;
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|bytes| *bytes != 0) {
        w.set_optional("memory.kernelTCP", "memory", "memory.kmem.tcp.limit_in_bytes", tcp)?;
    }
    if let Some(swappiness) = memory.swappiness().filter(|value| *value <= 100) {
        w.set("memory.swappiness", "memory", "memory.swappiness", swappiness)?;
    }
    if memory.disable_oom_killer() == Some(true) {
        w.set("memory.disableOOMKiller", "memory", "memory.oom_control", 1)?;
    }
    Ok(())
}

fn memory_v2(w: &mut Writer<'_>, memory: &LinuxMemory) -> Result<(), Stop> {
    let text = |bytes: i64| if bytes < 0 { "max".to_owned() } else { bytes.to_string() };
    let limit = memory.limit().filter(|bytes| *bytes != 0);
    if let Some(swap) = memory.swap().filter(|bytes| *bytes != 0) {
        // Of version 1 it is the sum, of version 2 swap alone.
        let alone = match limit {
            _ if swap < 0 => swap,
            Some(limit) if limit > 0 && swap >= limit => swap - limit,
            _ => return Err(Stop::new("`linux.resources.memory.swap` needs a `memory.limit` that is not larger")),
        };
        w.set_optional("memory.swap", "memory", "memory.swap.max", text(alone))?;
    }
    if let Some(limit) = limit {
        w.set("memory.limit", "memory", "memory.max", text(limit))?;
    }
    if let Some(soft) = memory.reservation().filter(|bytes| *bytes != 0) {
        w.set("memory.reservation", "memory", "memory.low", text(soft))?;
    }
    Ok(())
}

fn cpu_v1(w: &mut Writer<'_>, cpu: &LinuxCpu) -> Result<(), Stop> {
    if let Some(shares) = cpu.shares().filter(|n| *n != 0) {
        w.set("cpu.shares", "cpu", "cpu.shares", shares)?;
    }
    if let Some(period) = cpu.period().filter(|n| *n != 0) {
        w.set("cpu.period", "cpu", "cpu.cfs_period_us", period)?;
    }
    if let Some(quota) = cpu.quota().filter(|n| *n != 0) {
        w.set("cpu.quota", "cpu", "cpu.cfs_quota_us", quota)?;
    }
    if let Some(burst) = cpu.burst() {
        w.set("cpu.burst", "cpu", "cpu.cfs_burst_us", burst)?;
    }
    if let Some(period) = cpu.realtime_period().filter(|n| *n != 0) {
        w.set("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", period)?;
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|n| *n != 0) {
        w.set("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", runtime)?;
    }
    if let Some(idle) = cpu.idle() {
        w.set("cpu.idle", "cpu", "cpu.idle", idle)?;
    }
    Ok(())
}

fn cpu_v2(w: &mut Writer<'_>, cpu: &LinuxCpu) -> Result<(), Stop> {
    if let Some(idle) = cpu.idle() {
        w.set("cpu.idle", "cpu", "cpu.idle", idle)?;
    }
    if let Some(shares) = cpu.shares().filter(|n| *n != 0) {
        // 2..262144 to 1..10000, as runc and systemd map them.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        w.set("cpu.shares", "cpu", "cpu.weight", weight)?;
    }
    let (quota, period) = (cpu.quota().filter(|n| *n != 0), cpu.period().filter(|n| *n != 0));
    if quota.is_some() || period.is_some() {
        let quota = quota.filter(|n| *n > 0).map_or("max".to_owned(), |n| n.to_string());
        w.set("cpu.quota", "cpu", "cpu.max", format!("{quota} {}", period.unwrap_or(100_000)))?;
    }
    if let Some(burst) = cpu.burst() {
        w.set("cpu.burst", "cpu", "cpu.max.burst", burst)?;
    }
    if cpu.realtime_runtime().is_some_and(|n| n != 0) || cpu.realtime_period().is_some_and(|n| n != 0) {
        return Err(Stop::new("`linux.resources.cpu.realtimeRuntime`: cgroup version 2 has no real-time limits"));
    }
    Ok(())
}

fn cpuset(w: &mut Writer<'_>, cpu: &LinuxCpu) -> Result<(), Stop> {
    if let Some(mems) = cpu.mems().as_ref().filter(|text| !text.is_empty()) {
        w.set("cpu.mems", "cpuset", "cpuset.mems", mems)?;
    }
    if let Some(cpus) = cpu.cpus().as_ref().filter(|text| !text.is_empty()) {
        w.set("cpu.cpus", "cpuset", "cpuset.cpus", cpus)?;
    }
    Ok(())
}

fn io_v1(w: &mut Writer<'_>, io: &LinuxBlockIo) -> Result<(), Stop> {
    let has = |file: &str| w.groups.with("blkio").is_some_and(|i| w.groups.directories[i].mount.join(file).exists());
    // The weight is BFQ's file, or the one of the old CFQ.
    let prefix = if has("blkio.bfq.weight") || !has("blkio.weight") { "blkio.bfq" } else { "blkio" };
    if let Some(weight) = io.weight().filter(|n| *n != 0) {
        w.set_optional("blockIO.weight", "blkio", &format!("{prefix}.weight"), weight)?;
    }
    if let Some(weight) = io.leaf_weight().filter(|n| *n != 0) {
        w.set_optional("blockIO.leafWeight", "blkio", "blkio.leaf_weight", weight)?;
    }
    for device in io.weight_device().iter().flatten() {
        let number = format!("{}:{}", device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|n| *n != 0) {
            w.set_optional(
                "blockIO.weightDevice",
                "blkio",
                &format!("{prefix}.weight_device"),
                format!("{number} {weight}"),
            )?;
        }
        if let Some(weight) = device.leaf_weight().filter(|n| *n != 0) {
            w.set_optional("blockIO.weightDevice", "blkio", "blkio.leaf_weight_device", format!("{number} {weight}"))?;
        }
    }
    for (name, file, devices) in throttles(io) {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            w.set(name, "blkio", format!("blkio.throttle.{}", file.0), value)?;
        }
    }
    Ok(())
}

fn io_v2(w: &mut Writer<'_>, io: &LinuxBlockIo) -> Result<(), Stop> {
    if let Some(weight) = io.weight().filter(|n| *n != 0) {
        // 10..1000 of BFQ to 1..10000 of io.weight; the second only where BFQ is not the scheduler.
        w.set_optional("blockIO.weight", "io", "io.bfq.weight", weight)?;
        let scaled = 1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990;
        w.set_optional("blockIO.weight", "io", "io.weight", scaled)?;
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|n| *n != 0) {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            w.set_optional("blockIO.weightDevice", "io", "io.bfq.weight", value)?;
        }
    }
    for (name, file, devices) in throttles(io) {
        for device in devices.iter().flatten() {
            w.set(name, "io", "io.max", format!("{}:{} {}={}", device.major(), device.minor(), file.1, device.rate()))?;
        }
    }
    Ok(())
}

type Throttle<'a> =
    (&'static str, (&'static str, &'static str), &'a Option<Vec<oci_spec::runtime::LinuxThrottleDevice>>);

/// Names in config.json, in version 1 and in version 2.
fn throttles(io: &LinuxBlockIo) -> [Throttle<'_>; 4] {
    [
        ("blockIO.throttleReadBpsDevice", ("read_bps_device", "rbps"), io.throttle_read_bps_device()),
        ("blockIO.throttleWriteBpsDevice", ("write_bps_device", "wbps"), io.throttle_write_bps_device()),
        ("blockIO.throttleReadIOPSDevice", ("read_iops_device", "riops"), io.throttle_read_iops_device()),
        ("blockIO.throttleWriteIOPSDevice", ("write_iops_device", "wiops"), io.throttle_write_iops_device()),
    ]
}

fn network(w: &mut Writer<'_>, resources: &LinuxResources) -> Result<(), Stop> {
    let Some(network) = resources.network() else { return Ok(()) };
    let class = network.class_id().filter(|n| *n != 0);
    let priorities = network.priorities().as_ref().filter(|list| !list.is_empty());
    if w.groups.unified && (class.is_some() || priorities.is_some()) {
        return Err(Stop::new("`linux.resources.network`: cgroup version 2 has no network classes and priorities"));
    }
    if let Some(class) = class {
        w.set("network.classID", "net_cls", "net_cls.classid", class)?;
    }
    for interface in priorities.into_iter().flatten() {
        let value = format!("{} {}", interface.name(), interface.priority());
        w.set("network.priorities", "net_prio", "net_prio.ifpriomap", value)?;
    }
    Ok(())
}

fn unified(w: &mut Writer<'_>, resources: &LinuxResources) -> Result<(), Stop> {
    let asked = resources.unified().as_ref().filter(|map| !map.is_empty());
    if !w.groups.unified && asked.is_some() {
        return Err(Stop::new("`linux.resources.unified` is for cgroup version 2, and this host uses version 1"));
    }
    for (file, value) in asked.into_iter().flatten() {
        if file.contains('/') || !file.contains('.') {
            return Err(Stop::new(format!("`linux.resources.unified`: {file} is no file of a cgroup")));
        }
        let controller = file.split('.').next().unwrap_or_default();
        if controller == "cgroup" {
            w.found.push(Setting {
                name: "unified",
                group: 0,
                file: file.clone(),
                value: value.clone(),
                optional: false,
            });
        } else {
            w.set("unified", controller, file.clone(), value)?;
        }
    }
    Ok(())
}
