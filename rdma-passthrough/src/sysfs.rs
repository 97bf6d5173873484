//! The inventory from sysfs (kernel Documentation/ABI/stable/sysfs-class-infiniband, testing/sysfs-bus-pci): of this
//! machine or of a recorded tree.

use crate::hca::{Hca, Inventory, Port};
use corebox_spec::DeviceNode;
use corebox_sys::{Result, fs};
use std::path::{Path, PathBuf};

/// Classes of devices besides verbs that fabrics and MPI libraries open, and where their nodes are.
const OTHERS: [(&str, &str); 5] = [
    ("hfi1", "class/hfi1_user"),
    ("hfi1", "class/hfi1"),
    ("cxi", "class/cxi"),
    ("cxi", "class/cxi_user"),
    ("misc", "class/misc"),
];
/// Of class misc: copies between processes (knem, xpmem) and to GPUs (gdrdrv).
const MISC: [&str; 3] = ["knem", "xpmem", "gdrdrv"];

/// Reads the inventory below `sysfs` (`/sys`). What the kernel does not say is left open.
///
/// # Errors
/// When a directory is there but cannot be read.
pub fn read(sysfs: &Path) -> Result<Inventory> {
    let mut found = Inventory::default();
    for name in fs::list(sysfs.join("class/infiniband"))? {
        found.devices.push(hca(sysfs, &name)?);
    }
    for node in fs::list(sysfs.join("class/infiniband_verbs"))? {
        let place = sysfs.join("class/infiniband_verbs").join(&node);
        attach(&mut found.devices, &place, |hca| hca.uverbs = Some(infiniband_node(&place, &node)));
    }
    for node in fs::list(sysfs.join("class/infiniband_mad"))?.iter().filter(|node| node.starts_with("umad")) {
        let place = sysfs.join("class/infiniband_mad").join(node);
        attach(&mut found.devices, &place, |hca| hca.umad.push(infiniband_node(&place, node)));
    }
    let cm = sysfs.join("class/misc/rdma_cm");
    found.rdma_cm = cm.exists().then(|| infiniband_node(&cm, "rdma_cm"));
    for (kind, class) in OTHERS {
        for name in fs::list(sysfs.join(class))? {
            let kind = if kind == "misc" { name.as_str() } else { kind };
            let node = node(&sysfs.join(class).join(&name), format!("/dev/{name}"));
            let wanted = !class.ends_with("misc") || MISC.contains(&kind);
            // hfi1 has nodes of other kinds (ui0, diagnostics); a node without a number is no node.
            if wanted && node.number.is_some() && name.starts_with(kind) {
                found.others.push((kind.to_owned(), node));
            }
        }
    }
    for name in fs::list(sysfs.join("devices/system/node"))? {
        let Some(number) = name.strip_prefix("node").and_then(|text| text.parse().ok()) else { continue };
        let row = text(&sysfs.join("devices/system/node").join(&name), "distance").unwrap_or_default();
        found.distances.insert(number, row.split_whitespace().filter_map(|word| word.parse().ok()).collect());
    }
    Ok(found)
}

/// Gives the HCA that the `ibdev` file of a character device names this device.
fn attach(devices: &mut [Hca], place: &Path, edit: impl FnOnce(&mut Hca)) {
    // The class's directory also holds plain files such as abi_version, which have no ibdev.
    let Some(name) = text(place, "ibdev") else { return };
    if let Some(hca) = devices.iter_mut().find(|hca| hca.name == name) {
        edit(hca);
    }
}

fn infiniband_node(place: &Path, name: &str) -> DeviceNode {
    node(place, format!("/dev/infiniband/{name}"))
}

