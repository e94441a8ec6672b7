use super::super::specimen::Specimens;
use super::super::transcript::bytes;
use super::*;

const GREETING: &str = "'NBDMAGIC' 'IHAVEOPT' 0003";
/// Transmission flags of the two exports without and with structured replies.
const DISK_FLAGS: &str = "0d6d";
const DISK_FLAGS_STRUCTURED: &str = "0ded";
const CD_FLAGS: &str = "050f";
const CD_FLAGS_STRUCTURED: &str = "058f";
const MIB: &str = "0000000000100000";

/// How a conversation ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The server waits for more.
    Waiting,
    Closed,
    /// In transmission: name, structured, contexts as (id, index), input left over.
    Session(&'static str, bool, Vec<(u32, usize)>, usize),
}

fn converse(client: &[u8], piece_bytes: usize) -> (Vec<u8>, End) {
    let (mut output, mut unsent) = (Vec::new(), Vec::new());
    let mut handshake = Handshake::start(&mut unsent);
    let (mut consumed, mut received) = (0, 0);
    loop {
        let Progress { consumed_bytes, step } =
            handshake.feed(&client[consumed..received], &Specimens, &mut unsent);
        consumed += consumed_bytes;
        output.append(&mut unsent);
        let end = match step {
            Step::Receive if received == client.len() => End::Waiting,
            Step::Receive => {
                received = client.len().min(received + piece_bytes);
                continue;
            }
            Step::Send => continue,
            Step::Close => End::Closed,
            Step::Transmission(session) => {
                let contexts = session.contexts.iter().map(|context| (context.id, context.index));
                let name = ["", "disk", "cd"].into_iter().find(|&name| name == session.export);
                End::Session(
                    name.expect("a known name"),
                    session.structured,
                    contexts.collect(),
                    client.len() - consumed,
                )
            }
        };
        if end != End::Waiting {
            let after = handshake.feed(&client[consumed..], &Specimens, &mut unsent);
            assert_eq!(after, Progress { consumed_bytes: 0, step: Step::Close });
            assert!(unsent.is_empty());
        }
        return (output, end);
    }
}

/// The client sends `client` after its flags; the server answers `server` after its greeting.
fn check_flags(flags: &str, client: &[&str], server: &[&str], end: End) {
    let sent = bytes(&format!("{flags} {}", client.join(" ")));
    let answer = bytes(&format!("{GREETING} {}", server.join(" ")));
    for piece_bytes in [sent.len().max(1), 1, 7] {
        let (output, reached) = converse(&sent, piece_bytes);
        let output = output.escape_ascii().to_string();
        assert_eq!(output, answer.escape_ascii().to_string(), "{client:?}");
        let reached = match reached {
            // Bytes not received yet are left over too.
            End::Session(name, structured, contexts, _) if piece_bytes < sent.len() => {
                let End::Session(_, _, _, left) = end else { panic!("{client:?}") };
                End::Session(name, structured, contexts, left)
            }
            other => other,
        };
        assert_eq!(reached, end, "{client:?} in pieces of {piece_bytes}");
    }
}

fn check(client: &[&str], server: &[&str], end: End) {
    check_flags("00000003", client, server, end);
}

/// An option with its data.
fn option(option: u32, data: &str) -> String {
    format!("'IHAVEOPT' {option:08x} {:08x} {data}", bytes(data).len())
}

/// A reply to an option.
fn reply(option: u32, kind: u32, data: &str) -> String {
    format!("0003e889045565a9 {option:08x} {kind:08x} {:08x} {data}", bytes(data).len())
}

fn ack(option: u32) -> String {
    reply(option, 1, "")
}

/// An error reply with its text, `_` for spaces.
fn error(option: u32, kind: u32, text: &str) -> String {
    reply(option, 0x8000_0000 + kind, &format!("'{text}'"))
}

const UNSUPPORTED: &str = "option_is_not_supported_by_this_server";
const TAKES_NO_DATA: &str = "option_takes_no_data";
const TOO_LONG: &str = "option_data_is_longer_than_64_KiB";
const NO_EXPORT: &str = "no_export_named_'none';_list_the_exports_to_see_what_is_served";
const NEEDS_STRUCTURED: &str = "metadata_contexts_need_structured_replies;_negotiate_those_first";

