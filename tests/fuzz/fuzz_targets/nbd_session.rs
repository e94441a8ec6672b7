//! Arbitrary bytes as an NBD session: the handshake, then requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockloom::export::nbd::proto::fuzz_one(data));
