//! The library in a program of one's own: hosts from code and from a file, nodes of one's own, any
//! executor, and what happens at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockloom::error::ErrorKind;
use blockloom::export::nbd::{Export, ListenAddress};
use blockloom::filter::PassNode;
use blockloom::graph::{BitmapScope, ChildDecl};
use blockloom::host::{Overrides, StartError, start};
use blockloom::io::{EngineChoice, EngineKind, WorkerOptions};
use blockloom::node::{ExtentKind, MemoryNode, NullNode, WriteFlags};
use blockloom::{Drive, Host, block_on};
use blockloom_tests::nbd::Client;
use blockloom_tests::pattern;

use crate::executor::run_all;
use crate::own_node::{FAULTY_BYTE, OwnNode};
use crate::stack::STACKS;
use crate::{MIB, scratch};

fn engines() -> [WorkerOptions; 2] {
    [EngineKind::IoUring, EngineKind::Threads].map(|kind| WorkerOptions {
        engine: EngineChoice::Exactly(kind),
        ..WorkerOptions::default()
    })
}

/// A memory node `disk` of 16 MiB below a native filter, behind the drive `vda`.
fn from_code(options: WorkerOptions) -> Host {
    let builder = Host::builder()
        .workers(options)
        .node("disk", MemoryNode::new(16 * MIB, 1).expect("a node"), vec![])
        .node("top", PassNode, vec![ChildDecl::filtered("disk")])
        .drive("vda", "top", true);
    builder.start().expect("start")
}

/// Everything that a drive can do.
async fn use_drive(drive: Drive, at: u64) {
    let bytes = pattern(at, 5000);
    drive.write(at + 1, &bytes).await.expect("write");
    assert_eq!(&drive.read(at + 1, 5000).await.expect("read")[..], bytes);
    drive.flush().await.expect("flush");
    drive.zero(at + 2, 10, WriteFlags::FUA).await.expect("zero");
    assert_eq!(&drive.read(at + 2, 10).await.expect("read")[..], [0; 10]);
    assert_eq!(drive.read(at + 1, 1).await.expect("read")[0], bytes[0]);
    drive.discard(at, 128 << 10).await.expect("discard");
    let extents = drive.block_status(at, 256 << 10).await.expect("block status");
    assert_eq!(extents[0].offset, at);
    let past_end = drive.write(16 * MIB - 1, b"xx").await.expect_err("past the end");
    assert_eq!(past_end.kind(), ErrorKind::NoSpace, "{past_end}");
    let past_end = drive.read(16 * MIB - 1, 2).await.expect_err("past the end");
    assert_eq!(past_end.kind(), ErrorKind::Invalid, "{past_end}");
    let too_long = drive.read(0, (64 << 20) + 1).await.expect_err("too long");
    assert_eq!(too_long.kind(), ErrorKind::Invalid, "{too_long}");
}

#[test]
fn a_drive_is_used_from_any_executor() {
    for options in engines() {
        let host = from_code(options);
        assert_eq!(EngineChoice::Exactly(host.engine()), options.engine);
        let drive = host.drive("vda").expect("a drive");
        assert_eq!(drive.info().expect("a medium").size_bytes, 16 * MIB);
        block_on(use_drive(drive.clone(), 0));
        let tasks = (1..24).map(|task| use_drive(drive.clone(), task * 512 * 1024));
        run_all(tasks.collect());
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let drive = host.drive("vda").expect("a drive");
                scope.spawn(move || block_on(use_drive(drive, thread * MIB)));
            }
        });
        assert!(host.report().contains("node `top` → node `disk` (file): "), "{}", host.report());
        host.shutdown().expect("a clean end");
    }
}

/// A host from the same file that the program takes: the drive and NBD clients see one view.
#[test]
fn a_host_from_a_file_serves_and_is_used() {
    for stack in &STACKS[..6] {
        let scratch = scratch();
        let path = scratch.graph("graph.toml", &stack.graph(&scratch, 4 * MIB));
        let engine = Some(stack.engine.parse().expect("an engine"));
        let overrides = Overrides { engine, workers: Some(2) };
        let (host, exports) = start(&path, overrides).expect("start");
        let [export] = &exports[..] else { panic!("one export: {exports:?}") };
        let drive = host.drive("vda").expect("a drive");
        let mut client = Client::open(&export.uri);
        block_on(drive.write(4097, b"from within")).expect("write");
        assert_eq!(client.read(4097, 11), Ok(b"from within".to_vec()), "{stack}");
        assert_eq!(client.write(0, 9000, b"from a client"), 0);
        assert_eq!(&block_on(drive.read(9000, 13)).expect("read")[..], b"from a client");
        let bitmap = host.bitmap(&BitmapScope::Node("disk".into()), "node").expect("a bitmap");
        let dirty: Vec<_> = bitmap.ranges(0..u64::MAX).map(|it| (it.start, it.end)).collect();
        assert_eq!(dirty, [(4096, 12_288)], "{stack}");
        assert_eq!(host.connections(), 1);
        host.shutdown().expect("a clean end");
        assert_eq!(client.stream().read_to_close(), b"");
        assert!(!scratch.path("nbd.sock").exists(), "{stack}: the socket is removed");
    }
}

