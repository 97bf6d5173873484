//! What the reader makes of sysfs trees: written, recorded, and this machine's own.

mod machines;

use corebox_host::{Host, Topology};
use corebox_spec::IdSet;
use machines::Fake;
use std::collections::BTreeMap;

fn ids(text: &str) -> IdSet {
    text.parse().unwrap()
}

/// (core, package, numa, l3, smt_index, kind) of a CPU.
fn place(topology: &Topology, cpu: u32) -> (u32, u32, u32, Option<u32>, u32, u8) {
    let cpu = topology.cpu(cpu).unwrap();
    (cpu.core, cpu.package, cpu.numa, cpu.l3, cpu.smt_index, cpu.kind.0)
}

#[test]
fn every_machine_is_read_as_it_was_built() {
    let cases = [
        (machines::epyc(), 0, (0, 0, 0, Some(0), 0, 0)),
        (machines::epyc(), 63, (63, 0, 3, Some(7), 0, 0)),
        (machines::epyc(), 64, (64, 1, 4, Some(8), 0, 0)),
        (machines::epyc(), 128, (0, 0, 0, Some(0), 1, 0)),
        (machines::epyc(), 255, (127, 1, 7, Some(15), 1, 0)),
        (machines::grace(), 71, (71, 0, 0, Some(0), 0, 0)),
        (machines::grace(), 72, (72, 1, 1, Some(1), 0, 0)),
        (machines::hybrid(), 15, (7, 0, 0, Some(0), 1, 0)),
        (machines::hybrid(), 16, (8, 0, 0, Some(0), 0, 1)),
        (machines::phone(), 0, (0, 0, 0, None, 0, 2)),
        (machines::phone(), 4, (4, 0, 0, None, 0, 1)),
        (machines::phone(), 7, (7, 0, 0, None, 0, 0)),
        (machines::laptop(), 0, (0, 0, 0, None, 0, 0)),
        (machines::adjacent(), 1, (0, 0, 0, Some(0), 1, 0)),
        (machines::adjacent(), 2, (1, 0, 0, Some(0), 0, 0)),
        (machines::interleaved(), 2, (1, 0, 0, Some(0), 0, 0)),
        (machines::interleaved(), 1, (4, 1, 1, Some(1), 0, 0)),
        (machines::interleaved(), 11, (7, 1, 1, Some(1), 0, 0)), // its sibling 3 is offline: 11 names the core
        (machines::interleaved(), 9, (4, 1, 1, Some(1), 1, 0)),
        (machines::hbm(), 4, (4, 1, 1, Some(1), 0, 0)),
        (machines::dies(), 4, (4, 0, 1, Some(0), 0, 0)), // core_id 0 again, but on another die
    ];
    for (machine, cpu, expected) in cases {
        assert_eq!(place(&machine.host().topology, cpu), expected, "cpu {cpu} of {}", machine.name);
    }
}

#[test]
fn memory_nodes_have_memory_and_allowed_sets_exist() {
    for (machine, memory, cpus, mems) in [
        (machines::epyc(), "0-7", "0-255", "0-7"),
        (machines::holes(), "0-7", "2-5,9,130", "0"),
        (machines::grace(), "0-2,10", "0-143", "0-2,10"),
        (machines::laptop(), "0", "0", "0"),
        (machines::hbm(), "0,2-3", "0-7", "0,2-3"),
        (machines::interleaved(), "0-1", "0-2,4-15", "0-1"),
    ] {
        let host = machine.host();
        assert_eq!(host.topology.memory_nodes, ids(memory), "{}", machine.name);
        assert_eq!((host.allowed_cpus, host.allowed_mems), (ids(cpus), ids(mems)), "{}", machine.name);
    }
}

#[test]
fn cores_tell_what_of_them_is_ours() {
    let host = machines::holes().host();
    let cores = host.topology.cores(&host.allowed_cpus);
    let seen: Vec<_> = cores.iter().map(|c| (c.number, c.threads.clone(), c.whole)).collect();
    assert_eq!(
        seen,
        [(2, vec![2, 130], true), (3, vec![3], false), (4, vec![4], false), (5, vec![5], false), (9, vec![9], false)]
    );
    let host = machines::interleaved().host();
    assert!(host.topology.cores(&host.allowed_cpus).iter().all(|core| core.whole), "an offline thread is nobody's");
}

