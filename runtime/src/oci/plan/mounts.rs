//! The `mounts` of config.json, with their options read: the words of mount(8), those of runtime-spec config.md
//! ("Linux mount options"), and whatever a file system understands itself.

use crate::facts::IdRange;
use crate::step::Stop;
use corebox_sys::mount::{attr, propagation};
use oci_spec::runtime::{Mount, Spec};
use std::path::{Path, PathBuf};

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A path of the host.
    Bind {
        /// Absolute.
        source: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
    },
    /// The container's cgroups, as far as they are mounted on this host.
    Cgroup,
    /// A new file system.
    New {
        /// As in /proc/filesystems.
        kind: String,
        /// Its device, or whatever name it has.
        source: String,
    },
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedMount {
    /// Absolute path in the container.
    pub(crate) target: PathBuf,
    pub(crate) what: What,
    /// Attributes of this mount: set, cleared.
    pub(crate) attributes: (u64, u64),
    /// Attributes of this mount and those below it: set, cleared.
    pub(crate) recursive: (u64, u64),
    /// Propagation, and whether of those below it too; in order.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// Options of the file system itself: `key=value` or `flag`.
    pub(crate) data: Vec<String>,
    /// A tmpfs starts with a copy of what it hides.
    pub(crate) copy_up: bool,
    /// The ids of the files are mapped; recursively if so said.
    pub(crate) id_map: Option<IdMap>,
}

/// How a mount maps the ids of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) uids: Vec<IdRange>,
    pub(crate) gids: Vec<IdRange>,
    pub(crate) recursive: bool,
}

impl PlannedMount {
    /// Gives its files `linux.mountLabel`, where that can be said with the mount, and it says no other.
    fn labelled(mut self, label: Option<&str>) -> Self {
        const LABELLED: [&str; 2] = ["tmpfs", "devpts"];
        let own = self.data.iter().any(|option| option.split('=').next().is_some_and(|key| key.ends_with("context")));
        if let (Some(label), What::New { kind, .. }, false) = (label, &self.what, own)
            && LABELLED.contains(&kind.as_str())
        {
            self.data.push(format!("context={label}"));
        }
        self
    }

    pub(crate) fn is_bind(&self) -> bool {
        matches!(self.what, What::Bind { .. })
    }
}

/// Reads all mounts.
///
/// # Errors
/// What is no mount, by its place in config.json.
pub(crate) fn plan(spec: &Spec, bundle: &Path) -> Result<Vec<PlannedMount>, Stop> {
    let container = spec.linux().as_ref();
    let maps = container.map(|l| (super::ids(l.uid_mappings().as_ref()), super::ids(l.gid_mappings().as_ref())));
    let mounts = spec.mounts().iter().flatten().enumerate();
    let label = container.and_then(|linux| linux.mount_label().as_deref()).filter(|label| !label.is_empty());
    let planned = mounts.map(|(index, mount)| Ok(one(index, mount, bundle, maps.as_ref())?.labelled(label)));
    planned.collect()
}

