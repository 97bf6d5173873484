//! The store: images by the digest of their one file, and names that point to digests.
//!
//! ```text
//! ROOT/blobs/sha256/HEX.erofs  the image, never changed (0444); HEX.sqsh if it is compressed
//! ROOT/facts/HEX.json          what was found out about it (corebox_spec::ImageFacts)
//! ROOT/names/NAME:TAG          a small file that holds `sha256:HEX`
//! ROOT/origins/KEY             digest of the image that a pull with this key made
//! ROOT/layers/…                layers being downloaded (see registry/layer_file.rs)
//! ROOT/leases/KEY              who is pulling (see lease.rs)
//! ROOT/pins/…                  who uses an image (see store/pins.rs)
//! ROOT/tmp/…                   files being written
//! ```
//!
//! Nothing but link(2), rename(2) and unlink(2) changes it: no lock, no extended attribute, no database, so it works on
//! NFS and Lustre, two writers cannot disturb each other, and a killed one leaves a file in `tmp` and nothing else.

mod pins;
mod upkeep;

pub use pins::Pin;
pub use upkeep::{Collected, Usage};

use crate::mount::Format;
use crate::reference::{ImageName, Reference, is_full_digest};
use crate::registry::sweep_layers;
use crate::staging::{self, Staging};
use corebox_spec::{Failure, ImageFacts};
use corebox_sys::{Error, fs};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The store of all users of a machine or site; root fills it.
pub const SITE_STORE: &str = "/var/lib/corebox";
/// Names this directory as the only store.
pub const STORE_VARIABLE: &str = "COREBOX_STORE";

/// An image in a store.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:HEX` of the image file.
    pub digest: String,
    /// The image file.
    pub path: PathBuf,
    /// What is known about it.
    pub facts: ImageFacts,
    /// Its names in the store where it was found, sorted.
    pub names: Vec<String>,
}

/// What [`Store::list`] found.
#[derive(Debug, Default)]
pub struct Listing {
    /// Images, by name and then digest.
    pub images: Vec<Image>,
    /// Images that cannot be used, each with the reason.
    pub broken: Vec<Failure>,
}

/// The stores that are searched, and the one that is written to.
#[derive(Clone, Debug)]
pub struct Store {
    /// In search order; the first one is written to.
    roots: Vec<PathBuf>,
}