#[test]
fn a_wrong_file_is_explained() {
    let scratch = scratch();
    let path = scratch.graph("graph.toml", "[node.disk]\ndriver = \"memory\"\nsiez = 1\n");
    let error = start(&path, Overrides::default()).err().expect("refused");
    assert!(matches!(error, StartError::Config(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("siez") && text.contains("graph.toml:3"), "{text}");
    let error = start(&scratch.path("none.toml"), Overrides::default()).err().expect("refused");
    assert!(matches!(error, StartError::File(_)), "{error}");
}

/// A port of 0 is replaced by a free one, and a second export may be added while the first serves.
#[test]
fn exports_are_added_to_a_running_host() {
    let host = from_code(WorkerOptions::default());
    let address = ListenAddress::Tcp("127.0.0.1:0".parse().expect("an address"));
    let export = |name: &str, writable| Export {
        name: name.into(),
        description: String::new(),
        drive: "vda".into(),
        writable,
        writethrough: false,
        allocation_depth: false,
        bitmaps: vec![],
    };
    let uri = |address: &ListenAddress, name: &str| match address {
        ListenAddress::Tcp(address) => format!("nbd://{address}/{name}"),
        ListenAddress::Unix(path) => format!("nbd+unix:///{name}?socket={}", path.display()),
    };
    let first = host.serve_nbd(&address, vec![export("a", true)]).expect("serve");
    let mut writer = Client::open(&uri(&first, "a"));
    let second = host.serve_nbd(&address, vec![export("b", false)]).expect("serve");
    assert_ne!(first, second);
    assert_eq!(writer.write(0, 3, b"shared"), 0);
    let mut reader = Client::open(&uri(&second, "b"));
    assert!(reader.is_read_only());
    assert_eq!(reader.read(3, 6), Ok(b"shared".to_vec()));
    let taken = host.serve_nbd(&first, vec![export("c", false)]).expect_err("taken");
    assert!(taken.to_string().contains("cannot listen on tcp:127.0.0.1:"), "{taken}");
    host.shutdown().expect("a clean end");
}

/// A node that is not the library's own: called on workers, emulated where it lacks something, and
/// its errors arrive with its name.
#[test]
fn an_own_node_is_served() {
    for options in engines() {
        let calls = Arc::new(AtomicU64::new(0));
        let node = OwnNode::new(MIB as usize, Arc::clone(&calls));
        let builder = Host::builder().workers(options).node("mine", node, vec![]);
        let host = builder.drive("vda", "mine", true).start().expect("start");
        let drive = host.drive("vda").expect("a drive");
        let bytes = pattern(2, 3000);
        // 512-byte blocks: the edge reads, changes and writes whole ones.
        block_on(drive.write(100, &bytes)).expect("write");
        assert_eq!(&block_on(drive.read(100, 3000)).expect("read")[..], bytes);
        // It has neither zero nor discard of its own.
        block_on(drive.zero(150, 2000, WriteFlags::NONE)).expect("zero");
        block_on(drive.discard(0, 4096)).expect("discard");
        let found = block_on(drive.read(100, 3000)).expect("read");
        assert!(found[..50] == bytes[..50] && found[2050..] == bytes[2050..]);
        assert!(found[50..2050].iter().all(|byte| *byte == 0));
        let fast = WriteFlags { fast: true, ..WriteFlags::NONE };
        let error = block_on(drive.zero(0, 4096, fast)).expect_err("not fast");
        assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}");
        let extents = block_on(drive.block_status(1, 1000)).expect("block status");
        assert_eq!(
            (extents[0].offset, extents[0].len, extents[0].kind),
            (1, 1000, ExtentKind::Data)
        );
        let error = block_on(drive.read(FAULTY_BYTE, 1)).expect_err("a medium error");
        assert_eq!((error.kind(), error.node()), (ErrorKind::Io, Some("mine")), "{error}");
        assert!(error.to_string().contains("scratched"), "{error}");
        assert!(calls.load(Ordering::Relaxed) > 5);
        // The zero that was not fast, and the scratch.
        assert!(host.report().contains("2 errors"), "{}", host.report());
        host.shutdown().expect("a clean end");
    }
}

fn memory() -> MemoryNode {
    MemoryNode::new(MIB, 1).expect("a node")
}

/// Graphs that cannot stand are refused before anything runs.
#[test]
fn wrong_graphs_are_refused() {
    let check = |builder: blockloom::HostBuilder, kind, words: &str| {
        let error = builder.start().err().expect("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let pass = |name: &str, child: &str| {
        Host::builder().node(name, PassNode, vec![ChildDecl::filtered(child)])
    };
    check(pass("a", "none"), ErrorKind::NotFound, "unknown node `none`");
    let cycle = pass("a", "b").node("b", PassNode, vec![ChildDecl::filtered("a")]);
    check(cycle, ErrorKind::Invalid, "cycle");
    check(Host::builder().node("a", PassNode, vec![]), ErrorKind::Invalid, "child");
    check(Host::builder().drive("d", "none", true), ErrorKind::NotFound, "unknown root `none`");
    let twice = Host::builder().node("a", memory(), vec![]).drive("a", "a", true);
    check(twice, ErrorKind::Exists, "`a`");
    let both = Host::builder().node("a", memory(), vec![]);
    let both = both.drive("x", "a", true).drive("y", "a", true);
    check(both, ErrorKind::InUse, "uses w");
}

/// A drive that is not writable refuses changes, whoever asks.
#[test]
fn a_read_only_drive_refuses_changes() {
    let host = Host::builder().node("a", memory(), vec![]).drive("x", "a", false);
    let host = host.start().expect("start");
    let drive = host.drive("x").expect("a drive");
    let error = block_on(drive.write(0, b"x")).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
    let error = block_on(drive.zero(0, 1, WriteFlags::NONE)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
    let error = host.drive("y").err().expect("unknown");
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("`x`"), "{error}");
}

/// After the end a call fails and says why, whether its host ended in order or was dropped.
#[test]
fn calls_after_the_end_fail_cleanly() {
    for in_order in [true, false] {
        let host = from_code(WorkerOptions::default());
        let drive = host.drive("vda").expect("a drive");
        let scope = BitmapScope::Drive("vda".into());
        let decl = crate::embed_bitmaps::decl(&scope, "late", 512);
        let bitmap = block_on(host.add_bitmap(decl)).expect("add");
        block_on(drive.write(0, b"x")).expect("write");
        if in_order {
            host.shutdown().expect("a clean end");
        } else {
            drop(host);
        }
        let check = |what: &str, result: blockloom::Result<()>| {
            let error = result.expect_err(&format!("{what} after the end, in order: {in_order}"));
            assert_eq!(error.kind(), ErrorKind::ShuttingDown, "{what}: {error}");
        };
        check("write", block_on(drive.write(0, b"y")));
        check("read", block_on(drive.read(0, 1)).map(drop));
        check("flush", block_on(drive.flush()));
        check("clear", block_on(bitmap.clear()));
        assert_eq!(bitmap.count(), 1, "what was recorded can still be read");
    }
}

/// Requests that are under way when the host goes end, each with a result; nobody hangs.
#[test]
fn requests_under_way_at_the_end_have_a_result() {
    for in_order in [true, false] {
        let latency = std::time::Duration::from_millis(300);
        let builder = Host::builder().node("slow", NullNode::new(MIB, true, latency), vec![]);
        let host = builder.drive("vda", "slow", true).start().expect("start");
        let drive = host.drive("vda").expect("a drive");
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let drive = drive.clone();
                std::thread::spawn(move || block_on(drive.read(number * 512, 512)).map(drop))
            })
            .collect();
        blockloom_tests::eventually("all reads are under way", || {
            host.report().contains("8 read").then_some(())
        });
        drop(drive);
        if in_order {
            host.shutdown().expect("a clean end");
        } else {
            drop(host);
        }
        for thread in threads {
            let result = thread.join().expect("a reader");
            if in_order {
                result.expect("requests under way are finished");
            } else if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::ShuttingDown, "{error}");
            }
        }
    }
}

/// Dropping the future of a call does not take the call back, nor harm later ones.
#[test]
fn a_dropped_call_still_runs() {
    let host = from_code(WorkerOptions::default());
    let drive = host.drive("vda").expect("a drive");
    for block in 0..200 {
        let mut write = Box::pin(async { drive.write(block * 512, &[7; 512]).await });
        // One poll sends it; then nobody waits for it any more.
        let _ = crate::executor::poll_once(write.as_mut());
        drop(write);
    }
    // On the same worker, so behind all of them.
    blockloom_tests::eventually("all writes have been done", || {
        let found = block_on(drive.read(0, 200 * 512)).expect("read");
        (found[..] == [7; 200 * 512]).then_some(())
    });
    host.shutdown().expect("a clean end");
}
