//! CPU affinity and memory policy of the calling thread, for any number of CPUs and nodes.

use crate::{Error, Result};
use nix::errno::Errno;

const BITS: usize = 64;
/// 65,536 bits: more than any kernel's NR_CPUS or MAX_NUMNODES.
const WORDS: usize = 1024;
/// 4096 bits: more than any kernel's MAX_NUMNODES (1024), and no more than the page that get_mempolicy(2) accepts.
const NODE_WORDS: usize = 64;
const MPOL_BIND: i32 = 2;
const MPOL_F_MEMS_ALLOWED: libc::c_ulong = 4;

fn ids(mask: &[u64]) -> Vec<u32> {
    (0..mask.len() * BITS).filter(|id| mask[id / BITS] >> (id % BITS) & 1 == 1).map(|id| id as u32).collect()
}

fn mask(ids: &[u32]) -> Vec<u64> {
    let mut mask = vec![0u64; ids.iter().max().map_or(1, |id| *id as usize / BITS + 1)];
    for id in ids {
        mask[*id as usize / BITS] |= 1 << (id % BITS as u32);
    }
    mask
}

/// The CPUs that the calling thread may use (sched_getaffinity(2)).
///
/// # Errors
/// What the kernel says.
pub fn cpus() -> Result<Vec<u32>> {
    let mut words = [0u64; WORDS];
    // SAFETY: the kernel writes at most the bytes told. (The raw call, as glibc's cpu_set_t ends at 1024 CPUs.)
    let bytes = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&words), words.as_mut_ptr()) };
    if bytes < 0 {
        return Err(Error::last("read the affinity of", "this process"));
    }
    Ok(ids(&words[..bytes as usize / 8]))
}

/// Binds the calling thread, and what it forks, to these CPUs (sched_setaffinity(2)).
///
/// # Errors
/// EINVAL when none of them is in our cpuset. The kernel silently drops some that are not: read back.
pub fn set_cpus(cpus: &[u32]) -> Result<()> {
    let mask = mask(cpus);
    // SAFETY: the kernel reads the bytes told.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, mask.len() * 8, mask.as_ptr()) };
    if result < 0 { Err(Error::last("set the affinity to", format_args!("{cpus:?}"))) } else { Ok(()) }
}

fn mempolicy(flags: libc::c_ulong) -> Result<(i32, Vec<u32>)> {
    let mut words = [0u64; NODE_WORDS];
    let mut mode = 0i32;
    // With MPOL_F_MEMS_ALLOWED the mode must not be asked for (get_mempolicy(2)).
    let mode_at = if flags == 0 { &raw mut mode } else { std::ptr::null_mut() };
    let (at, bits, none) = (words.as_mut_ptr(), NODE_WORDS * BITS, std::ptr::null::<libc::c_void>());
    // SAFETY: the kernel writes one int (or nothing, for null) and at most the bits told.
    let result = unsafe { libc::syscall(libc::SYS_get_mempolicy, mode_at, at, bits, none, flags) };
    if result < 0 { Err(Error::last("read the memory policy of", "this process")) } else { Ok((mode, ids(&words))) }
}

/// The NUMA nodes that the calling thread's memory may come from: those of its bind policy, else all its cpuset allows.
///
/// # Errors
/// What get_mempolicy(2) says. A kernel without NUMA support (ENOSYS) has one node, 0.
pub fn memory_nodes() -> Result<Vec<u32>> {
    match mempolicy(0).and_then(|(mode, nodes)| match mode {
        MPOL_BIND => Ok(nodes),
        _ => mempolicy(MPOL_F_MEMS_ALLOWED).map(|(_, nodes)| nodes),
    }) {
        Err(e) if e.errno == Errno::ENOSYS => Ok(vec![0]),
        other => other,
    }
}

/// Binds the memory of the calling thread, and of what it forks, to these NUMA nodes (set_mempolicy(2), MPOL_BIND).
///
/// # Errors
/// EINVAL when none of them is allowed.
pub fn set_memory_nodes(nodes: &[u32]) -> Result<()> {
    let mask = mask(nodes);
    // One bit more than there is: the kernel reads `maxnode - 1` bits (set_mempolicy(2), BUGS of the interface).
    let bits = mask.len() * BITS + 1;
    // SAFETY: the kernel reads the bits told.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_BIND, mask.as_ptr(), bits) };
    match Errno::result(result) {
        Err(Errno::ENOSYS) if nodes == [0] => Ok(()),
        Err(e) => Err(Error::new("bind memory to nodes", format_args!("{nodes:?}"), e)),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_back() {
        for set in [vec![0], vec![1, 63, 64, 300]] {
            assert_eq!(ids(&mask(&set)), set);
        }
    }

    #[test]
    fn binds_and_reads_back() {
        // In a thread of its own: affinity and policy belong to the thread.
        std::thread::spawn(|| {
            let all = cpus().unwrap();
            let last = *all.last().unwrap();
            set_cpus(&[last]).unwrap();
            assert_eq!(cpus().unwrap(), [last]);
            assert_eq!(set_cpus(&[60_000]).unwrap_err().errno, Errno::EINVAL);
            let nodes = memory_nodes().unwrap();
            set_memory_nodes(&nodes[..1]).unwrap();
            assert_eq!(memory_nodes().unwrap(), nodes[..1]);
            assert_eq!(set_memory_nodes(&[1000]).unwrap_err().errno, Errno::EINVAL);
        })
        .join()
        .unwrap();
    }
}