impl Store {
    /// The stores of the caller: the one that `COREBOX_STORE` names and no other; or for root the site's
    /// ([`SITE_STORE`]); or for others `$XDG_DATA_HOME/corebox` (`~/.local/share/corebox`), then the site's.
    ///
    /// A store that does not exist yet is empty, not an error; it is made by the first import.
    ///
    /// # Errors
    /// When no directory can be named: a variable is not an absolute path, or there is no home.
    pub fn open() -> Result<Self, Failure> {
        let goal = "cannot open the image store";
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let absolute = |name: &str, path: PathBuf| {
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(Failure::new(goal, format!("{name}={} is not an absolute path", path.display())))
            }
        };
        if let Some(path) = variable(STORE_VARIABLE) {
            return Ok(Self { roots: vec![absolute(STORE_VARIABLE, path)?] });
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(Self { roots: vec![SITE_STORE.into()] });
        }
        let own = match (variable("XDG_DATA_HOME"), variable("HOME")) {
            (Some(data), _) => absolute("XDG_DATA_HOME", data)?.join("corebox"),
            (None, Some(home)) => absolute("HOME", home)?.join(".local/share/corebox"),
            (None, None) => {
                let cause = "neither HOME nor XDG_DATA_HOME is set";
                return Err(Failure::new(goal, cause).hint(format!("set {STORE_VARIABLE} to a directory of yours")));
            }
        };
        Ok(Self { roots: vec![own, SITE_STORE.into()] })
    }

    /// A store in this directory only.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { roots: vec![root.into()] }
    }

    /// The directory that imports go to.
    pub fn root(&self) -> &Path {
        &self.roots[0]
    }

    /// Finds the image that `reference` (`name[:tag]`, `sha256:HEX` or 8 or more of its digits) means.
    ///
    /// # Errors
    /// A bad reference, no such image (close names are in the hint), an ambiguous digest, a store that cannot be read,
    /// or damaged contents, each saying what to do.
    pub fn find(&self, reference: &str) -> Result<Image, Failure> {
        let goal = format!("cannot find image `{reference}`");
        let parsed = Reference::parse(reference).map_err(|error| Failure::new(&goal, error))?;
        for root in &self.roots {
            let found = match &parsed {
                Reference::Name(name) => named(root, name, &goal)?,
                Reference::Digest(digits) => by_digits(root, digits, &goal)?,
                Reference::Either(name, digits) => match named(root, name, &goal)? {
                    None => by_digits(root, digits, &goal)?,
                    found => found,
                },
            };
            if let Some(digits) = found {
                return self.load(root, &digits, &goal);
            }
        }
        Err(self.unknown(goal, reference))
    }

    /// All images of all stores searched.
    ///
    /// # Errors
    /// A store that cannot be read. A damaged image is reported in [`Listing::broken`].
    pub fn list(&self) -> Result<Listing, Failure> {
        let goal = "cannot list images";
        let mut listing = Listing::default();
        let mut seen = std::collections::HashSet::new();
        for root in &self.roots {
            let mut digests: BTreeMap<String, ()> = digests(root, goal)?.into_iter().map(|hex| (hex, ())).collect();
            for (_, hex) in names(root, goal)? {
                digests.insert(hex, ());
            }
            for hex in digests.keys().filter(|hex| seen.insert((*hex).clone())) {
                match self.load(root, hex, goal) {
                    Ok(image) => listing.images.push(image),
                    Err(failure) => listing.broken.push(failure),
                }
            }
        }
        listing
            .images
            .sort_by(|a, b| (a.names.is_empty(), &a.names, &a.digest).cmp(&(b.names.is_empty(), &b.names, &b.digest)));
        Ok(listing)
    }

    /// Removes a name and, when it was the last one, the image; a digest removes the image with all its names. An image
    /// that a running job uses stays, unless `force`d. Gives the digests of images whose file was removed.
    ///
    /// # Errors
    /// As [`Store::find`], or when the image is in use, or in a store that the caller does not write to.
    pub fn remove(&self, reference: &str, force: bool) -> Result<Vec<String>, Failure> {
        let goal = format!("cannot remove image `{reference}`");
        let parsed = Reference::parse(reference).map_err(|error| Failure::new(&goal, error))?;
        let root = self.root();
        let failed = |error: Error| unreadable(&goal, error);
        staging::sweep(&root.join("tmp"));
        let (name, digits) = match &parsed {
            Reference::Name(name) | Reference::Either(name, _) if named(root, name, &goal)?.is_some() => {
                (Some(name), named(root, name, &goal)?)
            }
            Reference::Name(_) => (None, None),
            Reference::Digest(digits) | Reference::Either(_, digits) => (None, by_digits(root, digits, &goal)?),
        };
        let Some(hex) = digits else {
            return Err(match self.find(reference) {
                Ok(image) => Failure::new(&goal, format!("it is in another store: {}", image.path.display()))
                    .hint("the site's images are removed by your administrator (root)"),
                Err(_) => self.unknown(goal, reference),
            });
        };
        let gone: Vec<ImageName> = match name {
            Some(name) => vec![name.clone()],
            None => names(root, &goal)?.into_iter().filter(|(_, of)| *of == hex).map(|(name, _)| name).collect(),
        };
        let stays = names(root, &goal)?.into_iter().any(|(name, of)| of == hex && !gone.contains(&name));
        if let Some(who) = pins::of(root, &hex).map_err(failed)?.first().filter(|_| !stays && !force) {
            let hint = "wait for it, or say `--force`: jobs on other nodes may then lose their files";
            return Err(Failure::new(&goal, format!("it is in use by {who}")).hint(hint));
        }
        for name in gone {
            remove_file(&name_path(root, &name)).map_err(failed)?;
        }
        let removed = remove_unnamed(root, &hex, &goal)?;
        Ok(if removed { vec![format!("sha256:{hex}")] } else { Vec::new() })
    }

    /// Prepares the store for an import and makes a file for it.
    pub(crate) fn stage(&self) -> Result<Staging, Error> {
        self.prepare()?;
        Staging::new(&self.root().join("tmp"))
    }

    /// Makes the store's directories, as open to others as its root is, and removes leftovers of killed processes.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        let root = self.root();
        fs::create_dir_all(root)?;
        let mode = std::fs::metadata(root).map_err(|error| Error::io("stat", root.display(), &error))?.permissions();
        for directory in ["blobs", "blobs/sha256", "facts", "names", "origins", "layers", "leases", "tmp"] {
            let path = root.join(directory);
            match std::fs::create_dir(&path) {
                // the umask must not close to the group what the administrator opened to it
                Ok(()) => std::fs::set_permissions(&path, mode.clone()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
            .map_err(|error| Error::io("mkdir", path.display(), &error))?;
        }
        self.prepare_pins(mode)?;
        staging::sweep(&root.join("tmp"));
        sweep_layers(&root.join("layers"), false);
        Ok(())
    }

    /// Users must be able to say what they use of a store that only root fills.
    fn prepare_pins(&self, mode: std::fs::Permissions) -> Result<(), Error> {
        let path = self.root().join("pins");
        let mode = if nix::unistd::geteuid().is_root() { PermissionsExt::from_mode(0o1777) } else { mode };
        match std::fs::create_dir(&path) {
            Ok(()) => std::fs::set_permissions(&path, mode),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|error| Error::io("mkdir", path.display(), &error))
    }

    /// Whether a pull with this key has made an image that is still there.
    pub(crate) fn has_origin(&self, key: &str) -> bool {
        self.by_origin(key).is_some()
    }

    fn by_origin(&self, key: &str) -> Option<String> {
        self.roots.iter().find_map(|root| {
            let path = root.join("origins").join(key);
            let hex = digest_of(&path, &fs::read(&path).ok()?, "").ok()?;
            (blob_path(root, &hex).exists() && facts_path(root, &hex).exists()).then_some(hex)
        })
    }

    /// Gives the image that a pull with this key has made (in any store that is searched) this name.
    pub(crate) fn adopt(&self, key: &str, name: &ImageName) -> Result<Option<Image>, Error> {
        let Some(hex) = self.by_origin(key) else { return Ok(None) };
        // nothing is written if there is nothing to say: the store may be another's
        if named(self.root(), name, "").ok().flatten().as_ref() != Some(&hex) {
            self.prepare()?;
            self.name(name, &hex)?;
        }
        Ok(self.find(&format!("sha256:{hex}")).ok())
    }

    /// Remembers which image a pull with this key has made.
    pub(crate) fn set_origin(&self, key: &str, digest: &str) -> Result<(), Error> {
        self.publish(&self.root().join("origins").join(key), format!("{digest}\n").as_bytes())
    }

    /// Takes a finished image file into the store under a name.
    pub(crate) fn add(&self, file: &Staging, facts: &ImageFacts, name: &ImageName) -> Result<(), Error> {
        let root = self.root();
        let hex = facts.digest.trim_start_matches("sha256:");
        let image = corebox_sys::fd::open_read(file.path())?;
        let blob = blob_file(root, hex, crate::mount::format(&image, file.path())?);
        let json = serde_json::to_vec_pretty(facts).unwrap_or_default();
        // `remove` may run at the same time: it takes the image away if it sees no name, and puts it back if a name
        // appeared meanwhile. We look once more after the name is there, so one of us sees the other.
        for _ in 0..8 {
            file.link_to(&blob)?;
            self.publish(&facts_path(root, hex), &json)?;
            self.name(name, hex)?;
            if blob.exists() && facts_path(root, hex).exists() {
                return Ok(());
            }
        }
        Err(Error::new("link", blob.display(), Errno::EBUSY))
    }

    /// An image that a store names; a user's name may mean an image of the site's store.
    fn load(&self, root: &Path, hex: &str, goal: &str) -> Result<Image, Failure> {
        let is_holder = |root: &&Path| blob_path(root, hex).exists();
        let holder = [root].into_iter().chain(self.roots.iter().map(PathBuf::as_path)).find(is_holder);
        let mut image = load(holder.unwrap_or(root), hex, goal)?;
        for root in &self.roots {
            let own = names(root, goal)?.into_iter().filter(|(_, of)| of == hex).map(|(name, _)| name.to_string());
            image.names.extend(own);
        }
        image.names.sort();
        image.names.dedup();
        Ok(image)
    }

    /// Lets a name point to an image; the one it pointed to before is without it from now on.
    fn name(&self, name: &ImageName, hex: &str) -> Result<(), Error> {
        let root = self.root();
        let before = named(root, name, "").ok().flatten().filter(|before| before != hex);
        self.publish(&name_path(root, name), format!("sha256:{hex}\n").as_bytes())?;
        if let Some(before) = before {
            touch(&facts_path(root, &before));
        }
        Ok(())
    }

    fn publish(&self, target: &Path, content: &[u8]) -> Result<(), Error> {
        let temporary = Staging::new(&self.root().join("tmp"))?;
        temporary.write(content)?;
        temporary.rename_to(target)
    }

    fn unknown(&self, goal: String, reference: &str) -> Failure {
        let known: Vec<String> = self
            .roots
            .iter()
            .flat_map(|root| names(root, &goal).unwrap_or_default())
            .map(|(name, _)| name.to_string())
            .collect();
        let searched: Vec<_> = self.roots.iter().map(|root| root.display().to_string()).collect();
        let close: Vec<_> =
            known.iter().filter(|name| is_close(name, reference)).map(|name| format!("`{name}`")).collect();
        let hint = match (close.is_empty(), known.is_empty()) {
            (false, _) => format!("did you mean {}?", close.join(" or ")),
            (true, true) => "make one with `corebox image bootstrap` or `corebox image import`".to_owned(),
            (true, false) => "`corebox image ls` lists what is there".to_owned(),
        };
        Failure::new(goal, format!("no such image in {}", searched.join(" or "))).hint(hint)
    }
}

