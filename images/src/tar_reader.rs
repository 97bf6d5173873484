//! Reads a tar stream, entry by entry: ustar, GNU (long names, sparse) and pax, as tar(5) of libarchive and POSIX
//! pax describe them. The `tar` crate parses the 512-byte headers; what surrounds them is read here, because a
//! hostile archive must not make us allocate what its size fields promise, and because the crate leaves pax sparse
//! files unexpanded.

use crate::content::Content;
use crate::entry::{Device, Entry, Kind, Meta, PathError, Time, normalise, show};
use crate::tar_sparse::{SparseError, SparseMap};
use std::io::{self, Read};
use tar::{EntryType, Header};

pub(crate) const BLOCK: usize = 512;
/// Longest extended header accepted; Go's archive/tar, which wrote most layers in the world, has the same limit.
const MAX_EXTENSION: u64 = 1 << 20;

/// Longest target of a symbolic link that Linux can follow (PATH_MAX less the NUL, symlink(2)).
const LONGEST_TARGET: usize = 4095;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("the archive ends in the middle ({0}): it is truncated")]
    Truncated(&'static str),
    #[error("the archive is not a tar file: the checksum of the header at byte {0} is wrong")]
    Checksum(u64),
    #[error("entry `{0}`: the field {1} is malformed")]
    Field(String, &'static str),
    #[error("entry `{0}`: type `{1}` is not supported")]
    Type(String, char),
    #[error("the extended header at byte {0} is longer than 1 MiB")]
    ExtensionTooLong(u64),
    #[error("entry {0}")]
    Path(#[from] PathError),
    #[error("entry `{0}`: {1}")]
    Sparse(String, SparseError),
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated("in compressed data"),
            _ => Self::Io(error),
        }
    }
}

/// What extension records (pax `x`, GNU `L` and `K`) say about the entry that follows them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: crate::tar_sparse::PaxSparse,
}

