//! The bitmap directory of an image.
#![no_main]

use blockloom_qcow2::testing::fuzz::BITMAPS;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (BITMAPS.run)(data);
});
