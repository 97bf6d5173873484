//! Loop devices: a regular file as a read-only block device (loop(4)).

use crate::{Error, Result, fd};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Another process may take the free device between our two calls; that many times we ask again.
const TRIES: usize = 100;

/// `struct loop_config` of linux/loop.h: fd, block size, and 232 + 64 further bytes of which we set one flag word.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// Start of `struct loop_info64`: device, inode, rdevice, offset, sizelimit (64 bits each), number, encrypt type,
    /// encrypt key size (32 bits each).
    info_head: [u64; 5],
    info_numbers: [u32; 3],
    flags: u32,
    info_names: [u8; 64 + 64 + 32 + 16],
    reserved: [u64; 8],
}

/// A loop device that vanishes by itself with its last user (LO_FLAGS_AUTOCLEAR).
#[derive(Debug)]
pub struct LoopDevice {
    /// Keeps it configured until a mount does.
    _device: OwnedFd,
    /// `/dev/loopN`.
    pub path: PathBuf,
}

/// Backs a free loop device with `file`, read-only, autoclear.
///
/// # Errors
/// What open(2) of `/dev/loop-control` or `/dev/loopN`, or LOOP_CONFIGURE (kernel 5.8) say.
pub fn attach(file: impl AsFd) -> Result<LoopDevice> {
    let control = fd::open_read_write(Path::new("/dev/loop-control"))?;
    let mut config = LoopConfig {
        fd: file.as_fd().as_raw_fd() as u32,
        block_size: 0,
        info_head: [0; 5],
        info_numbers: [0; 3],
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        info_names: [0; 176],
        reserved: [0; 8],
    };
    for _ in 0..TRIES {
        // SAFETY: this ioctl takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(Error::last("find a free loop device with", "/dev/loop-control"));
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = fd::open_read(&path)?;
        // SAFETY: the argument is a loop_config of the layout of linux/loop.h, which the kernel only reads.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) };
        match Errno::result(result) {
            Ok(_) => return Ok(LoopDevice { _device: device, path }),
            Err(Errno::EBUSY) => {}
            Err(e) => return Err(Error::new("configure loop device", path.display(), e)),
        }
    }
    Err(Error::new("find a free loop device with", "/dev/loop-control", Errno::EBUSY))
}

const _: () = assert!(size_of::<LoopConfig>() == 8 + 232 + 64, "struct loop_config of linux/loop.h");
