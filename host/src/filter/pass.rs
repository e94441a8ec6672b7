//! `pass`: does nothing. What it costs is what any filter costs at least.

use super::Filter;

/// The native `pass` filter; its child is the first edge.
#[derive(Debug, Default)]
pub struct PassNode;

impl Filter for PassNode {
    fn driver(&self) -> &'static str {
        "pass"
    }
}
