//! Other bytes below, the same bytes out.

use blockloom_plugin_xor::Xor;
use blockloom_sdk::testing::{Disk, Harness};
use blockloom_sdk::{Errno, Filter, Kind, Kinds, Random};

const SIZE: u64 = 256 << 10;
const KEY: &[u8] = b"a key of 18 bytes!";

fn harness() -> Harness<Xor> {
    let disk = Disk::new(vec![0; SIZE as usize]);
    let config = r#"{ "key": "a key of 18 bytes!" }"#;
    Harness::with_children(config, [("file", disk)]).expect("a harness")
}

fn changed(offset: u64, bytes: &[u8]) -> Vec<u8> {
    let key = |at: usize| KEY[(offset as usize + at) % KEY.len()];
    bytes.iter().enumerate().map(|(at, byte)| byte ^ key(at)).collect()
}

#[test]
fn other_bytes_are_below_and_the_same_come_out() {
    let mut host = harness();
    let write = host.write(1001, b"some bytes of a guest");
    let read = host.read(1006, 5);
    host.run();
    assert_eq!(host.result(write), Some(Ok(vec![])));
    assert_eq!(host.result(read), Some(Ok(b"bytes".to_vec())));
    let below = &host.disk("file").bytes()[1001..1022];
    assert_eq!(below, changed(1001, b"some bytes of a guest"));
}

#[test]
fn random_requests_in_any_order() {
    let random = Random::new(7);
    let (mut host, mut expect) = (harness(), changed(0, &vec![0; SIZE as usize]));
    for step in 0..400_u64 {
        let offset = random.below(SIZE - 70_000);
        let range = offset as usize..(offset + 1 + random.below(70_000)) as usize;
        match random.below(4) {
            0 => {
                let data = vec![step as u8; range.len()];
                let write = host.write(offset, &data);
                host.run_in_any_order(&random);
                assert_eq!(host.result(write), Some(Ok(vec![])));
                expect[range].copy_from_slice(&data);
            }
            1 => {
                let kind = if step % 2 == 0 { Kind::Zero } else { Kind::Discard };
                let lowered = host.submit(kind, offset, range.len() as u64);
                host.run_in_any_order(&random);
                assert_eq!(host.result(lowered), Some(Ok(vec![])));
                if kind == Kind::Zero {
                    expect[range].fill(0);
                }
            }
            _ => {
                let read = host.read(offset, range.len() as u64);
                if random.below(8) == 0 {
                    host.restart().expect("a node");
                }
                host.run_in_any_order(&random);
                assert_eq!(host.result(read), Some(Ok(expect[range].to_vec())));
            }
        }
    }
    assert_eq!(host.disk("file").bytes(), changed(0, &expect));
}

#[test]
fn what_fails_below_fails() {
    let mut host = harness();
    host.disk_mut("file").fail(Kinds::READ.with(Kinds::WRITE), 0..512, Errno::EIO, 2);
    let (read, write) = (host.read(0, 1024), host.write(511, &[1; 2]));
    host.run();
    assert_eq!(host.result(read), Some(Err(Errno::EIO)));
    assert_eq!(host.result(write), Some(Err(Errno::EIO)));
}

#[test]
fn a_key_is_needed() {
    for (config, expect) in [
        ("{}", "key: is required"),
        (r#"{"key":""}"#, "key: must have 1 to 4096 bytes"),
        (r#"{"key":7}"#, "key: expected a string, found 7"),
    ] {
        let error = Xor::configure(config).expect_err("refused");
        assert_eq!(error.to_string(), expect);
    }
}
