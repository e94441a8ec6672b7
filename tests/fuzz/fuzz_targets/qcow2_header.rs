//! The header of an image.
#![no_main]

use blockloom_qcow2::testing::fuzz::HEADER;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (HEADER.run)(data);
});
