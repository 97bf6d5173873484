//! Inventory and selection on the sysfs trees of machines with many HCAs.
//!
//! The trees are written by hand, not copied from machines, and none has been compared with one: file names and values are
//! meant to be those of the kernel's Documentation/ABI (sysfs-class-infiniband, sysfs-bus-pci) and of the drivers. They hold
//! what corebox reads.

use corebox_rdma::{Hca, Inventory, rails, select};
use corebox_spec::{IdSet, RdmaSelect};
use corebox_sys::fs;
use std::path::{Path, PathBuf};

/// A sysfs tree that is removed with it.
struct Machine {
    root: PathBuf,
    verbs: u32,
}

/// One HCA to write.
struct Card {
    name: &'static str,
    /// Its place below /sys/devices; the last part is the PCI function.
    place: &'static str,
    driver: &'static str,
    numa: i32,
    kind: &'static str,
    link: &'static str,
    rate: &'static str,
    state: &'static str,
    netdev: Option<&'static str>,
}

const IB: Card = Card {
    name: "",
    place: "",
    driver: "mlx5_core",
    numa: 0,
    kind: "1: CA",
    link: "InfiniBand",
    rate: "200 Gb/sec (4X HDR)",
    state: "4: ACTIVE",
    netdev: None,
};
const ROCE: Card = Card { link: "Ethernet", rate: "100 Gb/sec (4X EDR)", ..IB };

impl Machine {
    /// `nodes` NUMA nodes, 10 within and 21 between packages of two.
    fn new(name: &str, nodes: u32) -> Self {
        let root = std::env::temp_dir().join(format!("corebox-rdma-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        let machine = Self { root, verbs: 0 };
        for node in 0..nodes {
            let distance = |other: u32| {
                if other == node {
                    10
                } else if other / 2 == node / 2 {
                    12
                } else {
                    32
                }
            };
            let row: Vec<String> = (0..nodes).map(|other| distance(other).to_string()).collect();
            machine.file(&format!("devices/system/node/node{node}/distance"), &row.join(" "));
        }
        machine
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, format!("{text}\n")).expect("a file");
    }

    fn link(&self, path: &str, target: &Path) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::os::unix::fs::symlink(target, path).expect("a link");
    }

    fn card(mut self, card: &Card) -> Self {
        let function = format!("devices/{}", card.place);
        let ib = format!("{function}/infiniband/{}", card.name);
        self.file(&format!("{function}/numa_node"), &card.numa.to_string());
        self.link(&format!("{function}/driver"), &Path::new("/sys/bus/pci/drivers").join(card.driver));
        self.file(&format!("{ib}/node_type"), card.kind);
        self.file(&format!("{ib}/node_guid"), "b8ce:f603:0012:3456");
        self.link(&format!("{ib}/device"), &self.root.join(&function));
        for (name, text) in [("state", card.state), ("link_layer", card.link), ("rate", card.rate), ("lid", "0x1a")] {
            self.file(&format!("{ib}/ports/1/{name}"), text);
        }
        if let Some(netdev) = card.netdev {
            self.file(&format!("{function}/net/{netdev}/dev_port"), "0");
            self.file(&format!("{function}/net/{netdev}/phys_port_name"), "p0");
            self.file(&format!("{ib}/ports/1/gid_attrs/ndevs/0"), netdev);
        }
        self.link(&format!("class/infiniband/{}", card.name), &self.root.join(&ib));
        let verbs = format!("class/infiniband_verbs/uverbs{}", self.verbs);
        self.file(&format!("{verbs}/ibdev"), card.name);
        self.file(&format!("{verbs}/dev"), &format!("231:{}", 192 + self.verbs));
        self.file(&format!("{verbs}/abi_version"), "1");
        self.verbs += 1;
        self
    }