/// The last part of an image file's name.
fn suffix(format: Format) -> &'static str {
    match format {
        Format::Erofs => ".erofs",
        Format::Squashfs => ".sqsh",
    }
}

fn blob_file(root: &Path, hex: &str, format: Format) -> PathBuf {
    root.join("blobs/sha256").join(format!("{hex}{}", suffix(format)))
}

/// The file of an image, whichever format it has.
fn blob_path(root: &Path, hex: &str) -> PathBuf {
    let squashfs = blob_file(root, hex, Format::Squashfs);
    if squashfs.exists() { squashfs } else { blob_file(root, hex, Format::Erofs) }
}

fn facts_path(root: &Path, hex: &str) -> PathBuf {
    root.join("facts").join(format!("{hex}.json"))
}

fn name_path(root: &Path, name: &ImageName) -> PathBuf {
    root.join("names").join(name.file_name())
}

fn unreadable(goal: &str, error: Error) -> Failure {
    let denied = matches!(error.errno, Errno::EACCES | Errno::EPERM);
    let failure = Failure::new(goal, &error);
    match denied {
        true => failure.hint(format!("you may not use this store; set {STORE_VARIABLE} to a directory of yours")),
        false => failure,
    }
}

/// The digest's digits that a name points to.
fn named(root: &Path, name: &ImageName, goal: &str) -> Result<Option<String>, Failure> {
    let path = name_path(root, name);
    match fs::read(&path) {
        Ok(content) => digest_of(&path, &content, goal).map(Some),
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(error) => Err(unreadable(goal, error)),
    }
}

