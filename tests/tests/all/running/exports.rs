//! Exports that come and go.

use blockloom::error::ErrorKind;
use blockloom::export::nbd::{ExportBitmap, RemovalMode};
use blockloom::graph::{BitmapScope, Event};
use blockloom::host::{NewExport, ShownBitmap};
use blockloom::{Host, block_on};
use blockloom_tests::nbd::{Client, OptionRefused, Terms, command, errno, list};
use blockloom_tests::tools::{fio, have, qemu_io, succeed};
use blockloom_tests::{Scratch, eventually};
use serde_json::json;

use super::{add, empty, export, socket, uri};
use crate::embed_bitmaps::decl;
use crate::scratch;

/// `NBD_REP_ERR_UNKNOWN`.
const UNKNOWN: OptionRefused = OptionRefused(0x8000_0006);

/// Node `disk` of 4 MiB, and drive `vda` on it.
fn with_disk() -> (Host, Scratch) {
    let host = empty();
    add(&host, json!({ "driver": "memory", "node-name": "disk", "size": "4MiB" }));
    block_on(host.add_drive("vda", Some("disk"), true)).expect("a drive");
    (host, scratch())
}

fn writable(export: NewExport) -> NewExport {
    NewExport { writable: true, ..export }
}

fn clients(host: &Host, id: &str) -> usize {
    let exports = host.exports();
    exports.iter().find(|export| export.id == id).expect("the export").clients
}

fn open(uri: &str) -> Result<Client, OptionRefused> {
    Client::with(uri, &Terms::default())
}

#[test]
fn exports_of_one_listener_come_and_go() {
    let (host, scratch) = with_disk();
    let mut events = host.events();
    let first = export(&host, &scratch, writable(NewExport::of_drive("a", "vda")));
    let mut client = Client::open(&first);
    assert_eq!(client.write(0, 0, b"hello"), 0);
    // The listener is there already.
    let second = export(&host, &scratch, NewExport::of_node("b", "disk"));
    assert_eq!(list(&first), ["a", "b"]);
    let mut reader = Client::open(&second);
    assert_eq!((reader.read(0, 5), reader.is_read_only()), (Ok(b"hello".to_vec()), true));
    let exports = host.exports();
    let of = |at: usize| (&*exports[at].id, &*exports[at].drive, exports[at].clients);
    assert_eq!((of(0), of(1)), (("a", "vda", 1), ("b", "#export.b", 1)));
    assert!(exports[0].writable && !exports[1].writable);

    let error =
        block_on(host.remove_export("b", RemovalMode::Safe)).expect_err("a client is there");
    let expect = "export `b` has 1 client: disconnect them first, or remove it with mode `hard`";
    assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::InUse, expect));
    reader.disconnect();
    eventually("the client is gone", || (clients(&host, "b") == 0).then_some(()));
    block_on(host.remove_export("b", RemovalMode::Safe)).expect("nobody uses it");
    assert_eq!(host.graph().drives().len(), 1, "the node's own drive is gone, too");
    assert_eq!(open(&second).expect_err("it is gone"), UNKNOWN);
    assert_eq!(client.read(0, 5), Ok(b"hello".to_vec()), "the other one goes on");

    block_on(host.remove_export("a", RemovalMode::Hard)).expect("its client is disconnected");
    assert_eq!(client.stream().read_to_close(), b"");
    assert!(!scratch.path("nbd.sock").exists(), "the listener went with its last export");
    assert!(host.exports().is_empty());
    let error = block_on(host.remove_export("a", RemovalMode::Hard)).expect_err("it is gone");
    assert_eq!(error.to_string(), "there is no export `a`; there is: none");
    let told = std::iter::from_fn(|| events.try_next()).filter_map(|notice| match notice.event {
        Event::ExportAdded { id, .. } => Some(format!("+{id}")),
        Event::ExportRemoved { id } => Some(format!("-{id}")),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), ["+a", "+b", "-b", "-a"]);
    // The same address and id again.
    let again = export(&host, &scratch, NewExport::of_drive("a", "vda"));
    assert_eq!(Client::open(&again).read(0, 5), Ok(b"hello".to_vec()));
    host.shutdown().expect("an end in order");
}

