//! Writes the image file: a tar stream of our own making into `mksquashfs - FILE -tar` (squashfs-tools 4.5 or newer).
//!
//! What the stream must look like was learnt from mksquashfs 4.5.1: an entry for the root directory is ignored (see
//! `root_inode.rs`; extended attributes of the root are lost), a second entry of a name is ignored, a hard link to a later entry crashes it, a
//! time before 1970 in a pax header is fatal, and `.`/`..` are stripped silently. The tree upstream of here has put
//! all of that in order.

use crate::content::{Content, Piece};
use crate::entry::{Device, Meta, Time};
use crate::flatten::{Codec, Settings};
use std::ffi::OsString;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use tar::{EntryType, Header};

/// Why the image file cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SquashError {
    #[error("mksquashfs is not installed")]
    Missing,
    #[error("this mksquashfs ({0}) cannot read a tar stream")]
    TooOld(String),
    #[error("start mksquashfs: {0}")]
    Start(io::Error),
    #[error("mksquashfs failed ({status}){}", told(.said))]
    Failed { status: String, said: String },
    #[error("set the owner of the image's root directory: {0}")]
    Root(io::Error),
    #[error("read `{path}`: {error}")]
    Content { path: String, error: io::Error },
    #[error("`{0}` changed its size while it was read")]
    Changed(String),
}

