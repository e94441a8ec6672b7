//! What is known of one dirty bitmap: what it may call clean, what it must and what it may call
//! dirty.

use std::collections::BTreeSet;

use super::ids::{Span, View};

/// Indices of granules.
pub type GranuleSet = BTreeSet<usize>;

/// Which of a bitmap's sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The one that records: of a frozen bitmap, the successor.
    Recording,
    /// The one that a job took.
    Frozen,
}

/// One set of granules, as it should be.
///
/// **Invariant**: `required` ⊆ `allowed`. A truthful set lies between them. They differ only where
/// design §3 leaves the host a choice, as [`World::check`](super::World::check) lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// For each byte of the view what it was when its granule was last clean; `None` if it never
    /// was, because the view has grown since.
    pub baseline: Vec<Option<u8>>,
    /// Must be dirty: an unexempted change touched it.
    pub required: GranuleSet,
    /// May be dirty.
    pub allowed: GranuleSet,
}

impl Record {
    /// A clean record of a view that shows `bytes`.
    pub(super) fn clean(bytes: &[u8]) -> Self {
        let baseline = bytes.iter().copied().map(Some).collect();
        Self { baseline, ..Self::default() }
    }

    /// An unexempted change touches `span`.
    pub(super) fn require(&mut self, span: Span, granularity: usize) {
        let granules = span.clipped(self.baseline.len()).units(granularity);
        self.required.extend(granules.clone());
        self.allowed.extend(granules);
    }

    /// A change may touch `span`, or the host may be coarser than it has to be.
    pub(super) fn allow(&mut self, span: Span, granularity: usize) {
        self.allowed.extend(span.clipped(self.baseline.len()).units(granularity));
    }

    /// Follows the view's size. Bytes gained were never clean.
    ///
    /// The granule in which a smaller view ends has lost bytes: it may be dirty.
    pub(super) fn fit(&mut self, len: usize, granularity: usize, recording: bool) {
        let old_len = self.baseline.len();
        self.baseline.resize(len, None);
        if len < old_len {
            let granules = len.div_ceil(granularity);
            self.required.retain(|granule| *granule < granules);
            self.allowed.retain(|granule| *granule < granules);
            if !len.is_multiple_of(granularity) {
                self.allowed.insert(granules - 1);
            }
        } else if recording {
            self.require(Span { start: old_len, end: len }, granularity);
        } else {
            self.allow(Span { start: old_len, end: len }, granularity);
        }
    }

    /// The granules that lie wholly in `span` are clean from now on, while the view shows `bytes`.
    pub(super) fn clear(&mut self, span: Span, granularity: usize, bytes: &[u8]) {
        let span = span.clipped(bytes.len()).rounded_in(granularity, bytes.len());
        for granule in span.units(granularity) {
            self.required.remove(&granule);
            self.allowed.remove(&granule);
        }
        for at in span.offsets() {
            self.baseline[at] = Some(bytes[at]);
        }
    }

    /// Adds what another record has dirty, granule by granule of another size.
    pub(super) fn merge(&mut self, granularity: usize, from: &Self, from_granularity: usize) {
        let span = |granule: &usize| Span::at(granule * from_granularity, from_granularity);
        from.allowed.iter().for_each(|granule| self.allow(span(granule), granularity));
        from.required.iter().for_each(|granule| self.require(span(granule), granularity));
    }
}

/// A dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Whose view.
    pub scope: View,
    /// Bytes a granule.
    pub granularity: usize,
    /// Whether changes are recorded.
    pub enabled: bool,
    /// The set that records; of a frozen bitmap, the successor.
    pub record: Record,
    /// The set that a job took, while it has it.
    pub frozen: Option<Record>,
    /// Exports and jobs that read it, by name.
    pub readers: BTreeSet<String>,
}

impl Bitmap {
    /// One of its sets.
    pub fn part(&self, part: Part) -> Option<&Record> {
        match part {
            Part::Recording => Some(&self.record),
            Part::Frozen => self.frozen.as_ref(),
        }
    }

    /// Number of granules.
    pub fn granules(&self) -> usize {
        self.record.baseline.len().div_ceil(self.granularity)
    }

    pub(super) fn fit(&mut self, len: usize) {
        if len != self.record.baseline.len() {
            self.record.fit(len, self.granularity, self.enabled);
            if let Some(frozen) = &mut self.frozen {
                frozen.fit(len, self.granularity, false);
            }
        }
    }
}
