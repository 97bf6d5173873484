//! The root directory: image, overlay if one is needed, and the place to assemble it at.

use crate::mountpoints::{self, Place};
use crate::mounts::Sources;
use crate::plan::{ContainerPlan, PlannedKind, PlannedMount, RootMethod};
use crate::step::Stop;
use corebox_images::erofs;
use corebox_images::fuse::{Access, FuseServer};
use corebox_sys::mount::{FsContext, attach, attr, open_in_root, set_attributes};
use corebox_sys::process::SingleThreaded;
use corebox_sys::{Errno, fd};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the root is assembled: any directory that every Linux system has. In our own mount namespace only; what is
/// below it on the host was opened before.
const STAGING: &str = "/tmp";

/// The image, opened by the parent while it still was who it was.
#[derive(Debug)]
pub(crate) enum OpenImage {
    /// A detached mount of it.
    Mounted(OwnedFd),
    /// The file, for FUSE and unpacking.
    File(OwnedFd),
}

/// Directories of the staging tmpfs.
#[derive(Debug)]
pub(crate) struct Staging {
    /// The image.
    pub(crate) image: PathBuf,
    skeleton: PathBuf,
    work: PathBuf,
    overlay: PathBuf,
    /// Generated files.
    pub(crate) files: PathBuf,
    /// An empty directory, to hide others with.
    pub(crate) empty: PathBuf,
}

impl Staging {
    /// Mounts a tmpfs, of this size if a writable overlay is limited to it, and makes its directories.
    pub(crate) fn create(plan: &ContainerPlan) -> Result<Self, Stop> {
        let context = FsContext::open("tmpfs")?;
        context.set("mode", "0755")?;
        if let Some(Some(size)) = plan.writable {
            context.set("size", size.to_string())?;
        }
        let mount = context.mount(attr::NOSUID | attr::NODEV)?;
        attach(mount, fd::open_path(Path::new(STAGING))?, STAGING)?;
        let place = |name: &str| -> Result<PathBuf, Stop> {
            let path = Path::new(STAGING).join(name);
            std::fs::create_dir(&path).map_err(|e| corebox_sys::Error::io("mkdir", path.display(), &e))?;
            Ok(path)
        };
        Ok(Self {
            image: place("image")?,
            skeleton: place("skeleton")?,
            work: place("work")?,
            overlay: place("root")?,
            files: place("files")?,
            empty: place("empty")?,
        })
    }

    /// Puts the image at its place; with FUSE, returns its server once it serves.
    pub(crate) fn mount_image(
        &self,
        plan: &ContainerPlan,
        image: OpenImage,
        single: &SingleThreaded,
    ) -> Result<Option<FuseServer>, Stop> {
        let file = match image {
            OpenImage::Mounted(mount) => {
                attach(mount, fd::open_path(&self.image)?, "the image's place")?;
                return Ok(None);
            }
            OpenImage::File(file) => file,
        };
        let RootMethod::Fuse { program } = &plan.method else {
            self.unpack(plan, &file)?;
            return Ok(None);
        };
        let server = FuseServer::start(single, program.as_deref(), file.as_fd(), &self.image, access(plan))?;
        // This waits for its first answer, or ends with ENOTCONN when it died.
        if let Err(error) = std::fs::metadata(&self.image) {
            let said = server.words();
            let who = program.as_ref().map_or("corebox".into(), |program| program.to_string_lossy());
            let cause = format!("the FUSE server ({who}) does not serve {}: {error}", plan.image.display());
            let cause = if said.is_empty() { cause } else { format!("{cause}\nit said: {said}") };
            return Err(Stop::new(cause).hint("is the image file complete? `corebox image inspect` checks its digest."));
        }
        Ok(Some(server))
    }

    /// Unpacks the image into a tmpfs of its own, which is read-only then.
    fn unpack(&self, plan: &ContainerPlan, image: &OwnedFd) -> Result<(), Stop> {
        let context = FsContext::open("tmpfs")?;
        // A file takes whole pages, and inodes take memory as well: twice the image is enough for any.
        let size = fd::size(image)?.saturating_mul(2).saturating_add(UNPACK_LEAST);
        context.set("mode", "0755")?.set("size", size.to_string())?.set("nr_inodes", "0")?;
        let mount = context.mount(attr::NOSUID | attr::NODEV)?;
        attach(&mount, fd::open_path(&self.image)?, "the image's place")?;
        erofs::unpack(image.as_fd(), &self.image, access(plan).several)
            .map_err(|error| Stop::new(format!("unpacking {}: {error}", plan.image.display())))?;
        Ok(set_attributes(&mount, attr::RDONLY, false, "the image's place")?)
    }

