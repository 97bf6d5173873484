//! libFuzzer's entry to [`corebox_fuzz::exchange_message`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| corebox_fuzz::exchange_message(bytes));
