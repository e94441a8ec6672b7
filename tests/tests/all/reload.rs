//! The program replaces plugins whose files have changed, on a signal, while clients use them.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use blockloom::plugin::bundled;
use blockloom_tests::nbd::Client;
use blockloom_tests::{eventually, pattern};
use rustix::process::Signal;

use crate::{KIB, scratch, serve};

/// A bundled plugin, with a section that nobody reads.
fn version(name: &str, number: u8) -> Vec<u8> {
    let mut module = bundled(name).expect("a plugin").to_vec();
    module.extend_from_slice(&[0, 2, 1, number]);
    module
}

#[test]
fn fifty_signals_under_load() {
    const PIECE: u64 = 64 * KIB;
    let scratch = scratch();
    let (slow, count) = (scratch.path("slow.wasm"), scratch.path("count.wasm"));
    fs::write(&slow, version("throttle", b'0')).expect("a file");
    fs::write(&count, version("stats", b'0')).expect("a file");
    let text = format!(
        "[node.disk]\ndriver = \"memory\"\nsize = \"4MiB\"\n\
         [node.count]\ndriver = \"plugin\"\nplugin = \"{}\"\nchild.file = \"disk\"\n\
         [node.slow]\ndriver = \"plugin\"\nplugin = \"{}\"\nchild.file = \"count\"\n\
         config = {{ iops = 5000 }}\n\
         [drive.vda]\nroot = \"slow\"\n\
         [bitmap.daily]\ndrive = \"vda\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n",
        count.display(),
        slow.display()
    );
    let daemon = serve(&scratch, &text, &[]);
    let over = AtomicBool::new(false);
    let replaced = |file: &str| {
        let line = format!("by what is in {file} now");
        daemon.log().matches(&line).count()
    };
    std::thread::scope(|threads| {
        for client in 0..2 {
            let (daemon, over) = (&daemon, &over);
            threads.spawn(move || {
                let mut nbd = Client::open(daemon.uri("vda"));
                let (at, mut round) = (client * 4 * PIECE, 0);
                while !over.load(Ordering::Relaxed) {
                    let bytes = pattern(round, PIECE as usize);
                    let piece = at + round % 4 * PIECE;
                    assert_eq!(nbd.write(0, piece, &bytes), 0, "round {round}");
                    assert_eq!(nbd.read(piece, PIECE as u32), Ok(bytes), "round {round}");
                    round += 1;
                }
                assert!(round > 4);
                nbd.disconnect();
            });
        }
        for round in 1..=50_usize {
            let (file, name) = if round % 2 == 0 { (&count, "stats") } else { (&slow, "throttle") };
            fs::write(file, version(name, round as u8)).expect("a file");
            daemon.signal(Signal::HUP);
            let (file, expect) = (file.display().to_string(), round.div_ceil(2));
            eventually("it is replaced", || (replaced(&file) >= expect).then_some(()));
        }
        // What is no plugin, or wants more than it may, does not take the place.
        for (bytes, why) in [
            (b"nothing".to_vec(), "it is no WebAssembly file"),
            (version("copy-on-read", b'0'), "`grant.file = [\"read\", \"write-unchanged\"]`"),
            (version("error", b'0'), "iops"),
        ] {
            fs::write(&slow, bytes).expect("a file");
            daemon.signal(Signal::HUP);
            daemon.wait_for_log(why);
        }
        over.store(true, Ordering::Relaxed);
    });
    let log = daemon.finish();
    assert_eq!(log.matches("goes on as it was").count(), 3, "{log}");
    assert!(log.contains("bitmap `daily` of drive `vda`: 8 granules of 65536 dirty"), "{log}");
    // The last report covers all that the first version saw, too.
    assert!(log.contains("count: write: ") && !log.contains("failed and"), "{log}");
}
