//! A list of extents in the making: neighbours of one kind become one.

use crate::limits::EXTENTS_MAX;
use crate::node::{Extent, ExtentKind};

/// At most [`EXTENTS_MAX`].
#[derive(Default)]
pub(super) struct Extents(Vec<Extent>);

impl Extents {
    /// Adds what follows the last one; false when the list is full.
    pub(super) fn push(&mut self, offset: u64, len: u64, kind: ExtentKind) -> bool {
        let is_full = self.0.len() == EXTENTS_MAX;
        match self.0.last_mut() {
            Some(last) if last.kind == kind => last.len += len,
            _ if is_full => return false,
            _ => self.0.push(Extent { offset, len, kind, host_offset: None }),
        }
        true
    }

    pub(super) fn into_vec(self) -> Vec<Extent> {
        self.0
    }
}