#[test]
fn locality_is_open_mpis_form() {
    let topology = machines::epyc().host().topology;
    for (cpus, locality) in [
        ("0", "hwloc:SK0:L30:L20:L10:CR0:HT0:NM0"),
        ("128", "hwloc:SK0:L30:L20:L10:CR0:HT1:NM0"),
        ("64-65", "hwloc:SK1:L38:L264-65:L164-65:CR64-65:HT128,130:NM4"),
    ] {
        assert_eq!(topology.locality(&ids(cpus)).as_deref(), Some(locality));
    }
    assert_eq!(topology.locality(&ids("1000")), None);
    assert_eq!(machines::phone().host().topology.locality(&ids("3")).as_deref(), Some("hwloc:SK0:CR3:HT3:NM0"));
}

#[test]
fn a_recorded_machine_is_read_whole() {
    let recording = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/vm-2-cores.txt");
    let host = Host::read(&machines::unpack(&recording).0).unwrap();
    assert_eq!((host.hostname.as_str(), host.kernel.as_str(), host.arch.as_str()), ("vm", "6.18.44", "x86_64"));
    assert_eq!(host.memory, 24_684_092 * 1024);
    assert_eq!(host.topology.cpus.len(), 2);
    assert_eq!(place(&host.topology, 1), (1, 0, 0, Some(0), 0, 0));
    assert_eq!((host.allowed_cpus, host.allowed_mems), (ids("0-1"), ids("0")));
    assert!(host.user_namespaces.for_users());
    let cgroups = &host.cgroups;
    assert_eq!(cgroups.directory_of("memory"), Some("/sys/fs/cgroup/memory/jobs/17"));
    assert_eq!(cgroups.directory_of("cpuset"), Some("/sys/fs/cgroup/cpuset"));
    assert_eq!(cgroups.v1_of("name=systemd").unwrap().mount, "/sys/fs/cgroup/systemd");
    assert_eq!(cgroups.directory_of("hugetlb"), None);
    let v2 = cgroups.v2.as_ref().unwrap();
    assert_eq!((v2.mount.as_str(), v2.controllers.len()), ("/sys/fs/cgroup/unified", 0));
}

#[test]
fn a_unified_machine_has_its_controllers_in_v2() {
    let tree = machines::laptop().write();
    tree.put("/proc/self/cgroup", "0::/system.slice/slurmstepd.scope/job_7");
    tree.put("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate");
    tree.put("/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/cgroup.controllers", "cpuset cpu memory pids");
    tree.put("/proc/sys/user/max_user_namespaces", "1000");
    tree.put("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1");
    let host = Host::read(&tree.0).unwrap();
    let step = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7";
    assert_eq!(host.cgroups.directory_of("memory"), Some(step));
    assert_eq!(host.cgroups.directory_of("io"), None);
    assert!(host.cgroups.v1.is_empty());
    assert!(!host.user_namespaces.for_users());
}

#[test]
fn what_is_missing_or_malformed_is_named() {
    let tree = machines::laptop().write();
    std::fs::remove_file(tree.0.join("proc/sys/kernel/osrelease")).unwrap();
    let error = Host::read(&tree.0).unwrap_err().to_string();
    assert!(error.contains("proc/sys/kernel/osrelease") && error.contains("ENOENT"), "{error}");
    tree.put("/sys/devices/system/cpu/online", "0-x");
    let error = Host::read(&tree.0).unwrap_err().to_string();
    assert!(error.contains("cpu/online is not understood: `0-x`"), "{error}");
}

#[test]
fn a_host_crosses_the_wire_unchanged() {
    for machine in machines::all() {
        let host = machine.host();
        let text = serde_json::to_string(&host).unwrap();
        assert_eq!(serde_json::from_str::<Host>(&text).unwrap(), host, "{}", machine.name);
    }
}