#[test]
fn what_cannot_be_exported_leaves_nothing() {
    let (host, scratch) = with_disk();
    block_on(host.add_drive("cd", None, false)).expect("a drive");
    let add = |export: NewExport| {
        let listen = Some(socket(&scratch));
        let added = block_on(host.add_export(NewExport { listen, ..export }));
        added.expect_err("refused").to_string()
    };
    let check = |export: NewExport, expect: &str| {
        let error = add(export);
        assert!(error.contains(expect), "{error}");
        assert!(host.exports().len() <= 1, "{expect}");
        assert!(!host.graph().drives().iter().any(|drive| drive.id().starts_with('#')), "{expect}");
    };
    check(NewExport::of_drive("x", "none"), "none");
    check(NewExport::of_node("x", "none"), "unknown root `none`");
    check(writable(NewExport::of_drive("x", "cd")), "drive `cd` is read-only");
    check(writable(NewExport::of_node("x", "disk")), "does not share");
    let shown = vec![ShownBitmap::Named("daily".into())];
    let with_bitmap = NewExport { bitmaps: shown, ..NewExport::of_node("x", "disk") };
    check(with_bitmap, "nothing that export `x` shows has a bitmap `daily`");
    export(&host, &scratch, NewExport::of_drive("x", "vda"));
    check(NewExport::of_node("x", "disk"), "there is an export `x` already");
    check(NewExport { name: "x".into(), ..NewExport::of_node("y", "disk") }, "both be called `x`");
    let elsewhere = block_on(host.add_export(NewExport::of_drive("y", "vda")));
    let error = elsewhere.expect_err("no server").to_string();
    assert!(error.contains("no NBD server was started"), "{error}");
    host.shutdown().expect("an end in order");
}

/// QEMU lets one export have a bitmap, and no second one.
#[test]
fn two_exports_show_one_bitmap_and_release_it() {
    let (host, scratch) = with_disk();
    let scope = BitmapScope::Drive("vda".into());
    let bitmap = block_on(host.add_bitmap(decl(&scope, "daily", 65_536))).expect("a bitmap");
    let named = vec![ShownBitmap::Named("daily".into())];
    let exactly = vec![ShownBitmap::Exactly(ExportBitmap {
        name: "daily".into(),
        scope: scope.clone(),
        is_frozen: false,
    })];
    let a = NewExport { bitmaps: named, ..writable(NewExport::of_drive("a", "vda")) };
    let a = export(&host, &scratch, a);
    let b = NewExport { bitmaps: exactly, ..NewExport::of_drive("b", "vda") };
    let b = export(&host, &scratch, b);
    let contexts = Terms { contexts: &["qemu:dirty-bitmap:daily"], ..Terms::default() };
    let open = |uri: &str| Client::with(uri, &contexts).expect("open");
    let (mut first, mut second) = (open(&a), open(&b));
    assert_eq!(first.write(0, 65_536, &[1; 10]), 0);
    for client in [&mut first, &mut second] {
        assert_eq!(client.flagged("qemu:dirty-bitmap:daily"), [(65_536, 65_536)]);
    }
    let error = block_on(bitmap.remove()).expect_err("in use").to_string();
    assert!(error.contains("export `a`") && error.contains("export `b`"), "{error}");
    block_on(host.remove_export("a", RemovalMode::Hard)).expect("an end");
    block_on(bitmap.remove()).expect_err("the other one has it still");
    block_on(host.remove_export("b", RemovalMode::Hard)).expect("an end");
    block_on(bitmap.remove()).expect("nobody has it");
    host.shutdown().expect("an end in order");
}

#[test]
fn a_server_takes_so_many_clients_and_no_more() {
    let (host, scratch) = with_disk();
    let address = socket(&scratch);
    host.nbd_server_start(&address, Some(2)).expect("a server");
    let error = host.nbd_server_start(&address, None).expect_err("it is there");
    assert_eq!(error.kind(), ErrorKind::Exists);
    block_on(host.add_export(writable(NewExport::of_drive("a", "vda")))).expect("an export");
    let uri = uri(&scratch, "a");
    let (first, mut second) = (Client::open(&uri), Client::open(&uri));
    // One more waits until one of them has gone.
    first.disconnect();
    let mut third = Client::open(&uri);
    assert_eq!((third.write(0, 0, b"x"), second.read(0, 1)), (0, Ok(b"x".to_vec())));

    // Exports go with the server; another one may begin at once.
    block_on(host.nbd_server_stop()).expect("an end");
    assert_eq!((second.stream().read_to_close(), third.stream().read_to_close()), (vec![], vec![]));
    assert!(host.exports().is_empty() && !scratch.path("nbd.sock").exists());
    let error = block_on(host.nbd_server_stop()).expect_err("it has ended");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    host.nbd_server_start(&address, None).expect("a server");
    block_on(host.add_export(NewExport::of_node("disk", "disk"))).expect("an export");
    if have(&["nbdinfo"]) {
        assert_eq!(succeed("nbdinfo", ["--size", &super::uri(&scratch, "disk")]).trim(), "4194304");
    }
    block_on(host.nbd_server_stop()).expect("an end");
    assert_eq!(host.graph().drives().len(), 1);
    host.shutdown().expect("an end in order");
}

