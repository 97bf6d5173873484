//! Looks into an image while its files stream by: the architecture of its programs and the MPI libraries it holds.
//!
//! The content is hostile until proven otherwise: at most [`MAX_KEPT`] bytes of a file are kept, every offset is
//! checked by the `object` crate, and what cannot be parsed is not an MPI library.

use crate::content::Piece;
use crate::entry::split;
use corebox_spec::{MpiFamily, MpiFound};
use object::{Object, ObjectSegment, ObjectSymbol};

/// Bytes of one library that are kept for looking into it. Debian's largest (MPICH with device code) has 42 MB.
const MAX_KEPT: u64 = 64 << 20;
/// Bytes of a program that hold the fields we read (ELF header, elf(5)).
const ELF_HEADER: u64 = 64;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// As `uname -m` says it.
    pub arch: Option<String>,
    /// By path.
    pub mpi: Vec<MpiFound>,
}

/// Sees every regular file of an image once.
#[derive(Default)]
pub(crate) struct Inspector {
    /// Rank (lower is surer), path, architecture.
    best: Option<(u8, Vec<u8>, &'static str)>,
    mpi: Vec<MpiFound>,
    path: Vec<u8>,
    kept: Vec<u8>,
    wanted: u64,
}

impl Inspector {
    /// A file begins.
    pub(crate) fn begin(&mut self, path: &[u8], size: u64) {
        self.path = path.to_vec();
        self.kept.clear();
        self.wanted = if is_mpi_name(path) {
            size.min(MAX_KEPT)
        } else if program_rank(path).is_some() {
            size.min(ELF_HEADER)
        } else {
            0
        };
    }

    /// A piece of its content.
    pub(crate) fn feed(&mut self, piece: &Piece) {
        let missing = self.wanted - self.kept.len() as u64;
        match piece {
            Piece::Bytes(bytes) => self.kept.extend_from_slice(&bytes[..missing.min(bytes.len() as u64) as usize]),
            Piece::Zeros(length) => self.kept.resize(self.kept.len() + missing.min(*length) as usize, 0),
        }
    }

    /// The file is complete.
    pub(crate) fn end(&mut self) {
        if self.wanted == 0 {
            return;
        }
        let (path, kept) = (std::mem::take(&mut self.path), std::mem::take(&mut self.kept));
        if let (Some(rank), Some(arch)) = (program_rank(&path), architecture(&kept)) {
            let candidate = (rank, path.clone(), arch);
            if self.best.as_ref().is_none_or(|best| (candidate.0, &candidate.1) < (best.0, &best.1)) {
                self.best = Some(candidate);
            }
        }
        if is_mpi_name(&path)
            && let Some((family, version)) = mpi(&kept)
        {
            self.mpi.push(MpiFound { family, version, library: format!("/{}", String::from_utf8_lossy(&path)) });
        }
        self.wanted = 0;
    }

