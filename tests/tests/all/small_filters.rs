//! The small filters, each served over a memory disk and seen by a client.

use std::time::{Duration, Instant};

use blockloom_tests::nbd::Client;
use blockloom_tests::{Daemon, Scratch, eventually};

use crate::{KIB, MIB, scratch, serve};

const EPERM: u32 = 1;
const ENOSPC: u32 = 28;

/// A disk of 16 MiB behind a filter.
fn behind(plugin: &str, config: &str) -> (Scratch, Daemon) {
    let scratch = scratch();
    let graph = format!(
        "[node.disk]\ndriver = \"memory\"\nsize = \"16MiB\"\n\
         [node.filter]\ndriver = \"plugin\"\nplugin = \"{plugin}\"\nchild.file = \"disk\"\n\
         config = {{ {config} }}\n\
         [drive.vda]\nroot = \"filter\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\n"
    );
    let daemon = serve(&scratch, &graph, &[]);
    (scratch, daemon)
}

#[test]
fn requests_are_logged() {
    let (_scratch, daemon) = behind("log", "kinds = [\"write\"]");
    let mut client = Client::open(daemon.uri("vda"));
    assert_eq!(client.write(0, 4096, &[7; 512]), 0);
    assert_eq!(client.read(4096, 512), Ok(vec![7; 512]));
    daemon.wait_for_log("plugin `log`: filter: write 512 bytes at 4096");
    assert!(!daemon.finish().contains("read 512"), "only writes are logged");
}

#[test]
fn requests_are_delayed() {
    let (_scratch, daemon) = behind("delay", "read = \"40ms\", jitter = \"10ms\", seed = 3");
    let mut client = Client::open(daemon.uri("vda"));
    assert_eq!(client.write(0, 0, &[7; 512]), 0);
    let start = Instant::now();
    assert_eq!(client.read(0, 512), Ok(vec![7; 512]));
    assert!(start.elapsed() >= Duration::from_millis(40), "{:?}", start.elapsed());
    daemon.finish();
}

#[test]
fn requests_fail_as_they_are_told_to() {
    let config = "kinds = [\"write\"], errno = \"ENOSPC\", offset = \"1MiB\", after = 1, count = 2";
    let (_scratch, daemon) = behind("error", config);
    let mut client = Client::open(daemon.uri("vda"));
    let ends: Vec<u32> = (0..4).map(|_| client.write(0, MIB, &[7; 512])).collect();
    assert_eq!(ends, [0, ENOSPC, ENOSPC, 0]);
    assert_eq!(client.write(0, 0, &[7; 512]), 0);
    assert_eq!(client.read(MIB, 512), Ok(vec![7; 512]));
    daemon.finish();
}

#[test]
fn ranges_are_protected() {
    let config = "ranges = [{ length = \"64KiB\" }, { offset = \"8MiB\", length = 512 }]";
    let (_scratch, daemon) = behind("protect", config);
    let mut client = Client::open(daemon.uri("vda"));
    for (offset, expect) in [
        (0, EPERM),
        (64 * KIB - 512, EPERM),
        (64 * KIB, 0),
        (8 * MIB - 512, 0),
        (8 * MIB, EPERM),
        (8 * MIB + 512, 0),
    ] {
        assert_eq!(client.write(0, offset, &[7; 512]), expect, "{offset}");
    }
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    assert_eq!(client.read(8 * MIB, 512), Ok(vec![0; 512]));
    daemon.finish();
}

#[test]
fn latencies_are_reported() {
    let (_scratch, daemon) = behind("stats", "every = \"1ms\", kinds = [\"write\"]");
    let mut client = Client::open(daemon.uri("vda"));
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    eventually("a report", || {
        assert_eq!(client.write(0, 0, &[7; 512]), 0);
        daemon.log().contains("plugin `stats`: filter: write: ").then_some(())
    });
    assert!(!daemon.finish().contains("filter: read: "), "only writes are counted");
}
