//! What a check found.

/// Most findings that are kept as text; the numbers count all.
pub const FINDINGS_MAX: usize = 1000;

/// The result of a check, with the numbers of `qemu-img check --output=json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Where the last cluster ends that has a use or a refcount, bytes.
    pub image_end_offset: u64,
    /// Guest clusters of the image.
    pub total_clusters: u64,
    /// Guest clusters that have a host cluster.
    pub allocated_clusters: u64,
    /// Those that do not follow their predecessor in the container.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// Clusters whose refcount is larger than the number of their uses: space is lost, nothing else.
    pub leaks: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Contradictions that lose data now or when the image is written.
    pub corruptions: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Things that could not be checked.
    pub check_errors: u64,
    /// What was found, in words: the first [`FINDINGS_MAX`].
    pub findings: Vec<String>,
}

impl CheckReport {
    /// Whether the image is in order: leaks count, what was repaired does not.
    pub fn is_clean(&self) -> bool {
        self.leaks == 0 && !self.is_damaged()
    }

    /// Whether there is more than lost space.
    pub fn is_damaged(&self) -> bool {
        self.corruptions > 0 || self.check_errors > 0
    }

    pub(super) fn corruption(&mut self, text: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.note(text);
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(text());
        }
    }
}
