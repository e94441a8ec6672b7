//! The children of a node, and what is done to their bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use blockloom_abi::{
    Action, BitmapIndex, ChildIndex, CopyRange, Errno, Kind, Kinds, MAX_COPY_BYTES, NodeIndex,
    Operation, Parent, Request, Token, Write,
};

use super::disk::Disk;
use super::host;
use super::host::Held;
use crate::bytes::Holder;
use crate::{ByteAccess, Condition, Description, Filter, Grants, Rule, Time};

pub(super) const NODE: NodeIndex = NodeIndex(0);

/// The children of node 0 and the requests for it.
pub(super) struct Scene {
    pub(super) description: Description,
    pub(super) kinds: Kinds,
    pub(super) config: String,
    pub(super) disks: Vec<Option<Disk>>,
    pub(super) requests: BTreeMap<u32, Pending>,
    pub(super) buffers: BTreeMap<u32, Filled>,
    pub(super) armed: u64,
}

/// A request from its arrival on.
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) data: Vec<u8>,
    pub(super) state: State,
    /// The rules under which it passed uncalled.
    pub(super) passed_under: Option<u64>,
}

#[derive(Clone, PartialEq)]
pub(super) enum State {
    /// The filter has it.
    Offered,
    /// To be done from a time on.
    Forwarded {
        not_before: Time,
        notify: bool,
    },
    /// The child has done it, or a copy has served it; the filter's word is awaited.
    Settled(Result<Vec<u8>, Errno>),
    Ended(Result<Vec<u8>, Errno>),
}

/// What a READ brought, or a MAKE made.
pub(super) struct Filled {
    /// None of what was made.
    pub(super) child: Option<ChildIndex>,
    pub(super) range: Range<u64>,
    pub(super) bytes: Vec<u8>,
    /// Changes of the child by then.
    pub(super) changes: usize,
}

impl Scene {
    /// The same for another filter.
    pub(super) fn replace<G: Filter>(self) -> Self {
        let is_offered = |pending: &Pending| pending.state == State::Offered;
        assert!(!self.requests.values().any(is_offered), "a request is not answered");
        let description = G::describe();
        let kinds = G::KINDS.with(G::DECIDE).with(G::NOTIFY).with(description.also_offered);
        Self { description, kinds, buffers: BTreeMap::new(), ..self }
    }
}

/// Runs of a range, and whether each is allocated.
pub(super) type Extents = Vec<(Range<u64>, bool)>;

impl Scene {
    /// Whether the rules let a request pass.
    pub(super) fn passes(&self, request: &Request) -> bool {
        let rules = host::with(|host| host.rules(NODE).map(|(rules, _)| rules.clone()));
        let applies = |rule: &Rule| {
            let has_range = !matches!(request.kind, Kind::Flush | Kind::Resize);
            rule.kinds.contains(request.kind)
                && match rule.only {
                    Condition::AnySet(bitmap) if has_range => {
                        let next = host::bitmap_next(bitmap, request.offset);
                        next.is_some_and(|(start, _)| start < request.range().end)
                    }
                    Condition::Unallocated(child) if has_range => {
                        self.disk(child).is_ok_and(|disk| {
                            let runs = disk.status(request.range());
                            runs.iter().any(|(_, is_own)| !is_own)
                        })
                    }
                    _ => true,
                }
        };
        rules.is_some_and(|rules| !rules.iter().any(applies))
    }

    pub(super) fn transforms(&self) -> bool {
        self.description.bytes == ByteAccess::Transform
    }

    /// Lets the filter see the data of a request that it is offered.
    pub(super) fn hold(&self, pending: &Pending) {
        let (request, access) = (pending.request, self.description.bytes);
        let bytes = match request.kind {
            _ if access == ByteAccess::None || pending.state != State::Offered => return,
            Kind::Read => None,
            Kind::Write if pending.data.is_empty() => Some(vec![0; request.len as usize]),
            Kind::Write => Some(pending.data.clone()),
            _ => return,
        };
        let held = held(access, bytes, request.len);
        host::with(|host| host.hold(Holder::Request(request.id.bits()), held));
    }

    /// Lets the filter see a buffer.
    pub(super) fn hold_buffer(&self, token: Token, bytes: Vec<u8>, is_put: bool) {
        let len = bytes.len() as u64;
        let held = Held { is_put, ..held(self.description.bytes, Some(bytes), len) };
        host::with(|host| host.hold(Holder::Buffer(token.0), held));
    }

    pub(super) fn disk(&self, child: ChildIndex) -> Result<&Disk, Errno> {
        self.disks.get(usize::from(child.0)).and_then(Option::as_ref).ok_or(Errno::EINVAL)
    }

    /// A child for which one of the grants is there, and which does not fail.
    pub(super) fn granted(
        &mut self,
        child: ChildIndex,
        any: Grants,
        (kind, range): (Kind, &Range<u64>),
    ) -> Result<&mut Disk, Errno> {
        let index = usize::from(child.0);
        let wants = self.description.children.get(index).ok_or(Errno::EINVAL)?.wants;
        let disk = self.disks[index].as_mut().ok_or(Errno::EINVAL)?;
        if any != Grants::NONE && wants.bits() & any.bits() == 0 {
            return Err(Errno::EPERM);
        }
        disk.check(kind, range)?;
        Ok(disk)
    }