/// Requests that have arrived are answered, none of them twice or half; the other clients do not notice.
#[test]
fn an_export_ends_under_load() {
    if !have(&["fio", "qemu-io"]) {
        return;
    }
    let (host, scratch) = with_disk();
    let kept = export(&host, &scratch, writable(NewExport::of_drive("kept", "vda")));
    let load = |uri: &str| {
        fio(&[
            "name=load",
            "ioengine=nbd",
            &format!("uri={uri}"),
            "rw=randrw",
            "bs=4k",
            "size=4M",
            "io_size=64M",
            "iodepth=16",
            "verify=crc32c",
            "verify_fatal=1",
            "verify_state_save=0",
        ])
    };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| load(&kept));
        let mut rounds = 0_u64;
        while !running.is_finished() {
            let other = export(&host, &scratch, NewExport::of_drive("other", "vda"));
            let mut client = Client::open(&other);
            let sent = 1 + rounds % 7;
            for request in 0..sent {
                let offset = request * 4096;
                let (command, len_bytes, payload) = (command::READ, 4096, &[] as &[u8]);
                let flags = 0;
                client.send(&blockloom_tests::nbd::Request {
                    command,
                    flags,
                    offset,
                    len_bytes,
                    payload,
                });
            }
            let first = client.receive(4096);
            assert_eq!(first.errno, 0);
            block_on(host.remove_export("other", RemovalMode::Hard)).expect("an end");
            while let Ok(reply) = client.try_receive(4096) {
                assert_eq!(reply.errno, 0, "what is answered is answered in full");
            }
            rounds += 1;
        }
        assert!(rounds > 3, "{rounds} rounds beside the load");
        running.join().expect("the load");
    });
    qemu_io(&kept, &["write -P 3 0 1M", "read -P 3 0 1M"]);
    host.shutdown().expect("an end in order");
}

/// A drive that is exported stays, and one whose clients may write stays writable.
#[test]
fn exports_hold_what_they_serve() {
    let (host, scratch) = with_disk();
    export(&host, &scratch, writable(NewExport::of_drive("a", "vda")));
    let error = block_on(host.remove_drive("vda")).expect_err("exported").to_string();
    assert_eq!(error, "drive `vda` is in use by exports `a`");
    let error = block_on(host.set_writable("vda", false)).expect_err("exported").to_string();
    assert_eq!(error, "export `a` of drive `vda` is writable: remove it first");
    let error = block_on(host.remove_node("disk")).expect_err("a drive is there").to_string();
    assert!(error.contains("in use by drive `vda`"), "{error}");
    block_on(host.remove_export("a", RemovalMode::Safe)).expect("no client is there");
    block_on(host.set_writable("vda", false)).expect("nobody writes");
    let vda = host.drive("vda").expect("a drive");
    let refused = block_on(vda.write(0, b"x")).expect_err("read-only");
    assert!(matches!(refused.kind(), ErrorKind::NotPermitted | ErrorKind::ReadOnly), "{refused}");
    block_on(host.set_writable("vda", true)).expect("nobody minds");
    block_on(vda.write(0, b"x")).expect("a write");
    host.shutdown().expect("an end in order");
}

#[test]
fn a_client_that_was_cut_off_sees_an_error_and_no_silence() {
    let (host, scratch) = with_disk();
    let uri = export(&host, &scratch, writable(NewExport::of_drive("a", "vda")));
    let mut client = Client::open(&uri);
    block_on(host.eject_medium("vda")).expect("a medium to eject");
    assert_eq!(client.read(0, 512), Err(errno::IO));
    block_on(host.remove_export("a", RemovalMode::Hard)).expect("an end");
    assert_eq!(client.stream().read_to_close(), b"");
    host.shutdown().expect("an end in order");
}
