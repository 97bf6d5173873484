//! Who has which address on this node: one small file per network, that is right after SIGKILL and after a reboot.
//!
//! A lease names its owner as boot id, pid and the start time of that process. One whose owner is gone, or that is of
//! another boot, is free; nobody has to give anything back, and giving back early only saves space. Files are replaced
//! by rename(2) under flock(2), so that a reader or a full disk never sees half of one.

use crate::{Error, Result};
use corebox_sys::{fd, fs};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where leases are, on a file system that a reboot empties; one that it does not empty would do, too.
pub const DIRECTORY: &str = "/run/corebox/net";

/// A process that cannot be taken for a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// /proc/sys/kernel/random/boot_id.
    pub boot: String,
    /// Its pid in the pid namespace of the store's host.
    pub pid: i32,
    /// Its start, in clock ticks since boot (proc(5), stat field 22).
    pub start: u64,
}

impl Owner {
    /// The process of this pid, now.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: i32) -> corebox_sys::Result<Self> {
        let start =
            start_of(pid).ok_or_else(|| corebox_sys::Error::new("look at process", pid, corebox_sys::Errno::ESRCH))?;
        Ok(Self { boot: boot_id()?, pid, start })
    }

    /// Whether it still runs.
    pub fn lives(&self, boot: &str) -> bool {
        self.boot == boot && start_of(self.pid) == Some(self.start)
    }
}

fn boot_id() -> corebox_sys::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn start_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name in parentheses may hold anything, a `)` included: what counts is after the last one.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let dead = fields.next().is_some_and(|state| matches!(state, "Z" | "X"));
    (!dead).then(|| fields.nth(18)?.parse().ok()).flatten()
}

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The slot of the node's share; `None`: an address that was asked for.
    pub slot: Option<u32>,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Whose.
    pub owner: Owner,
    /// The container's name, for people.
    pub container: String,
}

/// What may be asked of a network's addresses.
#[derive(Debug)]
pub enum Wanted<'a> {
    /// Exactly these.
    These(&'a [IpAddr]),
    /// A free slot of the share.
    Any(&'a crate::pool::Share),
}

/// The leases of one network on this node.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    network: String,
}

impl Store {
    /// That of a network, in [`DIRECTORY`].
    pub fn of(network: &str) -> Self {
        Self::at(Path::new(DIRECTORY), network)
    }

    /// That of a network, elsewhere.
    pub fn at(directory: &Path, network: &str) -> Self {
        Self { directory: directory.to_path_buf(), network: network.to_owned() }
    }

    /// Takes an address. `refused` says of addresses that somebody else has (the host), by whom.
    ///
    /// # Errors
    /// [`Error::AddressUsed`], [`Error::Exhausted`], and what the file system says.
    pub fn take(
        &self,
        wanted: &Wanted<'_>,
        owner: &Owner,
        container: &str,
        refused: impl Fn(IpAddr) -> Option<String>,
    ) -> Result<Vec<IpAddr>> {
        let _lock = self.lock()?;
        let mut leases = self.living()?;
        let holder = |address: &IpAddr| {
            let lease = leases.iter().find(|lease| lease.addresses.contains(address));
            let of = |lease: &Lease| format!("container `{}` (pid {})", lease.container, lease.owner.pid);
            lease.map(of).or_else(|| refused(*address))
        };
        let (slot, addresses) = match wanted {
            Wanted::These(addresses) => {
                for address in *addresses {
                    if let Some(by) = holder(address) {
                        return Err(Error::AddressUsed { address: *address, by });
                    }
                }
                (None, addresses.to_vec())
            }
            Wanted::Any(share) => {
                let free = |slot: &u32| share.addresses(*slot).iter().all(|address| holder(address).is_none());
                let slot = (1..=share.last_slot()).find(free).ok_or_else(|| Error::Exhausted {
                    network: self.network.clone(),
                    size: share.last_slot().into(),
                })?;
                (Some(slot), share.addresses(slot))
            }
        };
        let lease = Lease { slot, addresses: addresses.clone(), owner: owner.clone(), container: container.to_owned() };
        leases.push(lease);
        self.write(&leases)?;
        Ok(addresses)
    }

    /// Hands the leases of one process over to another.
    ///
    /// # Errors
    /// What the file system says.
    pub fn hand_over(&self, from: &Owner, to: &Owner, addresses: &[IpAddr]) -> Result<()> {
        self.update(|leases| {
            for lease in
                leases.iter_mut().filter(|l| l.owner == *from && l.addresses.iter().any(|a| addresses.contains(a)))
            {
                lease.owner = to.clone();
            }
        })
    }

    /// Gives a lease back, now instead of when its owner is gone.
    ///
    /// # Errors
    /// What the file system says.
    pub fn give_back(&self, owner: &Owner) -> Result<()> {
        self.update(|leases| leases.retain(|lease| lease.owner != *owner))
    }

    /// The leases whose owners live.
    ///
    /// # Errors
    /// What the file system says.
    pub fn list(&self) -> Result<Vec<Lease>> {
        if !self.file().exists() {
            return Ok(Vec::new());
        }
        self.living()
    }

