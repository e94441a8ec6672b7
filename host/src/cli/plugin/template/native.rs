//! The filter without a host: `cargo test`.

use CRATE::TYPE;
use blockloom_sdk::testing::{Disk, Harness};
use blockloom_sdk::Errno;

fn over(bytes: Vec<u8>, config: &str) -> Harness<TYPE> {
    Harness::with_children(config, [("file", Disk::new(bytes))]).expect("a filter")
}

#[test]
fn the_first_bytes_stay() {
    let mut host = over(vec![1; 8192], r#"{ "protected": "4KiB" }"#);
    let (first, second) = (host.write(4095, &[2; 2]), host.write(4096, &[2; 2]));
    let read = host.read(4094, 4);
    host.run();
    assert_eq!(host.result(first), Some(Err(Errno::EPERM)));
    assert_eq!(host.result(second), Some(Ok(vec![])));
    assert_eq!(host.result(read), Some(Ok(vec![1, 1, 2, 2])));
}

#[test]
fn an_unknown_key_is_refused() {
    let error = Harness::<TYPE>::new(r#"{ "protect": 1 }"#).expect_err("unknown");
    assert_eq!(error.to_string(), "protect: unknown key; known are: protected");
}
