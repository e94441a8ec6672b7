//! Checkpoints that have not ended: what each has frozen, and what it has added.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bitmap::Bitmap;
use crate::graph::NodeGeneration;

/// A checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct OpenCheckpoint {
    /// The bitmaps that it has frozen.
    pub(crate) bitmaps: Vec<Arc<Bitmap>>,
    /// Its views.
    pub(crate) views: Vec<OpenView>,
}

/// A view of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct OpenView {
    /// The view's node.
    pub(crate) node: String,
    /// The filter that keeps what it shows.
    pub(crate) filter: String,
    /// All nodes that came with it, these among them. Others may have these names by now.
    pub(crate) nodes: Vec<(String, NodeGeneration)>,
    /// The export, and the drive that stands for it.
    pub(crate) export: Option<String>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Checkpoints(Mutex<BTreeMap<String, OpenCheckpoint>>);

impl Checkpoints {
    /// All of them by their ids.
    pub(crate) fn all(&self) -> MutexGuard<'_, BTreeMap<String, OpenCheckpoint>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
