//! Clients that stall, flood, break off or are too many harm nobody else.

use std::net::Shutdown;
use std::time::Duration;

use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Random, eventually};
use serde_json::{Value, json};

use super::Controlled;

const BITMAP: &str = r#"{"node": "vda", "name": "daily"}"#;

fn bitmap() -> Value {
    serde_json::from_str(BITMAP).expect("JSON")
}

/// A client that never reads loses its connection when events have filled what is kept for it; the one that
/// makes the events, and the host, go on.
#[test]
fn a_client_that_does_not_read_its_events_is_let_go() {
    let host = Controlled::memory();
    let (mut client, mut stalled) = (host.client(), host.client());
    client.run("block-dirty-bitmap-add", bitmap());
    let mut toggles = 0;
    while !host.daemon.log().contains("does not read its events") {
        client.run("block-dirty-bitmap-disable", bitmap());
        client.run("block-dirty-bitmap-enable", bitmap());
        toggles += 1;
        assert!(toggles < 50_000, "nobody minds the client that does not read");
    }
    // What had been sent by then can still be read, in order.
    let mut events = 0;
    while stalled.try_line().is_some() {
        events += 1;
    }
    assert!(events > 100, "{events}");
    assert_eq!(host.client().run("query-block", json!({}))[0]["device"], "vda");
    client.run("block-dirty-bitmap-clear", bitmap());
    host.finish();
}

/// A client that asks and asks and reads no answer has its commands wait, and holds up neither others nor the
/// end.
#[test]
fn a_client_that_reads_no_answer_waits_alone() {
    let host = Controlled::memory();
    let mut stalled = host.client();
    stalled.stream().set_write_timeout(Some(Duration::from_millis(500))).expect("a time-out");
    let ask = "{\"execute\": \"query-qmp-schema\"}\n".repeat(100);
    let sent = (0..10_000).take_while(|_| stalled.try_send(ask.as_bytes())).count();
    assert!(sent < 10_000, "all was taken");
    let mut client = host.client();
    client.run("block-dirty-bitmap-add", bitmap());
    assert!(host.daemon.resident_bytes() < 200 << 20);
    host.finish();
}

/// Whoever ends sending still gets all answers, and then the end.
#[test]
fn a_half_closed_connection_is_answered_to_the_end() {
    let host = Controlled::memory();
    let mut client = Qmp::connect(&host.socket);
    let mut input = String::from("{\"execute\": \"qmp_capabilities\"}\n");
    (0..500).for_each(|id| input += &format!("{{\"execute\": \"query-block\", \"id\": {id}}}"));
    client.send(input);
    client.stream().shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(client.answer(), json!({"return": {}}));
    for id in 0..500 {
        assert_eq!(client.answer()["id"], id);
    }
    assert_eq!(client.line(), None);
    // Gone at once, in the midst of a command and of an answer.
    for _ in 0..50 {
        let mut rude = host.client();
        rude.send("{\"execute\": \"query-qmp-schema\"}{\"execute\": \"query-qm");
        drop(rude);
    }
    host.client().run("query-version", json!({}));
    host.finish();
}

#[test]
fn there_are_sixteen_clients_and_no_more() {
    let host = Controlled::memory();
    let mut clients: Vec<Qmp> = (0..16).map(|_| host.client()).collect();
    let mut late = Qmp::connect(&host.socket);
    let desc = late.greeting()["error"]["desc"].as_str().expect("an error").to_owned();
    assert_eq!(desc, "there are 16 clients already: no more are served");
    assert_eq!(late.line(), None);
    clients.iter_mut().for_each(|client| drop(client.run("query-version", json!({}))));
    clients.pop();
    eventually("there is a place again", || {
        let next = Qmp::connect(&host.socket);
        next.greeting().get("QMP").map(|_| ())
    });
    drop(clients);
    host.finish();
}

