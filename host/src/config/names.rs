//! Names that users give, and references to them.

use super::diagnostic::{Diagnostic, Spanned};
use super::render::clip;
use super::table::Table;

const LONGEST_NAME_CHARS: usize = 127;
/// As in QEMU, whose bitmaps may be stored in images.
const LONGEST_BITMAP_NAME_BYTES: usize = 1023;
/// The longest string that NBD carries.
const LONGEST_NBD_STRING_BYTES: usize = 4096;

/// Whether this can be the name of a node, drive, export or instance.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= LONGEST_NAME_CHARS
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// Checks the name of a node, drive, export or instance: `kind` says which.
pub(super) fn check_name(kind: &str, name: &Spanned<String>, table: &Table<'_>) -> bool {
    let text = &name.value;
    let is_right = is_name(text);
    if !is_right {
        let message = format!("`{}` cannot be the name of {kind}", clip(text));
        table.problem(Diagnostic::error(name.span, message).help(format!(
            "a name is a letter, then letters, digits, `-`, `.` and `_`, {LONGEST_NAME_CHARS} at most"
        )));
    }
    is_right
}

/// Checks the name of a child: a name without dots, so that the names of unnamed nodes are
/// unambiguous.
pub(super) fn check_child_name(name: &Spanned<String>, table: &Table<'_>) -> bool {
    let text = &name.value;
    let is_right = text.len() <= LONGEST_NAME_CHARS
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if !is_right {
        let message = format!("`{}` cannot be the name of a child", clip(text));
        let help = "a child's name is a letter, then letters, digits, `-` and `_`";
        table.problem(Diagnostic::error(name.span, message).help(help));
    }
    is_right
}

/// The name of an unnamed node: the child called `child` of `parent`.
pub(super) fn unnamed(parent: &str, parent_is_unnamed: bool, child: &str) -> String {
    match parent_is_unnamed {
        true => format!("{parent}/{child}"),
        false => format!("#{parent}.{child}"),
    }
}

/// Checks the name of a bitmap.
pub(super) fn check_bitmap_name(name: &Spanned<String>, table: &Table<'_>) -> bool {
    let rule = format!("a bitmap's name has 1 to {LONGEST_BITMAP_NAME_BYTES} bytes");
    let is_right = !name.value.is_empty() && name.value.len() <= LONGEST_BITMAP_NAME_BYTES;
    check_text("the name of a bitmap", name, is_right, &rule, table)
}

/// Checks a string that NBD clients get: `what` it is.
pub(super) fn check_nbd_string(what: &str, text: &Spanned<String>, table: &Table<'_>) -> bool {
    let rule = format!("NBD carries at most {LONGEST_NBD_STRING_BYTES} bytes");
    check_text(what, text, text.value.len() <= LONGEST_NBD_STRING_BYTES, &rule, table)
}

fn check_text(
    what: &str,
    text: &Spanned<String>,
    has_right_length: bool,
    rule: &str,
    table: &Table<'_>,
) -> bool {
    let is_printable = !text.value.chars().any(char::is_control);
    if has_right_length && is_printable {
        return true;
    }
    let problem = Diagnostic::error(text.span, format!("`{}` cannot be {what}", clip(&text.value)));
    let help = if is_printable { rule } else { "it has a control character" };
    table.problem(problem.help(help));
    false
}

/// Checks that a reference is not to an unnamed node.
pub(super) fn check_reference(name: &Spanned<String>, table: &Table<'_>) {
    if name.value.starts_with('#') && !table.problems().unnamed.contains(&name.value) {
        let message = format!("`{}` is no name that can be referred to", clip(&name.value));
        let help = "give the inline node a name: move it to a table `[node.NAME]` of its own";
        table.problem(Diagnostic::error(name.span, message).help(help));
    }
}