    pub(super) fn carry_out(&mut self, action: &Action) -> Result<Extents, Errno> {
        match *action {
            Action::Copy(copy) => self.copy(copy)?,
            Action::Read(operation) => {
                let (child, range) = (operation.child, range(&operation)?);
                let disk = self.granted(child, Grants::READ, (Kind::Read, &range))?;
                let (bytes, changes) = (disk.shown(&range).to_vec(), disk.changes());
                if self.description.bytes != ByteAccess::None {
                    self.hold_buffer(operation.token, bytes.clone(), false);
                }
                let child = Some(child);
                self.buffers.insert(operation.token.0, Filled { child, range, bytes, changes });
            }
            Action::Make { token, len, .. } => {
                if !self.transforms() {
                    return Err(Errno::EPERM);
                }
                let bytes = vec![0; len as usize];
                self.hold_buffer(token, bytes.clone(), true);
                let (child, range, changes) = (None, 0..len, 0);
                self.buffers.insert(token.0, Filled { child, range, bytes, changes });
            }
            Action::Write(write) => self.write(write)?,
            Action::Zero(operation) => {
                let range = range(&operation)?;
                let disk = self.granted(operation.child, Grants::WRITE, (Kind::Zero, &range))?;
                disk.change(&range).fill(0);
            }
            Action::Discard(operation) => {
                let any = Grants::DISCARD.with(Grants::WRITE);
                let range = range(&operation)?;
                self.granted(operation.child, any, (Kind::Discard, &range))?.change(&range).fill(0);
            }
            Action::Flush(operation) => {
                self.granted(operation.child, Grants::NONE, (Kind::Flush, &(0..0)))?;
            }
            Action::Status { operation, .. } => {
                let range = operation.offset..operation.offset + operation.len;
                let disk = self.granted(operation.child, Grants::NONE, (Kind::Read, &(0..0)))?;
                let end = range.end.min(disk.size_bytes());
                return Ok(disk.status(range.start..end));
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(Vec::new())
    }

    pub(super) fn copy(&mut self, copy: CopyRange) -> Result<(), Errno> {
        let range = copy.offset..copy.offset + copy.len;
        if copy.len > MAX_COPY_BYTES {
            return Err(Errno::EINVAL);
        }
        let from = self.granted(copy.from, Grants::READ, (Kind::Read, &range))?;
        let bytes = from.shown(&range).to_vec();
        if copy.claim && copy.from != copy.to {
            return Err(Errno::EPERM);
        }
        for piece in pieces(&range, copy.clear) {
            let to = self.granted(copy.to, writing(copy.claim), (Kind::Write, &piece))?;
            if copy.claim {
                to.own(&piece);
            } else {
                let start = (piece.start - range.start) as usize;
                let len = (piece.end - piece.start) as usize;
                to.change(&piece).copy_from_slice(&bytes[start..start + len]);
            }
        }
        if let Some(bitmap) = copy.clear {
            host::bitmap_set(bitmap, range.start, copy.len, false).map_err(|_| Errno::EINVAL)?;
        }
        if let (true, Parent::Request(id)) = (copy.serve, copy.parent)
            && let Some(pending) = self.requests.get_mut(&id.bits())
        {
            pending.state = State::Settled(Ok(bytes));
        }
        Ok(())
    }

    pub(super) fn write(&mut self, write: Write) -> Result<(), Errno> {
        let range = range(&write.operation)?;
        let source = self.buffers.get(&write.source.0).ok_or(Errno::EINVAL)?;
        if source.bytes.len() as u64 != write.operation.len {
            return Err(Errno::EINVAL);
        }
        let own = host::with(|host| {
            let held = host.held(Holder::Buffer(write.source.0)).filter(|held| held.is_put);
            held.and_then(|held| held.bytes.clone())
        });
        let child = write.operation.child;
        if write.claim {
            if own.is_some() || source.range != range || source.child != Some(child) {
                return Err(Errno::EPERM);
            }
            if self.disk(child)?.is_changed(&range, source.changes) {
                return Err(Errno::ESTALE);
            }
        }
        let bytes = own.unwrap_or_else(|| source.bytes.clone());
        let disk = self.granted(child, writing(write.claim), (Kind::Write, &range))?;
        if write.claim {
            disk.own(&range);
        } else {
            disk.change(&range).copy_from_slice(&bytes);
        }
        Ok(())
    }
}

pub(super) fn held(access: ByteAccess, bytes: Option<Vec<u8>>, len: u64) -> Held {
    Held { access, len, bytes, is_put: false }
}

pub(super) fn writing(claim: bool) -> Grants {
    if claim { Grants::WRITE.with(Grants::WRITE_UNCHANGED) } else { Grants::WRITE }
}

/// The parts of a range to copy: those that are set, where a bitmap is named.
pub(super) fn pieces(range: &Range<u64>, set: Option<BitmapIndex>) -> Vec<Range<u64>> {
    let Some(bitmap) = set else { return vec![range.clone()] };
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while let Some((start, len)) = host::bitmap_next(bitmap, at).filter(|run| run.0 < range.end) {
        at = range.end.min(start + len);
        pieces.push(start..at);
    }
    pieces
}

/// The range of an operation that moves bytes.
pub(super) fn range(operation: &Operation) -> Result<Range<u64>, Errno> {
    let end = operation.offset.checked_add(operation.len).ok_or(Errno::EINVAL)?;
    Ok(operation.offset..end)
}

/// A child does a request.
pub(super) fn perform(disk: &mut Disk, request: &Request, data: &[u8]) -> Result<Vec<u8>, Errno> {
    let range = request.range();
    disk.check(request.kind, &range)?;
    match request.kind {
        Kind::Read => return Ok(disk.shown(&range).to_vec()),
        Kind::Write if data.is_empty() => disk.change(&range).fill(0),
        Kind::Write => disk.change(&range).copy_from_slice(data),
        Kind::Zero | Kind::Discard => disk.change(&range).fill(0),
        Kind::Flush => {}
        Kind::Resize => disk.resize(request.len),
    }
    Ok(Vec::new())
}
