//! libFuzzer's entry to [`corebox_fuzz::launch_stream`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| corebox_fuzz::launch_stream(bytes));
