//! Compressed clusters.
#![no_main]

use blockloom_qcow2::testing::fuzz::COMPRESSED;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (COMPRESSED.run)(data);
});
