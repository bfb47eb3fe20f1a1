//! See `gossamer_fuzz::objects`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gossamer_fuzz::objects(data));
