//! See `gossamer_fuzz::h1`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gossamer_fuzz::h1(data));