fn digest_of(path: &Path, content: &[u8], goal: &str) -> Result<String, Failure> {
    std::str::from_utf8(content)
        .ok()
        .and_then(|text| text.trim_end().strip_prefix("sha256:"))
        .filter(|hex| is_full_digest(hex))
        .map(str::to_owned)
        .ok_or_else(|| {
            Failure::new(goal, format!("the store is damaged: {} holds no digest", path.display()))
                .hint("remove that file and import the image again")
        })
}

fn by_digits(root: &Path, digits: &str, goal: &str) -> Result<Option<String>, Failure> {
    let mut matching: Vec<_> = digests(root, goal)?.into_iter().filter(|hex| hex.starts_with(digits)).collect();
    match matching.len() {
        0 | 1 => Ok(matching.pop()),
        n => Err(Failure::new(goal, format!("{n} images have a digest that begins so")).hint("give more digits")),
    }
}

/// Says that something happened to a file now. One of another user keeps its time.
fn touch(path: &Path) {
    std::fs::File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_modified(std::time::SystemTime::now()))
        .ok();
}

/// File names in one of the store's directories; none if it does not exist.
fn entries(directory: &Path, goal: &str) -> Result<Vec<String>, Failure> {
    let failed = |error: std::io::Error| unreadable(goal, Error::io("read directory", directory.display(), &error));
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        // what is not UTF-8 is none of ours
        found.extend(entry.map_err(failed)?.file_name().into_string());
    }
    found.sort();
    Ok(found)
}

