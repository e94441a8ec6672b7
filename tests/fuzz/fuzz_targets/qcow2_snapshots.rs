//! The snapshot table of an image.
#![no_main]

use blockloom_qcow2::testing::fuzz::SNAPSHOTS;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (SNAPSHOTS.run)(data);
});