fn one(
    index: usize,
    mount: &Mount,
    bundle: &Path,
    container: Option<&(Vec<IdRange>, Vec<IdRange>)>,
) -> Result<PlannedMount, Stop> {
    let refuse = |why: String| Stop::new(format!("`mounts[{index}]` ({}): {why}", mount.destination().display()));
    if mount.destination().as_os_str().is_empty() {
        return Err(refuse("it has no destination".to_owned()));
    }
    let mut read = Options::default();
    for option in mount.options().iter().flatten() {
        read.take(option);
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    let bind = read.bind.is_some() || kind == "bind" || kind == "rbind";
    let source = mount.source().as_ref();
    let what = if bind {
        let source = source.ok_or_else(|| refuse("a bind needs a source".to_owned()))?;
        What::Bind { source: bundle.join(source), recursive: read.bind.unwrap_or(kind == "rbind") }
    } else if kind == "cgroup" || kind == "cgroup2" {
        What::Cgroup
    } else if kind.is_empty() || kind == "none" {
        return Err(refuse("it has no type".to_owned()));
    } else {
        let name = source.map_or_else(|| kind.to_owned(), |s| s.display().to_string());
        What::New { kind: kind.to_owned(), source: name }
    };
    if read.copy_up && kind != "tmpfs" {
        return Err(refuse("option `tmpcopyup` is for a tmpfs".to_owned()));
    }
    let id_map = id_map(mount, &read, container).map_err(refuse)?;
    // A relative one is meant from the root, as runtime-spec allowed once.
    let target = Path::new("/").join(mount.destination());
    let Options { attributes, recursive, propagation, data, copy_up, .. } = read;
    Ok(PlannedMount { target, what, attributes, recursive, propagation, data, copy_up, id_map })
}

fn id_map(
    mount: &Mount,
    read: &Options,
    container: Option<&(Vec<IdRange>, Vec<IdRange>)>,
) -> Result<Option<IdMap>, String> {
    let own = (super::ids(mount.uid_mappings().as_ref()), super::ids(mount.gid_mappings().as_ref()));
    if own.0.is_empty() != own.1.is_empty() {
        return Err("`uidMappings` and `gidMappings` must both be given, or none".to_owned());
    }
    if own.0.is_empty() && read.id_map.is_none() {
        return Ok(None);
    }
    // `idmap` without maps of its own takes those of the container's user namespace.
    let maps = if own.0.is_empty() { container.cloned().unwrap_or_default() } else { own };
    if maps.0.is_empty() || maps.1.is_empty() {
        return Err("option `idmap` needs id mappings, here or of the container".to_owned());
    }
    Ok(Some(IdMap { uids: maps.0, gids: maps.1, recursive: read.id_map == Some(true) }))
}

#[derive(Debug, Default)]
struct Options {
    bind: Option<bool>,
    attributes: (u64, u64),
    recursive: (u64, u64),
    propagation: Vec<(u64, bool)>,
    data: Vec<String>,
    copy_up: bool,
    id_map: Option<bool>,
}

/// Words for attributes: name, bits, and whether they are set or cleared.
const ATTRIBUTES: [(&str, u64, bool); 20] = [
    ("ro", attr::RDONLY, true),
    ("rw", attr::RDONLY, false),
    ("nosuid", attr::NOSUID, true),
    ("suid", attr::NOSUID, false),
    ("nodev", attr::NODEV, true),
    ("dev", attr::NODEV, false),
    ("noexec", attr::NOEXEC, true),
    ("exec", attr::NOEXEC, false),
    ("nosymfollow", attr::NOSYMFOLLOW, true),
    ("symfollow", attr::NOSYMFOLLOW, false),
    ("noatime", attr::NOATIME, true),
    ("atime", attr::ATIME, false),
    ("strictatime", attr::STRICTATIME, true),
    ("nostrictatime", attr::ATIME, false),
    ("relatime", attr::ATIME, false),
    ("norelatime", attr::STRICTATIME, true),
    ("nodiratime", attr::NODIRATIME, true),
    ("diratime", attr::NODIRATIME, false),
    ("async", 0, true),
    ("defaults", 0, true),
];

/// Every option that is not left to the file system.
pub(crate) fn option_names() -> Vec<String> {
    let mut names: Vec<String> =
        ["bind", "rbind", "tmpcopyup", "idmap", "ridmap", "remount"].map(str::to_owned).to_vec();
    for name in ATTRIBUTES.iter().map(|(name, ..)| *name).chain(PROPAGATION.iter().map(|(name, _)| *name)) {
        names.push(name.to_owned());
        if !["async", "defaults"].contains(&name) {
            names.push(format!("r{name}"));
        }
    }
    names.sort();
    names
}

const PROPAGATION: [(&str, u64); 4] = [
    ("shared", propagation::SHARED),
    ("slave", propagation::SLAVE),
    ("private", propagation::PRIVATE),
    ("unbindable", propagation::UNBINDABLE),
];

impl Options {
    fn take(&mut self, option: &str) {
        let attribute = |name: &str| ATTRIBUTES.iter().find(|(known, ..)| *known == name);
        let propagation = |name: &str| PROPAGATION.iter().find(|(known, _)| *known == name);
        if let Some((_, bits, set)) = attribute(option) {
            change(&mut self.attributes, *bits, *set);
        } else if let Some((_, bits, set)) = option.strip_prefix('r').and_then(attribute) {
            change(&mut self.recursive, *bits, *set);
        } else if let Some((_, how)) = propagation(option) {
            self.propagation.push((*how, false));
        } else if let Some((_, how)) = option.strip_prefix('r').and_then(propagation) {
            self.propagation.push((*how, true));
        } else {
            match option {
                "bind" => self.bind = Some(false),
                "rbind" => self.bind = Some(true),
                "tmpcopyup" => self.copy_up = true,
                "idmap" => self.id_map = Some(false),
                "ridmap" => self.id_map = Some(true),
                // Of mount(8) and podman, meaningless to the kernel here: copy instructions, silent, fstab words.
                "" | "remount" | "nofail" | "_netdev" | "auto" | "noauto" | "user" | "nouser" | "silent" | "loud" => {}
                other => self.data.push(other.to_owned()),
            }
        }
    }
}

/// The later word wins.
fn change((set, clear): &mut (u64, u64), bits: u64, on: bool) {
    if bits & attr::ATIME != 0 {
        *set &= !attr::ATIME;
    }
    if on {
        *set |= bits;
        *clear &= !bits;
    } else {
        *set &= !bits;
        *clear |= bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[&str]) -> Options {
        let mut read = Options::default();
        options.iter().for_each(|option| read.take(option));
        read
    }

    #[test]
    fn reads_options() {
        let o = read(&["rbind", "ro", "rnosuid", "rprivate", "nodev", "dev", "mode=755", "size=64k", "tmpcopyup"]);
        assert_eq!((o.bind, o.attributes, o.recursive), (Some(true), (attr::RDONLY, attr::NODEV), (attr::NOSUID, 0)));
        assert_eq!((o.propagation, o.copy_up), (vec![(propagation::PRIVATE, true)], true));
        assert_eq!(o.data, ["mode=755", "size=64k"]);
    }

    #[test]
    fn the_later_word_wins() {
        assert_eq!(read(&["ro", "rw"]).attributes, (0, attr::RDONLY));
        assert_eq!(read(&["noatime", "strictatime"]).attributes.0, attr::STRICTATIME);
        assert_eq!(read(&["noatime", "relatime"]).attributes, (0, attr::ATIME));
        // Not the recursive form of `elatime`.
        assert_eq!(read(&["relatime", "rro", "rrw"]).recursive, (0, attr::RDONLY));
    }
}
