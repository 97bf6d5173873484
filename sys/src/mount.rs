//! The file-descriptor based mount API (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)), openat2(2) and
//! pivot_root(2).

use crate::{Error, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Mount attributes as mount_setattr(2) knows them.
pub mod attr {
    /// No writing.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id bits and file capabilities are ignored.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes do not work.
    pub const NODEV: u64 = 0x4;
    /// No program is executed.
    pub const NOEXEC: u64 = 0x8;
    /// Access times, as one field: zero is `relatime`.
    pub const ATIME: u64 = 0x70;
    /// Access times are not updated.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are not updated.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
    /// Ids are mapped by a user namespace.
    pub(super) const IDMAP: u64 = 0x10_0000;
}

/// Propagation of mount events (mount_namespaces(7)), as mount_setattr(2) takes it.
pub mod propagation {
    /// To and from the peers.
    pub const SHARED: u64 = libc::MS_SHARED;
    /// From the master only.
    pub const SLAVE: u64 = libc::MS_SLAVE;
    /// None.
    pub const PRIVATE: u64 = libc::MS_PRIVATE;
    /// None, and not to be bound.
    pub const UNBINDABLE: u64 = libc::MS_UNBINDABLE;
}

/// What [`change`] changes of a mount.
#[derive(Debug, Default)]
pub struct Change<'a> {
    /// Attributes to set, see [`attr`].
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// One of [`propagation`], or 0.
    pub propagation: u64,
    /// A user namespace that maps the ids of the mount's files.
    pub id_map: Option<BorrowedFd<'a>>,
}

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const AT_RECURSIVE: u32 = 0x8000;
const AT_EMPTY_PATH: u32 = 0x1000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// `text` as a C string; a NUL inside is EINVAL, as the kernel could never have seen such a name.
pub(crate) fn c_string(call: &'static str, text: &[u8]) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(call, String::from_utf8_lossy(text), Errno::EINVAL))
}

fn c_path(call: &'static str, path: &Path) -> Result<CString> {
    c_string(call, path.as_os_str().as_bytes())
}

/// What a system call returned, as a descriptor that is ours.
pub(crate) fn owned(call: &'static str, object: impl std::fmt::Display, returned: libc::c_long) -> Result<OwnedFd> {
    if returned < 0 {
        return Err(Error::last(call, object));
    }
    // SAFETY: the kernel just returned this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(returned as RawFd) })
}

/// A file system being configured (fsopen(2)), before it is mounted anywhere.
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
    kind: Cow<'static, str>,
}

impl FsContext {
    /// Opens a context for a file system type such as `tmpfs`.
    ///
    /// # Errors
    /// What fsopen(2) says: ENODEV when the kernel lacks the type, EPERM without CAP_SYS_ADMIN in our user namespace.
    pub fn open(kind: impl Into<Cow<'static, str>>) -> Result<Self> {
        let kind = kind.into();
        let name = c_string("fsopen", kind.as_bytes())?;
        // SAFETY: a NUL-terminated name and flags; nothing is written to our memory.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
        Ok(Self { fd: owned("open file system type", &kind, fd)?, kind })
    }

