//! Text that comes from others, where people read it: names, paths and messages of peers, images, commands and plugins.

/// `text` with everything escaped that a terminal would act on or hide, and every line break: one line, whatever it
/// says.
///
/// Escaped are control characters, and those that show nothing or reorder their neighbours.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|c| push_printable(c, &mut shown));
    shown
}

/// Adds a character, or its escape.
pub(crate) fn push_printable(c: char, to: &mut String) {
    if c.is_control() || is_invisible(c) {
        to.extend(c.escape_default());
    } else {
        to.push(c);
    }
}

/// Characters that hide or reorder their neighbours: zero-width ones, direction marks, line
/// separators, tags.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_escaped() {
        let check = |text: &str, expect: &str| assert_eq!(printable(text), expect);
        check("plain, ü and 雪 \"quoted\" \\", "plain, ü and 雪 \"quoted\" \\");
        check("a\nINFO all is well", "a\\nINFO all is well");
        check("a\r\tb\0", "a\\r\\tb\\u{0}");
        check("\x1b]0;title\x07\u{9b}31m\x7f", "\\u{1b}]0;title\\u{7}\\u{9b}31m\\u{7f}");
        check("a\u{202e}b\u{200b}c\u{2028}d\u{e0041}", "a\\u{202e}b\\u{200b}c\\u{2028}d\\u{e0041}");
    }
}