    /// Drops what is stale from the file; how many that were.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sweep(&self) -> Result<usize> {
        if !self.file().exists() {
            return Ok(0);
        }
        let _lock = self.lock()?;
        let (all, living) = (self.read()?, self.living()?);
        if all.len() != living.len() {
            self.write(&living)?;
        }
        Ok(all.len() - living.len())
    }

    fn update(&self, change: impl FnOnce(&mut Vec<Lease>)) -> Result<()> {
        let _lock = self.lock()?;
        let mut leases = self.living()?;
        change(&mut leases);
        self.write(&leases)
    }

    fn file(&self) -> PathBuf {
        self.directory.join(format!("{}.json", self.network))
    }

    /// The lock is a file of its own: the one with the leases is replaced while it is held.
    fn lock(&self) -> Result<Flock<std::os::fd::OwnedFd>> {
        fs::create_dir_all(&self.directory)?;
        let path = self.directory.join(format!("{}.lock", self.network));
        let file = fd::open_lock(&path)?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| corebox_sys::Error::new("lock", path.display(), errno).into())
    }

    /// A file that is not JSON is no file of ours that was cut: rename(2) does not cut.
    fn read(&self) -> Result<Vec<Lease>> {
        let path = self.file();
        if !path.exists() {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&fs::read(&path)?).map_err(|e| Error::Config {
            place: path.display().to_string(),
            reason: format!("this is no list of leases: {e}"),
        })
    }

    fn living(&self) -> Result<Vec<Lease>> {
        let boot = boot_id()?;
        let mut leases = self.read()?;
        leases.retain(|lease| lease.owner.lives(&boot));
        Ok(leases)
    }

    fn write(&self, leases: &[Lease]) -> Result<()> {
        let file = self.file();
        let text = serde_json::to_vec_pretty(leases).unwrap_or_default();
        let new = self.directory.join(format!("{}.new", self.network));
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &file));
        if written.is_err() {
            let _ = std::fs::remove_file(&new); // on a full disk, the old list stays the list
        }
        Ok(written?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Share;

    fn share(net: &str) -> Share {
        Share::new(&[net.parse().unwrap()], "10.77.0.1".parse().unwrap(), 62)
    }

    struct Directory(PathBuf);
    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("corebox-lease-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }
    }
    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn hands_no_address_out_twice_while_the_owner_lives() {
        let directory = Directory::new("twice");
        let store = Store::at(&directory.0, "a");
        let me = Owner::of(std::process::id() as i32).unwrap();
        let share = share("10.9.0.0/30");
        let take = || store.take(&Wanted::Any(&share), &me, "x", |_| None);
        let (one, two) = (take().unwrap(), take().unwrap());
        assert_ne!(one, two);
        assert!(matches!(take(), Err(Error::Exhausted { size: 2, .. })));
        assert!(matches!(store.take(&Wanted::These(&one), &me, "y", |_| None), Err(Error::AddressUsed { .. })));
        store.give_back(&me).unwrap();
        assert_eq!(take().unwrap(), one);
    }

    #[test]
    fn forgets_the_dead_and_other_boots() {
        let directory = Directory::new("dead");
        let store = Store::at(&directory.0, "a");
        let me = Owner::of(std::process::id() as i32).unwrap();
        let share = share("10.9.0.0/30");
        for gone in [Owner { start: me.start + 1, ..me.clone() }, Owner { boot: "another".into(), ..me.clone() }] {
            store.take(&Wanted::Any(&share), &gone, "x", |_| None).unwrap();
            assert_eq!(store.list().unwrap(), []);
        }
        let first = store.take(&Wanted::Any(&share), &me, "x", |_| None).unwrap();
        assert_eq!(first, share.addresses(1));
        assert_eq!(store.sweep().unwrap(), 0);
    }

    #[test]
    fn leaves_out_what_the_host_has() {
        let directory = Directory::new("host");
        let store = Store::at(&directory.0, "a");
        let me = Owner::of(std::process::id() as i32).unwrap();
        let share = share("10.9.0.0/29");
        let hosts = share.addresses(1)[0];
        let taken = store.take(&Wanted::Any(&share), &me, "x", |ip| (ip == hosts).then(|| "the host".into())).unwrap();
        assert_eq!(taken, share.addresses(2));
    }

    #[test]
    fn many_at_once_get_different_addresses() {
        let directory = Directory::new("many");
        let me = Owner::of(std::process::id() as i32).unwrap();
        let share = share("10.9.0.0/26");
        let mut all: Vec<Vec<IpAddr>> = std::thread::scope(|scope| {
            let one = || Store::at(&directory.0, "a").take(&Wanted::Any(&share), &me, "x", |_| None).unwrap();
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 20);
    }

    #[test]
    fn a_full_disk_leaves_the_list_as_it_was() {
        let directory = Directory::new("full");
        let store = Store::at(&directory.0, "a");
        let me = Owner::of(std::process::id() as i32).unwrap();
        let share = share("10.9.0.0/28");
        store.take(&Wanted::Any(&share), &me, "x", |_| None).unwrap();
        // /dev/full as the new file: writing to it is ENOSPC, as on a full disk.
        std::os::unix::fs::symlink("/dev/full", directory.0.join("a.new")).unwrap();
        let error = store.take(&Wanted::Any(&share), &me, "x", |_| None).unwrap_err();
        assert!(error.to_string().contains("ENOSPC"), "{error}");
        assert_eq!(store.list().unwrap().len(), 1);
    }
}