    /// Lays the overlay over the image where writing or a missing mount point asks for it, and returns the root.
    pub(crate) fn root(&self, plan: &ContainerPlan, missing: &[Missing]) -> Result<OwnedFd, Stop> {
        for place in missing {
            mountpoints::make(&self.skeleton, &self.image, &place.path, place.directory)?;
        }
        if plan.writable.is_none() && missing.is_empty() {
            return Ok(fd::open_path(&self.image)?);
        }
        let overlay = self.overlay(plan.writable.is_some()).map_err(overlay_hint)?;
        attach(overlay, fd::open_path(&self.overlay)?, "the overlay's place")?;
        Ok(fd::open_path(&self.overlay)?)
    }

    fn overlay(&self, writable: bool) -> corebox_sys::Result<OwnedFd> {
        self.same_mode_as_image();
        let context = FsContext::open("overlay")?;
        let (image, skeleton) = (self.image.display(), self.skeleton.display());
        if writable {
            context.set("lowerdir", image.to_string())?;
            context.set("upperdir", skeleton.to_string())?.set("workdir", self.work.display().to_string())?;
        } else {
            // Without an upper layer an overlay is read-only by itself.
            context.set("lowerdir", format!("{skeleton}:{image}"))?;
        }
        // trusted.* attributes belong to the initial user namespace (kernel Documentation/filesystems/overlayfs.rst).
        context.flag("userxattr")?;
        let read_only = if writable { 0 } else { attr::RDONLY };
        context.mount(attr::NOSUID | attr::NODEV | read_only)
    }

    /// The upper layer's root decides the mode of `/`.
    fn same_mode_as_image(&self) {
        use std::os::unix::fs::PermissionsExt;
        if let Ok(image) = std::fs::metadata(&self.image) {
            let mode = std::fs::Permissions::from_mode(image.permissions().mode() & 0o7777);
            // On a tmpfs of ours this cannot fail; if it did, `/` would be 0755 as in every image.
            let _ = std::fs::set_permissions(&self.skeleton, mode);
        }
    }
}

/// Room for an unpacked image that hardly holds anything.
const UNPACK_LEAST: u64 = 4 << 20;

/// Who uses a FUSE mount.
fn access(plan: &ContainerPlan) -> Access {
    // The ids of the mounter as its namespace numbers them.
    let first = (plan.user.uid_map[0].inside, plan.user.gid_map[0].inside);
    let several = !plan.user.deny_setgroups;
    Access { ids: if several { (plan.user.uid, plan.user.gid) } else { first }, several }
}

fn overlay_hint(error: corebox_sys::Error) -> Stop {
    let hint = match error.errno {
        Errno::EPERM => Some("overlay inside a user namespace needs kernel 5.11 or later; see `uname -r`."),
        Errno::ENODEV => Some("your administrator loads the kernel module `overlay`."),
        _ => None,
    };
    let stop = Stop::from(error);
    match hint {
        Some(hint) => {
            stop.hint(format!("{hint} An image that has all mount points, without --writable, needs no overlay."))
        }
        None => stop,
    }
}

/// A mount point that the image lacks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    path: PathBuf,
    directory: bool,
}

/// Goes through the mounts in order and finds which mount points the image lacks. Those below an earlier mount are
/// none of the image's.
pub(crate) fn missing(image: &Path, mounts: &[PlannedMount], sources: &Sources) -> Result<Vec<Missing>, Stop> {
    let mut covered: Vec<PathBuf> = Vec::new();
    let mut missing = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let Place { path, exists } = mountpoints::resolve(image, Path::new(&mount.target))?;
        if path.as_os_str().is_empty() {
            return Err(Stop::new(format!("mount target {} is the root directory itself", mount.target)));
        }
        if is_skipped(mount, exists) {
            continue;
        }
        if !exists && !covered.iter().any(|c| path.starts_with(c)) {
            missing.push(Missing { path: path.clone(), directory: sources.is_directory(index, &mount.kind) });
        }
        covered.push(path);
    }
    Ok(missing)
}

/// A mount that is wanted only where the image has nothing.
fn is_skipped(mount: &PlannedMount, exists: bool) -> bool {
    matches!(mount.kind, PlannedKind::Tmpfs { if_missing: true, .. }) && exists
}

/// As [`is_skipped`], asked of the root being assembled.
pub(crate) fn skip_in(root: &OwnedFd, image: &Path, mount: &PlannedMount) -> bool {
    let in_image = mountpoints::resolve(image, Path::new(&mount.target)).is_ok_and(|place| place.exists);
    is_skipped(mount, in_image && open_in_root(root, Path::new(&mount.target)).is_ok())
}