    /// All files were seen.
    pub(crate) fn finish(mut self) -> Findings {
        self.mpi.sort_by(|a, b| a.library.cmp(&b.library));
        Findings { arch: self.best.map(|(_, _, arch)| arch.to_owned()), mpi: self.mpi }
    }
}

/// How surely a file tells the architecture of the image's programs; `None`: not at all. Libraries of a cross compiler
/// or firmware may be for another machine, the shell and the dynamic loader are not.
fn program_rank(path: &[u8]) -> Option<u8> {
    let (directory, name) = split(path);
    let parent = split(directory).1;
    match parent {
        b"bin" | b"sbin" if [&b"sh"[..], b"dash", b"bash", b"busybox"].contains(&name) => Some(0),
        _ if name.starts_with(b"ld-linux") || name.starts_with(b"ld-musl") => Some(0),
        b"bin" | b"sbin" => Some(1),
        b"lib" | b"lib64" => Some(2),
        _ if split(directory).0.ends_with(b"lib") => Some(3),
        _ => None,
    }
}

/// The machine an ELF file is for.
fn architecture(head: &[u8]) -> Option<&'static str> {
    let (ident, rest) = head.split_at_checked(16)?;
    if !ident.starts_with(b"\x7fELF") || rest.len() < 4 {
        return None;
    }
    let (wide, little) = (ident[4] == 2, ident[5] == 1);
    let half = |at: usize| {
        let bytes = [rest[at], rest[at + 1]];
        if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) }
    };
    // e_type: programs and shared objects only
    if !matches!(half(0), object::elf::ET_EXEC | object::elf::ET_DYN) {
        return None;
    }
    match (half(2), wide, little) {
        (object::elf::EM_X86_64, true, _) => Some("x86_64"),
        (object::elf::EM_AARCH64, true, true) => Some("aarch64"),
        (object::elf::EM_PPC64, true, true) => Some("ppc64le"),
        (object::elf::EM_PPC64, true, false) => Some("ppc64"),
        (object::elf::EM_S390, true, _) => Some("s390x"),
        (object::elf::EM_RISCV, true, _) => Some("riscv64"),
        (object::elf::EM_LOONGARCH, true, _) => Some("loongarch64"),
        (object::elf::EM_386, false, _) => Some("i686"),
        (object::elf::EM_ARM, false, _) => Some("armv7l"),
        _ => None,
    }
}

/// Names under which MPI libraries go: `libmpi.so.40.30.4`, `libmpich.so.12`, and `libmpi-1a2b3c4d.so.12` as
/// auditwheel bundles them.
fn is_mpi_name(path: &[u8]) -> bool {
    let name = split(path).1;
    ["libmpi", "libmpich"].iter().any(|stem| {
        let Some(rest) = name.strip_prefix(stem.as_bytes()) else { return false };
        let rest = match rest.strip_prefix(b"-") {
            Some(hash) => &hash[hash.iter().take_while(|byte| byte.is_ascii_hexdigit()).count()..],
            None => rest,
        };
        rest == b".so" || rest.starts_with(b".so.")
    })
}

/// Which MPI a shared library is, and its version (empty if it does not say).
fn mpi(library: &[u8]) -> Option<(MpiFamily, String)> {
    architecture(library)?;
    let has = |marker: &str| find(library, marker.as_bytes());
    // derivatives of MPICH hold its words too: ask for their own first
    if let Some(at) = has("Intel(R) MPI Library") {
        return Some((MpiFamily::IntelMpi, version_near(library, at, 2)));
    }
    if let Some(at) = has("MVAPICH2 Version").or_else(|| has("MVAPICH Version")) {
        return Some((MpiFamily::Mvapich, version_near(library, at, 2)));
    }
    if let Some(version) = symbol_text(library, &["ompi_version_string"]) {
        return Some((MpiFamily::OpenMpi, version));
    }
    if let Some(at) = has("Open MPI v") {
        return Some((MpiFamily::OpenMpi, version_near(library, at, 3)));
    }
    let mpich = symbol_text(library, &["MPII_Version_string", "MPIR_Version_string"]);
    match (mpich, has("MPICH Version")) {
        (Some(version), _) => Some((MpiFamily::Mpich, version)),
        (None, Some(at)) => Some((MpiFamily::Mpich, version_near(library, at, 3))),
        (None, None) => None,
    }
}

/// The text that an exported character array holds, if it looks like a version.
fn symbol_text(library: &[u8], names: &[&str]) -> Option<String> {
    let file = object::File::parse(library).ok()?;
    let symbol = file.dynamic_symbols().find(|symbol| {
        symbol.is_definition() && symbol.name().is_ok_and(|name| names.contains(&name)) && symbol.size() <= 64
    })?;
    let text =
        file.segments().find_map(|segment| segment.data_range(symbol.address(), symbol.size()).ok().flatten())?;
    let text = text.split(|&byte| byte == 0).next()?;
    is_version(text, 2).then(|| String::from_utf8_lossy(text).into_owned())
}

