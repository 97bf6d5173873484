//! The parsers of hostile content, for the fuzz targets of `fuzz/` (feature `fuzzing`).

use crate::content::Piece;
use crate::inspect::Inspector;
use crate::layer::Layer;
use crate::tar_reader::TarReader;
use crate::tree::{ContentAt, Tree};
use std::io::Read;

/// Most bytes read of one file's content: a sparse file may claim exabytes.
const CONTENT: u64 = 64 << 10;

/// Reads a layer's archive into a tree, and the content of its files.
pub fn tar(bytes: &[u8]) {
    for lenient in [false, true] {
        let mut reader = TarReader::new(bytes, lenient);
        let mut tree = Tree::new();
        while let Ok(Some((ordinal, entry))) = reader.next() {
            assert!(!entry.path.starts_with(b"/") && !entry.path.split(|b| *b == b'/').any(|part| part == b".."));
            if std::io::copy(&mut (&mut reader).take(CONTENT), &mut std::io::sink()).is_err() {
                break;
            }
            let at = ContentAt { layer: u32::from(lenient), ordinal };
            if Layer::take_entry(&mut tree, entry, at, true).is_err() {
                break;
            }
        }
    }
}

/// Looks into a library that bears the name of an MPI.
pub fn elf(bytes: &[u8]) {
    for path in [&b"usr/lib/libmpi.so.40.30.4"[..], b"usr/lib/libmpich.so.12.2.0", b"bin/sh"] {
        let mut inspector = Inspector::default();
        inspector.begin(path, bytes.len() as u64);
        bytes.chunks(4096).for_each(|piece| inspector.feed(&Piece::Bytes(piece)));
        inspector.end();
        inspector.finish();
    }
}