/// A tar stream. Iterate with [`TarReader::next`]; after a file entry, reading from it gives the file's content.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Bytes consumed, for messages.
    at: u64,
    /// Stored bytes left of the current entry, and the padding after them.
    stored: u64,
    padding: u64,
    /// Where the current entry's stored bytes go; `None`: they are the content as they are.
    sparse: Option<SparseMap>,
    is_file: bool,
    /// Whether the end may come without the two zero blocks (a layer whose digest is checked is complete anyway).
    lenient_end: bool,
    /// Ordinal of the next entry.
    count: u64,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R, lenient_end: bool) -> Self {
        Self { inner, at: 0, stored: 0, padding: 0, sparse: None, is_file: false, lenient_end, count: 0 }
    }

    /// Reads what follows the archive's end, so that digests see every byte, and gives the source back.
    pub(crate) fn drain(mut self) -> io::Result<R> {
        io::copy(&mut self.inner, &mut io::sink())?;
        Ok(self.inner)
    }

    /// The next entry and its ordinal, skipping what is left of the current one; `None` at the archive's end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Entry)>, TarError> {
        self.skip_rest()?;
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::XHeader => self.pax(&header, &mut extension)?,
                EntryType::XGlobalHeader => drop(self.extension_data(&header)?),
                EntryType::GNULongName => extension.path = Some(self.long_name(&header)?),
                EntryType::GNULongLink => extension.link = Some(self.long_name(&header)?),
                _ => {
                    let entry = self.entry(&header, extension)?;
                    let ordinal = self.count;
                    self.count += 1;
                    return Ok(Some((ordinal, entry)));
                }
            }
        }
    }

    /// Offset and length of the current file's content in the stream, if it stands there as it is.
    pub(crate) fn stored_content(&self) -> Option<(u64, u64)> {
        (self.is_file && self.sparse.is_none()).then_some((self.at, self.stored))
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.stored + self.padding;
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())?;
        self.at += skipped;
        if skipped < self.stored {
            return Err(TarError::Truncated("in a file's content"));
        }
        (self.stored, self.padding, self.sparse) = (0, 0, None);
        Ok(())
    }

    /// Reads one 512-byte block; `None` at a clean end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.inner.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated("in a header")),
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else {
            // every archiver ends with zero blocks, so their absence is a cut file that happens to fit
            return if self.lenient_end { Ok(None) } else { Err(TarError::Truncated("without its end mark")) };
        };
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(expected) if expected == sum => Ok(Some(header)),
            _ => Err(TarError::Checksum(self.at - BLOCK as u64)),
        }
    }

    /// Reads the data of an extension entry.
    fn extension_data(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.entry_size().map_err(|_| TarError::Field(name_of(header), "size"))?;
        if size > MAX_EXTENSION {
            return Err(TarError::ExtensionTooLong(self.at));
        }
        let mut data = vec![0; size as usize + padding_after(size) as usize];
        self.inner.read_exact(&mut data).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated("in an extended header"),
            _ => TarError::Io(error),
        })?;
        self.at += data.len() as u64;
        data.truncate(size as usize);
        Ok(data)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let mut name = self.extension_data(header)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn pax(&mut self, header: &Header, extension: &mut Extension) -> Result<(), TarError> {
        let data = self.extension_data(header)?;
        let bad = |what| TarError::Field(name_of(header), what);
        let mut rest = &data[..];
        // a record is `LENGTH KEY=VALUE\n`, the length counting itself; values may hold any byte
        while rest.first().is_some_and(|&byte| byte != 0) {
            let space = rest.iter().take(20).position(|&byte| byte == b' ').ok_or_else(|| bad("pax record"))?;
            let length: usize = number(&rest[..space]).ok_or_else(|| bad("pax record"))? as usize;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(bad("pax record"));
            }
            let record = &rest[space + 1..length - 1];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(|| bad("pax record"))?;
            extension.pax_record(&record[..equals], &record[equals + 1..]).map_err(bad)?;
            rest = &rest[length..];
        }
        Ok(())
    }

    /// Turns a header and what extended it into an entry, and sets up the reading of its content.
    fn entry(&mut self, header: &Header, extension: Extension) -> Result<Entry, TarError> {
        let raw_path = extension.sparse.name.clone().or(extension.path).unwrap_or_else(|| header.path_bytes().to_vec());
        let bad = |what| TarError::Field(show(&raw_path), what);
        let path = normalise(&raw_path)?;
        let meta = meta_of(header, extension.uid, extension.gid, extension.mtime, &extension.xattrs).map_err(bad)?;
        let link = || extension.link.clone().or_else(|| header.link_name_bytes().map(|link| link.to_vec()));
        let size = match extension.size {
            Some(size) => size,
            None => header.entry_size().map_err(|_| bad("size"))?,
        };
        // the types that are all header have no data whatever their size field says (Go's archive/tar, GNU tar)
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Directory,
            // an old (v7) archiver marks a directory by its trailing slash only
            EntryType::Regular if raw_path.ends_with(b"/") && size == 0 => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link().filter(|t| !t.is_empty()).ok_or_else(|| bad("link target"))?),
            EntryType::Link => Kind::HardLink(normalise(&link().ok_or_else(|| bad("link target"))?)?),
            EntryType::Char => Kind::Device(device(header, false).ok_or_else(|| bad("device number"))?),
            EntryType::Block => Kind::Device(device(header, true).ok_or_else(|| bad("device number"))?),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                Kind::File { size: self.begin_file(header, &raw_path, size, &extension.sparse)? }
            }
            other => {
                return Err(TarError::Type(
                    show(&raw_path),
                    other.as_byte().escape_ascii().next_back().map_or('?', char::from),
                ));
            }
        };
        self.is_file = matches!(kind, Kind::File { .. });
        if matches!(&kind, Kind::Symlink(target) if target.len() > LONGEST_TARGET || target.contains(&0)) {
            return Err(bad("link target"));
        }
        Ok(Entry { path, kind, meta })
    }

    /// Prepares reading a file's content and says how long that is once holes are filled.
    fn begin_file(
        &mut self,
        header: &Header,
        path: &[u8],
        stored: u64,
        pax: &crate::tar_sparse::PaxSparse,
    ) -> Result<u64, TarError> {
        let sparse = |error| TarError::Sparse(show(path), error);
        (self.stored, self.padding) = (stored, padding_after(stored));
        if stored > i64::MAX as u64 / 2 {
            return Err(TarError::Field(show(path), "size"));
        }
        if header.entry_type() == EntryType::GNUSparse {
            let map = self.old_gnu_map(header).map_err(|error| match error {
                OldMap::Tar(error) => error,
                OldMap::Sparse(error) => sparse(error),
            })?;
            return self.expand(map, path);
        }
        if pax.is_in_data() {
            // format 1.0: the map precedes the content, in whole blocks
            let mut reader = (&mut self.inner).take(stored);
            let (map, used) = SparseMap::read_1_0(&mut reader, pax).map_err(sparse)?;
            self.at += used;
            self.stored -= used;
            return self.expand(map, path);
        }
        match SparseMap::from_records(pax).map_err(sparse)? {
            Some(map) => self.expand(map, path),
            None => Ok(stored),
        }
    }

    fn expand(&mut self, map: SparseMap, path: &[u8]) -> Result<u64, TarError> {
        map.check(self.stored).map_err(|error| TarError::Sparse(show(path), error))?;
        let size = map.size();
        self.sparse = Some(map);
        Ok(size)
    }

    fn old_gnu_map(&mut self, header: &Header) -> Result<SparseMap, OldMap> {
        let gnu = header.as_gnu().ok_or(OldMap::Sparse(SparseError::Malformed))?;
        let real = gnu.real_size().map_err(|_| OldMap::Sparse(SparseError::Malformed))?;
        let mut map = SparseMap::new(real);
        gnu.sparse.iter().try_for_each(|part| map.push_gnu(part)).map_err(OldMap::Sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let block =
                self.block().map_err(OldMap::Tar)?.ok_or(OldMap::Tar(TarError::Truncated("in a sparse map")))?;
            // 21 entries of 24 bytes, then the flag (GNU tar manual, "Basic Tar Format")
            for part in block[..504].chunks_exact(24) {
                map.push_gnu_bytes(part).map_err(OldMap::Sparse)?;
            }
            more = block[504] != 0;
        }
        Ok(map)
    }
}

