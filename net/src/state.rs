//! What the host has of a container beside its interfaces, written down before it is made, so that whoever comes next can
//! take it back: one file per container in [`lease::DIRECTORY`]`/owners`.
//!
//! Nothing here is needed to be right: a file whose owner is gone is a list of things to undo.

use crate::lease::{self, Owner};
use crate::netlink::Netlink;
use crate::plan::PeerRoute;
use crate::{Result, address, borrow, link};
use corebox_spec::network::Mac;
use corebox_sys::{fd, fs};
use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// One thing to take back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Thing {
    /// The route to another node's containers; the last container that needs it takes it along.
    PeerRoute(PeerRoute),
    /// A VLAN interface of the host; as with routes.
    Vlan {
        /// Its name.
        name: String,
    },
    /// An interface of the host that the container has.
    Borrowed(Borrowed),
    /// A file of the kernel whose content was changed.
    Setting {
        /// Which one, below /sys or /proc/sys.
        file: PathBuf,
        /// What it was.
        was: String,
    },
    /// An interface inside the container, for `corebox net stats`.
    Interface {
        /// Its name there.
        name: String,
        /// Its network.
        network: String,
        /// The container's name.
        container: String,
    },
}

/// An interface as it was before it was lent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Borrowed {
    /// Its name on the host.
    pub name: String,
    /// Its name in the container.
    pub inside: String,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it was up.
    pub up: bool,
    /// Its addresses, link-local IPv6 ones left out: the kernel makes those.
    pub addresses: Vec<IpNet>,
}

/// A container's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its init.
    pub owner: Owner,
    /// What there is of it.
    pub things: Vec<Thing>,
}

fn directory() -> PathBuf {
    Path::new(lease::DIRECTORY).join("owners")
}

fn file_of(owner: &Owner) -> PathBuf {
    directory().join(format!("{}-{}.json", owner.pid, owner.start))
}

fn lock() -> Result<Flock<OwnedFd>> {
    fs::create_dir_all(directory())?;
    let path = Path::new(lease::DIRECTORY).join("owners.lock");
    Flock::lock(fd::open_lock(&path)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| corebox_sys::Error::new("lock", path.display(), errno).into())
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(record: &Record) -> Result<()> {
    let path = file_of(&record.owner);
    let new = path.with_extension("new");
    let text = serde_json::to_vec_pretty(record).unwrap_or_default();
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    Ok(written?)
}

/// Adds a thing to a container's list, before the thing is made.
///
/// # Errors
/// What the file system says: then it must not be made.
pub fn add(owner: &Owner, thing: &Thing) -> Result<()> {
    let _lock = lock()?;
    let mut record = read(&file_of(owner)).unwrap_or_else(|| Record { owner: owner.clone(), things: Vec::new() });
    if !record.things.contains(thing) {
        record.things.push(thing.clone());
    }
    write(&record)
}

/// What a kernel's file held before any living container changed it.
pub fn original(file: &Path) -> Option<String> {
    all().into_iter().flat_map(|record| record.things).find_map(|thing| match thing {
        Thing::Setting { file: other, was } if other == file => Some(was),
        _ => None,
    })
}

/// The list of one container.
pub fn of(owner: &Owner) -> Vec<Thing> {
    read(&file_of(owner)).map(|record| record.things).unwrap_or_default()
}

/// The lists of all containers, dead ones included.
pub fn all() -> Vec<Record> {
    let names = fs::list(directory()).unwrap_or_default();
    names.iter().filter(|name| name.ends_with(".json")).filter_map(|name| read(&directory().join(name))).collect()
}

/// Drops things of a container's list that were taken back.
pub fn drop_things(owner: &Owner, gone: impl Fn(&Thing) -> bool) {
    let Ok(_lock) = lock() else { return };
    if let Some(mut record) = read(&file_of(owner)) {
        record.things.retain(|thing| !gone(thing));
        let _ = write(&record); // what stays on the list is tried again, and found done
    }
}

/// Marks a container as gone though its process may still be there: its list is worked off by the next sweep.
pub fn forget(owner: &Owner) {
    let Ok(_lock) = lock() else { return };
    if let Some(record) = read(&file_of(owner)) {
        let ended = Record { owner: Owner { boot: String::new(), ..record.owner.clone() }, ..record };
        let _ = write(&ended);
    }
}

/// Takes back everything of containers that are gone. What fails stays on its list, for the next time.
///
/// # Errors
/// What keeps it from starting at all.
pub fn sweep() -> Result<()> {
    if !directory().exists() {
        return Ok(());
    }
    let _lock = lock()?;
    // Whoever wrote these was killed before the rename: with the lock, nobody else is writing one.
    for unfinished in fs::list(directory())?.iter().filter(|name| name.ends_with(".new")) {
        let _ = std::fs::remove_file(directory().join(unfinished)); // gone is gone
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let (living, dead): (Vec<Record>, Vec<Record>) = all().into_iter().partition(|record| record.owner.lives(&boot));
    let mut netlink = Netlink::open()?;
    let needed = |thing: &Thing| living.iter().any(|record| record.things.contains(thing));
    for record in dead {
        let this_boot = record.owner.boot.is_empty() || record.owner.boot == boot;
        let left: Vec<Thing> = record
            .things
            .iter()
            .filter(|thing| this_boot && !needed(thing) && take_back(&mut netlink, thing).is_err())
            .cloned()
            .collect();
        if left.is_empty() {
            let _ = std::fs::remove_file(file_of(&record.owner)); // gone is gone
        } else {
            let _ = write(&Record { owner: Owner { boot: String::new(), ..record.owner }, things: left });
        }
    }
    Ok(())
}

fn take_back(netlink: &mut Netlink, thing: &Thing) -> Result<()> {
    match thing {
        Thing::PeerRoute(peer) => {
            let route = address::Route {
                via: Some(peer.via),
                priority: Some(crate::fast_path::REMOTE_PRIORITY),
                ours: true,
                ..address::Route::to(peer.block, peer.index)
            };
            Ok(route.remove(netlink)?)
        }
        Thing::Vlan { name } => match link::find(netlink, name)? {
            Some(link) => Ok(link::delete(netlink, link.index, name)?),
            None => Ok(()),
        },
        Thing::Borrowed(borrowed) => borrow::restore(netlink, borrowed),
        Thing::Setting { file, was } if file.exists() => Ok(fs::write(file, was)?),
        Thing::Setting { .. } | Thing::Interface { .. } => Ok(()),
    }
}