fn digests(root: &Path, goal: &str) -> Result<Vec<String>, Failure> {
    let files = entries(&root.join("blobs/sha256"), goal)?;
    let without_suffix = |file: &'_ String| -> Option<String> {
        let hex = [Format::Erofs, Format::Squashfs].iter().find_map(|format| file.strip_suffix(suffix(*format)))?;
        is_full_digest(hex).then(|| hex.to_owned())
    };
    let hex = files.iter().filter_map(without_suffix);
    Ok(hex.collect())
}

/// All names with the digits of what they point to.
fn names(root: &Path, goal: &str) -> Result<Vec<(ImageName, String)>, Failure> {
    let mut found = Vec::new();
    for file in entries(&root.join("names"), goal)? {
        if let Ok(name) = ImageName::parse(&file)
            && let Some(hex) = named(root, &name, goal)?
        {
            found.push((name, hex));
        }
    }
    Ok(found)
}

/// Reads what is known about an image that must be there.
fn load(root: &Path, hex: &str, goal: &str) -> Result<Image, Failure> {
    let path = blob_path(root, hex);
    let damaged = |cause: String| {
        Failure::new(goal, format!("the store is damaged: {cause}"))
            .hint(format!("`corebox image rm sha256:{hex}`, then import the image again"))
    };
    let size = match std::fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged(format!("{} is missing", path.display())));
        }
        Err(error) => return Err(unreadable(goal, Error::io("stat", path.display(), &error))),
    };
    let facts_path = facts_path(root, hex);
    let json = match fs::read(&facts_path) {
        Ok(json) => json,
        Err(error) if error.errno == Errno::ENOENT => {
            return Err(damaged(format!("{} is missing", facts_path.display())));
        }
        Err(error) => return Err(unreadable(goal, error)),
    };
    let facts: ImageFacts =
        serde_json::from_slice(&json).map_err(|error| damaged(format!("{}: {error}", facts_path.display())))?;
    if facts.digest != format!("sha256:{hex}") {
        return Err(damaged(format!("{} is about another image", facts_path.display())));
    }
    if facts.size != size {
        return Err(damaged(format!("{} has {size} bytes instead of {}", path.display(), facts.size)));
    }
    Ok(Image { digest: facts.digest.clone(), path, facts, names: Vec::new() })
}

/// Removes an image that has no name; see [`Store::add`] for the race with an import of the same content.
fn remove_unnamed(root: &Path, hex: &str, goal: &str) -> Result<bool, Failure> {
    let has_name = || Ok::<_, Failure>(names(root, goal)?.iter().any(|(_, of)| of == hex));
    let failed = |error: Error| unreadable(goal, error);
    if has_name()? {
        return Ok(false);
    }
    let blob = blob_path(root, hex);
    let aside = Staging::new(&root.join("tmp")).map_err(failed)?;
    match fs::rename(&blob, aside.path()) {
        Ok(()) => {}
        Err(error) if error.errno == Errno::ENOENT => {}
        Err(error) => return Err(failed(error)),
    }
    if has_name()? {
        aside.link_to(&blob).map_err(failed)?;
        return Ok(false);
    }
    remove_file(&facts_path(root, hex)).map_err(failed)?;
    for (path, of) in origins(root, goal)? {
        if of == hex {
            remove_file(&path).map_err(failed)?;
        }
    }
    Ok(true)
}

/// All keys of pulls with the digits of the image they made.
fn origins(root: &Path, goal: &str) -> Result<Vec<(PathBuf, String)>, Failure> {
    let directory = root.join("origins");
    let mut found = Vec::new();
    for key in entries(&directory, goal)? {
        let path = directory.join(key);
        // one that cannot be read, or is being replaced, is as good as none
        if let Some(hex) = fs::read(&path).ok().and_then(|content| digest_of(&path, &content, goal).ok()) {
            found.push((path, hex));
        }
    }
    Ok(found)
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("unlink", path.display(), &error)),
        _ => Ok(()),
    }
}

/// Whether one name may be a slip of the pen for the other: one holds the other, or at most two edits lie between.
fn is_close(known: &str, typed: &str) -> bool {
    let (a, b) = (known.to_ascii_lowercase(), typed.to_ascii_lowercase());
    let limit = if b.len() < 4 { 1 } else { 2 };
    (b.len() >= 3 && a.contains(&b))
        || (a.len() >= 3 && b.contains(&a))
        || distance(a.as_bytes(), b.as_bytes()) <= limit
}

/// Levenshtein distance.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
