//! What the kernel says of its RDMA devices, as plain data.

use corebox_spec::DeviceNode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The RDMA devices of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// HCAs, by name.
    pub devices: Vec<Hca>,
    /// The connection manager's device.
    pub rdma_cm: Option<DeviceNode>,
    /// How network namespaces see HCAs; `None`: the kernel does not say.
    pub netns: Option<NetnsMode>,
    /// Further devices of fabrics and of copies between processes, by what they are: `hfi1`, `cxi`, `knem`, `xpmem`, `gdrdrv`.
    pub others: Vec<(String, DeviceNode)>,
    /// Distance between NUMA nodes as the firmware says it (10: the same), per node of the row.
    pub distances: BTreeMap<u32, Vec<u32>>,
}

/// RDMA network namespace mode (rdma-system(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetnsMode {
    /// Every network namespace sees every device: a network namespace isolates nothing.
    Shared,
    /// A device belongs to one network namespace.
    Exclusive,
}

/// One HCA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hca {
    /// Kernel name: `mlx5_0`.
    pub name: String,
    /// Driver of its bus device: `mlx5_core`; `None` for software devices.
    pub driver: Option<String>,
    /// PCI function: `0000:41:00.0`.
    pub pci: Option<String>,
    /// The physical function that it is a virtual function of.
    pub vf_of: Option<String>,
    /// Virtual functions that it has.
    pub vfs: u32,
    /// NUMA node, when the kernel knows one.
    pub numa: Option<u32>,
    /// Bridges from the host bridge to it, outermost first: what two devices share of this is the way between them.
    pub path: Vec<String>,
    /// Node GUID as the kernel writes it.
    pub guid: Option<String>,
    /// Protocol as the kernel names it: `ib`, `roce`, `iw`, `opa`, `usnic`.
    pub protocol: Option<String>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Verbs; `None` when ib_uverbs is not loaded.
    pub uverbs: Option<DeviceNode>,
    /// Management datagrams, for subnet managers only.
    pub umad: Vec<DeviceNode>,
    /// It is of another network namespace.
    pub elsewhere: bool,
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// From 1.
    pub number: u32,
    /// `ACTIVE`, `DOWN`, `INIT`, `ARMED`.
    pub state: String,
    /// `InfiniBand` or `Ethernet`.
    pub link_layer: String,
    /// Gb/s.
    pub rate: u32,
    /// Local identifier given by the subnet manager; 0 on Ethernet.
    pub lid: u32,
    /// Its network interface.
    pub netdev: Option<String>,
    /// It stands for a virtual function of an embedded switch, and leads nowhere else.
    pub representor: bool,
}

impl Hca {
    /// The port a program should use: active, leading out of the machine, the fastest, the first.
    pub fn best_port(&self) -> Option<&Port> {
        let usable = self.ports.iter().filter(|port| port.state == "ACTIVE" && !port.representor);
        usable.max_by_key(|port| (port.rate, std::cmp::Reverse(port.number)))
    }

    /// Whether a program of this network namespace can use it now.
    pub fn usable(&self) -> bool {
        !self.elsewhere && self.uverbs.is_some() && self.best_port().is_some()
    }
}