#[test]
fn this_machine_is_what_the_kernel_says_to_the_affinity_call() {
    let host = Host::this().unwrap();
    let affinity: IdSet = corebox_sys::affinity::cpus().unwrap().into_iter().collect();
    assert_eq!(host.allowed_cpus, affinity);
    assert!(!host.allowed_mems.is_empty() && host.memory > 0 && !host.boot_id.is_empty());
    assert_eq!(host.arch, std::env::consts::ARCH);
}

/// Objects of one type as hwloc's XML lists them, in logical order: CPUs, and the kernel's number.
type Objects = BTreeMap<String, Vec<(Vec<u32>, u32)>>;

fn hwloc(root: &std::path::Path) -> Option<Objects> {
    let lstopo = std::process::Command::new("lstopo-no-graphics")
        .args(["--input-format", "fsroot", "--of", "xml", "--input"])
        .arg(root)
        .output()
        .ok()?;
    assert!(lstopo.status.success(), "{}", String::from_utf8_lossy(&lstopo.stderr));
    let mut objects = Objects::new();
    for line in String::from_utf8(lstopo.stdout).unwrap().lines().filter(|line| line.contains("<object ")) {
        let value = |name: &str| -> Option<&str> { line.split(&format!(" {name}=\"")).nth(1)?.split('"').next() };
        if let (Some(kind), Some(cpus)) = (value("type"), value("cpuset")) {
            let os_index = value("os_index").map_or(0, |n| n.parse().unwrap());
            objects.entry(kind.to_owned()).or_default().push((of_mask(cpus), os_index));
        }
    }
    Some(objects)
}

/// CPUs of hwloc's `0x00000001,,0xff`, where an empty word is 0.
fn of_mask(mask: &str) -> Vec<u32> {
    let words = mask.rsplit(',').map(|word| match word.trim_start_matches("0x") {
        "" => 0,
        hex => u32::from_str_radix(hex, 16).unwrap(),
    });
    words
        .enumerate()
        .flat_map(|(at, word)| (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u32 * 32 + bit))
        .collect()
}

fn compare(name: &str, topology: &Topology, objects: &Objects) {
    type Number = fn(&corebox_host::Cpu) -> Option<u32>;
    let levels: [(&str, Number); 5] = [
        ("Package", |cpu| Some(cpu.package)),
        ("L3Cache", |cpu| cpu.l3),
        ("L2Cache", |cpu| cpu.l2),
        ("L1Cache", |cpu| cpu.l1),
        ("Core", |cpu| Some(cpu.core)),
    ];
    let none = Vec::new();
    for (kind, number) in levels {
        for cpu in &topology.cpus {
            let theirs = objects.get(kind).unwrap_or(&none).iter().position(|(cpus, _)| cpus.contains(&cpu.id));
            assert_eq!(number(cpu), theirs.map(|at| at as u32), "{kind} of cpu {} of {name}", cpu.id);
        }
    }
    for cpu in &topology.cpus {
        let theirs = objects["NUMANode"].iter().find(|(cpus, _)| cpus.contains(&cpu.id));
        assert_eq!(Some(cpu.numa), theirs.map(|(_, node)| *node), "NUMA node of cpu {} of {name}", cpu.id);
    }
    assert_eq!(objects["PU"].len(), topology.cpus.len(), "{name}");
}

#[test]
fn hwloc_reads_the_same() {
    if hwloc(std::path::Path::new("/")).is_none() {
        eprintln!("SKIP hwloc_reads_the_same: lstopo-no-graphics (Debian: hwloc-nox) is not installed");
        return;
    }
    compare("this machine", &Host::this().unwrap().topology, &hwloc("/".as_ref()).unwrap());
    // `dies` has neither lists nor masks, and hwloc reads masks only
    let readable = |machine: &Fake| machine.lists != machines::Lists::None;
    for machine in machines::all().into_iter().filter(readable) {
        let tree = machine.write();
        compare(machine.name, &Topology::read(&tree.0).unwrap(), &hwloc(&tree.0).unwrap());
    }
}
