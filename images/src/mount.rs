//! From an image file to a root directory: the kernel's squashfs or EROFS where we may, squashfuse where we may not.

use corebox_sys::process::{self, Forked, SingleThreaded};
use corebox_sys::{Errno, Error, Result, fd, loopdev, mount, signal, user};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the image file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// squashfs 4.0 (kernel Documentation/filesystems/squashfs.rst).
    Squashfs,
    /// EROFS (kernel Documentation/filesystems/erofs.rst).
    Erofs,
}

impl Format {
    /// Its name in /proc/filesystems.
    pub fn name(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

/// The start of a squashfs superblock.
const SQUASHFS_MAGIC: [u8; 4] = *b"hsqs";
/// EROFS keeps its superblock at byte 1024 (fs/erofs/erofs_fs.h).
const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2u32.to_le_bytes();
const EROFS_OFFSET: u64 = 1024;

/// Finds out the format of an open image file by its magic number; `path` names it in the error.
///
/// # Errors
/// EINVAL when it is neither, or what read(2) says.
pub fn format(image: impl AsFd, path: &Path) -> Result<Format> {
    let copy = image.as_fd().try_clone_to_owned().map_err(|e| Error::io("read", path.display(), &e))?;
    let mut file = std::fs::File::from(copy);
    let mut starts_with = |offset: u64, magic: [u8; 4]| {
        let mut found = [0u8; 4];
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut found)).is_ok() && found == magic
    };
    if starts_with(0, SQUASHFS_MAGIC) {
        Ok(Format::Squashfs)
    } else if starts_with(EROFS_OFFSET, EROFS_MAGIC) {
        Ok(Format::Erofs)
    } else {
        Err(Error::new("find a squashfs or EROFS file system in", path.display(), Errno::EINVAL))
    }
}

/// Mounts an image with the kernel's file system, attached nowhere yet: it is in nobody's mount table until
/// `corebox_sys::mount::attach` puts it into one, and it vanishes with its last descriptor.
///
/// Needs root in the initial user namespace: these file systems trust their image.
///
/// # Errors
/// What the loop device, fsopen(2) or fsmount(2) say.
pub fn detached(image: impl AsFd, format: Format) -> Result<OwnedFd> {
    let attributes = mount::attr::RDONLY | mount::attr::NOSUID | mount::attr::NODEV;
    if format == Format::Erofs {
        // From kernel 6.12 EROFS reads a regular file without a loop device; older ones answer ENOTBLK.
        let file = format!("/proc/self/fd/{}", image.as_fd().as_raw_fd());
        match mounted(format, &file, attributes) {
            Err(e) if matches!(e.errno, Errno::ENOTBLK | Errno::EINVAL) => {}
            other => return other,
        }
    }
    let device = loopdev::attach(&image)?;
    mounted(format, &device.path.display().to_string(), attributes)
}

fn mounted(format: Format, source: &str, attributes: u64) -> Result<OwnedFd> {
    let context = mount::FsContext::open(format.name())?;
    context.set("source", source)?.flag("ro")?;
    context.mount(attributes)
}

