//! An image may hold anything: reading it never panics, never hangs, and gives nothing that is not there.

mod walk;

use corebox_images::{Codec, ImportRequest, Store, import};
use std::path::PathBuf;
use walk::walk;

/// An image of one of each.
fn image() -> Vec<u8> {
    let directory = std::env::temp_dir().join(format!("corebox-hostile-erofs-{}", std::process::id()));
    let root = directory.join("root");
    corebox_sys::fs::create_dir_all(root.join("a/b")).unwrap();
    let file = |name: &str, bytes: &[u8]| corebox_sys::fs::write(root.join(name), bytes).unwrap();
    file("small", b"small");
    file("a/big", &(0..100_000u32).map(|n| n as u8).collect::<Vec<_>>());
    let mut holes = vec![0; 2_400_000];
    holes[200_000] = 1;
    file("a/holes", &holes);
    (0..200).for_each(|n| file(&format!("a/b/{n:03}-{}", "x".repeat(n % 50)), b""));
    std::os::unix::fs::symlink("a/b", root.join("link")).unwrap();
    let store = Store::at(directory.join("store"));
    let request = ImportRequest {
        name: "x".into(),
        source: root.clone(),
        keep_owner: false,
        codec: Codec::None,
        max_unpacked: 1 << 30,
    };
    let path: PathBuf = import(&store, &request, &|_| {}).unwrap().path;
    let bytes = corebox_sys::fs::read(path).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    bytes
}

/// Takes the superblock's checksum away, so that damage is not noticed at once.
fn without_checksum(bytes: &mut [u8]) {
    bytes[1024 + 8] &= !1;
}

#[test]
fn damage_is_never_more_than_an_error() {
    let mut whole = image();
    assert_eq!(walk(&whole), Some((207, 2_500_005)));
    without_checksum(&mut whole);
    assert_eq!(walk(&whole), Some((207, 2_500_005)));
    // a generator of our own, so that a failure can be repeated
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below
    };
    let metadata = whole.len() - 40_000;
    for round in 0..2000 {
        let mut damaged = whole.clone();
        for _ in 0..=round % 16 {
            // mostly where structures are
            let at = if random(8) == 0 { 1024 + random(128) } else { metadata + random(whole.len() - metadata) };
            damaged[at] = [0, 0xff, 0x7f, 0x80, random(256) as u8][random(5)];
        }
        walk(&damaged);
    }
    for length in (0..whole.len()).step_by(1777).chain(0..1200) {
        walk(&whole[..length]);
    }
}