fn info(option: u32, flags: &str) -> String {
    let sizes = if [CD_FLAGS, CD_FLAGS_STRUCTURED].contains(&flags) {
        "0003 00000800 00001000 00100000"
    } else {
        "0003 00000001 00001000 04000000"
    };
    format!("{} {}", reply(option, 3, &format!("0000 {MIB} {flags}")), reply(option, 3, sizes))
}

#[test]
fn client_flags_are_checked() {
    let zeroes = format!("{MIB} {DISK_FLAGS} 00*124");
    let no_zeroes = format!("{MIB} {DISK_FLAGS}");
    let export_name = option(1, "'disk'");
    let opened = || End::Session("disk", false, vec![], 0);
    check_flags("", &[], &[], End::Waiting);
    check_flags("000000", &[], &[], End::Waiting);
    check_flags("00000000", &[&export_name], &[&zeroes], opened());
    check_flags("00000001", &[&export_name], &[&zeroes], opened());
    check_flags("00000002", &[&export_name], &[&no_zeroes], opened());
    check_flags("00000003", &[&export_name], &[&no_zeroes], opened());
    for unknown in ["00000004", "80000003", "00010003"] {
        check_flags(unknown, &[&export_name], &[], End::Closed);
    }
    // Without fixed newstyle there is no reply to any other option.
    check_flags("00000002", &[&option(3, "")], &[], End::Closed);
    check_flags("00000000", &[&option(7, "00000000 0000")], &[], End::Closed);
}

#[test]
fn export_name_opens_or_closes() {
    check(&[&option(1, "")], &[&format!("{MIB} {DISK_FLAGS}")], End::Session("", false, vec![], 0));
    check(
        &[&option(8, ""), &option(1, "'cd'"), "0102030405"],
        &[&ack(8), MIB, CD_FLAGS_STRUCTURED],
        End::Session("cd", true, vec![], 5),
    );
    for refused in ["'none'", "ff", "'disk' 00", "61*4096", "61*4097", "61*65537"] {
        check(&[&option(1, refused)], &[], End::Closed);
    }
}

#[test]
fn abort_is_acknowledged() {
    check(&[&option(2, ""), "ffff"], &[&ack(2)], End::Closed);
    check(&[&option(2, "'why_not'")], &[&ack(2)], End::Closed);
}

#[test]
fn list_shows_every_export() {
    let disk = reply(3, 2, "00000004 'disk' 'a_test_disk'");
    let cd = reply(3, 2, "00000002 'cd'");
    check(&[&option(3, "")], &[&disk, &cd, &ack(3)], End::Waiting);
    check(&[&option(3, "00")], &[&error(3, 3, TAKES_NO_DATA)], End::Waiting);
    check(
        &[&option(3, "00*70000"), &option(2, "")],
        &[&error(3, 3, TAKES_NO_DATA), &ack(2)],
        End::Closed,
    );
}

#[test]
fn info_describes_and_go_opens() {
    let name = |option| reply(option, 3, "0001 'disk'");
    let description = |option| reply(option, 3, "0002 'a_test_disk'");
    let opened = |name, left| End::Session(name, false, vec![], left);
    let plain = "00000004 'disk' 0000";
    let all = "00000000 0005 0000 0001 0002 0003 0009";
    let of_cd = "00000002 'cd' 0002 0001 0002";

    check(&[&option(6, plain)], &[&info(6, DISK_FLAGS), &ack(6)], End::Waiting);
    check(&[&option(7, plain)], &[&info(7, DISK_FLAGS), &ack(7)], opened("disk", 0));
    check(
        &[&option(6, all), &option(7, all), "25609513"],
        &[
            &info(6, DISK_FLAGS),
            &name(6),
            &description(6),
            &ack(6),
            &info(7, DISK_FLAGS),
            &name(7),
            &description(7),
            &ack(7),
        ],
        opened("", 4),
    );
    let canonical = reply(7, 3, "0001 'cd'");
    check(&[&option(7, of_cd)], &[&info(7, CD_FLAGS), &canonical, &ack(7)], opened("cd", 0));
}

#[test]
fn refused_go_can_be_followed_by_another() {
    let malformed = "option_data_is_shorter_than_its_fields_say";
    for number in [6, 7] {
        check(
            &[&option(number, "00000004 'none' 0000"), &option(7, "00000002 'cd' 0000")],
            &[&error(number, 6, NO_EXPORT), &info(7, CD_FLAGS), &ack(7)],
            End::Session("cd", false, vec![], 0),
        );
        let refused = |data: &str, text: &str| {
            check(&[&option(number, data)], &[&error(number, 3, text)], End::Waiting);
        };
        refused("", malformed);
        refused("00000007 'disk' 0000", malformed);
        refused("00000004 'disk' 0001", "number_of_information_requests_is_wrong");
        refused("00000001 ff 0000", "string_is_not_UTF-8");
        refused("00000001 00 0000", "string_contains_a_NUL");
        refused("00001001 61*4097 0000", "string_is_longer_than_4096_bytes");
    }
}

