//! Drives, and media that are changed while a client is connected.

use blockloom::bitmap::Granularity;
use blockloom::block_on;
use blockloom::error::ErrorKind;
use blockloom::graph::{BitmapScope, Event};
use blockloom::host::NewExport;
use blockloom_tests::nbd::{Client, Terms, errno};
use blockloom_tests::tools::{have, python};
use serde_json::json;

use super::{add, empty, export};
use crate::embed_bitmaps::decl;
use crate::{MIB, scratch};

#[test]
fn a_medium_is_changed_under_a_client() {
    let host = empty();
    let scratch = scratch();
    for (name, size) in [("one", "4MiB"), ("two", "2MiB")] {
        add(&host, json!({ "driver": "memory", "node-name": name, "size": size }));
    }
    block_on(host.add_drive("cd", None, true)).expect("a drive");
    let scope = BitmapScope::Drive("cd".into());
    let error = block_on(host.eject_medium("cd")).expect_err("it is empty");
    assert_eq!(error.kind(), ErrorKind::NoMedium, "{error}");
    block_on(host.insert_medium("cd", "one")).expect("a medium");
    let error = block_on(host.insert_medium("cd", "two")).expect_err("it has one");
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    let bitmap = block_on(host.add_bitmap(decl(&scope, "daily", 65_536))).expect("a bitmap");
    let writable = NewExport { writable: true, ..NewExport::of_drive("cd", "cd") };
    let uri = export(&host, &scratch, writable);
    let mut client = Client::open(&uri);
    assert_eq!(client.write(0, 0, b"first"), 0);

    let mut events = host.events();
    block_on(host.eject_medium("cd")).expect("it has a medium");
    assert_eq!((client.read(0, 5), client.write(0, 0, b"x")), (Err(errno::IO), errno::IO));
    assert!(Client::with(&uri, &Terms::default()).is_err(), "there is nothing to open");
    assert_eq!(bitmap.granularity(), Granularity::from_bytes(65_536).expect("one"), "it stays");
    block_on(host.insert_medium("cd", "two")).expect("a medium");
    let marked = std::iter::from_fn(|| events.try_next())
        .any(|notice| matches!(notice.event, Event::BitmapMarkedWhole { .. }));
    assert!(marked, "another view: told once, and all of it is dirty");
    assert_eq!(
        bitmap.ranges(0..u64::MAX).map(|it| (it.start, it.end)).collect::<Vec<_>>(),
        [(0, 2 * MIB)]
    );
    // The client has the size of the first medium.
    assert_eq!((client.read(0, 5), client.read(3 * MIB, 5)), (Ok(vec![0; 5]), Err(errno::IO)));
    assert_eq!(client.write(0, 0, b"second"), 0);
    assert_eq!(Client::open(&uri).size_bytes(), 2 * MIB);
    block_on(host.eject_medium("cd")).expect("it has a medium");
    block_on(host.insert_medium("cd", "one")).expect("a medium");
    assert_eq!(client.read(0, 5), Ok(b"first".to_vec()));
    block_on(host.remove_node("two")).expect("nobody uses it");
    host.shutdown().expect("an end in order");
}

/// libnbd sees errors while there is no medium, and goes on with the same connection.
#[test]
fn libnbd_goes_on_after_a_change_of_medium() {
    if !have(&["python-nbd"]) {
        return;
    }
    let host = empty();
    let scratch = scratch();
    add(&host, json!({ "driver": "memory", "node-name": "one", "size": "4MiB" }));
    block_on(host.add_drive("cd", Some("one"), true)).expect("a drive");
    let writable = NewExport { writable: true, ..NewExport::of_drive("cd", "cd") };
    let uri = export(&host, &scratch, writable);
    let (go, went) = (scratch.path("go"), scratch.path("went"));
    let script = r#"
import errno, nbd, os, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"before", 0)
open(sys.argv[3], "w").close()
deadline = time.monotonic() + 60
while not os.path.exists(sys.argv[2]):
    assert time.monotonic() < deadline
    time.sleep(0.005)
try:
    h.pread(6, 0)
    raise SystemExit("no medium was no error")
except nbd.Error as e:
    assert e.errno == "EIO", e.errno
open(sys.argv[3] + "2", "w").close()
while True:
    try:
        assert h.pread(6, 0) == bytearray(b"before")
        break
    except nbd.Error:
        assert time.monotonic() < deadline
        time.sleep(0.005)
h.shutdown()
print("ok")
"#;
    std::thread::scope(|scope| {
        let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
        let (go_text, went_text) = (text(&go), text(&went));
        let client = scope.spawn(move || python(script, &[&uri, &go_text, &went_text]));
        let there = |path: &str| std::path::Path::new(path).exists().then_some(());
        blockloom_tests::eventually("it has written", || there(&text(&went)));
        block_on(host.eject_medium("cd")).expect("a medium");
        std::fs::write(&go, b"").expect("a sign");
        blockloom_tests::eventually("it has failed", || there(&format!("{}2", text(&went))));
        block_on(host.insert_medium("cd", "one")).expect("an empty drive");
        assert_eq!(client.join().expect("the client"), "ok\n");
    });
    host.shutdown().expect("an end in order");
}
