//! What a server costs while nobody uses it.

use std::time::Duration;

use blockloom_tests::nbd::Client;

use crate::{ENGINES, MIB, scratch, serve};

/// A sparse disk of 1 TiB with one bitmap, plain or through two plugins.
fn terabyte(scratch: &blockloom_tests::Scratch, root: &str) -> String {
    format!(
        "[node.disk]\ndriver = \"file\"\npath = \"{}\"\ncreate = \"1TiB\"\n\
         [node.slow]\ndriver = \"plugin\"\nplugin = \"throttle\"\nchild.file = \"disk\"\n\
         config = {{ iops = 20000 }}\n\
         [node.top]\ndriver = \"plugin\"\nplugin = \"pass\"\nchild.file = \"slow\"\n\
         [drive.vda]\nroot = \"{root}\"\n\
         [bitmap.daily]\ndrive = \"vda\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\nbitmaps = [\"daily\"]\n",
        scratch.image("disk.img").display()
    )
}

#[test]
fn an_idle_server_is_small_and_sleeps() {
    for engine in ENGINES {
        for (root, resident_max) in [("disk", 48 * MIB), ("top", 64 * MIB)] {
            let scratch = scratch();
            // Without plugins in the graph none is compiled.
            let text = terabyte(&scratch, root);
            let text = match root {
                "disk" => {
                    text[..text.find("[node.slow]").expect("plugins")].to_owned()
                        + &text[text.find("[drive.vda]").expect("a drive")..]
                }
                _ => text,
            };
            let daemon = serve(&scratch, &text, &["--engine", engine]);
            let resident = daemon.resident_bytes();
            assert!(resident < resident_max, "{engine}, {root}: {resident} bytes resident");
            // Work, so that pollers, tickers and pools have been in use.
            let mut client = Client::open(daemon.uri("vda"));
            for block in 0..500 {
                assert_eq!(client.write(0, block << 31, &[1; 4096]), 0);
            }
            let silence = |client: &mut Client, time| {
                assert!(!client.stream().ends_within(time), "the connection ended");
            };
            silence(&mut client, Duration::from_millis(200));
            let before = daemon.cpu_ticks();
            silence(&mut client, Duration::from_secs(2));
            let used = daemon.cpu_ticks() - before;
            assert!(used <= 1, "{engine}, {root}: {used} ticks of 10 ms in 2 s of silence");
            daemon.finish();
        }
    }
}

/// Generous, as other tests run beside this one; the figure proper is measured in release.
#[test]
fn a_server_is_ready_soon() {
    for root in ["disk", "top"] {
        let start = |_| {
            let scratch = scratch();
            let daemon = serve(&scratch, &terabyte(&scratch, root), &[]);
            let time = daemon.start_time();
            daemon.finish();
            time
        };
        let best = (0..3).map(start).min().expect("three times");
        assert!(best < Duration::from_secs(2), "{root}: {best:?} from start to ready");
    }
}