#[test]
fn structured_replies_are_agreed_on() {
    let opened = End::Session("disk", true, vec![], 0);
    check(
        &[&option(8, ""), &option(8, ""), &option(7, "00000004 'disk' 0000")],
        &[&ack(8), &ack(8), &info(7, DISK_FLAGS_STRUCTURED), &ack(7)],
        opened,
    );
    check(
        &[&option(8, "00"), &option(7, "00000004 'disk' 0000")],
        &[&error(8, 3, TAKES_NO_DATA), &info(7, DISK_FLAGS), &ack(7)],
        End::Session("disk", false, vec![], 0),
    );
}

#[test]
fn other_options_are_skipped() {
    let go = option(7, "00000004 'disk' 0000");
    for number in [0, 4, 5, 11, 12, 0x7fff_ffff, 0xffff_ffff] {
        for data in ["", "'abc'", "00*100000"] {
            check(
                &[&option(number, data), &go],
                &[&error(number, 1, UNSUPPORTED), &info(7, DISK_FLAGS), &ack(7)],
                End::Session("disk", false, vec![], 0),
            );
        }
    }
}

#[test]
fn option_data_is_bounded() {
    for number in [6, 7] {
        check(
            &[&option(number, "00*65537"), &option(2, "")],
            &[&error(number, 9, TOO_LONG), &ack(2)],
            End::Closed,
        );
    }
    let longest = format!("'IHAVEOPT' 0000002a {:08x}", MAX_DRAINED_OPTION_BYTES);
    check(&[&longest], &[], End::Waiting);
    for number in [1, 2, 3, 7, 0x2a] {
        let too_long = format!("'IHAVEOPT' {number:08x} {:08x}", MAX_DRAINED_OPTION_BYTES + 1);
        check(&[&too_long], &[], End::Closed);
    }
}

#[test]
fn options_need_their_magic() {
    check(&["'IHAVEOPS' 00000002 00000000"], &[], End::Closed);
    check(&["25609513 0000 0000 0000000000000000"], &[], End::Closed);
}

#[test]
fn options_are_counted() {
    let options = |count: usize| bytes(&format!("00000003 {}", option(5, "").repeat(count)));
    let replies = error(5, 1, UNSUPPORTED) + " ";
    let expected = |count| bytes(&format!("{GREETING} {}", replies.repeat(count)));
    assert_eq!(converse(&options(1024), 99), (expected(1024), End::Waiting));
    assert_eq!(converse(&options(1025), 99), (expected(1024), End::Closed));
}

#[test]
fn pipelined_options_wait_for_unsent_output() {
    let input = bytes(&format!("00000003 {}", option(3, "").repeat(1024)));
    let mut output = Vec::new();
    let mut handshake = Handshake::start(&mut output);
    let progress = handshake.feed(&input, &Specimens, &mut output);
    assert_eq!(progress.step, Step::Send);
    assert!((OUTPUT_FLUSH_BYTES..OUTPUT_FLUSH_BYTES + 100).contains(&output.len()));
    output.clear();
    let progress = handshake.feed(&input[progress.consumed_bytes..], &Specimens, &mut output);
    assert_eq!(progress.step, Step::Receive);
}

const BASE: &str = "0000000f 'base:allocation'";
const DAILY: &str = "00000017 'qemu:dirty-bitmap:daily'";
const GO_DISK: &str = "00000004 'disk' 0000";

fn context(option: u32, id: u32, name: &str) -> String {
    reply(option, 4, &format!("{id:08x} '{name}'"))
}

