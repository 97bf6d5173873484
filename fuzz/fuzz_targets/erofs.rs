//! The reader of EROFS images, which the FUSE server and `--rootfs unpack` give files of anybody.
#![no_main]

#[path = "../../images/tests/walk/mod.rs"]
mod walk;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut image = bytes.to_vec();
    // the checksum of the superblock would keep everything out
    if let Some(features) = image.get_mut(1024 + 8) {
        *features &= !1;
    }
    walk::walk(&image);
});