    fn config(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        let (fd, key_at, value_at) = (self.fd.as_raw_fd(), pointer(key), pointer(value));
        // SAFETY: both pointers are null or NUL-terminated texts that outlive the call.
        let result = unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key_at, value_at, 0) };
        if result == 0 {
            return Ok(());
        }
        let errno = Errno::last();
        let mut object = self.kind.to_string();
        for text in [key, value].into_iter().flatten() {
            object.push(' ');
            object.push_str(&text.to_string_lossy());
        }
        Err(Error::new("configure file system", format!("{object}{}", self.kernel_words()), errno))
    }

    /// What the kernel wrote into the context's log, as ` [text]`; empty when it wrote nothing (fsopen(2)).
    fn kernel_words(&self) -> String {
        let mut text = String::new();
        let mut line = [0u8; 512];
        while let Ok(length) = nix::unistd::read(&self.fd, &mut line) {
            if length == 0 {
                break;
            }
            text.push_str(&format!(" [{}]", String::from_utf8_lossy(&line[..length]).trim()));
        }
        text
    }

    /// Sets `key=value`.
    ///
    /// # Errors
    /// What fsconfig(2) says, with the kernel's own words about it.
    pub fn set(&self, key: &str, value: impl AsRef<[u8]>) -> Result<&Self> {
        let (key, value) = (c_string("fsconfig", key.as_bytes())?, c_string("fsconfig", value.as_ref())?);
        self.config(FSCONFIG_SET_STRING, Some(&key), Some(&value))?;
        Ok(self)
    }

    /// Sets an option without a value, such as `ro`.
    ///
    /// # Errors
    /// As [`FsContext::set`].
    pub fn flag(&self, key: &str) -> Result<&Self> {
        self.config(FSCONFIG_SET_FLAG, Some(&c_string("fsconfig", key.as_bytes())?), None)?;
        Ok(self)
    }

    /// Creates the file system and returns a detached mount of it with these [`attr`]ibutes.
    ///
    /// # Errors
    /// What fsconfig(2) and fsmount(2) say, with the kernel's own words about it.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        let fd = self.fd.as_raw_fd();
        // SAFETY: descriptor and flags only.
        let mount = unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes as u32) };
        owned("fsmount", &self.kind, mount)
    }
}

/// A detached copy of the mount(s) at `path`, to be attached elsewhere with [`attach`]: a bind.
///
/// # Errors
/// What open_tree(2) says; EINVAL when the path lies in another mount namespace.
pub fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let text = c_path("open_tree", path)?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: a NUL-terminated path and flags.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, text.as_ptr(), flags) };
    owned("clone the mount at", path.display(), fd)
}

/// As [`clone_tree`], of an open file instead of a path.
///
/// # Errors
/// What open_tree(2) says.
pub fn clone_fd(fd: BorrowedFd<'_>, object: impl std::fmt::Display) -> Result<OwnedFd> {
    clone_fd_flags(fd, 0, object)
}

/// As [`clone_fd`], with every mount below it.
///
/// # Errors
/// What open_tree(2) says.
pub fn clone_fd_recursive(fd: BorrowedFd<'_>, object: impl std::fmt::Display) -> Result<OwnedFd> {
    clone_fd_flags(fd, AT_RECURSIVE, object)
}

fn clone_fd_flags(fd: BorrowedFd<'_>, more: u32, object: impl std::fmt::Display) -> Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | more;
    // SAFETY: a descriptor, an empty NUL-terminated path and flags.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, fd.as_raw_fd(), c"".as_ptr(), flags) };
    owned("clone the mount at", object, tree)
}

/// Attaches a detached mount on the file or directory that `target` is open on (move_mount(2)).
///
/// # Errors
/// What move_mount(2) says; `object` names the target in the message.
pub fn attach(mount: impl AsFd, target: impl AsFd, object: impl std::fmt::Display) -> Result<()> {
    let (from, to) = (mount.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    let (empty, flags) = (c"".as_ptr(), MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    // SAFETY: two descriptors, two empty NUL-terminated paths and flags.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) };
    if result == 0 { Ok(()) } else { Err(Error::last("attach a mount on", object)) }
}

/// Sets mount attributes (see [`attr`]) of a mount, with everything below it if `recursive`.
///
/// # Errors
/// What mount_setattr(2) says: EPERM for clearing an attribute that another user namespace has locked, ENOSYS before
/// kernel 5.12.
pub fn set_attributes(
    mount: impl AsFd,
    attributes: u64,
    recursive: bool,
    object: impl std::fmt::Display,
) -> Result<()> {
    change(mount, &Change { set: attributes, ..Change::default() }, recursive, object)
}

/// Changes attributes, propagation or id map of a mount (mount_setattr(2)), with everything below it if `recursive`.
///
/// # Errors
/// What mount_setattr(2) says: EPERM for clearing an attribute that another user namespace has locked, EINVAL for a
/// file system that cannot map ids, ENOSYS before kernel 5.12.
pub fn change(mount: impl AsFd, change: &Change<'_>, recursive: bool, object: impl std::fmt::Display) -> Result<()> {
    // SAFETY: an all-zero mount_attr is valid.
    let mut set: libc::mount_attr = unsafe { std::mem::zeroed() };
    set.attr_set = change.set | if change.id_map.is_some() { attr::IDMAP } else { 0 };
    // The kernel takes a change of the access time field only with the whole field cleared.
    let atime = if change.set & attr::ATIME != 0 { attr::ATIME } else { 0 };
    set.attr_clr = change.clear | atime;
    set.propagation = change.propagation;
    set.userns_fd = change.id_map.map_or(0, |fd| fd.as_raw_fd() as u64);
    let fd = mount.as_fd().as_raw_fd();
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: descriptor, empty path, and a mount_attr of the size told.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const set, size) };
    if result == 0 { Ok(()) } else { Err(Error::last("set mount attributes of", object)) }
}

