//! "Did you mean": the known name that is nearest to a mistyped one, and lists of names for
//! messages.

use super::render::clip;

/// Names longer than this are not compared: the cost is quadratic.
const LONGEST_COMPARED_CHARS: usize = 64;

/// The name of `known` that `typed` was probably meant to be.
pub(crate) fn nearest<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let length = typed.chars().count();
    if length > LONGEST_COMPARED_CHARS {
        return None;
    }
    let limit = (length / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|name| name.chars().count() <= LONGEST_COMPARED_CHARS)
        .map(|name| (distance(&simple(typed), &simple(name)), name))
        .filter(|(distance, name)| *distance <= limit && *distance < name.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// ``did you mean `x`? `` when a known name is near, then `what: a, b, c`.
pub(super) fn help(typed: &str, what: &str, known: &[&str]) -> String {
    let list = list(known);
    match nearest(typed, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`? {what}: {list}"),
        None => format!("{what}: {list}"),
    }
}

/// `a, b, c`, or "(none)".
pub(super) fn list(names: &[&str]) -> String {
    const MOST_SHOWN: usize = 30;
    let mut shown: Vec<String> = names.iter().take(MOST_SHOWN).map(|name| clip(name)).collect();
    if shown.is_empty() {
        shown.push("(none)".to_owned());
    }
    if names.len() > MOST_SHOWN {
        shown.push(format!("and {} more", names.len() - MOST_SHOWN));
    }
    shown.join(", ")
}

/// `_` and `-`, upper and lower case are typed for each other.
fn simple(name: &str) -> Vec<char> {
    name.chars().map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// Edits (insert, delete, replace, swap neighbours) that lead from one to the other.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut before_last = vec![0; to.len() + 1];
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (row, &typed) in from.iter().enumerate() {
        let mut current = vec![row + 1; to.len() + 1];
        for (column, &wanted) in to.iter().enumerate() {
            let replace = last[column] + usize::from(typed != wanted);
            let mut best = replace.min(last[column + 1] + 1).min(current[column] + 1);
            if row > 0 && column > 0 && typed == to[column - 1] && from[row - 1] == wanted {
                best = best.min(before_last[column - 1] + 1);
            }
            current[column + 1] = best;
        }
        before_last = last;
        last = current;
    }
    last[to.len()]
}
