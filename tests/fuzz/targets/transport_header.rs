//! See `gossamer_fuzz::transport_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gossamer_fuzz::transport_header(data));
