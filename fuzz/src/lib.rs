//! What strangers hand to corebox, as functions of bytes: each parses, and checks what must hold of whatever it
//! accepted. They are run by libFuzzer (`cargo +nightly fuzz run`, see docs/fuzzing.md) and, over their seeds and
//! mutations of them, by `cargo test -p corebox-fuzz`.
#![forbid(unsafe_code)]

pub mod mutate;

use corebox_images::{ImageName, Reference};
use corebox_mpi::protocol::{Decoder, FromAgent, ToAgent};
use corebox_mpi::wire::{Action, JobShape, PmiServer};
use corebox_runtime::seccomp;
use corebox_spec::{IdSet, format_size, parse_duration, parse_hostfile, parse_hostlist, parse_size};
use oci_spec::runtime::LinuxSeccomp;

/// Parses, and panics where something does not hold.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 10] = [
    ("idset", idset),
    ("hostlist", hostlist),
    ("size", size),
    ("pmi", pmi),
    ("launch_stream", launch_stream),
    ("exchange_message", exchange_message),
    ("tar", tar),
    ("elf", elf),
    ("reference", reference),
    ("seccomp", seccomp),
];

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// `0-3,8`.
pub fn idset(bytes: &[u8]) {
    let Some(set) = text(bytes).and_then(|text| text.parse::<IdSet>().ok()) else { return };
    let shown = set.to_string();
    assert_eq!(shown.parse::<IdSet>().as_ref(), Ok(&set), "{shown}");
    assert_eq!(set.iter().count(), set.len());
}

/// `n[01-04]:16,login` and hostfiles.
pub fn hostlist(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    for hosts in [parse_hostlist(text).ok(), parse_hostfile(text).ok()].into_iter().flatten() {
        assert!(hosts.iter().all(|host| !host.host.is_empty() && !host.host.contains(['[', ',', '\n'])), "{hosts:?}");
    }
}

/// `4G` and `90s`.
pub fn size(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    // Above that a fraction does not fit any more.
    if let Some(size) = parse_size(text).ok().filter(|size| *size < 1 << 62) {
        let shown = format_size(size).replace(' ', "");
        let again = parse_size(&shown).unwrap_or_else(|e| panic!("{size} is shown as {shown}: {e}"));
        assert!(again.abs_diff(size) <= size / 16, "{size} is shown as {shown}");
    }
    let _ = parse_duration(text);
}

/// What two ranks write to their PMI descriptors. The first byte of each piece says which rank, and how long it is.
pub fn pmi(bytes: &[u8]) {
    let Ok(shape) = JobShape::new("job", 0, vec![vec![0, 1], vec![2]], vec![0, 0, 0], 3) else { return };
    let mut server = PmiServer::new(shape);
    let mut rest = bytes;
    while let Some((head, tail)) = rest.split_first() {
        let (piece, after) = tail.split_at(tail.len().min(usize::from(head >> 1)));
        rest = after;
        for action in server.on_bytes(usize::from(head & 1), piece) {
            if let Action::Barrier { blob } = action {
                // The other node's blob is a peer's: it may be anything that a rank there could put.
                let _ = server.barrier_done(&[(0, blob.clone()), (1, blob)]);
            }
        }
    }
    let _ = server.barrier_done(&[(0, bytes.to_vec())]);
}

/// A remote shell's output as the launcher reads it, and the launcher's words as the agent reads them.
pub fn launch_stream(bytes: &[u8]) {
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(97) {
        decoder.push(piece);
        while let Ok(Some(_)) = decoder.next_frame::<FromAgent>() {}
    }
    let _ = decoder.rubbish();
    let mut decoder = Decoder::default();
    decoder.push(corebox_mpi::protocol::GREETING.as_bytes());
    decoder.push(bytes);
    while let Ok(Some(_)) = decoder.next_frame::<ToAgent>() {}
}

/// A message of another agent.
pub fn exchange_message(bytes: &[u8]) {
    corebox_mpi::wire::exchange::fuzzing::message(bytes);
}

/// A layer: a tar archive into a tree of files.
pub fn tar(bytes: &[u8]) {
    corebox_images::fuzzing::tar(bytes);
}

/// A library of an image, in which the MPI is looked for.
pub fn elf(bytes: &[u8]) {
    corebox_images::fuzzing::elf(bytes);
}

/// Names of images.
pub fn reference(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(name) = ImageName::parse(text) {
        let shown = name.to_string();
        assert_eq!(ImageName::parse(&shown).as_ref().ok(), Some(&name), "{shown}");
    }
    let _ = Reference::parse(text);
}

/// A seccomp profile of a config.json.
pub fn seccomp(bytes: &[u8]) {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(bytes) else { return };
    if let Ok(program) = seccomp::compile(&profile) {
        assert!(!program.is_empty());
    }
}
