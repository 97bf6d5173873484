//! Making files, directories and devices below a root directory that somebody else filled: no link in it leads out.

use crate::mount::{open_directory_in_root, open_in_root};
use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// How often a component is looked up again after it was made (or removed by another) in between.
const TRIES: usize = 8;

/// Opens a directory below `root` (O_PATH), making those that are missing with mode 0755. Links are followed inside
/// `root` only.
///
/// # Errors
/// What openat2(2) and mkdirat(2) say: ENOTDIR for a file in the way, EROFS.
pub fn make_directories(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    make_all(root.as_fd(), path, TRIES)
}

fn make_all(root: BorrowedFd<'_>, path: &Path, tries: usize) -> Result<OwnedFd> {
    match open_directory_in_root(root, path) {
        Err(e) if e.errno == Errno::ENOENT => {}
        other => return other,
    }
    let mut here = PathBuf::from("/");
    let mut parent = open_directory_in_root(root, &here)?;
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                here.push(name);
                parent = enter_or_make(root, &parent, &here, tries)?;
            }
            Component::ParentDir => {
                here.push("..");
                parent = open_directory_in_root(root, &here)?;
            }
            _ => {}
        }
    }
    Ok(parent)
}

fn enter_or_make(root: BorrowedFd<'_>, parent: &OwnedFd, path: &Path, tries: usize) -> Result<OwnedFd> {
    let name = path.file_name().unwrap_or_default();
    for left in (0..tries).rev() {
        match open_directory_in_root(root, path) {
            Err(e) if e.errno == Errno::ENOENT => {}
            other => return other,
        }
        match nix::sys::stat::mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {}
            // A link that leads to a missing place: what it points to is made, inside the root.
            Err(Errno::EEXIST) => {
                let to = nix::fcntl::readlinkat(parent, name)
                    .map_err(|e| Error::new("make directory", path.display(), e))?;
                let place = path.parent().unwrap_or(Path::new("/")).join(to);
                return make_all(root, &place, left);
            }
            Err(e) => return Err(Error::new("make directory", path.display(), e)),
        }
    }
    Err(Error::new("make directory", path.display(), Errno::ELOOP))
}

/// Opens a file below `root` (O_PATH), making an empty one, and its directories, where it is missing.
///
/// # Errors
/// What openat2(2), mkdirat(2) and openat(2) say.
pub fn make_file(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    match open_in_root(&root, path) {
        Err(e) if e.errno == Errno::ENOENT => {}
        other => return other,
    }
    let parent = make_directories(&root, path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().ok_or_else(|| Error::new("make file", path.display(), Errno::EISDIR))?;
    // O_EXCL: what is there by now is not ours to write to, and a link is not followed.
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match nix::fcntl::openat(&parent, name, flags, Mode::from_bits_truncate(0o644)) {
        Ok(_) | Err(Errno::EEXIST) => open_in_root(&root, path),
        Err(e) => Err(Error::new("make file", path.display(), e)),
    }
}

/// What mknodat(2) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// Makes a device node with exactly this mode and owner in the directory `parent`.
///
/// # Errors
/// EEXIST when something is there, EPERM in a user namespace.
pub fn make_node(
    parent: impl AsFd,
    name: &str,
    node: Node,
    device: (u64, u64),
    mode: u32,
    owner: (u32, u32),
) -> Result<()> {
    let kind = match node {
        Node::Character => SFlag::S_IFCHR,
        Node::Block => SFlag::S_IFBLK,
        Node::Fifo => SFlag::S_IFIFO,
    };
    let mode = Mode::from_bits_truncate(mode);
    let failed = |e| Error::new("make device", name, e);
    nix::sys::stat::mknodat(&parent, name, kind, mode, nix::sys::stat::makedev(device.0, device.1)).map_err(failed)?;
    // The umask took bits away. The name was made just now by us, and only we can write to the directory's mount.
    nix::sys::stat::fchmodat(&parent, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink).map_err(failed)?;
    if owner == (0, 0) {
        return Ok(());
    }
    change_owner(parent, name, owner)
}

/// Gives an entry of a directory to a user and group; a link itself, not what it points to.
///
/// # Errors
/// What fchownat(2) says.
pub fn change_owner(parent: impl AsFd, name: &str, owner: (u32, u32)) -> Result<()> {
    let (user, group) = (nix::unistd::Uid::from_raw(owner.0), nix::unistd::Gid::from_raw(owner.1));
    let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
    nix::unistd::fchownat(parent, name, Some(user), Some(group), flags)
        .map_err(|e| Error::new("change the owner of", name, e))
}

/// Gives an open file to a user and group (fchown(2)).
///
/// # Errors
/// What fchown(2) says.
pub fn give(file: impl AsFd, owner: (u32, u32)) -> Result<()> {
    let number = file.as_fd().as_raw_fd();
    let (user, group) = (nix::unistd::Uid::from_raw(owner.0), nix::unistd::Gid::from_raw(owner.1));
    nix::unistd::fchown(file, Some(user), Some(group))
        .map_err(|e| Error::new("change the owner of descriptor", number, e))
}

/// Sets the permission bits of what a descriptor, O_PATH too, stands for.
///
/// # Errors
/// What chmod(2) says.
pub fn set_mode(place: impl AsFd, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = format!("/proc/self/fd/{}", place.as_fd().as_raw_fd());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o7777))
        .map_err(|e| Error::io("set the mode of", path, &e))
}

/// Makes a symbolic link in the directory `parent`; one entry that is there stays.
///
/// # Errors
/// What symlinkat(2) says, EEXIST excepted.
pub fn make_link(parent: impl AsFd, name: &str, to: &str) -> Result<()> {
    match nix::unistd::symlinkat(to, parent, name) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(e) => Err(Error::new("make link", name, e)),
    }
}

/// A file's kind and device number (fstat(2) of any descriptor, O_PATH too).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The file type and permission bits of st_mode.
    pub mode: u32,
    /// Major and minor number, of a device node.
    pub device: (u64, u64),
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Kind {
    /// A directory.
    pub fn is_directory(self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
    /// A character device.
    pub fn is_character(self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFCHR
    }
    /// A block device.
    pub fn is_block(self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFBLK
    }
}

/// Looks at an open file.
///
/// # Errors
/// What fstat(2) says.
pub fn kind(fd: impl AsFd) -> Result<Kind> {
    let number = fd.as_fd().as_raw_fd();
    let found = nix::sys::stat::fstat(fd).map_err(|e| Error::new("look at descriptor", number, e))?;
    let device = (nix::sys::stat::major(found.st_rdev), nix::sys::stat::minor(found.st_rdev));
    Ok(Kind { mode: found.st_mode, device, uid: found.st_uid, gid: found.st_gid })
}

/// The magic number of the file system that an open file is on (statfs(2)).
///
/// # Errors
/// What fstatfs(2) says.
pub fn file_system(fd: impl AsFd) -> Result<i64> {
    let number = fd.as_fd().as_raw_fd();
    let found =
        nix::sys::statfs::fstatfs(fd).map_err(|e| Error::new("ask the file system of descriptor", number, e))?;
    Ok(found.filesystem_type().0 as i64)
}

/// As statfs(2) tells them apart.
pub mod magic {
    /// /proc.
    pub const PROC: i64 = 0x9fa0;
    /// cgroup version 2.
    pub const CGROUP2: i64 = 0x6367_7270;
    /// Terminals.
    pub const DEVPTS: i64 = 0x1cd1;
}