/// Several clients throw bytes at it; one that speaks QMP is served beside them.
#[test]
fn garbage_harms_nobody() {
    let host = Controlled::memory();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let socket = &host.socket;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..20 {
                    let mut client = Qmp::connect(socket);
                    let alphabet = b"{}[]:,\"'\\ue1.-+tfn \n\0\xff\xc3%executid";
                    let some = |_| alphabet[random.below(alphabet.len() as u64) as usize];
                    let mut bytes: Vec<u8> = (0..20_000).map(some).collect();
                    // However it stood, a line's end, and closing brackets, come to an end.
                    bytes.extend_from_slice(b"\n\"\n");
                    let reader = client.second();
                    let reading = scope.spawn(move || {
                        use std::io::Read;
                        let _ = { reader }.read_to_end(&mut Vec::new());
                    });
                    client.try_send(&bytes);
                    let _ = client.stream().shutdown(Shutdown::Write);
                    reading.join().expect("a reader");
                }
            });
        }
        let mut client = host.client();
        client.run("block-dirty-bitmap-add", bitmap());
        for _ in 0..200 {
            client.run("block-dirty-bitmap-clear", bitmap());
            client.run("query-named-block-nodes", json!({}));
        }
    });
    host.finish();
}

/// What is longer or deeper than a command may be is refused, and the next line counts.
#[test]
fn bounds_are_said() {
    let host = Controlled::memory();
    let mut client = host.client();
    let check = |client: &mut Qmp, input: String, desc: &str| {
        client.send(input);
        client.send("\n");
        assert_eq!(client.answer()["error"]["desc"], desc);
        client.run("query-version", json!({}));
    };
    check(&mut client, "x".repeat(4 << 20), "JSON token size limit exceeded");
    check(&mut client, format!("\"{}", "x".repeat(4 << 20)), "JSON token size limit exceeded");
    check(&mut client, "[1,".repeat(300_000), "JSON nesting depth limit exceeded");
    check(&mut client, format!("[{}", "1,".repeat(300_000)), "JSON token count limit exceeded");
    let deep = format!(
        "{{\"execute\": \"query-version\", \"id\": {}1{}}}",
        "[".repeat(511),
        "]".repeat(511)
    );
    client.send(deep);
    assert!(client.answer_text().contains("\"return\""));
    host.finish();
}

#[test]
fn only_the_users_that_are_named_may_control_it() {
    let uid = rustix::process::getuid().as_raw();
    let host = Controlled::start(&crate::memory_disk(crate::MIB), &["--control-uid", "4000000000"]);
    let stranger = Qmp::connect(&host.socket);
    let desc = stranger.greeting()["error"]["desc"].as_str().expect("an error").to_owned();
    assert_eq!(desc, format!("user {uid} may not control this host"));
    host.finish();
    let own = uid.to_string();
    let host = Controlled::start(
        &crate::memory_disk(crate::MIB),
        &["--control-uid", "4000000000", "--control-uid", &own],
    );
    host.client().run("query-version", json!({}));
    host.finish();
}

/// The socket of a server that was killed is replaced; that of a live one, and a file, are not.
#[test]
fn what_lies_at_the_socket() {
    let host = Controlled::memory();
    let socket = host.socket.display().to_string();
    let graph = host.scratch.graph("other.toml", "[node.n]\ndriver = \"null\"\nsize = 512\n");
    let start = |path: &str| {
        blockloom_tests::Daemon::try_start(crate::program(), &graph, &["--control", path])
    };
    let refused = start(&socket).err().expect("it is in use");
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("another server listens there"), "{}", refused.stderr);
    host.daemon.kill();
    let second = start(&socket).unwrap_or_else(|refused| panic!("{}", refused.stderr));
    Qmp::open(&host.socket).run("query-version", json!({}));
    second.finish();
    let file = host.scratch.path("file");
    std::fs::write(&file, "precious").expect("a file");
    let refused = start(&file.display().to_string()).err().expect("it is no socket");
    assert!(refused.stderr.contains("a file that is no socket lies there"), "{}", refused.stderr);
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "precious");
}