fn node(place: &Path, path: String) -> DeviceNode {
    let number = text(place, "dev").and_then(|text| {
        let (major, minor) = text.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    DeviceNode { path, number, abi: parsed(place, "abi_version") }
}

fn hca(sysfs: &Path, name: &str) -> Result<Hca> {
    let place = sysfs.join("class/infiniband").join(name);
    let device = place.join("device");
    let real = std::fs::canonicalize(&device).ok();
    let path: Vec<String> =
        real.iter().flat_map(|path| path.iter()).map(|part| part.to_string_lossy().into_owned()).collect();
    let path: Vec<String> = path.into_iter().filter(|part| is_pci(part)).collect();
    let mut ports = Vec::new();
    let numbers = fs::list(place.join("ports"))?;
    for number in numbers.iter().filter_map(|name| name.parse().ok()) {
        ports.push(port(&place, &device, number)?);
    }
    ports.sort_by_key(|port: &Port| port.number);
    Ok(Hca {
        name: name.to_owned(),
        driver: linked(&device.join("driver")),
        vf_of: linked(&device.join("physfn")),
        vfs: parsed(&device, "sriov_numvfs").unwrap_or(0),
        // -1: the firmware does not say.
        numa: parsed(&device, "numa_node"),
        pci: path.last().cloned(),
        path,
        guid: text(&place, "node_guid"),
        protocol: protocol(&place, &ports),
        ports,
        uverbs: None,
        umad: Vec::new(),
        elsewhere: false,
    })
}

/// `0000:41:00.0`.
fn is_pci(part: &str) -> bool {
    part.len() >= 12
        && part.split([':', '.']).all(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_hexdigit()))
        && part.matches(':').count() == 2
}

/// As netlink would name it; sysfs says it in pieces.
fn protocol(place: &Path, ports: &[Port]) -> Option<String> {
    let kind = text(place, "node_type")?;
    let ethernet = ports.iter().any(|port| port.link_layer == "Ethernet");
    let opa =
        text(place, "hfi_type").is_some() || place.ends_with("hfi1_0") || place.to_string_lossy().contains("/hfi1_");
    let word = match kind.split(':').next_back()?.trim() {
        "RNIC" => "iw",
        "CA" if ethernet => "roce",
        "CA" if opa => "opa",
        "CA" => "ib",
        "usNIC" | "usNIC UDP" => "usnic",
        _ => return None,
    };
    Some(word.to_owned())
}

fn port(place: &Path, device: &Path, number: u32) -> Result<Port> {
    let port = place.join("ports").join(number.to_string());
    // `4: ACTIVE`, `100 Gb/sec (4X EDR)`
    let word = |name: &str| text(&port, name);
    let after_colon = |text: String| text.split(':').next_back().unwrap_or_default().trim().to_owned();
    let lid = word("lid").and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    let netdev = word("gid_attrs/ndevs/0").filter(|name| !name.is_empty());
    let netdev = match netdev {
        Some(name) => Some(name),
        None => interface(device, number)?,
    };
    let representor = netdev.as_ref().is_some_and(|name| is_representor(device, name));
    Ok(Port {
        number,
        state: word("state").map(after_colon).unwrap_or_default(),
        link_layer: word("link_layer").unwrap_or_default(),
        rate: word("rate").and_then(|text| text.split([' ', '.']).next()?.parse().ok()).unwrap_or(0),
        lid: lid.filter(|lid| *lid < 0xffff).unwrap_or(0),
        netdev,
        representor,
    })
}

/// The interface of the same function and port (`dev_port` counts from 0).
fn interface(device: &Path, port: u32) -> Result<Option<String>> {
    let net = device.join("net");
    let names = fs::list(&net)?;
    let same =
        |name: &&String| parsed::<u32>(&net.join(name), "dev_port") == Some(port - 1) && !is_representor(device, name);
    Ok(names.iter().find(same).cloned())
}

/// A port of the embedded switch says so in phys_port_name: `pf0vf3`, where the uplink is `p0`.
fn is_representor(device: &Path, interface: &str) -> bool {
    text(&device.join("net").join(interface), "phys_port_name")
        .is_some_and(|name| name.contains("vf") || name.contains("sf"))
}

fn linked(link: &Path) -> Option<String> {
    let target: PathBuf = std::fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// A file's text, trimmed; files that cannot be read (some answer EINVAL when a port has no value) say nothing.
fn text(place: &Path, name: &str) -> Option<String> {
    fs::read_to_string(place.join(name)).ok().map(|text| text.trim().to_owned())
}

fn parsed<T: std::str::FromStr>(place: &Path, name: &str) -> Option<T> {
    text(place, name)?.parse().ok()
}
