//! What the README says there is, and what there is.

use std::collections::BTreeSet;

use serde_json::json;

use super::Controlled;

/// The words in backticks from a line that begins with `start` to the first empty line, with braces written out.
fn named(text: &str, start: &str) -> BTreeSet<String> {
    let lines = text.lines().skip_while(|line| !line.starts_with(start));
    let part: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    assert!(!part.is_empty(), "no line begins with `{start}`");
    let part = part.join("\n");
    let quoted = part.split('`').skip(1).step_by(2);
    quoted.flat_map(str::split_whitespace).flat_map(written_out).collect()
}

/// `a-{b,c}-{d,e}` as `a-b-d`, `a-b-e`, `a-c-d`, `a-c-e`.
fn written_out(word: &str) -> Vec<String> {
    let Some((before, rest)) = word.split_once('{') else {
        return vec![word.to_owned()];
    };
    let (choices, after) = rest.split_once('}').expect("a brace that is closed");
    let all = |choice| written_out(&format!("{before}{choice}{after}"));
    choices.split(',').flat_map(all).collect()
}

#[test]
fn the_readme_names_all_commands_and_events_and_no_others() {
    let host = Controlled::memory();
    let schema = host.client().run("query-qmp-schema", json!({}));
    let has = |kind: &str| -> BTreeSet<String> {
        let all = schema.as_array().expect("a list").iter();
        let of_kind = all.filter(|entity| entity["meta-type"] == kind);
        of_kind.map(|it| it["name"].as_str().expect("a name").to_owned()).collect()
    };
    let readme = include_str!("../../../../README.md");
    assert_eq!(named(readme, "Events: "), has("event"));
    let listed = named(readme, "| commands | |");
    let commands = has("command");
    let forgotten: Vec<_> = commands.difference(&listed).collect();
    // What a row explains has words in backticks, too.
    let looks_like_one = |word: &&String| word.contains('-') && !word.contains(['"', ':']);
    let unknown: Vec<_> = listed.difference(&commands).filter(looks_like_one).collect();
    assert!(forgotten.is_empty(), "the README forgets {forgotten:?}");
    assert_eq!(unknown, ["node-name", "on-unproven"], "words that are no commands");
    host.finish();
}
