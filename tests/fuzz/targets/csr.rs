//! See `gossamer_fuzz::csr`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gossamer_fuzz::csr(data));
