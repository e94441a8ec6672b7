//! Sizes, times, suggestions, and how diagnostics are laid out.

use expect_test::expect;

use super::super::suggest::nearest;
use super::super::*;
use super::check;

#[test]
fn sizes() {
    let check = |text: &str, expected: Result<u64, &str>| {
        assert_eq!(parse_size(text), expected.map_err(str::to_owned), "{text}");
    };
    check("512", Ok(512));
    check("64KiB", Ok(65536));
    check("64 KiB", Ok(65536));
    check("10G", Ok(10 << 30));
    check("1k", Ok(1024));
    check("8388607TiB", Ok(8388607 << 40));
    check("9223372036854775807", Ok(i64::MAX as u64));
    let too_large = Err("is larger than the largest size, 2^63 - 1 bytes");
    check("8388608TiB", too_large);
    check("9223372036854775808", too_large);
    check("99999999999999999999999", too_large);
    check("1KB", Err("has the unit `KB`: units are binary, write `1KiB`"));
    check("1MB", Err("has the unit `MB`: units are binary, write `1MiB`"));
    check("1gib", Err("has the unit `gib`: units are binary, write `1GiB`"));
    check("5B", Err("has the unit `B`: write bytes without a unit"));
    check("1.5GiB", Err("has the unknown unit `.5GiB`: units are KiB, MiB, GiB, TiB"));
    let not_a_size = Err("is not a size: write bytes or a string such as \"64KiB\" or \"10GiB\"");
    check("", not_a_size);
    check("-1", not_a_size);
    check("big", not_a_size);
}

#[test]
fn times() {
    use std::time::Duration;
    assert_eq!(parse_duration("50us"), Ok(Duration::from_micros(50)));
    assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
    assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
    assert!(parse_duration("5").is_err_and(|wrong| wrong.contains("no unit")));
    assert!(parse_duration("5 days").is_err_and(|wrong| wrong.contains("unknown unit")));
    assert!(parse_duration("99999999999999h").is_err_and(|wrong| wrong.contains("too long")));
    for nanos in [0, 1, 1_000, 1_500_000, 60_000_000_000, 7_200_000_000_000] {
        let time = Duration::from_nanos(nanos);
        assert_eq!(parse_duration(&format_duration(time)), Ok(time));
    }
}

#[test]
fn sizes_as_text() {
    for (bytes, expected) in
        [(0, "0"), (512, "512"), (65536, "64KiB"), (3 << 19, "1536KiB"), (1 << 50, "1024TiB")]
    {
        assert_eq!(format_size(bytes), expected);
        assert_eq!(parse_size(expected), Ok(bytes));
    }
}

#[test]
fn suggestions() {
    let known = ["size", "block-size", "read-only"];
    assert_eq!(nearest("sise", known), Some("size"));
    assert_eq!(nearest("read_only", known), Some("read-only"));
    assert_eq!(nearest("SIZE", known), Some("size"));
    assert_eq!(nearest("szie", known), Some("size"));
    assert_eq!(nearest("path", known), None);
    assert_eq!(nearest("", ["a", "ab"]), None);
    assert_eq!(nearest(&"x".repeat(1000), known), None);
}

#[test]
fn wrong_values_of_sizes() {
    check(
        "[node]\na = { driver = \"memory\", size = -1 }\nb = { driver = \"memory\", size = 0xffffffffffffffff }\nc = { driver = \"memory\", size = [] }\nd = { driver = \"memory\", size = 1.5 }\n",
        &expect![[r#"
            error: `size` of node `a` must not be negative
              --> graph.toml:2:33
               |
             2 | a = { driver = "memory", size = -1 }
               |                                 ^^

            error: `size` of node `b` is larger than the largest size, 2^63 - 1 bytes
              --> graph.toml:3:33
               |
             3 | b = { driver = "memory", size = 0xffffffffffffffff }
               |                                 ^^^^^^^^^^^^^^^^^^

            error: `size` of node `c` must be a size, not an array
              --> graph.toml:4:33
               |
             4 | c = { driver = "memory", size = [] }
               |                                 ^^
               = help: write bytes or a string such as "64KiB" or "10GiB"

            error: `size` of node `d` must be a size, not a float
              --> graph.toml:5:33
               |
             5 | d = { driver = "memory", size = 1.5 }
               |                                 ^^^
               = help: write bytes or a string such as "64KiB" or "10GiB"

            4 errors in graph.toml"#]],
    );
}

#[test]
fn tabs_wide_characters_and_controls() {
    check(
        "[node.a]\n\tdriver\t= \"memory\"\n\t\"größe\"\t= 1\nsize = 0 # 界\n'日本\u{200b}' = 2\nblock-size = \"\\u001b[31m\"\n",
        &expect![[r#"
            error: unknown key `größe` in node `a`
              --> graph.toml:3:2
               |
             3 |     "größe"    = 1
               |     ^^^^^^^
               = help: keys of driver `memory`: child, size, block-size, read-only, auto-read-only

            error: unknown key `日本\u{200b}` in node `a`
              --> graph.toml:5:1
               |
             5 | '日本\u{200b}' = 2
               | ^^^^^^^^^^^^^^
               = help: keys of driver `memory`: child, size, block-size, read-only, auto-read-only

            error: `block-size` of node `a` is not a size: write bytes or a string such as "64KiB" or "10GiB"
              --> graph.toml:6:14
               |
             6 | block-size = "\u001b[31m"
               |              ^^^^^^^^^^^^

            3 errors in graph.toml"#]],
    );
}

#[test]
fn carriage_returns_and_the_end_of_the_file() {
    check(
        "[node.a]\r\ndriver = \"nul\"\r\n",
        &expect![[r#"
            error: unknown driver `nul`
              --> graph.toml:2:10
               |
             2 | driver = "nul"
               |          ^^^^^
               = help: did you mean `null`? this release has: file, memory, null, raw, qcow2, plugin, plugin-view, pass, throttle, copy-on-read, backup

            1 error in graph.toml"#]],
    );
    check(
        "[node.a]\ndriver =",
        &expect![[r#"
            error: not valid TOML: there is no value after `=`
              --> graph.toml:2:9
               |
             2 | driver =
               |         ^

            1 error in graph.toml"#]],
    );
}

#[test]
fn long_lines_are_cut() {
    let filler = "x".repeat(300);
    check(
        &format!("[node]\na = {{ driver = \"null\", size = 0, bad = \"{filler}\", more = 1 }}\n"),
        &expect![[r#"
            error: unknown key `bad` in node `a`
              --> graph.toml:2:34
               |
             2 | a = { driver = "null", size = 0, bad = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
               |                                  ^^^
               = help: keys of driver `null`: size, block-size, read-zeroes, latency, read-only, auto-read-only

            error: unknown key `more` in node `a`
              --> graph.toml:2:344
               |
             2 | …xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", more = 1 }
               |                                          ^^^^
               = help: keys of driver `null`: size, block-size, read-zeroes, latency, read-only, auto-read-only

            2 errors in graph.toml"#]],
    );
}

#[test]
fn many_errors_are_counted() {
    let keys: String = (0..150).map(|n| format!("k{n} = 1\n")).collect();
    let found = parse("graph.toml", &keys).expect_err("unknown keys");
    assert_eq!(found.len(), 150);
    let text = found.to_string();
    assert!(text.ends_with("150 errors in graph.toml (the first 100 are shown)"));
}