/// The version that a library prints where it says this marker: the closest string that is nothing but a version, or
/// a version in the marker's own string. Compilers lay out a file's strings in the order of their use, so it is near.
fn version_near(library: &[u8], marker: usize, parts: usize) -> String {
    const NEAR: usize = 1 << 20;
    let own_end = library[marker..].iter().position(|&byte| byte == 0).map_or(library.len(), |n| marker + n);
    let mut own_words = library[marker..own_end.min(marker + 128)].split(u8::is_ascii_whitespace);
    let start = marker.saturating_sub(NEAR);
    let mut at = start;
    let alone = library[start..library.len().min(marker + NEAR)].split(|&byte| byte == 0).filter_map(|word| {
        let place = at;
        at += word.len() + 1;
        is_version(word, parts).then_some((place.abs_diff(marker), word))
    });
    let found = own_words.find(|word| is_version(word, parts)).or_else(|| alone.min().map(|(_, word)| word));
    String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
}

/// `4.1.4`, `5.0.0rc12`, `2021.10`: numbers with dots, at least so many, and perhaps a suffix.
fn is_version(word: &[u8], parts: usize) -> bool {
    let Ok(text) = std::str::from_utf8(word) else { return false };
    let number = |part: &str| !part.is_empty() && part.len() <= 5 && part.bytes().all(|b| b.is_ascii_digit());
    let mut fields: Vec<&str> = text.split('.').collect();
    let last = fields.pop().unwrap_or_default();
    let digits = last.bytes().take_while(u8::is_ascii_digit).count();
    text.len() <= 24
        && fields.len() + 1 >= parts
        && fields.iter().all(|part| number(part))
        && number(&last[..digits])
        && last[digits..].bytes().all(|b| b.is_ascii_alphanumeric())
        && last.len() - digits <= 8
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    // looking for a rare first byte keeps this linear and fast without a search library
    let first = *needle.first()?;
    let mut at = 0;
    while let Some(step) = haystack[at..].iter().position(|&byte| byte == first) {
        at += step;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_names_of_mpi_libraries() {
        for name in ["usr/lib/libmpi.so.40.30.4", "libmpich.so.12", "x/libmpi-1a2b3c.so.12", "lib/libmpi.so"] {
            assert!(is_mpi_name(name.as_bytes()), "{name}");
        }
        for name in ["libmpi_cxx.so.40", "libmpichfort.so.12", "libmpi.a", "libmpi.so-gdb.py", "libmpifort.so.12"] {
            assert!(!is_mpi_name(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn knows_versions() {
        for text in ["4.1.4", "5.0.11", "5.0.0rc12", "3.4a2"] {
            assert!(is_version(text.as_bytes(), 2), "{text}");
        }
        for text in ["802.1a", "", "4", "4.", ".4", "4..1", "1.2.3.", "a.b.c", "%s", "123456.1.1"] {
            assert!(!is_version(text.as_bytes(), 3), "{text}");
        }
    }

    #[test]
    fn reads_no_architecture_out_of_rubbish() {
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[16], elf[18]) = (3, 62);
        assert_eq!(architecture(&elf), Some("x86_64"));
        elf[18] = 183;
        assert_eq!(architecture(&elf), Some("aarch64"));
        for cut in 0..20 {
            assert_eq!(architecture(&elf[..cut]), None);
        }
        elf[4] = 1;
        assert_eq!(architecture(&elf), None);
    }

    #[test]
    fn damaged_libraries_never_panic() {
        // our own test program is a real ELF file at hand
        let program = corebox_sys::fs::read("/proc/self/exe").unwrap();
        let mut library = program[..program.len().min(8192)].to_vec();
        library.extend_from_slice(b"\0MPICH Version:\t%s\x004.0.2\0");
        assert_eq!(mpi(&library), Some((MpiFamily::Mpich, "4.0.2".to_owned())));
        let mut state = 1u32;
        for _ in 0..200 {
            let mut damaged = library.clone();
            for _ in 0..64 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % 4096;
                damaged[at] = state as u8;
            }
            mpi(&damaged);
        }
    }
}
