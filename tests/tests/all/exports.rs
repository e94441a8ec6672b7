//! Exports and listeners: names, several of both, TCP, and what read-only means.

use std::net::TcpListener;

use blockloom_tests::nbd::{self, Client, OptionRefused, Terms, command, errno};
use blockloom_tests::tools::{have, succeed};

use crate::{ENGINES, MIB, file_disk, memory_disk, scratch, serve, try_serve};

/// `NBD_REP_ERR_UNKNOWN`: no such export.
const UNKNOWN_EXPORT: OptionRefused = OptionRefused(0x8000_0006);

/// `drives` memory drives of 1, 2, … MiB, all exported on each of `listeners`.
fn many(drives: u64, listeners: &[&str]) -> String {
    let mut text = String::new();
    for drive in 1..=drives {
        text += &format!("[node.n{drive}]\ndriver = \"memory\"\nsize = \"{drive}MiB\"\n");
        text += &format!("[drive.d{drive}]\nroot = \"n{drive}\"\n");
        for (at, listen) in listeners.iter().enumerate() {
            text += &format!(
                "[export.e{drive}-{at}]\ntype = \"nbd\"\nname = \"e{drive}\"\n\
                 drive = \"d{drive}\"\nlisten = \"{listen}\"\nwritable = true\n"
            );
        }
    }
    text
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("an address").port()
}

#[test]
fn many_exports_on_many_listeners() {
    for engine in ENGINES {
        let scratch = scratch();
        let tcp = format!("tcp:127.0.0.1:{}", free_port());
        let text = many(20, &["unix:a.sock", "unix:b.sock", &tcp]);
        let daemon = serve(&scratch, &text, &["--engine", engine]);
        for listener in 0..3 {
            let names = nbd::list(daemon.uri(&format!("e1-{listener}")));
            let expect: Vec<_> = (1..=20).map(|drive| format!("e{drive}")).collect();
            let sorted = |mut names: Vec<String>| {
                names.sort();
                names
            };
            assert_eq!(sorted(names), sorted(expect));
        }
        for drive in 1..=20 {
            let uri = |listener| daemon.uri(&format!("e{drive}-{listener}"));
            let mut over_unix = Client::open(uri(drive % 2));
            let mut over_tcp = Client::open(uri(2));
            assert_eq!(over_tcp.size_bytes(), drive * MIB);
            assert_eq!(over_unix.write(0, drive, &[drive as u8; 700]), 0);
            assert_eq!(over_tcp.read(drive, 700), Ok(vec![drive as u8; 700]), "{engine}");
            assert_eq!(over_tcp.read(0, drive as u32), Ok(vec![0; drive as usize]), "{engine}");
        }
        daemon.finish();
    }
}

#[test]
fn names_find_their_exports() {
    let place = scratch();
    let daemon = serve(&place, &memory_disk(MIB), &[]);
    let open = |uri: &str, name: &str| {
        let terms = Terms { export: Some(name), ..Terms::default() };
        Client::with(uri, &terms).map(|client| client.size_bytes())
    };
    assert_eq!(open(daemon.uri("vda"), ""), Ok(MIB), "the only export has the empty name too");
    assert_eq!(open(daemon.uri("vda"), "vda"), Ok(MIB));
    assert_eq!(open(daemon.uri("vda"), "vdb"), Err(UNKNOWN_EXPORT));
    assert_eq!(open(daemon.uri("vda"), &"x".repeat(4096)), Err(UNKNOWN_EXPORT));
    daemon.finish();
    let place = scratch();
    let daemon = serve(&place, &many(2, &["unix:a.sock"]), &[]);
    assert_eq!(open(daemon.uri("e1-0"), ""), Err(UNKNOWN_EXPORT), "one of two is not guessed");
    assert_eq!(open(daemon.uri("e1-0"), "e2"), Ok(2 * MIB), "any export of the listener");
    daemon.finish();
}

#[test]
fn a_read_only_export_refuses_changes() {
    for engine in ENGINES {
        let scratch = scratch();
        let image = scratch.image_of("disk.img", &[7; 8192]);
        let daemon = serve(&scratch, &file_disk(&image, false), &["--engine", engine]);
        let mut client = Client::open(daemon.uri("vda"));
        assert!(client.is_read_only());
        assert_eq!(client.write(0, 0, b"no"), errno::PERM);
        assert_eq!(client.plain(command::WRITE_ZEROES, 0, 0, 4096), errno::PERM);
        assert_eq!(client.plain(command::TRIM, 0, 0, 4096), errno::PERM);
        assert_eq!(client.plain(command::FLUSH, 0, 0, 0), 0);
        assert_eq!(client.read(0, 8192), Ok(vec![7; 8192]));
        daemon.finish();
        assert_eq!(scratch.peek("disk.img", 0, 8192), [7; 8192]);
    }
}

/// A read-only file can be served, read-only.
#[test]
fn what_the_client_sees_is_what_nbdinfo_says() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let scratch = scratch();
    let text = many(3, &["unix:a.sock"]) + "[bitmap.daily]\ndrive = \"d1\"\n";
    let text = text.replacen("writable = true", "bitmaps = [\"daily\"]", 1);
    let daemon = serve(&scratch, &text, &[]);
    let output = succeed("nbdinfo", ["--json", daemon.uri("e1-0")]);
    let info: serde_json::Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!((&info["protocol"], &info["structured"]), (&"newstyle-fixed".into(), &true.into()));
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], MIB);
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    let contexts = serde_json::json!(["base:allocation", "qemu:dirty-bitmap:daily"]);
    assert_eq!(export["contexts"], contexts, "{output}");
    let listed = succeed("nbdinfo", ["--list", "--json", daemon.uri("e1-0")]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["exports"].as_array().map(Vec::len), Some(3), "{listed}");
    daemon.finish();
}

/// A TCP port that is taken: the address is named, and nothing is started.
#[test]
fn a_port_in_use_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = format!("tcp:{}", listener.local_addr().expect("an address"));
    let scratch = scratch();
    let text = memory_disk(MIB).replace("unix:nbd.sock", &address);
    let refused = try_serve(&scratch, &text, &[]).err().expect("refused");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains(&address), "{}", refused.stderr);
}
