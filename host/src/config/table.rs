//! One TOML table, read key by key.
//!
//! A reader takes the keys that it knows; each take records what is wrong with the value and gives
//! `None`, so that reading goes on. [`Table::finish`] reports the keys that nobody took.

use toml::Spanned as TomlSpanned;
use toml::de::{DeTable, DeValue};

use super::convert::{FromToml, type_of};
use super::diagnostic::{Diagnostic, Problems, Span, Spanned};
use super::render::clip;
use super::suggest;

/// Most items of an array that is read as a list.
const MOST_ITEMS: usize = super::spec::MOST_OF_EACH;

/// A key with its value.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) key: &'a str,
    pub(super) key_span: Span,
    pub(super) value: &'a TomlSpanned<DeValue<'a>>,
}

impl Entry<'_> {
    pub(super) fn value_span(&self) -> Span {
        self.value.span().into()
    }
}

/// The keys of `table` in the order of the file.
pub(super) fn entries<'a>(table: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry<'a>> = table
        .iter()
        .map(|(key, value)| Entry { key: key.get_ref(), key_span: key.span().into(), value })
        .collect();
    entries.sort_by_key(|entry| entry.key_span);
    entries
}

/// A table that is being read.
pub(super) struct Table<'a> {
    /// What the table describes, for messages: "node `disk`".
    pub(super) what: String,
    /// Where the table is named: missing keys are reported here.
    pub(super) span: Span,
    table: &'a DeTable<'a>,
    known: Vec<&'static str>,
    refused: Vec<&'static str>,
    problems: &'a Problems,
}

impl<'a> Table<'a> {
    pub(super) fn new(
        what: impl Into<String>,
        span: Span,
        table: &'a DeTable<'a>,
        problems: &'a Problems,
    ) -> Self {
        Self { what: what.into(), span, table, known: Vec::new(), refused: Vec::new(), problems }
    }

    pub(super) fn problem(&self, diagnostic: Diagnostic) {
        self.problems.push(diagnostic);
    }

    pub(super) fn problems(&self) -> &'a Problems {
        self.problems
    }

    /// `value`, which the file leaves out.
    pub(super) fn default<T>(&self, value: T) -> Spanned<T> {
        Spanned::new(value, self.span)
    }

    /// The entry of `key`, if there is one.
    pub(super) fn entry(&mut self, key: &'static str) -> Option<Entry<'a>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let (found, value) = self.table.get_key_value(key)?;
        Some(Entry { key: found.get_ref(), key_span: found.span().into(), value })
    }

    /// The value of `key`; `None` if it is absent or wrong.
    pub(super) fn take<T: FromToml>(&mut self, key: &'static str) -> Option<Spanned<T>> {
        let entry = self.entry(key)?;
        self.convert(entry, &format!("`{key}` of {}", self.what))
    }

    /// The value of `key`, which must be there. `example` is a right value, as it is written.
    pub(super) fn need<T: FromToml>(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Option<Spanned<T>> {
        if self.entry(key).is_none() {
            self.missing(key, example);
        }
        self.take(key)
    }

    /// The value of `key`, which must satisfy `is_right`; if it does not, `rule` says what must be.
    pub(super) fn take_if<T: FromToml>(
        &mut self,
        key: &'static str,
        is_right: impl FnOnce(&T) -> bool,
        rule: &str,
    ) -> Option<Spanned<T>> {
        let found = self.take::<T>(key)?;
        if is_right(&found.value) {
            return Some(found);
        }
        let message = format!("`{key}` of {} {rule}", self.what);
        self.problem(Diagnostic::error(found.span, message));
        None
    }

    /// The strings that the array `key` lists.
    pub(super) fn list<T: FromToml>(&mut self, key: &'static str) -> Vec<Spanned<T>> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        self.items(entry, &format!("`{key}` of {}", self.what))
    }

    /// The items of an array; `name` names it in messages.
    pub(super) fn items<T: FromToml>(&self, entry: Entry<'a>, name: &str) -> Vec<Spanned<T>> {
        let DeValue::Array(items) = entry.value.get_ref() else {
            let found = type_of(entry.value.get_ref());
            let message = format!("{name} must be an array, not {found}");
            self.problem(Diagnostic::error(entry.value_span(), message));
            return Vec::new();
        };
        if items.len() > MOST_ITEMS {
            let message = format!("{name} has {} items: {MOST_ITEMS} at most", items.len());
            self.problem(Diagnostic::error(entry.value_span(), message));
            return Vec::new();
        }
        let name = format!("an item of {name}");
        let items = items.iter().map(|value| Entry { value, ..entry });
        items.filter_map(|item| self.convert(item, &name)).collect()
    }

    /// The table `key`, to be read by the caller; `what` describes it.
    pub(super) fn table(&mut self, key: &'static str, what: String) -> Option<Table<'a>> {
        let entry = self.entry(key)?;
        self.as_table(entry, what)
    }

    /// `entry` as a table.
    pub(super) fn as_table(&self, entry: Entry<'a>, what: String) -> Option<Table<'a>> {
        if let DeValue::Table(table) = entry.value.get_ref() {
            return Some(Table::new(what, entry.key_span, table, self.problems));
        }
        let found = type_of(entry.value.get_ref());
        let message = format!("{what} must be a table, not {found}");
        self.problem(Diagnostic::error(entry.value_span(), message));
        None
    }

    /// All entries, in the order of the file, for tables whose keys are names.
    pub(super) fn entries(&self) -> Vec<Entry<'a>> {
        entries(self.table)
    }

    pub(super) fn convert<T: FromToml>(&self, entry: Entry<'a>, name: &str) -> Option<Spanned<T>> {
        let span = entry.value_span();
        match T::from_toml(entry.value.get_ref()) {
            Ok(value) => Some(Spanned::new(value, span)),
            Err(wrong) => {
                let problem = Diagnostic::error(span, format!("{name} {}", wrong.message));
                self.problem(Diagnostic { help: wrong.help, ..problem });
                None
            }
        }
    }

    /// Reports `key`, which is not known here but whose meaning is plain, if it is there; gives
    /// whether it is.
    pub(super) fn refuse(&mut self, key: &'static str, why: &str, help: &str) -> bool {
        let found = self.table.get_key_value(key);
        if let Some((found, _)) = found {
            self.refused.push(key);
            let message = format!("`{key}` of {} {why}", self.what);
            self.problem(Diagnostic::error(found.span(), message).help(help));
        }
        found.is_some()
    }

    pub(super) fn missing(&self, key: &str, example: &str) {
        self.problem(
            Diagnostic::error(self.span, format!("{} has no `{key}`", self.what))
                .help(format!("add `{key} = {example}`")),
        );
    }

    /// Reports every key that was not taken; `driver`, which chose this list of keys, is not
    /// listed. `known_of` says whose keys are listed: "driver `memory`".
    pub(super) fn finish(self, known_of: &str) {
        let known: Vec<&str> = self.known.iter().copied().filter(|key| *key != "driver").collect();
        for entry in self.entries() {
            if self.known.contains(&entry.key) || self.refused.contains(&entry.key) {
                continue;
            }
            let message = format!("unknown key `{}` in {}", clip(entry.key), self.what);
            let help = suggest::help(entry.key, &format!("keys of {known_of}"), &known);
            self.problem(Diagnostic::error(entry.key_span, message).help(help));
        }
    }
}