enum OldMap {
    Tar(TarError),
    Sparse(SparseError),
}

impl<R: Read> Read for TarReader<R> {
    /// Reads the current file's content, holes filled with zeros.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = match &mut self.sparse {
            None => (buf.len() as u64).min(self.stored) as usize,
            Some(map) => match map.next(buf.len()) {
                crate::tar_sparse::Run::Zeros(n) => {
                    buf[..n].fill(0);
                    return Ok(n);
                }
                crate::tar_sparse::Run::Data(n) => n,
            },
        };
        if want == 0 {
            return Ok(0);
        }
        let got = self.inner.read(&mut buf[..want])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.stored -= got as u64;
        if let Some(map) = &mut self.sparse {
            map.advance(got as u64);
        }
        Ok(got)
    }
}

impl<R: Read> Content for TarReader<R> {
    fn hole(&mut self) -> io::Result<u64> {
        Ok(self.sparse.as_mut().map_or(0, SparseMap::hole))
    }
    fn skip(&mut self, bytes: u64) {
        if let Some(map) = &mut self.sparse {
            map.advance(bytes);
        }
    }
}

impl Extension {
    fn pax_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value).ok_or("size")?),
            b"uid" => self.uid = Some(number(value).ok_or("uid")?),
            b"gid" => self.gid = Some(number(value).ok_or("gid")?),
            b"mtime" => self.mtime = Some(pax_time(value).ok_or("mtime")?),
            _ => match key.strip_prefix(b"SCHILY.xattr.") {
                Some(name) => self.xattrs.push((name.to_vec(), value.to_vec())),
                None => self.sparse.record(key, value)?,
            },
        }
        Ok(())
    }
}

fn meta_of(
    header: &Header,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> Result<Meta, &'static str> {
    let id = |known: Option<u64>, field: io::Result<u64>, name| -> Result<u32, &'static str> {
        let value = known.map_or(field, Ok).map_err(|_| name)?;
        // 2^32-1 is "no id" to the kernel
        u32::try_from(value).ok().filter(|&id| id != u32::MAX).ok_or(name)
    };
    let mut meta = Meta {
        mode: header.mode().map_err(|_| "mode")? & 0o7777,
        uid: id(uid, header.uid(), "uid")?,
        gid: id(gid, header.gid(), "gid")?,
        mtime: match mtime {
            Some(mtime) => mtime,
            None => header_time(header)?,
        },
        xattrs: Vec::new(),
    };
    xattrs.iter().for_each(|(name, value)| meta.add_xattr(name, value));
    Ok(meta)
}

/// The time of a header. Times before 1970 are written in base 256 with all upper bits set, two's complement (GNU tar
/// manual, "Extensions to the standard archive format").
fn header_time(header: &Header) -> Result<Time, &'static str> {
    let field = header.as_old().mtime;
    if field[0] == 0xff {
        let low: [u8; 8] = field[4..].try_into().map_err(|_| "mtime")?;
        return Ok(Time::seconds(i64::from_be_bytes(low)));
    }
    let seconds = header.mtime().map_err(|_| "mtime")?;
    i64::try_from(seconds).map(Time::seconds).map_err(|_| "mtime")
}

/// A device number that Linux and its image formats can hold: 12 bits of major and 20 of minor (new_encode_dev,
/// linux/kdev_t.h).
fn device(header: &Header, block: bool) -> Option<Device> {
    let major = header.device_major().ok()??;
    let minor = header.device_minor().ok()??;
    (major < 1 << 12 && minor < 1 << 20).then_some(Device { block, major, minor })
}

fn name_of(header: &Header) -> String {
    show(&header.path_bytes())
}

fn padding_after(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

pub(crate) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A pax time: `1700000000.25`, perhaps negative.
fn pax_time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // nine digits, the further ones cut off
    let nanoseconds =
        fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |n, d| n * 10 + u32::from(d - b'0'));
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => Some(Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds }),
        _ => Some(Time { seconds, nanoseconds }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_pax_count_forward_from_the_second_before() {
        let time = |text: &str| pax_time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
        assert_eq!(time("1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(time("1700000000.25"), Some((1_700_000_000, 250_000_000)));
        assert_eq!(time("5.1234567891"), Some((5, 123_456_789)));
        assert_eq!(time("-1"), Some((-1, 0)));
        assert_eq!(time("-0.25"), Some((-1, 750_000_000)));
        for wrong in ["", "x", "1.x", "1.-5", "99999999999999999999"] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }
}
