//! See `gossamer_fuzz::hello`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gossamer_fuzz::hello(data));
