//! Plugins that talk too much, or in another way than people read.

use std::path::Path;

use blockloom_tests::{Daemon, nbd};

use super::guest::Guest;
use super::scene::{Coming, Setup, check_fault};

/// Serves a drive through `guest`; returns what is logged when it has been written to once.
fn log_of(guest: Guest<'_>, errno: u32) -> String {
    let scratch = crate::scratch();
    let plugin = scratch.image_of("evil.wasm", &guest.module());
    let daemon = serve(&scratch, &plugin);
    let mut client = nbd::Client::open(daemon.uri("x"));
    assert_eq!(client.write(0, 0, &[1; 4096]), errno);
    // A neighbour in the same daemon.
    let mut calm = nbd::Client::open(daemon.uri("calm"));
    assert_eq!(calm.write(0, 0, &[2; 4096]), 0);
    assert_eq!(calm.read(0, 4096), Ok(vec![2; 4096]));
    client.disconnect();
    calm.disconnect();
    let ended = daemon.terminate();
    assert!(ended.status.success(), "{ended:?}");
    ended.log
}

fn serve(scratch: &blockloom_tests::Scratch, plugin: &Path) -> Daemon {
    let plugin = plugin.display();
    let text = format!(
        "[node.evil]\ndriver = \"plugin\"\nplugin = \"{plugin}\"\n\
         child.file = {{ driver = \"memory\", size = \"1MiB\" }}\n\
         limits = {{ call = \"50ms\" }}\n\
         [node.pass]\ndriver = \"plugin\"\nplugin = \"pass\"\n\
         child.file = {{ driver = \"memory\", size = \"1MiB\" }}\n\
         [drive.x]\nroot = \"evil\"\n[drive.calm]\nroot = \"pass\"\n\
         [export.x]\ntype = \"nbd\"\ndrive = \"x\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n\
         [export.calm]\ntype = \"nbd\"\ndrive = \"calm\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\n"
    );
    crate::serve(scratch, &text, &["--log", "trace"])
}

fn lines<'a>(log: &'a str, with: &'a str) -> impl Iterator<Item = &'a str> {
    log.lines().filter(move |line| line.contains(with))
}

#[test]
fn a_thousand_messages_at_once() {
    let event = "(local $n i32)
        (loop $more (call $log (i32.const 2) (i32.const 0x400) (i32.const 12))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $more (i32.lt_u (local.get $n) (i32.const 1000))))
        (call $forward (local.get $id))";
    let items = "(data (i32.const 0x400) \"talk, talk!!\")";
    let log = log_of(Guest { event, items, kinds: 2, ..Guest::PASS }, 0);
    let count = lines(&log, "talk, talk!!").count();
    assert!((1..=200).contains(&count), "{count} messages");
}

#[test]
fn what_would_act_on_a_terminal_is_escaped() {
    let event = "(call $log (i32.const 3) (i32.const 0x400) (i32.const 32))
        (call $forward (local.get $id))";
    let items = r#"(data (i32.const 0x400) "a\1b[2Jb\0d\0aERROR forged\07\00 \c2\9b31m   ")"#;
    let log = log_of(Guest { event, items, kinds: 2, ..Guest::PASS }, 0);
    let line = lines(&log, "forged").next().expect("the message");
    assert!(line.contains("INFO") && line.contains("a\\u{1b}[2Jb\\r\\nERROR forged"), "{line}");
    assert!(!line.contains(char::is_control), "{line:?}");
}

#[test]
fn every_level_is_one_of_ours() {
    let event = "(local $n i32)
        (loop $more (call $log (local.get $n) (i32.const 0x400) (i32.const 5))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $more (i32.lt_u (local.get $n) (i32.const 9))))
        (call $forward (local.get $id))";
    let items = "(data (i32.const 0x400) \"hello\")";
    let log = log_of(Guest { event, items, kinds: 2, ..Guest::PASS }, 0);
    let levels: Vec<_> =
        lines(&log, "hello").filter_map(|it| it.split_whitespace().next()).collect();
    let expect = ["ERROR", "ERROR", "WARN", "INFO", "DEBUG", "TRACE", "TRACE", "TRACE", "TRACE"];
    assert_eq!(levels, expect, "{log}");
}

#[test]
fn a_fault_is_logged_once_with_the_plugins_name_and_reason() {
    let log = log_of(Guest { event: "unreachable", kinds: 2, ..Guest::PASS }, nbd::errno::IO);
    let found: Vec<_> = lines(&log, "out of service").filter(|it| it.contains("ERROR")).collect();
    let [line] = found[..] else { panic!("{log}") };
    assert!(line.contains("evil.wasm") && line.contains("wasm `unreachable`"), "{line}");
}

#[test]
fn a_long_message_is_cut() {
    let event = "(memory.fill (i32.const 0x20000) (i32.const 0x41) (i32.const 60000))
        (call $log (i32.const 3) (i32.const 0x20000) (i32.const 60000))
        (call $forward (local.get $id))";
    let log = log_of(Guest { event, kinds: 2, ..Guest::PASS }, 0);
    let line = lines(&log, "AAAA").next().expect("the message");
    assert!(line.len() < 2000, "{} bytes", line.len());
}

#[test]
fn a_message_of_more_bytes_than_a_call_may_move() {
    let event = "(call $log (i32.const 3) (i32.const 0x20000) (i32.const 200000))";
    check_fault(Guest { event, ..Guest::PASS }, Coming::Together, "failed in `poll`: ");
}

#[test]
fn messages_that_are_not_there() {
    let cases = [
        ("(i32.const 0x5fff0) (i32.const 64)", "failed in `poll`: "),
        ("(i32.const -1) (i32.const 2)", "failed in `poll`: "),
        ("(i32.const 0x400) (i32.const -1)", "failed in `poll`: "),
        // Not UTF-8.
        ("(i32.const 0x400) (i32.const 3)", "failed in `poll`: "),
    ];
    for (message, reason) in cases {
        let event = format!("(call $log (i32.const 3) {message})");
        let items = r#"(data (i32.const 0x400) "\ff\fe\fd")"#;
        let guest = Guest { event: &event, items, ..Guest::PASS };
        check_fault(guest, Coming::Together, reason);
    }
}

/// Messages are time of the call as well.
#[test]
fn talking_without_end() {
    let event = "(loop $more (call $log (i32.const 5) (i32.const 0x400) (i32.const 5)) (br $more))";
    let items = "(data (i32.const 0x400) \"hello\")";
    let guest = Guest { event, items, ..Guest::PASS };
    check_fault(guest, Coming::Together, "wasm trap: interrupt");
}

/// What was said as an error long ago is not the reason of a fault now.
#[test]
fn an_old_error_is_not_the_reason_of_a_fault() {
    let event = "(if (i64.eqz (local.get $offset))
        (then
            (call $log (i32.const 1) (i32.const 0x400) (i32.const 9))
            (call $forward (local.get $id)))
        (else unreachable))";
    let items = "(data (i32.const 0x400) \"all is bad\")";
    let scene = Setup::of(Guest { event, items, ..Guest::PASS }).start();
    scene.write(0, 1, 1).expect("written");
    scene.write(1, 1, 1).expect_err("a fault");
    let failure = scene.instance.failure().expect("a fault").to_owned();
    assert!(failure.contains("`unreachable`"), "{failure}");
    scene.end();
}
