//! What has happened, in order: the same for the same seed.

use std::fmt;

/// One thing that happened, with up to three numbers that say which.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    nanos: u64,
    what: &'static str,
    numbers: [u64; 3],
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.numbers;
        write!(f, "{:>12} {} {a} {b} {c}", self.nanos, self.what)
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace(Vec<Entry>);

impl Trace {
    pub(super) fn note(&mut self, nanos: u64, what: &'static str, numbers: [u64; 3]) {
        self.0.push(Entry { nanos, what, numbers });
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The last `count` entries, one a line.
    pub(crate) fn tail(&self, count: usize) -> String {
        let from = self.0.len().saturating_sub(count);
        self.0[from..].iter().map(|entry| format!("{entry:?}\n")).collect()
    }

    /// The first difference, with both entries.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<String> {
        let count = self.0.len().max(other.0.len());
        let at = (0..count).find(|at| self.0.get(*at) != other.0.get(*at))?;
        Some(format!("entry {at}: {:?} / {:?}", self.0.get(at), other.0.get(at)))
    }
}
