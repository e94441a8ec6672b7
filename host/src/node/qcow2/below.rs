//! The files below an image, as they are recorded with its bitmaps: backing and external data file, with all
//! that they stand on; not the image itself, which says by its header who wrote it.

use blockloom_qcow2::format::record::{self, FileIdentity, FileKind, Fit};

use super::Qcow2Node;
use crate::graph::{Cx, Rests};
use crate::io::FileStamp;
use crate::node::{Below, Identity};

/// The files below an image, now.
pub(super) struct Files {
    files: Vec<FileIdentity>,
    /// By file.
    names: Vec<String>,
    /// What cannot be told.
    unknown: Option<String>,
}

impl Qcow2Node {
    /// What lies below now. What fails counts as what cannot be told.
    pub(super) async fn files_below(&self, cx: Cx<'_>) -> Files {
        let mut all = Files { files: Vec::new(), names: Vec::new(), unknown: None };
        for position in [self.data, self.backing(cx)].into_iter().flatten() {
            let rests = match cx.rests_on(position).await {
                Ok(rests) => rests,
                Err(error) => {
                    let what = format!("what is below cannot be told: {error}");
                    all.unknown.get_or_insert(what);
                    continue;
                }
            };
            // Who writes the image writes its data file; that of a whole graph is not for other programs.
            let is_plain = matches!(&rests[..], [Rests { identity: Identity::File { .. }, .. }]);
            let kind = match self.data == Some(position) && is_plain {
                true => FileKind::Data,
                false => FileKind::Below,
            };
            rests.into_iter().for_each(|rests| all.push(kind, rests));
        }
        all
    }
}

impl Files {
    fn push(&mut self, kind: FileKind, Rests { node, identity }: Rests) {
        match identity {
            Identity::OfChildren | Identity::Constant => {}
            Identity::Unknown => {
                let what = format!("of node `{node}` it cannot be told whether it was changed");
                self.unknown.get_or_insert(what);
            }
            Identity::Shaped([first, second]) => {
                self.names.push(format!("the part of another one that node `{node}` shows"));
                self.files.push(FileIdentity {
                    kind: FileKind::Shape,
                    size_bytes: first,
                    modified_ns: second,
                    changed_ns: 0,
                    inode: 0,
                });
            }
            Identity::File { path, stamp } => {
                let FileStamp { size_bytes, modified_ns, changed_ns, inode, .. } = stamp;
                self.names.push(format!("`{path}` (node `{node}`)"));
                self.files.push(FileIdentity { kind, size_bytes, modified_ns, changed_ns, inode });
            }
        }
    }

    /// As it is recorded.
    pub(super) fn recorded(self) -> record::Below {
        match self.unknown {
            None => record::Below::Files(self.files),
            Some(_) => record::Below::Unknown,
        }
    }

    /// What is known of them since something was recorded; `is_current` if no other program has opened the image
    /// for writing since.
    pub(super) fn since(&self, then: Option<&record::Below>, is_current: bool) -> Below {
        let changed = |what: String| Below::Changed { what, through_store: false };
        if let Some(what) = &self.unknown {
            return then.map_or(Below::NeverSaid, |_| changed(what.clone()));
        }
        let name = |at: usize| self.names.get(at).map_or("what is below", |name| name);
        match then.map(|then| then.fit(&self.files)) {
            None if self.files.is_empty() => Below::Same,
            None => Below::NeverSaid,
            Some(Fit::Same) => Below::Same,
            Some(Fit::DataDiffers(at)) => {
                let what = format!("its data file {} was changed", name(at));
                Below::Changed { what, through_store: !is_current }
            }
            Some(Fit::Differs(Some(at))) => {
                changed(format!("{} was changed, or is another", name(at)))
            }
            Some(Fit::Differs(None)) => {
                let names = self.names.join(", ");
                changed(format!("what is below was changed, or is another: {names}"))
            }
        }
    }
}
