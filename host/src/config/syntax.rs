//! TOML syntax: the one place that meets the parser's errors.

use toml::Spanned as TomlSpanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Span};
use super::render::clip;

/// Parses `text`, or says where it first stops being TOML.
pub(super) fn parse(text: &str) -> Result<DeTable<'_>, Diagnostic> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let Some(first) = errors.into_iter().min_by_key(|error| error.span().map_or(0, |it| it.start))
    else {
        return Ok(root.into_inner());
    };
    let span = Span::from(first.span().unwrap_or(0..0));
    let message = first.message();
    let rest = text.get(span.start..).unwrap_or_default().lines().next().unwrap_or_default();
    let has_no_value = before_on_line(text, span).trim_end().ends_with('=')
        && (rest.trim().is_empty() || rest.trim_start().starts_with('#'));
    if has_no_value {
        return Err(Diagnostic::error(span, "not valid TOML: there is no value after `=`"));
    }
    if message != "duplicate key" {
        return Err(Diagnostic::error(span, format!("not valid TOML: {message}")));
    }
    let key = text.get(span.start..span.end).unwrap_or_default();
    let what = if is_header(text, span) { "table" } else { "key" };
    let problem =
        Diagnostic::error(span, format!("the {what} `{}` is given a second time", clip(key)))
            .help("every name is used once: rename this one, or remove it");
    Err(match first_use(root.get_ref(), text, span) {
        Some(first) => problem.note(first, "first used here"),
        None => problem,
    })
}

/// What stands before `span` on its line.
fn before_on_line(text: &str, span: Span) -> &str {
    let before = text.get(..span.start).unwrap_or_default();
    before.rsplit('\n').next().unwrap_or_default().trim_start()
}

fn is_header(text: &str, span: Span) -> bool {
    before_on_line(text, span).starts_with('[')
}

/// The earlier key that a repeated one at `span` repeats, if that is plain to see.
///
/// The parser does not tell, so this looks for a header of the same words, or for the nearest
/// earlier key that is written the same at the start of a line of the same table.
fn first_use(root: &DeTable<'_>, text: &str, span: Span) -> Option<Span> {
    let key = text.get(span.start..span.end)?;
    let before = before_on_line(text, span);
    if before.starts_with('[') {
        return first_header(text, before, span);
    }
    if !before.is_empty() {
        return None;
    }
    let mut keys = Vec::new();
    collect_keys(root, &mut keys);
    let same = |it: &Span| {
        it.end <= span.start
            && text.get(it.start..it.end) == Some(key)
            && before_on_line(text, *it) == before
            && !text[it.end..span.start].contains("\n[")
    };
    keys.into_iter().filter(same).max()
}

/// The first header that says `before` and then the key at `span`.
fn first_header(text: &str, before: &str, span: Span) -> Option<Span> {
    let key = text.get(span.start..span.end)?;
    let mut line_start = 0;
    for line in text.get(..span.start)?.split_inclusive('\n') {
        let indent = line.len() - line.trim_start().len();
        let rest = line.trim_start().strip_prefix(before).and_then(|rest| rest.strip_prefix(key));
        if rest.is_some_and(|rest| rest.trim_start().starts_with(']')) {
            let start = line_start + indent + before.len();
            return Some(Span { start, end: start + key.len() });
        }
        line_start += line.len();
    }
    None
}

fn collect_keys(table: &DeTable<'_>, keys: &mut Vec<Span>) {
    for (key, value) in table {
        keys.push(key.span().into());
        collect_keys_of_value(value, keys);
    }
}

fn collect_keys_of_value(value: &TomlSpanned<DeValue<'_>>, keys: &mut Vec<Span>) {
    match value.get_ref() {
        DeValue::Table(table) => collect_keys(table, keys),
        DeValue::Array(items) => {
            items.iter().for_each(|item| collect_keys_of_value(item, keys));
        }
        _ => {}
    }
}
