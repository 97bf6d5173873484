//! An image as a tar, for registries and other tools: one layer that holds everything, directories before what is in
//! them, names sorted, so that the same image always gives the same bytes.

use crate::erofs::{Extent, Inode, Nid, ReadError, Reader, Unusable};
use crate::mount::{Format, format};
use corebox_sys::Error;
use corebox_sys::map::Mapping;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use tar::{EntryType, Header};

/// Why an image cannot be written as a tar.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    #[error("{0}")]
    System(#[from] Error),
    #[error("the image cannot be read: {0}")]
    Image(#[from] ReadError),
    #[error("it is compressed (squashfs), and only EROFS images can be read here")]
    Compressed,
    /// Whoever takes the bytes.
    #[error("{0}")]
    Write(io::Error),
}

impl From<Unusable> for ExportError {
    fn from(error: Unusable) -> Self {
        match error {
            Unusable::Image(error) => Self::Image(error),
            Unusable::System(error) => Self::System(error),
        }
    }
}

/// An image that can be written as a tar.
pub(crate) struct Export(Reader<Mapping>);

impl Export {
    /// Opens an image file.
    pub(crate) fn open(path: &Path) -> Result<Self, ExportError> {
        let file = File::open(path).map_err(|error| Error::io("open", path.display(), &error))?;
        if format(&file, path)? != Format::Erofs {
            return Err(ExportError::Compressed);
        }
        Ok(Self(Reader::open(Mapping::of(&file, path.display())?)?))
    }

    /// Writes the tar.
    pub(crate) fn write(&self, out: impl Write) -> Result<(), ExportError> {
        let root = self.0.inode(self.0.root())?;
        let mut tar = Writing { reader: &self.0, out: tar::Builder::new(out), links: HashMap::new() };
        tar.entry(b"./", &root)?;
        let mut seen = HashSet::from([root.nid]);
        // directories whose entries are still to come, the next one last
        let mut open: Vec<(Vec<u8>, Inode)> = vec![(Vec::new(), root)];
        while let Some((path, directory)) = open.pop() {
            let mut below = Vec::new();
            for (name, nid) in tar.names(&directory)? {
                let inode = self.0.inode(nid)?;
                let mut path = [&path[..], &name].concat();
                if inode.is_directory() {
                    // a directory has one place; a second one would be a circle
                    if !seen.insert(nid) {
                        return Err(ReadError::Damaged.into());
                    }
                    path.push(b'/');
                    tar.entry(&path, &inode)?;
                    below.push((path, inode));
                } else {
                    tar.entry(&path, &inode)?;
                }
            }
            open.extend(below.into_iter().rev());
        }
        tar.out.into_inner().and_then(|mut out| out.flush()).map_err(ExportError::Write)
    }
}

struct Writing<'a, W: Write> {
    reader: &'a Reader<Mapping>,
    out: tar::Builder<W>,
    /// First names of what has several.
    links: HashMap<Nid, Vec<u8>>,
}

