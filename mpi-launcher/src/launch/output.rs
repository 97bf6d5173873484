//! Where the ranks' output goes: our own streams, tagged or not, or one file per rank and stream.

use crate::protocol::Stream;
use corebox_spec::{Failure, OutputMode};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

/// The sink of all ranks' output. Agents send whole lines, so lines of different ranks never mix.
pub struct Output {
    tag: bool,
    directory: Option<PathBuf>,
    files: HashMap<(u32, Stream), BufWriter<File>>,
    line: Vec<u8>,
}

impl Output {
    /// Prepares the sink; makes the directory when one is asked for.
    ///
    /// # Errors
    /// When the directory cannot be made or is not writable: before anything starts.
    pub fn open(mode: &OutputMode) -> Result<Self, Failure> {
        let directory = mode.directory.as_ref().map(PathBuf::from);
        if let Some(directory) = &directory {
            let goal = format!("cannot write the ranks' output to {}", directory.display());
            corebox_sys::fs::create_dir_all(directory).map_err(|e| Failure::new(&goal, e))?;
            nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK)
                .map_err(|e| Failure::new(&goal, format!("access: {e:?} ({})", e.desc())))?;
        }
        Ok(Self { tag: mode.tag, directory, files: HashMap::new(), line: Vec::new() })
    }

    /// Writes bytes of a rank.
    ///
    /// # Errors
    /// What write(2) says: EPIPE when the reader went away, ENOSPC on a full disk.
    pub fn write(&mut self, rank: u32, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if let Some(directory) = &self.directory {
            let file = match self.files.entry((rank, stream)) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let suffix = if stream == Stream::Out { "out" } else { "err" };
                    entry.insert(BufWriter::new(File::create(directory.join(format!("rank.{rank}.{suffix}")))?))
                }
            };
            file.write_all(bytes)?;
            return file.flush();
        }
        let bytes = if self.tag { self.tagged(rank, bytes) } else { bytes };
        match stream {
            // unbuffered: the standard library's line buffer would cut what arrives whole
            Stream::Out => write_all(&io::stdout(), bytes),
            Stream::Err => write_all(&io::stderr(), bytes),
        }
    }

    fn tagged<'a>(&'a mut self, rank: u32, bytes: &[u8]) -> &'a [u8] {
        self.line.clear();
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend(format!("[{rank}] ").as_bytes());
            self.line.extend(line);
        }
        // a tag must begin a line: the last piece of a stream gets its newline
        if self.line.last() != Some(&b'\n') {
            self.line.push(b'\n');
        }
        &self.line
    }
}

fn write_all(stream: &impl std::os::fd::AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(stream, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) => {
                let mut fds = [nix::poll::PollFd::new(stream.as_fd(), nix::poll::PollFlags::POLLOUT)];
                let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE); // EINTR: the write is tried again
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_every_line_and_ends_the_last() {
        let mut output = Output::open(&OutputMode { tag: true, directory: None }).unwrap();
        assert_eq!(output.tagged(3, b"a\nb\n"), b"[3] a\n[3] b\n");
        assert_eq!(output.tagged(3, b"tail"), b"[3] tail\n");
    }
}
