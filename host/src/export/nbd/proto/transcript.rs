//! Helpers of the tests: byte strings that can be read, and a session to try things on.

use super::session::{SelectedContext, Session};
pub(super) use super::specimen::export;

/// Bytes from words: `00ff` is hex, `'a_disk'` is text with `_` for spaces, and `00*124` repeats a
/// word.
pub(super) fn bytes(words: &str) -> Vec<u8> {
    let mut output = Vec::new();
    for word in words.split_whitespace() {
        let (word, times) = match word.rsplit_once('*') {
            Some((word, times)) => (word, times.parse().expect("a count after '*'")),
            None => (word, 1),
        };
        let once = match word.strip_prefix('\'').and_then(|word| word.strip_suffix('\'')) {
            Some(text) => text.replace('_', " ").into_bytes(),
            None => hex(word),
        };
        output.extend(once.repeat(times));
    }
    output
}

fn hex(word: &str) -> Vec<u8> {
    assert!(word.len().is_multiple_of(2), "odd number of digits in {word}");
    let byte = |start| u8::from_str_radix(&word[start..start + 2], 16).expect("hex digits");
    (0..word.len()).step_by(2).map(byte).collect()
}

/// A session on [`export`]; with both of its contexts if `structured`.
pub(super) fn session(structured: bool) -> Session {
    let contexts = [SelectedContext { id: 1, index: 0 }, SelectedContext { id: 2, index: 1 }];
    Session {
        export: "disk".to_owned(),
        structured,
        contexts: if structured { contexts.to_vec() } else { Vec::new() },
        info: export("disk"),
    }
}
