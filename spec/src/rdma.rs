//! What can be asked of RDMA devices, and what must be found to work inside the container.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Which of the node's HCAs the container gets: `--rdma`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RdmaSelect {
    /// All of them.
    #[default]
    All,
    /// None.
    None,
    /// Those of these names (`mlx5_0`); each must be there.
    Names(Vec<String>),
    /// The one behind this network interface.
    Netdev(String),
    /// Those nearest to the CPUs that the container may use.
    Nearest,
    /// Virtual functions only.
    Vf,
}

impl FromStr for RdmaSelect {
    type Err = String;

    /// `all`, `none`, `nearest`, `vf`, `netdev=IF`, or names separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "all" => Self::All,
            "none" => Self::None,
            "nearest" => Self::Nearest,
            "vf" => Self::Vf,
            _ => match text.strip_prefix("netdev=") {
                Some(interface) => Self::Netdev(interface.to_owned()),
                None => Self::Names(
                    text.split(',').map(|name| device_name(name).map(str::to_owned)).collect::<Result<_, _>>()?,
                ),
            },
        })
    }
}

/// Device names become paths and lines of a cgroup file: what the kernel would name no device is refused.
fn device_name(name: &str) -> Result<&str, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fine) {
        return Err(format!("`{name}` is no name of an RDMA device"));
    }
    Ok(name)
}

/// Limits of one HCA for one container, by the rdma cgroup: `--rdma-limit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaLimit {
    /// Kernel name of the HCA.
    pub device: String,
    /// Open contexts.
    pub handles: Option<u32>,
    /// Verbs objects: protection domains, memory regions, completion queues, queue pairs, each counting 1.
    pub objects: Option<u32>,
}

impl FromStr for RdmaLimit {
    type Err = String;

    /// `DEVICE:handles=N,objects=M`, either of the two.
    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("`{text}` is not DEVICE:handles=N,objects=M");
        let (device, limits) = text.split_once(':').ok_or_else(usage)?;
        let mut limit = Self { device: device_name(device)?.to_owned(), handles: None, objects: None };
        for part in limits.split(',') {
            let (name, number) = part.split_once('=').ok_or_else(usage)?;
            let number = Some(number.parse::<u32>().map_err(|e| format!("{part}: {e}"))?);
            match name {
                "handles" => limit.handles = number,
                "objects" => limit.objects = number,
                _ => return Err(usage()),
            }
        }
        Ok(limit)
    }
}

/// What happens when the fabric does not work in the container: `--fabric`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FabricPolicy {
    /// The container does not start.
    Require,
    /// It starts, and what is wrong is said.
    Prefer,
    /// Nobody looks.
    #[default]
    Any,
}

/// What is looked at in the finished container, as its user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricCheck {
    /// What happens with what is found.
    pub policy: FabricPolicy,
    /// Character devices that must open for reading and writing.
    pub nodes: Vec<DeviceNode>,
    /// Kernel names of the HCAs that sysfs must show.
    pub devices: Vec<String>,
    /// Providers of libibverbs that the image needs, by the names of their libraries: `mlx5` of `libmlx5-rdmav34.so`.
    pub providers: Vec<String>,
    /// What was seen from the host already, as cause and cure.
    pub problems: Vec<(String, String)>,
}

/// A character device of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Its path: `/dev/infiniband/uverbs0`.
    pub path: String,
    /// Major and minor number, where the kernel says them.
    pub number: Option<(u32, u32)>,
    /// Version of its interface (`uverbsN/abi_version`).
    pub abi: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_typed() {
        assert_eq!("mlx5_0,mlx5_1".parse(), Ok(RdmaSelect::Names(vec!["mlx5_0".into(), "mlx5_1".into()])));
        assert_eq!("netdev=ib0".parse(), Ok(RdmaSelect::Netdev("ib0".into())));
        assert!("../x".parse::<RdmaSelect>().is_err() && "".parse::<RdmaSelect>().is_err());
        let limit = RdmaLimit { device: "mlx5_0".into(), handles: Some(2), objects: None };
        assert_eq!("mlx5_0:handles=2".parse(), Ok(limit));
        for wrong in ["mlx5_0", "mlx5_0:handles", "mlx5_0:handles=-1", "mlx5_0:queues=1", "a b:handles=1"] {
            assert!(wrong.parse::<RdmaLimit>().is_err(), "{wrong}");
        }
    }
}