/// Opens `path` (O_PATH) below `root` as if `root` were `/`: symbolic links and `..` cannot leave it, and no magic
/// link of /proc is followed (openat2(2), RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS).
///
/// # Errors
/// What openat2(2) says; ENOENT when it does not exist.
pub fn open_in_root(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    open_beneath(root, path, libc::O_PATH | libc::O_CLOEXEC)
}

/// As [`open_in_root`], and no part of the path is a symbolic link: for the kernel's own file systems, which others write
/// to by their well-known paths.
///
/// # Errors
/// What openat2(2) says: ELOOP for a link.
pub fn open_in_root_without_links(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS;
    open_resolved(root, path, libc::O_PATH | libc::O_CLOEXEC, resolve)
}

/// As [`open_in_root`], opened for reading (for files of the image).
///
/// # Errors
/// What openat2(2) says.
pub fn open_in_root_for_reading(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    // O_NONBLOCK: the image may hold a FIFO under any name, and opening it must not hang.
    open_beneath(root, path, libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
}

/// As [`open_in_root`], of a directory to which entries may be added.
///
/// # Errors
/// What openat2(2) says.
pub fn open_directory_in_root(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    open_beneath(root, path, libc::O_PATH | libc::O_CLOEXEC | libc::O_DIRECTORY)
}

/// Opens a file of a kernel file system below `root` for writing; neither links nor other mounts are crossed.
///
/// # Errors
/// What openat2(2) says: EXDEV when something is mounted over it, ELOOP for a link.
pub fn open_kernel_file(root: impl AsFd, path: &Path, write: bool) -> Result<OwnedFd> {
    let access = if write { libc::O_WRONLY } else { libc::O_RDONLY };
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
    open_resolved(root, path, access | libc::O_CLOEXEC | libc::O_NOCTTY, resolve)
}

fn open_beneath(root: impl AsFd, path: &Path, flags: i32) -> Result<OwnedFd> {
    open_resolved(root, path, flags, libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS)
}

fn open_resolved(root: impl AsFd, path: &Path, flags: i32, resolve: u64) -> Result<OwnedFd> {
    let text = c_path("openat2", path)?;
    // SAFETY: an all-zero open_how is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.resolve = resolve;
    let (fd, size) = (root.as_fd().as_raw_fd(), size_of::<libc::open_how>());
    loop {
        // SAFETY: descriptor, NUL-terminated path, and an open_how of the size told.
        let result = unsafe { libc::syscall(libc::SYS_openat2, fd, text.as_ptr(), &raw const how, size) };
        // EAGAIN: a rename somewhere raced with the resolution of `..`; the manual says try again.
        if result >= 0 || Errno::last() != Errno::EAGAIN {
            return owned("open in the container", path.display(), result);
        }
    }
}

/// Makes every mount of this mount namespace private: nothing we mount reaches the host, nor the reverse.
///
/// # Errors
/// What mount(2) says.
pub fn make_private() -> Result<()> {
    propagate_all(propagation::PRIVATE)
}

/// Gives every mount of this mount namespace this [`propagation`].
///
/// # Errors
/// What mount(2) says.
pub fn propagate_all(how: u64) -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::from_bits_truncate(how);
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|e| Error::new("change the propagation of the mounts below", "/", e))
}

