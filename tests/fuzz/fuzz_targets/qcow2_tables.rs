//! L1, L2 and refcount tables of an image.
#![no_main]

use blockloom_qcow2::testing::fuzz::TABLES;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (TABLES.run)(data);
});
