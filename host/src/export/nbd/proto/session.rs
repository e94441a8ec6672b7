//! What the handshake agreed on.

use super::export_info::ExportInfo;

/// The terms of one connection's transmission phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The name the client opened the export by; [`ExportInfo::name`] is the export's own.
    pub export: String,
    /// Replies with a payload are structured. Without this, `contexts` is empty.
    pub structured: bool,
    /// Metadata contexts that each block status request is answered for.
    pub contexts: Vec<SelectedContext>,
    /// The export. After a resize, the connection loop updates the size here.
    pub info: ExportInfo,
}

/// One metadata context of a [`Session`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectedContext {
    /// What the client knows it by.
    pub id: u32,
    /// Its position in [`ExportInfo::contexts`] of the same session.
    pub index: usize,
}