impl<W: Write> Writing<'_, W> {
    fn names(&self, directory: &Inode) -> Result<Vec<(Vec<u8>, Nid)>, ReadError> {
        let mut names = Vec::new();
        let mut lies = false;
        self.reader.entries(directory, 0, |entry| {
            lies |= entry.name.is_empty() || entry.name.contains(&b'/') || entry.name.contains(&0);
            if entry.name != b"." && entry.name != b".." {
                names.push((entry.name.to_vec(), entry.nid));
            }
            !lies
        })?;
        if lies { Err(ReadError::Damaged) } else { Ok(names) }
    }

    /// One header with its content.
    fn entry(&mut self, path: &[u8], inode: &Inode) -> Result<(), ExportError> {
        let mut header = header(inode);
        let mut pax: Vec<(Vec<u8>, Vec<u8>)> = vec![(b"path".to_vec(), path.to_vec())];
        let (seconds, nanoseconds) = inode.mtime;
        if nanoseconds != 0 || !(0..=0o77_777_777_777).contains(&seconds) {
            pax.push((b"mtime".to_vec(), format!("{seconds}.{nanoseconds:09}").into_bytes()));
        }
        for (name, id) in [("uid", inode.uid), ("gid", inode.gid)] {
            if id > 0o7_777_777 {
                pax.push((name.as_bytes().to_vec(), id.to_string().into_bytes()));
            }
        }
        if let Some(first) = self.links.get(&inode.nid) {
            header.set_entry_type(EntryType::Link);
            pax.push((b"linkpath".to_vec(), first.clone()));
            return self.put(&pax, header, &mut io::empty());
        }
        if inode.links > 1 && !inode.is_directory() {
            self.links.insert(inode.nid, path.to_vec());
        }
        self.reader.xattrs(inode, |[prefix, rest], value| {
            pax.push(([b"SCHILY.xattr.", *prefix, rest].concat(), value.to_vec()));
            true
        })?;
        if inode.is_symlink() {
            pax.push((b"linkpath".to_vec(), self.reader.target(inode)?.to_vec()));
        }
        if !inode.is_file() {
            return self.put(&pax, header, &mut io::empty());
        }
        if inode.size > 0o77_777_777_777 {
            pax.push((b"size".to_vec(), inode.size.to_string().into_bytes()));
        }
        header.set_size(inode.size);
        let mut content = Content { reader: self.reader, inode, at: 0 };
        self.put(&pax, header, &mut content)
    }

    fn put(
        &mut self,
        pax: &[(Vec<u8>, Vec<u8>)],
        mut header: Header,
        content: &mut dyn Read,
    ) -> Result<(), ExportError> {
        // short names fit the header; a record for each would double the archive of small files
        let (mut long, mut records) = (false, Vec::new());
        for (key, value) in pax {
            let fits = match &key[..] {
                b"path" => put_name(&mut header.as_ustar_mut().map(|ustar| &mut ustar.name), value),
                b"linkpath" => put_name(&mut header.as_ustar_mut().map(|ustar| &mut ustar.linkname), value),
                _ => false,
            };
            if !fits {
                long = true;
                record(&mut records, key, value);
            }
        }
        if long {
            let mut extension = Header::new_ustar();
            extension.set_entry_type(EntryType::XHeader);
            extension.set_size(records.len() as u64);
            put_name(&mut extension.as_ustar_mut().map(|ustar| &mut ustar.name), b"pax");
            extension.set_mode(0o644);
            extension.set_cksum();
            self.out.append(&extension, &records[..]).map_err(ExportError::Write)?;
        }
        header.set_cksum();
        self.out.append(&header, content).map_err(ExportError::Write)
    }
}

/// Fills a field if the name fits; else what fits of it stands there for tools that do not know extended headers.
fn put_name(field: &mut Option<&mut [u8; 100]>, name: &[u8]) -> bool {
    if let Some(field) = field {
        let length = name.len().min(field.len());
        field[..length].copy_from_slice(&name[..length]);
    }
    name.len() <= 100 && name.is_ascii()
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself (pax, POSIX.1-2017).
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    for part in [&b" "[..], key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

fn header(inode: &Inode) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(match inode.kind() {
        0o040_000 => EntryType::Directory,
        0o120_000 => EntryType::Symlink,
        0o020_000 => EntryType::Char,
        0o060_000 => EntryType::Block,
        0o010_000 => EntryType::Fifo,
        _ => EntryType::Regular,
    });
    header.set_mode(inode.mode & 0o7777);
    header.set_uid(u64::from(inode.uid.min(0o7_777_777)));
    header.set_gid(u64::from(inode.gid.min(0o7_777_777)));
    header.set_mtime(inode.mtime.0.clamp(0, 0o77_777_777_777) as u64);
    header.set_size(0);
    if matches!(inode.kind(), 0o020_000 | 0o060_000) {
        // new_encode_dev: minor in bits 0-7 and 20-31, major in 8-19
        let device = inode.device();
        let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
        if let Some(ustar) = header.as_ustar_mut() {
            ustar.set_device_major(major);
            ustar.set_device_minor(minor);
        }
    }
    header
}

/// A file's content.
struct Content<'a> {
    reader: &'a Reader<Mapping>,
    inode: &'a Inode,
    at: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.inode.size {
            return Ok(0);
        }
        let got = match self.reader.extent(self.inode, self.at).map_err(io::Error::other)? {
            Extent::Bytes(bytes) => {
                let length = bytes.len().min(buf.len());
                buf[..length].copy_from_slice(&bytes[..length]);
                length
            }
            Extent::Hole(zeros) => {
                let length = zeros.min(buf.len() as u64) as usize;
                buf[..length].fill(0);
                length
            }
        };
        self.at += got as u64;
        Ok(got)
    }
}