/// Mounts FUSE, of a subtype, with an open `/dev/fuse` on a directory; the server must serve that descriptor. `ids` are
/// the mounter's user and group. `shared`: all ids of the user namespace may use it, and the kernel checks permissions.
///
/// The kernel takes the descriptor only from a process of the user namespace that opened it (fs/fuse/inode.c).
///
/// # Errors
/// What mount(2) says.
pub fn mount_fuse(subtype: &str, device: BorrowedFd<'_>, target: &Path, ids: (u32, u32), shared: bool) -> Result<()> {
    let others = if shared { ",allow_other,default_permissions" } else { "" };
    let data = format!("fd={},rootmode=40000,user_id={},group_id={}{others}", device.as_raw_fd(), ids.0, ids.1);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    nix::mount::mount(Some(subtype), target, Some(format!("fuse.{subtype}").as_str()), flags, Some(data.as_str()))
        .map_err(|e| Error::new("mount fuse on", target.display(), e))
}

/// Detaches the mount at `path` with all below it (umount2(2), MNT_DETACH). None there is no error.
///
/// # Errors
/// What umount2(2) says otherwise.
pub fn detach(path: &Path) -> Result<()> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(e) => Err(Error::new("detach", path.display(), e)),
    }
}

/// Makes the directory open as `root` the root directory of this process alone (chroot(2)).
///
/// # Errors
/// What fchdir(2) and chroot(2) say.
pub fn change_root(root: impl AsFd) -> Result<()> {
    nix::unistd::fchdir(root).map_err(|e| Error::new("change into", "the new root", e))?;
    nix::unistd::chroot(".").map_err(|e| Error::new("chroot into", "the new root", e))
}

/// Makes the directory open as `root` the root directory of the mount namespace and detaches the old one
/// (pivot_root(2), the `pivot_root(".", ".")` idiom of its manual page).
///
/// # Errors
/// What fchdir(2), pivot_root(2) or umount2(2) say.
pub fn pivot_root(root: impl AsFd) -> Result<()> {
    nix::unistd::fchdir(root).map_err(|e| Error::new("change into", "the new root", e))?;
    nix::unistd::pivot_root(".", ".").map_err(|e| Error::new("pivot_root into", "the new root", e))?;
    // Both roots are stacked on "/" now and "." is the old one's place: detaching "." removes the old.
    nix::mount::umount2(".", MntFlags::MNT_DETACH).map_err(|e| Error::new("detach", "the old root", e))?;
    nix::unistd::chdir("/").map_err(|e| Error::new("change into", "/", e))
}

/// Whether a descriptor is of a procfs, and not of something mounted or linked in its place.
pub fn is_procfs(fd: impl AsFd) -> bool {
    nix::sys::statfs::fstatfs(fd).is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// Writes to a file below /proc that is procfs's own: neither a link nor a mount leads elsewhere (CVE-2025-52881), but
/// for procfs's `self`.
///
/// # Errors
/// What openat2(2) and write(2) say: EXDEV where something is mounted over it.
pub fn write_proc(path: &str, text: &str) -> Result<()> {
    let proc = crate::fd::open_path(Path::new("/proc"))?;
    if !is_procfs(&proc) {
        return Err(Error::new("write", format_args!("/proc/{path}, where no procfs is"), Errno::EXDEV));
    }
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_XDEV;
    let file = open_resolved(proc, Path::new(path), libc::O_WRONLY | libc::O_CLOEXEC, resolve)?;
    // One write: the kernel reads a map whole or not at all.
    let written = nix::unistd::write(&file, text.as_bytes());
    written.map(drop).map_err(|e| Error::new("write", format_args!("/proc/{path}"), e))
}
