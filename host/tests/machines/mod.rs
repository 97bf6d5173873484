//! Machines for tests: a sysfs and procfs written to a temporary directory and read back as if it were one.
//!
//! Included by the tests of `host` and of `mpi-launcher` (`#[path]`), so that both see what the reader makes of the kernel's
//! files. The masks (`core_cpus`, `shared_cpu_map`, …) beside the lists are for hwloc, which reads only those.
#![allow(dead_code)] // each test program uses a part

use corebox_host::Host;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that is removed at the end of the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // tmpfs where there is one: a large machine is thousands of files
        let shm = PathBuf::from("/dev/shm");
        let parent = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let path = parent.join(format!("corebox-{unique}"));
        corebox_sys::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    pub fn put(&self, path: &str, content: &str) {
        let path = self.0.join(path.trim_start_matches('/'));
        corebox_sys::fs::create_dir_all(path.parent().unwrap()).unwrap();
        corebox_sys::fs::write(path, format!("{content}\n")).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One CPU of a synthetic machine. Groups are any numbers that are equal within the group.
#[derive(Clone)]
pub struct FakeCpu {
    pub id: u32,
    pub package: u32,
    pub die: u32,
    pub core_id: u32,
    /// Which physical core.
    pub core: u32,
    pub numa: u32,
    pub l2: u32,
    pub l3: u32,
    pub capacity: Option<u32>,
}

/// A synthetic machine.
#[derive(Clone)]
pub struct Fake {
    pub name: &'static str,
    pub cpus: Vec<FakeCpu>,
    /// CPUs that exist but are switched off.
    pub offline: Vec<u32>,
    /// No node directory at all.
    pub no_numa: bool,
    /// Nodes with memory; `None`: those with CPUs.
    pub memory: Option<Vec<u32>>,
    /// Levels of cache that sysfs shows.
    pub caches: &'static [u32],
    /// Names of the lists: those before Linux 5.3, those since, or none but ids.
    pub lists: Lists,
    /// `/sys/devices/NAME/cpus` of hybrid machines.
    pub pmus: Vec<(&'static str, &'static str)>,
    pub allowed_cpus: &'static str,
    pub allowed_mems: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Lists {
    Old,
    New,
    None,
}

fn list(ids: &[u32]) -> String {
    ids.iter().copied().collect::<corebox_spec::IdSet>().to_string()
}

/// The kernel's mask format: 32-bit words in hex, the most significant first.
fn mask(ids: &[u32]) -> String {
    let words = ids.iter().max().map_or(1, |max| *max as usize / 32 + 1);
    let mut mask = vec![0u32; words];
    ids.iter().for_each(|id| mask[*id as usize / 32] |= 1 << (id % 32));
    mask.iter().rev().map(|word| format!("{word:08x}")).collect::<Vec<_>>().join(",")
}

impl Fake {
    fn new(name: &'static str, cpus: Vec<FakeCpu>) -> Self {
        Self {
            name,
            cpus,
            offline: vec![],
            no_numa: false,
            memory: None,
            caches: &[1, 2, 3],
            lists: Lists::New,
            pmus: vec![],
            allowed_cpus: "0-65535",
            allowed_mems: "0-1023",
        }
    }

    fn online(&self) -> impl Iterator<Item = &FakeCpu> {
        self.cpus.iter().filter(|cpu| !self.offline.contains(&cpu.id))
    }

    fn sharing(&self, with: impl Fn(&FakeCpu) -> bool) -> Vec<u32> {
        self.online().filter(|cpu| with(cpu)).map(|cpu| cpu.id).collect()
    }

    /// Writes the tree.
    pub fn write(&self) -> Scratch {
        let at = Scratch::new(self.name);
        let ids: Vec<u32> = self.cpus.iter().map(|cpu| cpu.id).collect();
        at.put("/sys/devices/system/cpu/online", &list(&self.sharing(|_| true)));
        at.put("/sys/devices/system/cpu/possible", &list(&ids));
        at.put("/sys/devices/system/cpu/present", &list(&ids));
        for cpu in self.online() {
            self.write_cpu(&at, cpu);
        }
        self.write_nodes(&at);
        for (pmu, cpus) in &self.pmus {
            at.put(&format!("/sys/devices/{pmu}/cpus"), cpus);
        }
        at.put("/proc/self/status", &self.status());
        at.put("/proc/sys/kernel/hostname", self.name);
        at.put("/proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555");
        at.put("/proc/sys/kernel/osrelease", "6.1.0-test");
        at.put("/proc/sys/kernel/arch", "x86_64");
        at.put("/proc/meminfo", "MemTotal:       16384000 kB\nMemFree:         1000000 kB");
        at
    }

    fn status(&self) -> String {
        format!(
            "Name:\ttest\nCpus_allowed:\tff\nCpus_allowed_list:\t{}\nMems_allowed:\t1\nMems_allowed_list:\t{}",
            self.allowed_cpus, self.allowed_mems
        )
    }

    fn write_cpu(&self, at: &Scratch, cpu: &FakeCpu) {
        let topology = format!("/sys/devices/system/cpu/cpu{}/topology", cpu.id);
        at.put(&format!("{topology}/physical_package_id"), &cpu.package.to_string());
        at.put(&format!("{topology}/die_id"), &cpu.die.to_string());
        at.put(&format!("{topology}/core_id"), &cpu.core_id.to_string());
        let core = self.sharing(|other| other.core == cpu.core);
        let package = self.sharing(|other| other.package == cpu.package);
        let (of_core, of_package) = match self.lists {
            Lists::New => ("core_cpus", "package_cpus"),
            Lists::Old => ("thread_siblings", "core_siblings"),
            Lists::None => ("", ""),
        };
        if self.lists != Lists::None {
            for (name, ids) in [(of_core, &core), (of_package, &package)] {
                at.put(&format!("{topology}/{name}_list"), &list(ids));
                at.put(&format!("{topology}/{name}"), &mask(ids));
            }
        }
        let l2 = self.sharing(|other| other.l2 == cpu.l2);
        let l3 = self.sharing(|other| other.l3 == cpu.l3);
        let caches = [("1", "Data", &core), ("1", "Instruction", &core), ("2", "Unified", &l2), ("3", "Unified", &l3)];
        let shown = caches.iter().filter(|(level, ..)| self.caches.contains(&level.parse().unwrap()));
        for (index, (level, kind, ids)) in shown.enumerate() {
            let cache = format!("/sys/devices/system/cpu/cpu{}/cache/index{index}", cpu.id);
            at.put(&format!("{cache}/level"), level);
            at.put(&format!("{cache}/type"), kind);
            at.put(&format!("{cache}/size"), "64K");
            at.put(&format!("{cache}/shared_cpu_list"), &list(ids));
            at.put(&format!("{cache}/shared_cpu_map"), &mask(ids));
        }
        if let Some(capacity) = cpu.capacity {
            at.put(&format!("/sys/devices/system/cpu/cpu{}/cpu_capacity", cpu.id), &capacity.to_string());
        }
    }

    fn write_nodes(&self, at: &Scratch) {
        if self.no_numa {
            return;
        }
        let mut nodes: Vec<u32> = self.cpus.iter().map(|cpu| cpu.numa).collect();
        let memory = self.memory.clone().unwrap_or_else(|| nodes.clone());
        nodes.extend(&memory);
        nodes.sort_unstable();
        nodes.dedup();
        at.put("/sys/devices/system/node/online", &list(&nodes));
        at.put("/sys/devices/system/node/has_memory", &list(&memory));
        for node in nodes {
            let cpus = self.sharing(|cpu| cpu.numa == node);
            let directory = format!("/sys/devices/system/node/node{node}");
            at.put(&format!("{directory}/cpulist"), &list(&cpus));
            at.put(&format!("{directory}/cpumap"), &mask(&cpus));
            let kilobytes = if memory.contains(&node) { 1_048_576 } else { 0 };
            at.put(&format!("{directory}/meminfo"), &format!("Node {node} MemTotal:       {kilobytes} kB"));
        }
    }

    /// Writes the tree and reads it, once per test program.
    pub fn host(&self) -> Host {
        static READ: Mutex<BTreeMap<&str, Host>> = Mutex::new(BTreeMap::new());
        let mut read = READ.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let host = || Host::read(&self.write().0).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        read.entry(self.name).or_insert_with(host).clone()
    }
}

fn cpu(id: u32, package: u32, core: u32, numa: u32, l3: u32) -> FakeCpu {
    FakeCpu { id, package, die: 0, core_id: core, core, numa, l2: core, l3, capacity: None }
}

/// 2 packages of 64 cores with 2 threads, 4 NUMA nodes each (NPS4), an L3 per 8 cores; Linux numbers the second threads last.
pub fn epyc() -> Fake {
    let cpus = (0..256).map(|id| {
        let core = id % 128;
        FakeCpu { core_id: core % 64, ..cpu(id, core / 64, core, core / 16, core / 8) }
    });
    Fake::new("epyc", cpus.collect())
}

/// The same with a cpuset full of holes: core 2 with both threads, of 3, 4, 5 and 9 only the first.
pub fn holes() -> Fake {
    Fake { name: "holes", allowed_cpus: "2-5,9,130", allowed_mems: "0", ..epyc() }
}

/// A Grace superchip: 2 packages of 72 cores without SMT, one NUMA node each, and nodes of GPU memory without CPUs.
pub fn grace() -> Fake {
    let cpus = (0..144).map(|id| FakeCpu { capacity: Some(1024 - id % 7), ..cpu(id, id / 72, id, id / 72, id / 72) });
    Fake { memory: Some(vec![0, 1, 2, 10]), ..Fake::new("grace", cpus.collect()) }
}

/// 8 P cores with 2 threads (numbered side by side), 8 E cores in 2 modules that share an L2.
pub fn hybrid() -> Fake {
    let p = (0..16).map(|id| FakeCpu { core_id: id / 2 * 4, ..cpu(id, 0, id / 2, 0, 0) });
    let e = (16..24).map(|id| FakeCpu { core_id: id + 16, l2: 100 + (id - 16) / 4, ..cpu(id, 0, id - 8, 0, 0) });
    Fake { pmus: vec![("cpu_core", "0-15"), ("cpu_atom", "16-23")], ..Fake::new("hybrid", p.chain(e).collect()) }
}

/// 4 little cores (numbered first), 3 middle, 1 big; no NUMA, no caches in sysfs.
pub fn phone() -> Fake {
    let capacity = |id| Some([350, 350, 350, 350, 900, 890, 895, 1024][id as usize]);
    let cpus = (0..8).map(|id| FakeCpu { capacity: capacity(id), ..cpu(id, 0, id, 0, 0) });
    Fake { no_numa: true, caches: &[], ..Fake::new("phone", cpus.collect()) }
}

/// 1 core, an old kernel without NUMA, no L3.
pub fn laptop() -> Fake {
    Fake { no_numa: true, caches: &[1, 2], lists: Lists::Old, ..Fake::new("laptop", vec![cpu(0, 0, 0, 0, 0)]) }
}

/// 4 cores, siblings numbered side by side, old names of the lists.
pub fn adjacent() -> Fake {
    let cpus = (0..8).map(|id| cpu(id, 0, id / 2, 0, 0)).collect();
    Fake { lists: Lists::Old, ..Fake::new("adjacent", cpus) }
}

/// 2 packages of 4 cores with 2 threads, CPUs dealt to the packages in turn, CPU 3 offline (so 11 is alone on its core).
pub fn interleaved() -> Fake {
    let cpus = (0..16).map(|id| {
        let (package, core) = (id % 2, id % 2 * 4 + id % 8 / 2);
        FakeCpu { core_id: core % 4 * 8, ..cpu(id, package, core, package, package) }
    });
    Fake { offline: vec![3], ..Fake::new("interleaved", cpus.collect()) }
}

/// 2 packages of 4 cores in flat HBM mode: nodes 2 and 3 have memory only, and node 1 has CPUs only (no DIMM in it).
pub fn hbm() -> Fake {
    let cpus = (0..8).map(|id| cpu(id, id / 4, id, id / 4, id / 4)).collect();
    Fake { memory: Some(vec![0, 2, 3]), ..Fake::new("hbm", cpus) }
}

/// 1 package of 2 dies of 4 cores, `core_id` counted per die, ids without lists; 2 NUMA nodes below one L3.
pub fn dies() -> Fake {
    let cpus = (0..8).map(|id| FakeCpu { die: id / 4, core_id: id % 4, ..cpu(id, 0, id, id / 4, 0) }).collect();
    Fake { lists: Lists::None, ..Fake::new("dies", cpus) }
}

/// 3 NUMA nodes of 3 cores: nothing divides evenly.
pub fn odd() -> Fake {
    Fake::new("odd", (0..9).map(|id| cpu(id, 0, id, id / 3, id / 3)).collect())
}

/// Every synthetic machine.
pub fn all() -> Vec<Fake> {
    vec![epyc(), holes(), grace(), hybrid(), phone(), laptop(), adjacent(), interleaved(), hbm(), dies(), odd()]
}

/// Unpacks a recording: lines `PATH:LINE`, as `grep -rs '' FILES` writes them.
pub fn unpack(recording: &Path) -> Scratch {
    let at = Scratch::new("recorded");
    let mut files: Vec<(String, Vec<String>)> = Vec::new();
    for line in corebox_sys::fs::read_to_string(recording).unwrap().lines() {
        let (path, content) = line.split_once(':').unwrap();
        match files.last_mut().filter(|(last, _)| last == path) {
            Some((_, lines)) => lines.push(content.to_owned()),
            None => files.push((path.to_owned(), vec![content.to_owned()])),
        }
    }
    for (path, lines) in files {
        at.put(&path, &lines.join("\n"));
    }
    at
}