#[test]
fn contexts_are_listed() {
    let base = context(9, 0, "base:allocation");
    let daily = context(9, 0, "qemu:dirty-bitmap:daily");
    let listed = |queries: &str, contexts: &[&str]| {
        let request = option(9, &format!("00000004 'disk' {queries}"));
        let (agreed, end) = (ack(8), ack(9));
        let replies = [&[&agreed[..]], contexts, &[&end[..]]].concat();
        check(&[&option(8, ""), &request], &replies, End::Waiting);
    };
    listed("00000000", &[&base, &daily]);
    listed("00000001 00000005 'base:'", &[&base]);
    listed("00000001 00000005 'qemu:'", &[&daily]);
    listed("00000001 00000012 'qemu:dirty-bitmap:'", &[&daily]);
    listed(&format!("00000002 {DAILY} {BASE}"), &[&base, &daily]);
    listed("00000001 00000004 'x-y:'", &[]);
}

#[test]
fn context_options_are_refused() {
    for number in [9, 10] {
        let refused = |data: &str, kind: u32, text: &str| {
            check(
                &[&option(8, ""), &option(number, data)],
                &[&ack(8), &error(number, kind, text)],
                End::Waiting,
            );
        };
        refused("00000004 'none' 00000000", 6, NO_EXPORT);
        refused("00000004 'disk' 00000001", 3, "option_data_is_shorter_than_its_fields_say");
        refused("00000000 00000001 00000001 ff", 3, "string_is_not_UTF-8");
        refused("00000000 00000401", 9, "more_than_1024_metadata_context_queries");
        refused("00*65537", 9, TOO_LONG);
        let request = option(number, "00000000 00000000");
        check(&[&request], &[&error(number, 3, NEEDS_STRUCTURED)], End::Waiting);
    }
}

/// Selections are made one after the other, then `go` is sent.
fn check_selected(sets: &[(&str, &[&str])], go: &str, expected: (&'static str, &[(u32, usize)])) {
    let mut client = vec![option(8, "")];
    let mut server = vec![ack(8)];
    for (data, replies) in sets {
        client.push(option(10, data));
        server.extend(replies.iter().map(|reply| reply.to_string()));
    }
    client.push(option(7, go));
    let flags = if expected.0 == "cd" { CD_FLAGS_STRUCTURED } else { DISK_FLAGS_STRUCTURED };
    server.extend([info(7, flags), ack(7)]);
    let client: Vec<&str> = client.iter().map(String::as_str).collect();
    let server: Vec<&str> = server.iter().map(String::as_str).collect();
    check(&client, &server, End::Session(expected.0, true, expected.1.to_vec(), 0));
}

#[test]
fn contexts_are_selected() {
    let (base, daily) = (context(10, 1, "base:allocation"), "qemu:dirty-bitmap:daily");
    let (daily_first, daily_second) = (context(10, 1, daily), context(10, 2, daily));
    let (ack, unknown) = (ack(10), error(10, 6, NO_EXPORT));
    let too_long = error(10, 9, TOO_LONG);
    let disk = |queries: &str| format!("00000004 'disk' {queries}");
    let (both, only_daily) =
        (disk(&format!("00000002 {DAILY} {BASE}")), disk(&format!("00000001 {DAILY}")));
    let select_both: (&str, &[&str]) = (&both, &[&base, &daily_second, &ack]);

    check_selected(&[select_both], GO_DISK, ("disk", &[(1, 0), (2, 1)]));
    check_selected(&[(&only_daily, &[&daily_first, &ack])], GO_DISK, ("disk", &[(1, 1)]));
    // Nothing is selected by no query, by a namespace, or by an unknown name.
    check_selected(&[(&disk("00000000"), &[&ack])], GO_DISK, ("disk", &[]));
    for query in ["00000005 'base:'", "00000005 'qemu:'", "00000006 'base:x'"] {
        check_selected(&[(&disk(&format!("00000001 {query}")), &[&ack])], GO_DISK, ("disk", &[]));
    }
    let wildcard = disk("00000001 00000012 'qemu:dirty-bitmap:'");
    check_selected(&[(&wildcard, &[&ack])], GO_DISK, ("disk", &[]));
    // The last selection counts, even if it fails.
    let twice = [select_both, (&only_daily[..], &[&daily_first[..], &ack][..])];
    check_selected(&twice, GO_DISK, ("disk", &[(1, 1)]));
    let failed = [select_both, ("00000004 'none' 00000000", &[&unknown[..]])];
    check_selected(&failed, GO_DISK, ("disk", &[]));
    check_selected(&[select_both, ("00*65537", &[&too_long])], GO_DISK, ("disk", &[]));
    // It counts for the export that it named.
    check_selected(&[select_both], "00000002 'cd' 0000", ("cd", &[]));
    check_selected(&[select_both], "00000000 0000", ("", &[]));
}
