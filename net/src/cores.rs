//! `--net-cores`: on which CPUs the kernel does the work of the container's interfaces, by receive packet steering (RPS,
//! kernel: Documentation/networking/scaling.rst).
//!
//! The study's lesson was that network work belongs near the ranks, in a cache they share, but not on their cores. What is
//! the host's (the queues of a parent or uplink) is written down first and restored by the last container that changed it.

use crate::attach::Sides;
use crate::plan::{Attachment, NetworkPlan};
use crate::state::{self, Thing};
use crate::{Error, Result};
use corebox_spec::IdSet;
use corebox_spec::network::NetCores;
use corebox_sys::fs;
use std::path::{Path, PathBuf};

/// The CPUs meant by a choice, for a container that computes on `busy` and a process that may use `allowed`.
///
/// # Errors
/// There is no CPU near that is free, or one was named that is not there.
pub fn choose(cores: &NetCores, busy: &IdSet) -> Result<NetCores> {
    let online = read_set(Path::new("/sys/devices/system/cpu/online"))?;
    match cores {
        NetCores::Kernel => Ok(NetCores::Kernel),
        NetCores::Cpus(cpus) => {
            let missing = cpus.difference(&online);
            if missing.is_empty() {
                return Ok(cores.clone());
            }
            Err(Error::refused(format!("--net-cores: CPU {missing} is not online; there are {online}"), "name others."))
        }
        NetCores::Near => {
            let near: IdSet = busy.iter().flat_map(|cpu| sharing_a_cache(cpu).iter().collect::<Vec<u32>>()).collect();
            let free = near.difference(busy);
            if !free.is_empty() {
                return Ok(NetCores::Cpus(free));
            }
            Err(Error::refused(
                format!("--net-cores near: the container has every CPU that shares a cache with its own ({near})"),
                "leave one to the network (`--cpus`, fewer ranks per node), or name CPUs elsewhere.",
            ))
        }
    }
}

/// The CPUs of the largest cache that a CPU has.
fn sharing_a_cache(cpu: u32) -> IdSet {
    let cache = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/cache"));
    let names = fs::list(&cache).unwrap_or_default();
    let mut indexes: Vec<&String> = names.iter().filter(|name| name.starts_with("index")).collect();
    indexes.sort();
    let largest = indexes.last().and_then(|name| read_set(&cache.join(name).join("shared_cpu_list")).ok());
    // A machine that hides its caches (many virtual ones) has at least one that all share: memory.
    largest.or_else(|| read_set(Path::new("/sys/devices/system/cpu/online")).ok()).unwrap_or_default()
}

fn read_set(path: &Path) -> Result<IdSet> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| corebox_sys::Error::new("read", path.display(), corebox_sys::Errno::EILSEQ).into())
}

/// What interfaces that are made from now on in the container's namespace start with: it has no other place for it.
pub(crate) fn prepare(plan: &NetworkPlan, sides: &Sides<'_>) -> Result<()> {
    let NetCores::Cpus(cpus) = &plan.cores else { return Ok(()) };
    let file = "/proc/sys/net/core/rps_default_mask";
    let written = sides.namespace.inside(|| {
        if Path::new(file).exists() { fs::write(file, mask(cpus)) } else { Ok(()) } // before Linux 6.3
    })?;
    Ok(written?)
}

/// Places the work of the host's ends, and of the parents' queues.
pub(crate) fn place(plan: &NetworkPlan, sides: &mut Sides<'_>) -> Result<()> {
    let NetCores::Cpus(cpus) = &plan.cores else { return Ok(()) };
    for (number, interface) in plan.interfaces.iter().enumerate() {
        let own = format!("cb{:x}.{number}", sides.id);
        for file in queues(&own) {
            fs::write(file, mask(cpus))?; // goes with the interface
        }
        let parent = match &interface.attachment {
            Attachment::Macvlan { parent, .. } | Attachment::Ipvlan { parent, .. } => Some(parent.clone()),
            Attachment::Routed(how) => match how.peers.first() {
                Some(peer) => crate::link::find_index(&mut sides.host, peer.index)?.map(|link| link.name),
                None => None,
            },
            _ => None,
        };
        for file in parent.iter().flat_map(|name| queues(name)) {
            let now = fs::read_to_string(&file)?.trim().to_owned();
            let was = state::original(&file).unwrap_or(now);
            state::add(sides.owner, &Thing::Setting { file: file.clone(), was })?;
            fs::write(file, mask(cpus))?;
        }
    }
    Ok(())
}

/// The files that say which CPUs serve an interface's receive queues.
fn queues(interface: &str) -> Vec<PathBuf> {
    let directory = Path::new("/sys/class/net").join(interface).join("queues");
    let names = fs::list(&directory).unwrap_or_default();
    names.iter().filter(|name| name.starts_with("rx-")).map(|name| directory.join(name).join("rps_cpus")).collect()
}

/// A set as the kernel's bitmaps are written: groups of 32 bits in hexadecimal, the highest first (cpuset(7), mask format).
fn mask(cpus: &IdSet) -> String {
    let highest = cpus.iter().max().unwrap_or(0);
    let words = (0..=highest / 32).rev().map(|word| {
        let bits = cpus.iter().filter(|cpu| cpu / 32 == word).fold(0u32, |bits, cpu| bits | 1 << (cpu % 32));
        format!("{bits:08x}")
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_masks_as_the_kernel_reads_them() {
        let mask_of = |text: &str| mask(&text.parse().unwrap());
        assert_eq!(mask_of("0"), "00000001");
        assert_eq!(mask_of("1,3"), "0000000a");
        assert_eq!(mask_of("31-32"), "00000001,80000000");
        assert_eq!(mask_of("64"), "00000001,00000000,00000000");
    }

    #[test]
    fn near_is_what_shares_a_cache_and_is_not_ours() {
        let online = read_set(Path::new("/sys/devices/system/cpu/online")).unwrap();
        assert!(choose(&NetCores::Near, &online).is_err());
        assert_eq!(choose(&NetCores::Kernel, &online).unwrap(), NetCores::Kernel);
        assert!(choose(&NetCores::Cpus("4000".parse().unwrap()), &online).is_err());
    }
}
