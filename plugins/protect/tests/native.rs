//! What is refused, and what the host need not ask.

use blockloom_plugin_protect::ProtectFilter;
use blockloom_sdk::testing::{Answer, Harness};
use blockloom_sdk::{BitmapIndex, Condition, Errno, Filter, Kind, Kinds, NodeIndex, bitmap_next};

const MIB: u64 = 1 << 20;

fn harness(config: &str) -> Harness<ProtectFilter> {
    let mut host = Harness::new(config).expect("a configuration");
    host.add_node("disk", 64 * MIB).expect("a node");
    host
}

fn is_refused(host: &mut Harness<ProtectFilter>, kind: Kind, offset: u64, len: u64) -> bool {
    let id = host.submit(kind, offset, len);
    match host.answer(id) {
        Some(Answer::Completed(Err(Errno::EPERM))) => true,
        answer => {
            assert_eq!(answer, Some(Answer::forwarded_now()));
            false
        }
    }
}

fn set(bitmap: BitmapIndex) -> Vec<(u64, u64)> {
    let next = |last: &(u64, u64)| bitmap_next(bitmap, last.0 + last.1);
    std::iter::successors(bitmap_next(bitmap, 0), next).collect()
}

#[test]
fn changes_in_a_range_are_refused_to_the_byte() {
    let mut host = harness(
        r#"{"ranges":[{"length":"1MiB"},{"offset":"3MiB","length":100},{"offset":"60MiB"}]}"#,
    );
    for (offset, len, expect) in [
        (0, 1, true),
        (MIB - 1, 1, true),
        (MIB, 2 * MIB, false),
        (MIB, 2 * MIB + 1, true),
        (3 * MIB + 100, 1, false),
        (64 * MIB - 1, 1, true),
        (0, 0, false),
    ] {
        for kind in [Kind::Write, Kind::Zero, Kind::Discard] {
            assert_eq!(is_refused(&mut host, kind, offset, len), expect, "{kind:?} {offset}+{len}");
        }
        assert!(!is_refused(&mut host, Kind::Read, offset, len));
    }
    assert!(is_refused(&mut host, Kind::Resize, 0, 63 * MIB));
    assert!(!is_refused(&mut host, Kind::Resize, 0, 65 * MIB));
    assert!(!is_refused(&mut host, Kind::Flush, 0, 0));
}

#[test]
fn the_host_asks_only_near_the_ranges() {
    let host = harness(r#"{"ranges":[{"offset":"3MiB","length":100},{"length":"1MiB"}]}"#);
    let (rules, _) = host.rules(NodeIndex(0)).expect("rules");
    let Condition::AnySet(bitmap) = rules[0].only else { panic!("{rules:?}") };
    assert_eq!(rules[1].kinds, Kinds::RESIZE);
    assert_eq!(set(bitmap), [(0, MIB), (3 * MIB, 512)]);
    host.filter().reload(r#"{"ranges":[{"offset":"2MiB","length":"2MiB"}]}"#).expect("valid");
    assert_eq!(set(bitmap), [(2 * MIB, 2 * MIB)]);
    host.filter().reload("{}").expect("valid");
    assert_eq!(set(bitmap), []);
}

#[test]
fn wrong_ranges_are_named() {
    for (config, expect) in [
        (r#"{"ranges":[{},{"length":0}]}"#, "ranges.1.length: must not be 0"),
        (r#"{"ranges":[{"start":1}]}"#, "ranges.0.start: unknown key; known are: offset, length"),
        (r#"{"ranges":{}}"#, "ranges: expected a list of tables, found a table"),
    ] {
        let error = ProtectFilter::configure(config).expect_err("refused");
        assert_eq!(error.to_string(), expect);
    }
}