fn told(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// Oldest squashfs-tools that read a tar stream.
const OLDEST: (u32, u32) = (4, 5);

/// Makes sure that a fitting mksquashfs is there, before anything else is done.
pub(crate) fn check_program() -> Result<(), SquashError> {
    let output = Command::new("mksquashfs").arg("-version").stdin(Stdio::null()).output().map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound { SquashError::Missing } else { SquashError::Start(error) }
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or("").to_owned();
    match version_of(&first) {
        Some(version) if version >= OLDEST => Ok(()),
        _ => Err(SquashError::TooOld(first)),
    }
}

/// Reads `mksquashfs version 4.5.1 (2022/03/17)`.
fn version_of(line: &str) -> Option<(u32, u32)> {
    let number = line.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A running mksquashfs.
pub(crate) struct Squash {
    child: Child,
    stdin: BufWriter<ChildStdin>,
    stderr: JoinHandle<String>,
    buffer: Vec<u8>,
    out: PathBuf,
    root: Meta,
}

impl Squash {
    /// Starts writing `out` (an existing file is replaced), with this metadata on the root directory.
    pub(crate) fn start(out: &Path, root: &Meta, settings: Settings) -> Result<Self, SquashError> {
        let mut child = Command::new("mksquashfs")
            .arg("-")
            .arg(out)
            .args(arguments(root, settings))
            // the settings above say all there is to say; with both, mksquashfs refuses
            .env_remove("SOURCE_DATE_EPOCH")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => SquashError::Missing,
                _ => SquashError::Start(error),
            })?;
        let (Some(stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(SquashError::Start(io::ErrorKind::BrokenPipe.into()));
        };
        let stdin = BufWriter::with_capacity(1 << 16, stdin);
        let stderr = std::thread::spawn(move || read_stderr(stderr));
        let mtime = settings.epoch.map_or(root.mtime, |epoch| Time::seconds(epoch.into()));
        let root = Meta { mtime, ..root.clone() };
        Ok(Self { child, stdin, stderr, buffer: vec![0; 1 << 16], out: out.to_owned(), root })
    }

    pub(crate) fn directory(&mut self, path: &[u8], meta: &Meta) -> Result<(), SquashError> {
        self.entry(path, meta, EntryType::Directory, 0, None, None)
    }

    pub(crate) fn symlink(&mut self, path: &[u8], meta: &Meta, target: &[u8]) -> Result<(), SquashError> {
        self.entry(path, meta, EntryType::Symlink, 0, Some(target), None)
    }

    /// A second name of something written before.
    pub(crate) fn hard_link(&mut self, path: &[u8], meta: &Meta, first: &[u8]) -> Result<(), SquashError> {
        self.entry(path, &Meta { xattrs: Vec::new(), ..meta.clone() }, EntryType::Link, 0, Some(first), None)
    }

    pub(crate) fn device(&mut self, path: &[u8], meta: &Meta, device: Device) -> Result<(), SquashError> {
        let kind = if device.block { EntryType::Block } else { EntryType::Char };
        self.entry(path, meta, kind, 0, None, Some(device))
    }

    pub(crate) fn fifo(&mut self, path: &[u8], meta: &Meta) -> Result<(), SquashError> {
        self.entry(path, meta, EntryType::Fifo, 0, None, None)
    }

    /// A regular file of exactly `size` bytes; `see` is shown the content as it passes.
    pub(crate) fn file(
        &mut self,
        path: &[u8],
        meta: &Meta,
        size: u64,
        content: &mut dyn Content,
        see: &mut dyn FnMut(Piece),
    ) -> Result<(), SquashError> {
        self.entry(path, meta, EntryType::Regular, size, None, None)?;
        let mut left = size;
        let mut buffer = std::mem::take(&mut self.buffer);
        while left > 0 {
            let want = left.min(buffer.len() as u64) as usize;
            let got = match content.read(&mut buffer[..want]) {
                Ok(0) => return Err(SquashError::Changed(crate::entry::show(path))),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(SquashError::Content { path: crate::entry::show(path), error }),
            };
            see(Piece::Bytes(&buffer[..got]));
            self.write(&buffer[..got])?;
            left -= got as u64;
        }
        if content.read(&mut buffer[..1]).is_ok_and(|more| more > 0) {
            return Err(SquashError::Changed(crate::entry::show(path)));
        }
        self.buffer = buffer;
        self.write(&[0; 512][..(size.wrapping_neg() % 512) as usize])
    }

    /// Ends the stream and waits for the image file to be complete.
    pub(crate) fn finish(mut self) -> Result<(), SquashError> {
        self.write(&[0; 1024])?;
        if self.stdin.flush().is_err() {
            return Err(self.failure());
        }
        let Self { mut child, stdin, stderr, out, root, .. } = self;
        drop(stdin);
        let status = child.wait().map_err(SquashError::Start)?;
        let said = stderr.join().unwrap_or_default();
        if !status.success() {
            return Err(SquashError::Failed { status: describe(status), said });
        }
        crate::root_inode::set_root(&out, root.uid, root.gid, seconds(root.mtime)).map_err(SquashError::Root)
    }

    /// Stops mksquashfs because the source failed; the caller removes what it wrote.
    pub(crate) fn abort(mut self) {
        // an error means that it has ended by itself already
        self.child.kill().ok();
        self.child.wait().ok();
    }

    fn entry(
        &mut self,
        path: &[u8],
        meta: &Meta,
        kind: EntryType,
        size: u64,
        link: Option<&[u8]>,
        device: Option<Device>,
    ) -> Result<(), SquashError> {
        let mut pax = Vec::new();
        if path.len() > 100 {
            pax_record(&mut pax, b"path", path);
        }
        if let Some(link) = link.filter(|link| link.len() > 100) {
            pax_record(&mut pax, b"linkpath", link);
        }
        // squashfs has no POSIX ACLs (`system.…`)
        for (name, value) in meta.xattrs.iter().filter(|(name, _)| !name.starts_with(b"system.")) {
            pax_record(&mut pax, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        if !pax.is_empty() {
            let header = header(b"pax", &Meta::implied_directory(), EntryType::XHeader, pax.len() as u64, None, None);
            self.write(header.as_bytes())?;
            pax.resize(pax.len().next_multiple_of(512), 0);
            self.write(&pax)?;
        }
        let header = header(path, meta, kind, size, link, device);
        self.write(header.as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SquashError> {
        match self.stdin.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure()),
        }
    }

    /// mksquashfs stopped reading: why.
    fn failure(&mut self) -> SquashError {
        let status = self.child.wait().map_or_else(|error| error.to_string(), describe);
        let idle = std::thread::spawn(String::new);
        let said = std::mem::replace(&mut self.stderr, idle).join().unwrap_or_default();
        SquashError::Failed { status, said }
    }
}

/// A time as far as squashfs can hold it: 32 bits, unsigned.
fn seconds(time: Time) -> u32 {
    time.seconds.clamp(0, i64::from(u32::MAX)) as u32
}

fn arguments(root: &Meta, settings: Settings) -> Vec<OsString> {
    let root_time = settings.epoch.unwrap_or(seconds(root.mtime));
    let compressor = if settings.codec == Codec::Zstd { "zstd" } else { "lz4" };
    let mut words: Vec<String> =
        ["-tar", "-noI", "-comp", compressor, "-b", "128K", "-noappend", "-quiet", "-no-progress", "-no-recovery"]
            .map(str::to_owned)
            .to_vec();
    // it would take a quarter of the node's memory
    words.extend(["-mem".into(), "256M".into()]);
    words.extend(["-processors".into(), settings.processors.to_string()]);
    words.extend(["-root-mode".into(), format!("{:o}", root.mode)]);
    // without it the file system would carry the time of the import, and no two imports would be the same file
    words.extend(["-mkfs-time".into(), root_time.to_string()]);
    if let Some(epoch) = settings.epoch {
        words.extend(["-all-time".into(), epoch.to_string()]);
    }
    words.into_iter().map(OsString::from).collect()
}

fn header(path: &[u8], meta: &Meta, kind: EntryType, size: u64, link: Option<&[u8]>, device: Option<Device>) -> Header {
    let mut header = Header::new_ustar();
    let fit = |field: &mut [u8], value: &[u8]| {
        let n = value.len().min(field.len());
        field[..n].copy_from_slice(&value[..n]);
    };
    fit(&mut header.as_old_mut().name, path);
    fit(&mut header.as_old_mut().linkname, link.unwrap_or_default());
    header.set_entry_type(kind);
    header.set_mode(meta.mode);
    // numbers too large for octal are written in base 256, which mksquashfs reads
    header.set_uid(u64::from(meta.uid));
    header.set_gid(u64::from(meta.gid));
    header.set_mtime(u64::from(seconds(meta.mtime)));
    header.set_size(size);
    if let (Some(device), Some(ustar)) = (device, header.as_ustar_mut()) {
        ustar.set_device_major(device.major);
        ustar.set_device_minor(device.minor);
    }
    header.set_cksum();
    header
}

/// Appends `LENGTH KEY=VALUE\n`, the length counting its own digits.
fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() > rest.to_string().len() {
        length += 1;
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Reads all that mksquashfs says and keeps the first lines.
fn read_stderr(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    // an error reading it only makes the message shorter
    stderr.by_ref().take(4096).read_to_end(&mut kept).ok();
    io::copy(&mut stderr, &mut io::sink()).ok();
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("\n")
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(version_of("mksquashfs version 4.5.1 (2022/03/17)"), Some((4, 5)));
        assert_eq!(version_of("mksquashfs version 4.6 (2023)"), Some((4, 6)));
        assert_eq!(version_of("mksquashfs version 4.4 (2019/08/29)"), Some((4, 4)));
        assert_eq!(version_of("busybox"), None);
    }

    #[test]
    fn pax_lengths_count_themselves() {
        for length in [1, 89, 90, 91, 92, 985, 986, 987, 988, 989, 990] {
            let mut record = Vec::new();
            pax_record(&mut record, b"path", &vec![b'x'; length]);
            let digits = record.iter().position(|&byte| byte == b' ').unwrap();
            let told: usize = std::str::from_utf8(&record[..digits]).unwrap().parse().unwrap();
            assert_eq!(told, record.len(), "value of {length} bytes");
        }
    }
}
