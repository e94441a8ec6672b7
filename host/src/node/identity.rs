//! Whether what a node shows may have changed while the host was down.

use super::{NodeFuture, Result};
use crate::io::FileStamp;

/// What a node says of what it shows by itself, for somebody who stores something that holds only as long as
/// that has not changed: a bitmap. See [`Node::identity`](super::Node::identity).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It cannot be told, or nobody has thought of it: as if it had changed.
    Unknown,
    /// It shows what its children hold, each at its place, and what it is opened with says nothing else.
    OfChildren,
    /// The same, and these numbers decide which of it.
    Shaped([u64; 2]),
    /// It never changes.
    Constant,
    /// A file.
    File {
        /// Its path, for messages.
        path: String,
        /// What tells whether it has been changed.
        stamp: FileStamp,
    },
}

/// A driver's answer.
pub(super) fn answer<'a>(identity: Identity) -> NodeFuture<'a, Identity> {
    Box::pin(async move { Result::Ok(identity) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Identity;
    use crate::io::sim::Simulation;
    use crate::io::{Buf, File, OpenOptions};
    use crate::node::{FileNode, FileOptions, ImageLocking, Node};

    /// File times tick: what comes right after the answer has to have a later one.
    #[test]
    fn a_change_right_after_the_answer_is_another_file() {
        for seed in 0..30 {
            let simulation = Simulation::new(seed);
            simulation.add_file("disk", vec![0; 4096]);
            let ran = simulation.run(async {
                let (path, locking) = ("disk".into(), ImageLocking::Off);
                let options = FileOptions { path, locking, write: true, ..FileOptions::default() };
                let node = FileNode::open(&options).expect("a file");
                let options = OpenOptions { write: true, ..OpenOptions::default() };
                let other = Arc::new(File::open("disk".as_ref(), &options).expect("a file"));
                let write = async |byte| {
                    let written = other.write_at(0, Buf::copy_of(&[byte; 512])).await;
                    written.expect("a write");
                };
                write(1).await;
                let before = node.identity().await.expect("its times");
                write(2).await;
                (before, node.identity().await.expect("its times"))
            });
            let (before, after) = ran.expect("an end");
            assert!(matches!(before, Identity::File { .. }), "{before:?}");
            assert_ne!(before, after, "seed {seed}");
        }
    }
}
