//! libFuzzer's entry to [`corebox_fuzz::idset`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| corebox_fuzz::idset(bytes));
