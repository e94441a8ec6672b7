//! What a crash may leave of files at some point of what was recorded.
//!
//! What a sync has covered is there. Of the rest, any sectors are, and any lengths that were set.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::io::sim::{Random, Recorded, SECTOR};

/// Files by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

enum What {
    Bytes(u64, Vec<u8>),
    Len(u64),
    LenAtLeast(u64),
}

struct Pending {
    op: u64,
    file: Rc<str>,
    what: What,
    has_ended: bool,
}

/// See the module.
pub(super) struct Replay {
    durable: Files,
    pending: Vec<Pending>,
    /// By sync under way, what it covers.
    syncs: BTreeMap<u64, Vec<u64>>,
    lens: u64,
}

fn put(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    bytes.resize(bytes.len().max(offset + part.len()), 0);
    bytes[offset..offset + part.len()].copy_from_slice(part);
}

impl Replay {
    pub(super) fn new(durable: Files) -> Self {
        Self { durable, pending: Vec::new(), syncs: BTreeMap::new(), lens: 0 }
    }

    /// One more thing has happened.
    pub(super) fn add(&mut self, recorded: &Recorded) {
        match recorded {
            Recorded::Writes { op, file, offset, bytes } => {
                let (file, what) = (Rc::clone(file), What::Bytes(*offset, bytes.clone()));
                self.pending.push(Pending { op: *op, file, what, has_ended: false });
            }
            Recorded::HasWritten { op } => {
                let it = self.pending.iter_mut().find(|pending| pending.op == *op);
                it.into_iter().for_each(|pending| pending.has_ended = true);
            }
            Recorded::Syncs { op, file } => {
                let covered = |it: &&Pending| it.has_ended && it.file == *file;
                let covered = self.pending.iter().filter(covered).map(|it| it.op).collect();
                self.syncs.insert(*op, covered);
            }
            Recorded::HasSynced { op } => {
                let covered = self.syncs.remove(op).unwrap_or_default();
                let (now, later) = std::mem::take(&mut self.pending)
                    .into_iter()
                    .partition(|pending| covered.contains(&pending.op));
                self.pending = later;
                now.into_iter().for_each(|pending: Pending| {
                    let file = self.durable.entry(pending.file.to_string()).or_default();
                    match pending.what {
                        What::Bytes(offset, bytes) => put(file, offset as usize, &bytes),
                        What::Len(len) => file.resize(len as usize, 0),
                        What::LenAtLeast(len) => put(file, len as usize, &[]),
                    }
                });
            }
            Recorded::SetLen { file, len } => self.set_len(file, What::Len(*len)),
            Recorded::Extends { file, len } => self.set_len(file, What::LenAtLeast(*len)),
            Recorded::Says(_) => {}
        }
    }

    fn set_len(&mut self, file: &Rc<str>, what: What) {
        self.lens += 1;
        // Numbers of operations are small.
        let (op, file) = (u64::MAX - self.lens, Rc::clone(file));
        self.pending.push(Pending { op, file, what, has_ended: true });
    }

    /// What may be left now: nothing that is not durable, everything, or what chance says.
    pub(super) fn left(&self, mood: u64, random: &mut Random) -> Files {
        let mut files = self.durable.clone();
        let odds = random.within(1..5);
        let is_kept = |random: &mut Random| match mood {
            0 => false,
            1 => true,
            _ => random.below(5) < odds,
        };
        for Pending { file, what, .. } in &self.pending {
            let file = files.entry(file.to_string()).or_default();
            match what {
                What::Bytes(offset, bytes) => {
                    let (mut at, start) = (0, *offset as usize);
                    while at < bytes.len() {
                        let end = bytes.len().min(at + SECTOR - (start + at) % SECTOR);
                        if is_kept(random) {
                            put(file, start + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
                What::Len(len) if is_kept(random) => file.resize(*len as usize, 0),
                What::LenAtLeast(len) if is_kept(random) => put(file, *len as usize, &[]),
                What::Len(_) | What::LenAtLeast(_) => {}
            }
        }
        files
    }
}
