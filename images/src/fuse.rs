//! The process that serves an image over FUSE: ours for EROFS, squashfuse for squashfs.

use crate::erofs::{self, Unusable};
use corebox_sys::process::{self, Forked, SingleThreaded};
use corebox_sys::{Errno, Error, Result, fd, mount, signal, user};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The FUSE server for squashfs on this host, if one is installed: `squashfuse_ll` or `squashfuse` from `PATH` or the
/// system's directories.
pub fn squashfuse(path_variable: &str) -> Option<PathBuf> {
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

/// Who may use the mount.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The mounter's user and group id, as its namespace numbers them.
    pub ids: (u32, u32),
    /// The container has several ids: all of them may look, and the kernel checks permissions. With a single one
    /// there is nothing to protect: the image's other owners have no number in its namespace.
    pub several: bool,
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
    /// Mounts FUSE on `target` and starts a server: `program` (for squashfs), or a copy of this process that serves
    /// EROFS itself.
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
        program: Option<&Path>,
        image: BorrowedFd<'_>,
        target: &Path,
        access: Access,
    ) -> Result<Self> {
        let device = fd::open_read_write(Path::new("/dev/fuse"))?;
        let kind = if program.is_some() { "squashfuse" } else { "corebox" };
        mount::mount_fuse(kind, device.as_fd(), target, access.ids, access.several)?;
        let log = fd::memory_file("fuse-messages")?;
        let root = fd::open_path(target)?;
        match single.fork()? {
            Forked::Parent(pid) => Ok(Self { pid, log, root }),
            Forked::Child => {
                let served = match program {
                    Some(program) => Err(become_program(program, image, &device, &log).into()),
                    None => serve_here(image, &device, &log),
                };
                let code = if let Err(error) = served {
                    // The parent reads the log when the server is gone; there is nowhere else to say it.
                    let _ = std::fs::File::from(log).write_all(error.to_string().as_bytes());
                    corebox_spec::exit::COREBOX
                } else {
                    0
                };
                process::exit_now(code)
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

/// Leaves what a server must not share with the container: session, capabilities, standard streams.
fn leave(log: &OwnedFd) -> Result<()> {
    process::new_session()?;
    user::drop_capabilities()?;
    process::no_new_privileges()?;
    let null = fd::open_read_write(Path::new("/dev/null"))?;
    for (from, to) in [(&null, 0), (&null, 1), (log, 2)] {
        fd::place(from.as_raw_fd(), to)?;
    }
    Ok(())
}

/// Serves in this process, which shares the program's pages with init.
fn serve_here(image: BorrowedFd<'_>, device: &OwnedFd, log: &OwnedFd) -> std::result::Result<(), Unusable> {
    process::set_name("corebox-fuse")?;
    leave(log)?;
    fd::close_all_but(&[0, 1, 2, image.as_raw_fd(), device.as_raw_fd(), log.as_raw_fd()])?;
    // signals stay blocked, as init has them: nobody but SIGKILL ends it
    erofs::serve(image, device.as_fd())
}

/// Becomes the server; returns only with the reason why not.
fn become_program(program: &Path, image: BorrowedFd<'_>, device: &OwnedFd, log: &OwnedFd) -> Error {
    let prepare = || -> Result<(i32, i32)> {
        leave(log)?;
        let (image, device) = (fd::copy_above(image.as_raw_fd(), 3)?, fd::copy_above(device.as_raw_fd(), 3)?);
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
    fn finds_programs_only_in_absolute_directories() {
        let found = squashfuse("relative:");
        assert!(found.is_none_or(|p| p.is_absolute()));
    }
}
