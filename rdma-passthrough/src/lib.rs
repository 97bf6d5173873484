//! HCAs at native speed.
//!
//! Today: the inventory from sysfs and the device nodes that go with it, bound whole into the container. Discovery over
//! RDMA netlink, selection by locality, provider injection, limits and verification from inside come with the RDMA issue.
#![forbid(unsafe_code)]

use corebox_spec::{Edits, Mount, MountKind, Origin};
use corebox_sys::{Result, fs};
use serde::Serialize;
use std::path::Path;

/// One HCA as the kernel lists it below /sys/class/infiniband.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Kernel name: `mlx5_0`.
    pub name: String,
    /// Its verbs character device: `/dev/infiniband/uverbs0`; `None` when ib_uverbs is not loaded.
    pub uverbs: Option<String>,
    /// NUMA node, when the kernel knows one.
    pub numa: Option<u32>,
    /// Driver name from the device's modalias link.
    pub driver: Option<String>,
}

/// The HCAs of this machine (or of a recorded sysfs tree), by name; empty without InfiniBand in the kernel.
///
/// # Errors
/// When the directories are there but cannot be read.
pub fn inventory(sysfs: &Path) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for name in fs::list(sysfs.join("class/infiniband"))? {
        let device = sysfs.join("class/infiniband").join(&name).join("device");
        let numa = fs::read_to_string(device.join("numa_node")).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let driver = std::fs::read_link(device.join("driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        devices.push(Device { uverbs: uverbs_of(sysfs, &name)?, name, numa, driver });
    }
    Ok(devices)
}

/// The verbs node of an HCA: the uverbsN whose `ibdev` file names it.
fn uverbs_of(sysfs: &Path, device: &str) -> Result<Option<String>> {
    for node in fs::list(sysfs.join("class/infiniband_verbs"))? {
        let ibdev = sysfs.join("class/infiniband_verbs").join(&node).join("ibdev");
        // the directory also holds plain files such as abi_version, which have no ibdev
        if fs::read_to_string(ibdev).is_ok_and(|text| text.trim() == device) {
            return Ok(Some(format!("/dev/infiniband/{node}")));
        }
    }
    Ok(None)
}

/// What a container on this machine needs for all its HCAs; nothing without any.
///
/// # Errors
/// As [`inventory`].
pub fn host_edits() -> Result<Edits> {
    inventory(Path::new("/sys")).map(|devices| edits(&devices))
}

/// What the container needs for these HCAs: their verbs nodes and `rdma_cm`, bound with devices allowed, and locked memory.
///
/// umad and issm are for subnet management and stay out.
pub fn edits(devices: &[Device]) -> Edits {
    let nodes: Vec<&str> = devices.iter().filter_map(|device| device.uverbs.as_deref()).collect();
    if nodes.is_empty() {
        return Edits::default();
    }
    let bind = |path: &str| Mount {
        target: path.to_owned(),
        kind: MountKind::Bind { source: path.to_owned() },
        read_only: false,
        devices: true,
        origin: Origin("rdma".into()),
    };
    let rdma_cm = "/dev/infiniband/rdma_cm";
    let with_cm = nodes.into_iter().chain(Path::new(rdma_cm).exists().then_some(rdma_cm));
    Edits { mounts: with_cm.map(bind).collect(), env: Vec::new(), raise_memlock: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("corebox-rdma-{}-{}", std::process::id(), files.len()));
        for (path, content) in files {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), content).unwrap();
        }
        root
    }

    #[test]
    fn pairs_each_hca_with_its_own_verbs_node() {
        let root = machine(&[
            ("class/infiniband/mlx5_0/device/numa_node", "0\n"),
            ("class/infiniband/mlx5_1/device/numa_node", "1\n"),
            ("class/infiniband_verbs/uverbs0/ibdev", "mlx5_1\n"),
            ("class/infiniband_verbs/uverbs1/ibdev", "mlx5_0\n"),
            ("class/infiniband_verbs/abi_version", "6\n"),
        ]);
        let devices = inventory(&root).unwrap();
        let seen: Vec<_> = devices.iter().map(|d| (d.name.as_str(), d.uverbs.as_deref(), d.numa)).collect();
        let expected = [
            ("mlx5_0", Some("/dev/infiniband/uverbs1"), Some(0)),
            ("mlx5_1", Some("/dev/infiniband/uverbs0"), Some(1)),
        ];
        assert_eq!(seen, expected);
        let edits = edits(&devices);
        assert!(edits.raise_memlock && edits.mounts.iter().all(|mount| mount.devices));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_machine_without_hcas_is_left_alone() {
        let root = machine(&[("class/net/lo/mtu", "65536")]);
        assert_eq!(inventory(&root).unwrap(), []);
        assert_eq!(edits(&[]), Edits::default());
        std::fs::remove_dir_all(root).unwrap();
    }
}