    fn read(&self) -> Inventory {
        Inventory::recorded(&self.root).expect("a tree of ours")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn numa(nodes: &[u32]) -> IdSet {
    nodes.iter().copied().collect()
}

/// Which rail each rank gets, of all HCAs.
fn told(inventory: &Inventory, ranks: &[&[u32]]) -> Vec<String> {
    let all = select(inventory, &RdmaSelect::All, &numa(&[0])).expect("a selection");
    let ranks: Vec<IdSet> = ranks.iter().map(|nodes| numa(nodes)).collect();
    rails(inventory, &all, &ranks).into_iter().map(|rail| rail.map_or("-".into(), |rail| rail.name())).collect()
}

fn names(found: Vec<&Hca>) -> Vec<String> {
    found.into_iter().map(|hca| hca.name.clone()).collect()
}

/// 2 packages of 2 NUMA nodes, 4 HCAs: as on nodes with 4 or 8 GPUs.
fn dgx() -> Machine {
    Machine::new("dgx", 4)
        .card(&Card { name: "mlx5_0", place: "pci0000:00/0000:00:01.1/0000:01:00.0", numa: 0, ..IB })
        .card(&Card { name: "mlx5_1", place: "pci0000:40/0000:40:01.1/0000:41:00.0", numa: 1, ..IB })
        .card(&Card { name: "mlx5_10", place: "pci0000:80/0000:80:01.1/0000:81:00.0", numa: 2, ..IB })
        .card(&Card { name: "mlx5_11", place: "pci0000:c0/0000:c0:01.1/0000:c1:00.0", numa: 2, state: "1: DOWN", ..IB })
}

#[test]
fn each_rank_gets_the_nearest_that_is_up() {
    let machine = dgx();
    let inventory = machine.read();
    assert_eq!(told(&inventory, &[&[0], &[1], &[2], &[3]]), ["mlx5_0:1", "mlx5_1:1", "mlx5_10:1", "mlx5_10:1"]);
    let nearest = |nodes: &[u32]| names(select(&inventory, &RdmaSelect::Nearest, &numa(nodes)).expect("a selection"));
    assert_eq!(nearest(&[1]), ["mlx5_1"]);
    assert_eq!(nearest(&[0, 3]), ["mlx5_0", "mlx5_10"], "one of each package");
    let variables = rails(&inventory, &[&inventory.devices[1]], &[numa(&[1])])[0].expect("a rail").environment();
    assert!(variables.contains(&("UCX_NET_DEVICES".into(), "mlx5_1:1".into())));
    assert!(variables.contains(&("NCCL_IB_HCA".into(), "=mlx5_1:1".into())), "exactly this one, not mlx5_10");
    let first = &inventory.devices[0];
    assert_eq!(first.pci.as_deref(), Some("0000:01:00.0"));
    assert_eq!(first.path, ["0000:00:01.1", "0000:01:00.0"]);
    assert_eq!((first.protocol.as_deref(), first.ports[0].lid, first.ports[0].rate), (Some("ib"), 26, 200));
}

#[test]
fn equal_ones_are_dealt_out_in_turn() {
    let machine = Machine::new("rails", 2)
        .card(&Card { name: "mlx5_0", place: "pci0000:00/0000:01:00.0", ..IB })
        .card(&Card { name: "mlx5_1", place: "pci0000:00/0000:01:00.1", ..IB })
        .card(&Card { name: "mlx5_2", place: "pci0000:00/0000:02:00.0", rate: "100 Gb/sec (4X EDR)", ..IB });
    let inventory = machine.read();
    assert_eq!(
        told(&inventory, &[&[0], &[0], &[0], &[0]]),
        ["mlx5_0:1", "mlx5_1:1", "mlx5_0:1", "mlx5_1:1"],
        "the slow one is left"
    );
}

/// mlx5 in switchdev mode: the device's further ports are representors of its virtual functions, which have devices of
/// their own (kernel Documentation/networking/representors.rst).
#[test]
fn representors_are_no_way_out_and_virtual_functions_come_last() {
    let machine = Machine::new("switchdev", 2)
        .card(&Card { name: "mlx5_0", place: "pci0000:00/0000:03:00.0", netdev: Some("ens1f0np0"), ..ROCE })
        .card(&Card { name: "mlx5_2", place: "pci0000:00/0000:03:00.2", netdev: Some("ens1f0v0"), ..ROCE });
    machine.file("devices/pci0000:00/0000:03:00.0/sriov_numvfs", "1");
    machine.link("devices/pci0000:00/0000:03:00.2/physfn", Path::new("../0000:03:00.0"));
    let second = "devices/pci0000:00/0000:03:00.0/infiniband/mlx5_0/ports/2";
    for (name, text) in [("state", "4: ACTIVE"), ("link_layer", "Ethernet"), ("rate", "400 Gb/sec (8X NDR)")] {
        machine.file(&format!("{second}/{name}"), text);
    }
    machine.file(&format!("{second}/gid_attrs/ndevs/0"), "ens1f0npf0vf0");
    machine.file("devices/pci0000:00/0000:03:00.0/net/ens1f0npf0vf0/phys_port_name", "pf0vf0");
    let inventory = machine.read();
    assert_eq!(told(&inventory, &[&[0], &[0]]), ["mlx5_0:1", "mlx5_0:1"]);
    assert!(inventory.devices[0].ports[1].representor);
    assert_eq!((inventory.devices[0].vfs, inventory.devices[1].vf_of.as_deref()), (1, Some("0000:03:00.0")));
    let chosen = |want: RdmaSelect| select(&inventory, &want, &numa(&[0])).map(names).map_err(|f| f.cause);
    assert_eq!(chosen(RdmaSelect::Vf), Ok(vec!["mlx5_2".to_owned()]));
    assert_eq!(chosen(RdmaSelect::Netdev("ens1f0v0".into())), Ok(vec!["mlx5_2".to_owned()]));
    assert_eq!(chosen(RdmaSelect::Names(vec!["mlx5_9".into()])), Err("there is no mlx5_9".to_owned()));
}

#[test]
fn other_vendors_are_read_as_well() {
    let broadcom = Machine::new("bnxt", 2)
        .card(&Card {
            name: "bnxt_re0",
            place: "pci0000:a0/0000:a1:00.0",
            driver: "bnxt_en",
            numa: 1,
            netdev: Some("enp161s0f0np0"),
            ..ROCE
        })
        .card(&Card {
            name: "bnxt_re1",
            place: "pci0000:a0/0000:a1:00.1",
            driver: "bnxt_en",
            numa: 1,
            state: "1: DOWN",
            ..ROCE
        });
    assert_eq!(told(&broadcom.read(), &[&[0]]), ["bnxt_re0:1"]);
    let intel = Machine::new("irdma", 2)
        .card(&Card {
            name: "rocep24s0f0",
            place: "pci0000:17/0000:18:00.0",
            driver: "ice",
            netdev: Some("ens785f0"),
            ..ROCE
        })
        .card(&Card { name: "iwp24s0f1", place: "pci0000:17/0000:18:00.1", driver: "ice", kind: "4: RNIC", ..ROCE });
    let protocols: Vec<_> = intel.read().devices.into_iter().map(|hca| hca.protocol.unwrap_or_default()).collect();
    assert_eq!(protocols, ["iw", "roce"]);
    let amazon = Machine::new("efa", 2)
        .card(&Card {
            name: "rdmap16s27",
            place: "pci0000:10/0000:10:1b.0",
            driver: "efa",
            kind: "7: unspecified",
            link: "Unspecified",
            ..IB
        })
        .card(&Card {
            name: "rdmap32s27",
            place: "pci0000:20/0000:20:1b.0",
            driver: "efa",
            kind: "7: unspecified",
            numa: 1,
            link: "Unspecified",
            ..IB
        });
    let inventory = amazon.read();
    assert_eq!(told(&inventory, &[&[1], &[0]]), ["rdmap32s27:1", "rdmap16s27:1"]);
    let all = select(&inventory, &RdmaSelect::All, &numa(&[0])).expect("a selection");
    let rail = rails(&inventory, &all, &[numa(&[0])])[0].expect("a rail");
    assert!(rail.environment().contains(&("FI_EFA_IFACE".into(), "rdmap16s27".into())));
}

/// Omni-Path has a device of its own beside verbs; Slingshot has no verbs at all.
#[test]
fn fabrics_beside_verbs_bring_their_own_nodes() {
    let omni_path = Machine::new("hfi1", 2)
        .card(&Card {
            name: "hfi1_0",
            place: "pci0000:5d/0000:5e:00.0",
            driver: "hfi1",
            rate: "100 Gb/sec (4X EDR)",
            ..IB
        })
        .card(&Card {
            name: "hfi1_1",
            place: "pci0000:ae/0000:af:00.0",
            driver: "hfi1",
            numa: 1,
            rate: "100 Gb/sec (4X EDR)",
            ..IB
        });
    omni_path.file("class/hfi1_user/hfi1_0/dev", "242:0");
    omni_path.file("class/misc/rdma_cm/dev", "10:58");
    omni_path.file("class/misc/knem/dev", "10:57");
    omni_path.file("class/misc/fuse/dev", "10:229");
    let inventory = omni_path.read();
    assert_eq!(told(&inventory, &[&[1]]), ["hfi1_1:1"]);
    assert_eq!(inventory.devices[0].protocol.as_deref(), Some("opa"));
    let others: Vec<_> = inventory.others.iter().map(|(kind, node)| (kind.as_str(), node.path.as_str())).collect();
    assert_eq!(others, [("hfi1", "/dev/hfi1_0"), ("knem", "/dev/knem")]);
    let slingshot = Machine::new("cxi", 2);
    slingshot.file("class/cxi/cxi0/dev", "240:0");
    let inventory = slingshot.read();
    let edits = corebox_rdma::edits(&inventory, &[], Default::default());
    assert_eq!(edits.mounts.iter().map(|mount| mount.target.as_str()).collect::<Vec<_>>(), ["/dev/cxi0"]);
    assert!(edits.raise_memlock && edits.mounts[0].devices);
}

#[test]
fn what_is_not_ours_is_never_chosen() {
    let machine = dgx();
    let mut inventory = machine.read();
    inventory.devices[0].elsewhere = true;
    assert_eq!(told(&inventory, &[&[0]]), ["mlx5_1:1"], "the next nearest");
    let error = select(&inventory, &RdmaSelect::Names(vec!["mlx5_0".into()]), &numa(&[0])).expect_err("refused");
    assert!(error.cause.contains("another network namespace"), "{error}");
    inventory.devices.iter_mut().for_each(|hca| hca.uverbs = None);
    assert_eq!(told(&inventory, &[&[0]]), ["-"]);
    let empty = Machine::new("empty", 1);
    assert_eq!(corebox_rdma::edits(&empty.read(), &[], Default::default()), Default::default());
}