/// The FUSE server for squashfs on this host, if one is installed: `squashfuse_ll` or `squashfuse` from `PATH` or the
/// system's directories.
pub fn fuse_program(path_variable: &str) -> Option<PathBuf> {
    let directories = || path_variable.split(':').chain(["/usr/local/bin", "/usr/bin", "/bin"]);
    // The low-level one first: it answers by inode number, without resolving a path for each request.
    ["squashfuse_ll", "squashfuse"].iter().find_map(|name| {
        directories().filter(|d| d.starts_with('/')).map(|d| Path::new(d).join(name)).find(|p| is_program(p))
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// A running FUSE server; it ends with the pid namespace it lives in.
#[derive(Debug)]
pub struct FuseServer {
    /// Its pid, as the process that started it sees it.
    pub pid: i32,
    log: OwnedFd,
    /// The root of what it serves.
    root: OwnedFd,
}

impl FuseServer {
    /// Mounts FUSE on `target` and starts `program` to serve it from the image.
    ///
    /// libfuse (3.3 and later) takes `/dev/fd/N` as mountpoint for a descriptor that is already mounted
    /// (lib/mount.c, `fuse_mnt_parse_fuse_fd`), so no set-user-id fusermount is needed. The device must be opened
    /// here, by a process of the user namespace that mounts. The server gets a session of its own: the terminal's
    /// Ctrl-C must not take away the root directory of processes that handle it.
    ///
    /// # Errors
    /// What opening /dev/fuse, mount(2) or fork(2) say. Whether it serves is told by the first access to `target`,
    /// which waits for it, or fails with ENOTCONN when it died: see [`FuseServer::words`].
    pub fn start(
        single: &SingleThreaded,
        program: &Path,
        image: BorrowedFd<'_>,
        target: &Path,
        ids: (u32, u32),
    ) -> Result<Self> {
        let device = fd::open_read_write(Path::new("/dev/fuse"))?;
        mount::mount_fuse(device.as_fd(), target, ids.0, ids.1)?;
        let log = fd::memory_file("squashfuse-messages")?;
        let root = fd::open_path(target)?;
        match single.fork()? {
            Forked::Parent(pid) => Ok(Self { pid, log, root }),
            Forked::Child => {
                let error = serve(program, image, &device, &log);
                // The parent reads the log when the server is gone; there is nowhere else to say it.
                let _ = std::fs::File::from(log).write_all(error.to_string().as_bytes());
                process::exit_now(corebox_spec::exit::COREBOX)
            }
        }
    }

    /// Whether it still answers. A dying server's connection is closed a moment before it can be waited for, and in
    /// that moment the processes of the container get SIGBUS and ENOTCONN.
    pub fn is_serving(&self) -> bool {
        let gone = fd::file_system_answers(&self.root).is_err_and(|e| e.errno == Errno::ENOTCONN);
        !gone
    }

    /// What it said on its standard error so far, at most 2000 characters.
    pub fn words(&self) -> String {
        let mut text = String::new();
        if let Ok(copy) = self.log.try_clone() {
            let mut file = std::fs::File::from(copy);
            // What cannot be read is only missing detail of another error.
            let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(2000).read_to_string(&mut text));
        }
        text.trim().to_owned()
    }
}

/// Becomes the server; returns only with the reason why not.
fn serve(program: &Path, image: BorrowedFd<'_>, device: &OwnedFd, log: &OwnedFd) -> Error {
    let prepare = || -> Result<(i32, i32)> {
        process::new_session()?;
        user::drop_capabilities()?;
        process::no_new_privileges()?;
        let null = fd::open_read_write(Path::new("/dev/null"))?;
        let (image, device) = (fd::copy_above(image.as_raw_fd(), 3)?, fd::copy_above(device.as_raw_fd(), 3)?);
        for (from, to) in [(&null, 0), (&null, 1), (log, 2)] {
            fd::place(from.as_raw_fd(), to)?;
        }
        drop(null);
        let numbers = (image.as_raw_fd(), device.as_raw_fd());
        for kept in [image, device] {
            fd::set_cloexec(&kept, false)?;
            // It must outlive this function: exec takes it over.
            std::mem::forget(kept);
        }
        fd::close_all_but(&[0, 1, 2, numbers.0, numbers.1])?;
        signal::unblock_all(&[])?;
        Ok(numbers)
    };
    match prepare() {
        Err(error) => error,
        Ok((image, device)) => {
            let program = program.display().to_string();
            let argv = [&program, "-f", &format!("/proc/self/fd/{image}"), &format!("/dev/fd/{device}")];
            process::exec(&program, &argv.map(str::to_owned), &["PATH=/usr/bin:/bin".to_owned()])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_formats_by_their_magic() {
        let file = |bytes: &[u8]| {
            let fd = fd::memory_file("image").unwrap();
            std::fs::File::from(fd.try_clone().unwrap()).write_all(bytes).unwrap();
            format(&fd, Path::new("x.img"))
        };
        assert_eq!(file(b"hsqs and more").unwrap(), Format::Squashfs);
        let mut erofs = vec![0; 1024];
        erofs.extend(EROFS_MAGIC);
        assert_eq!(file(&erofs).unwrap(), Format::Erofs);
        for other in [&b"hsq"[..], b"", &[0; 4096]] {
            let error = file(other).unwrap_err();
            assert!(error.to_string().contains("x.img"), "{error}");
        }
    }

    #[test]
    fn finds_programs_only_in_absolute_directories() {
        let found = fuse_program("relative:");
        assert!(found.is_none_or(|p| p.is_absolute()));
    }
}
