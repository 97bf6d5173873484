//! From an image file to a root directory by the kernel's squashfs or EROFS. (`fuse.rs` is for where we may not.)

use corebox_sys::{Errno, Error, Result, loopdev, mount};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

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

#[cfg(test)]
mod tests {
    use super::*;
    use corebox_sys::fd;
    use std::io::Write as _;

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
}
