//! The exports of one listener, as the handshake sees them.

use std::sync::Arc;

use super::proto::{BlockSizes, ExportDirectory, ExportInfo, ExportSummary, Features};
use crate::bitmap::{BitmapUse, Use};
use crate::graph::{BitmapScope, GraphCell};
use crate::limits::TRANSFER_MAX_BYTES;

/// A bitmap that an export shows.
#[derive(Clone, Debug)]
pub struct ExportBitmap {
    /// Name in the context, `qemu:dirty-bitmap:NAME`.
    pub name: String,
    /// Where the graph has it.
    pub scope: BitmapScope,
}

/// A drive under a name.
#[derive(Clone, Debug)]
pub struct Export {
    /// The name that clients ask for.
    pub name: String,
    /// Shown to clients that ask.
    pub description: String,
    /// The drive's id.
    pub drive: String,
    /// Whether clients may change it.
    pub writable: bool,
    /// Shown as metadata contexts.
    pub bitmaps: Vec<ExportBitmap>,
}

/// A metadata context of an export.
pub(super) enum Context {
    Allocation,
    /// As long as a client may ask for it, nobody may take or clear it.
    Dirty(BitmapUse),
}

/// Name of the context for allocation.
const ALLOCATION: &str = "base:allocation";
/// Prefix of the contexts for bitmaps.
const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// What a listener serves.
pub(super) struct Directory {
    pub(super) cell: Arc<GraphCell>,
    pub(super) exports: Vec<Export>,
}

impl Directory {
    /// The export for a name; a listener with one export serves it under the empty name too.
    pub(super) fn find(&self, name: &str) -> Option<&Export> {
        let by_name = self.exports.iter().find(|export| export.name == name);
        by_name.or(match self.exports.as_slice() {
            [only] if name.is_empty() => Some(only),
            _ => None,
        })
    }

    /// The contexts of an export, with their full names; a bitmap that is gone, or that cannot be read
    /// now, is left out.
    pub(super) fn contexts(&self, export: &Export) -> Vec<(String, Context)> {
        let graph = self.cell.load();
        let mut contexts = vec![(ALLOCATION.to_owned(), Context::Allocation)];
        for bitmap in &export.bitmaps {
            let Some(found) = graph.find_bitmap(&bitmap.scope, &bitmap.name) else { continue };
            match found.use_by(format!("export `{}`", export.name), Use::Read) {
                Ok(found) => {
                    let name = format!("{DIRTY_BITMAP}{}", bitmap.name);
                    contexts.push((name, Context::Dirty(found)));
                }
                Err(error) => tracing::info!("export `{}` shows less: {error}", export.name),
            }
        }
        contexts
    }
}

impl ExportDirectory for Directory {
    fn names(&self) -> Vec<ExportSummary> {
        let summary = |export: &Export| ExportSummary {
            name: export.name.clone(),
            description: export.description.clone(),
        };
        self.exports.iter().map(summary).collect()
    }

    fn lookup(&self, name: &str) -> Option<ExportInfo> {
        let export = self.find(name)?;
        let graph = self.cell.load();
        let drive = &graph.drives()[graph.find_drive(&export.drive)?];
        let info = graph.nodes()[drive.root()?.child()].info();
        Some(ExportInfo {
            name: export.name.clone(),
            description: export.description.clone(),
            size_bytes: info.size_bytes,
            read_only: !export.writable,
            features: Features {
                multi_conn: true,
                flush: true,
                fua: true,
                trim: true,
                write_zeroes: true,
                fast_zero: true,
                cache: true,
                dont_fragment: true,
            },
            block_sizes: BlockSizes::new(1, 4096, TRANSFER_MAX_BYTES).unwrap_or_default(),
            contexts: self.contexts(export).into_iter().map(|(name, _)| name).collect(),
        })
    }
}
