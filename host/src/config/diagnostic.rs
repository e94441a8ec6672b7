//! What is wrong with a file, and where: spans, diagnostics and their collection.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::GraphSpec;

/// A range of bytes in the configuration file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset just past the last byte.
    pub end: usize,
}

impl Span {
    /// Of what is there, but stands nowhere in what is read.
    pub const NOWHERE: Self = Self { start: usize::MAX, end: usize::MAX };
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// A value and the place in the file that it comes from.
///
/// A default has the place of the table that left it out. Equality looks at the value alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spanned<T> {
    /// What the file says.
    pub value: T,
    /// Where it says so.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// `value`, found at `span`.
    pub fn new(value: T, span: impl Into<Span>) -> Self {
        Self { value, span: span.into() }
    }

    /// Changes the value and keeps the place.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned { value: change(self.value), span: self.span }
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Spanned<T> {}

impl<T: fmt::Display> fmt::Display for Spanned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// The configuration can be used, but hardly says what was meant.
    Warning,
}

/// A further place that a [`Diagnostic`] speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The place.
    pub span: Span,
    /// What is there, for example "first used here".
    pub label: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Span,
    /// Further places, with what is there.
    pub notes: Vec<Note>,
    /// What would be right.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at `span`.
    pub fn error(span: impl Into<Span>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            span: span.into(),
            notes: Vec::new(),
            help: None,
        }
    }

    /// A warning at `span`.
    pub fn warning(span: impl Into<Span>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// Adds what would be right.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds a further place.
    #[must_use]
    pub fn note(mut self, span: impl Into<Span>, label: impl Into<String>) -> Self {
        self.notes.push(Note { span: span.into(), label: label.into() });
        self
    }
}

/// The file that diagnostics speak of.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file_name: String,
    pub(super) text: String,
    /// Of what is no text: the path of the key at each place.
    pub(super) paths: Option<Vec<String>>,
}

impl Source {
    /// The path of the key at a place, of what is no text; empty for all of it.
    pub(super) fn path(&self, span: Span) -> Option<&str> {
        let paths = self.paths.as_ref()?;
        Some(paths.get(span.start).map_or("", String::as_str))
    }

    /// Number of the line at a place of a text, from 1.
    fn line(&self, span: Span) -> usize {
        let before = self.text.get(..span.start.min(self.text.len())).unwrap_or_default();
        before.matches('\n').count() + 1
    }
}

/// What is wrong with one file, by position. [`Display`](fmt::Display) shows it as rustc shows its
/// errors.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    pub(super) source: Arc<Source>,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    pub(super) fn new(source: Arc<Source>) -> Self {
        Self { source, list: Vec::new() }
    }

    /// Adds one, after those at the same place.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let place = (diagnostic.span.start, diagnostic.span.end);
        let index = self.list.partition_point(|it| (it.span.start, it.span.end) <= place);
        self.list.insert(index, diagnostic);
    }

    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|it| it.severity == Severity::Error)
    }

    /// All of them, by position.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// What is wrong in one line, each with its place: the path of the key, or the line of the file.
    pub fn brief(&self) -> String {
        let errors = self.list.iter().filter(|it| it.severity == Severity::Error);
        let brief = |it: &Diagnostic| {
            let place = match self.source.path(it.span) {
                Some(path) => path.to_owned(),
                None => format!("{}:{}", self.source.file_name, self.source.line(it.span)),
            };
            let help = it.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
            let place = if place.is_empty() { place } else { format!("{place}: ") };
            crate::text::printable(&format!("{place}{}{help}", it.message))
        };
        errors.map(brief).collect::<Vec<_>>().join("; ")
    }

    /// The name of the file, as it was given to [`parse`](super::parse).
    pub fn file_name(&self) -> &str {
        &self.source.file_name
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::render::render(self, f)
    }
}

impl std::error::Error for Diagnostics {}

/// Where the stages of parsing leave what they find, in any order.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: RefCell<Vec<Diagnostic>>,
    /// Names that are no users' and may be referred to all the same: of nodes that are there.
    pub(super) unnamed: BTreeSet<String>,
    /// Names that were made up for nodes without one.
    pub(super) made_up: BTreeSet<String>,
}

impl Problems {
    /// Beside nodes that are there, of which these have no names that users gave.
    pub(super) fn beside(unnamed: BTreeSet<String>) -> Self {
        Self { unnamed, ..Self::default() }
    }

    pub(super) fn push(&self, diagnostic: Diagnostic) {
        self.list.borrow_mut().push(diagnostic);
    }

    pub(super) fn into_diagnostics(self, spec: &GraphSpec) -> Diagnostics {
        let mut list = self.list.into_inner();
        list.sort_by_key(|it| (it.span.start, it.span.end));
        Diagnostics { source: Arc::clone(&spec.source), list }
    }
}
