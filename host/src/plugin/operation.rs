//! What a guest asks the host to do to a node's children: done on the worker of the request for which it is
//! asked, on that request's ground, within the grants.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use blockloom_abi::{
    self as abi, Action, ChildIndex, CopyRange, Errno, ExtentFlags, NodeIndex, Operation, Parent,
    RequestId, Token, Write,
};

use super::buffers::{Buffers, Filling};
use super::bytes::{BufferBytes, ByteAccess};
use super::counters::Refused;
use super::grants::{FILE, Grants, PluginChild};
use super::local::LocalPlugin;
use super::store::Lasting;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{CopyHow, OnBehalf};
use crate::io::{Buf, LocalFuture, spawn_boxed};
use crate::node::{Extent, ExtentKind};

/// Operations of one request that may be done at once, one after the other, before others have their turn.
const AT_ONCE_MAX: u32 = 4;
/// Extents that one STATUS answers with; what it does not describe is asked again.
const EXTENTS_MAX: usize = 64;

/// Tells the stores of an instance apart, one after the other.
pub(super) type StoreNumber = u32;

/// What a guest wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) store: StoreNumber,
    pub(super) action: Action,
}

/// The end of an operation, on its way to the guest.
#[derive(Debug)]
pub(super) struct Ended {
    /// The store whose guest asked for it.
    pub(super) store: StoreNumber,
    pub(super) token: Token,
    /// The request for which it was done; none for one that is nobody's.
    pub(super) request: Option<RequestId>,
    pub(super) result: Result<Answered, Errno>,
    /// It was to fill a buffer.
    pub(super) is_read: bool,
    /// It answers the request, if it succeeded.
    pub(super) serves: bool,
}

/// What an operation brought.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Bytes moved or described.
    pub(super) value: u64,
    pub(super) extents: Vec<abi::Extent>,
    /// What a buffer has been filled with, for a guest that sees it.
    pub(super) seen: Option<Arc<BufferBytes>>,
}

impl Answered {
    fn bytes(value: u64) -> Self {
        Self { value, ..Self::default() }
    }
}

impl Ended {
    /// Of an operation that was never begun; `None` for an action that is none.
    pub(super) fn refused(store: StoreNumber, action: &Action, errno: Errno) -> Option<Self> {
        let (token, parent) = subject(action)?;
        let request = match parent {
            Parent::Request(id) => Some(id),
            Parent::Job(_) => None,
        };
        let is_read = matches!(action, Action::Read(_) | Action::Make { .. });
        Some(Self { store, token, request, result: Err(errno), is_read, serves: false })
    }
}

/// The token of an operation, and for what it is done.
pub(super) fn subject(action: &Action) -> Option<(Token, Parent)> {
    match *action {
        Action::Copy(CopyRange { token, parent, .. }) => Some((token, parent)),
        Action::Write(Write { operation, .. })
        | Action::Status { operation, .. }
        | Action::Read(operation)
        | Action::Zero(operation)
        | Action::Discard(operation)
        | Action::Flush(operation) => Some((operation.token, operation.parent)),
        Action::Make { token, parent, .. } => Some((token, parent)),
        Action::Forward(_)
        | Action::Complete(_)
        | Action::Timer { .. }
        | Action::Drop { .. }
        | Action::JobEnd { .. } => None,
    }
}

/// The operations done for one request: the bytes that they have read end with it.
#[derive(Default)]
pub(super) struct Operations(Rc<Work>);

/// What is under way for one request, and what it has read.
#[derive(Default)]
struct Work {
    buffers: Buffers,
    /// What a copy has brought that is to answer the request, and from which byte on.
    shown: Cell<Option<(u64, Buf)>>,
    /// Operations that have not ended.
    running: Cell<usize>,
    /// Those that were begun at once.
    begun_at_once: Cell<u32>,
    /// One is being polled by who asked for it.
    is_at_once: Cell<bool>,
    /// Who waits until there is none.
    waker: RefCell<Option<Waker>>,
}

impl Work {
    fn end_one(&self) {
        self.running.set(self.running.get() - 1);
        if self.running.get() == 0
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }
}

impl Operations {
    /// What a copy has brought that is to answer the request, if that is just what the filtered child shows there.
    pub(super) fn take_shown(&self, offset: u64, len: u64) -> Option<Buf> {
        let (from, bytes) = self.0.shown.take()?;
        (from == offset && bytes.len() as u64 == len).then_some(bytes)
    }

    /// Begins what the guest asked for. With a `task`, which is that of the request, what needs no waiting is done on
    /// return, and the guest may have answered. Else its end goes to the guest with the next batch.
    pub(super) fn start(
        &self,
        task: Option<&mut Context<'_>>,
        ground: impl Future<Output = Result<OnBehalf>> + 'static,
        (node, children, access): (NodeIndex, Arc<Vec<PluginChild>>, ByteAccess),
        plugin: &Rc<LocalPlugin>,
        Asked { store, action }: Asked,
    ) {
        if let Action::Drop { token } = action {
            self.0.buffers.forget(token);
            return;
        }
        let Some(mut ended) = Ended::refused(store, &action, Errno::EINVAL) else { return };
        ended.serves = matches!(action, Action::Copy(copy) if copy.serve);
        let filling = ended.is_read.then(|| self.0.buffers.begin(ended.token));
        let plugin = Rc::clone(plugin);
        let work = Rc::clone(&self.0);
        work.running.set(work.running.get() + 1);
        let mut operation: LocalFuture = Box::pin(async move {
            let lasting = plugin.lasting();
            let result = async {
                let served = Served { node, children: &children, access };
                run(ground.await?, &served, (&work, filling), (lasting, action)).await
            };
            let result = result.await;
            if let (Err(_), Some(filling)) = (&result, filling) {
                work.buffers.give_up(filling);
            }
            if let Err(error) = &result
                && let Some(why) = refused_claim(&children, &action, error)
            {
                plugin.claim_refused(node, why);
            }
            ended.result = result.map_err(|error| {
                tracing::debug!("plugin `{}`: {action:?}: {error}", plugin.name());
                errno_of(&error)
            });
            work.end_one();
            match work.is_at_once.get() {
                true => plugin.end_at_once(ended),
                false => plugin.end_operation(ended),
            }
        });
        let begun = self.0.begun_at_once.get();
        if let Some(task) = task.filter(|_| begun < AT_ONCE_MAX) {
            self.0.begun_at_once.set(begun + 1);
            self.0.is_at_once.set(true);
            let polled = operation.as_mut().poll(task);
            self.0.is_at_once.set(false);
            if polled.is_ready() {
                return;
            }
        }
        spawn_boxed(operation);
    }

    /// Waits until those that were begun have ended.
    pub(super) async fn ended(&self) {
        poll_fn(|cx| {
            if self.0.running.get() == 0 {
                return Poll::Ready(());
            }
            *self.0.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// How a guest is told an error.
pub(super) fn errno_of(error: &Error) -> Errno {
    Errno::new(error.errno().unsigned_abs()).unwrap_or(Errno::EIO)
}

/// The node for which something is done.
struct Served<'a> {
    node: NodeIndex,
    children: &'a [PluginChild],
    access: ByteAccess,
}

async fn run(
    ground: OnBehalf,
    served: &Served<'_>,
    (work, filling): (&Work, Option<Filling>),
    (lasting, action): (&Lasting, Action),
) -> Result<Answered> {
    let (&Served { node, children, access }, buffers) = (served, &work.buffers);
    match action {
        Action::Copy(copy) => run_copy(ground, (node, children), (work, lasting), copy).await,
        Action::Read(operation) => {
            let child = granted(children, operation.child, Grants::READ)?;
            let room = lasting.buffers.take(operation.len)?;
            let bytes = ground.read_proven(child, range(&operation)).await?;
            let plain = || bytes.clone().into_plain();
            let seen = (access != ByteAccess::None).then(|| BufferBytes::of_read(access, plain()));
            if let Some(filling) = filling {
                buffers.keep(filling, bytes, (seen.clone(), room));
            }
            Ok(Answered { seen, ..Answered::bytes(operation.len) })
        }
        Action::Make { len, .. } => {
            if access != ByteAccess::Transform {
                let message = "it makes bytes of its own, and lacks `grant.bytes = \"transform\"`";
                return Err(Error::new(ErrorKind::NotPermitted, message));
            }
            let room = lasting.buffers.take(len)?;
            // What has room is no longer than one copy.
            let made = BufferBytes::made(access, len as usize);
            if let Some(filling) = filling {
                buffers.keep_made(filling, Arc::clone(&made), room);
            }
            Ok(Answered { seen: Some(made), ..Answered::bytes(len) })
        }
        Action::Write(write) => run_write(ground, children, buffers, write).await,
        Action::Status { operation, above } => {
            let child = at(children, operation.child)?.edge;
            let above = above.map(|above| at(children, above).map(|child| child.edge));
            let (above, range) = (above.transpose()?, range(&operation));
            let extents = ground.block_status(child, above, range, EXTENTS_MAX).await?;
            Ok(described(&operation, &extents))
        }
        Action::Zero(operation) => {
            let child = granted(children, operation.child, Grants::WRITE)?;
            ground.zero_changed(child, range(&operation)).await?;
            Ok(Answered::bytes(operation.len))
        }
        Action::Discard(operation) => {
            let may = Grants::DISCARD.union(Grants::WRITE);
            let child = granted(children, operation.child, may)?;
            ground.discard_changed(child, range(&operation)).await?;
            Ok(Answered::bytes(operation.len))
        }
        Action::Flush(operation) => {
            ground.flush(at(children, operation.child)?.edge).await?;
            Ok(Answered::default())
        }
        Action::Forward(_)
        | Action::Complete(_)
        | Action::Timer { .. }
        | Action::Drop { .. }
        | Action::JobEnd { .. } => Err(Error::new(ErrorKind::Invalid, "it is no operation")),
    }
}

async fn run_copy(
    ground: OnBehalf,
    (node, children): (NodeIndex, &[PluginChild]),
    (work, lasting): (&Work, &Lasting),
    copy: CopyRange,
) -> Result<Answered> {
    let from = granted(children, copy.from, Grants::READ)?;
    let to = granted(children, copy.to, writing(copy.claim))?;
    // Onto itself there is something to copy only where the child shows what is below it.
    let how = CopyHow { unchanged: copy.claim, only_unallocated: copy.claim && from == to };
    let range = copy.offset..copy.offset.saturating_add(copy.len);
    let copied = match copy.clear {
        // What is proven unchanged is what the child shows.
        None if copy.serve && copy.claim && copy.to == FILE => {
            let (copied, shown) = ground.copy_shown(from, to, range, how).await?;
            work.shown.set(shown.map(|bytes| (copy.offset, bytes)));
            copied
        }
        None => ground.copy(from, to, range, how).await?,
        Some(index) => {
            let owned = lasting.bitmaps.owned_by(node, index.0).ok_or_else(|| {
                let message = format!("there is no bitmap {} of its own to clear", index.0);
                Error::new(ErrorKind::NotFound, message)
            })?;
            ground.copy_set(from, to, range, how, owned).await?
        }
    };
    Ok(Answered::bytes(copied.bytes))
}

async fn run_write(
    ground: OnBehalf,
    children: &[PluginChild],
    buffers: &Buffers,
    write: Write,
) -> Result<Answered> {
    let operation = write.operation;
    let to = granted(children, operation.child, writing(write.claim))?;
    // It keeps its room until it is written.
    let filled = buffers
        .get(write.source)
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "there is no such buffer of this request"))?;
    let len = operation.len;
    if filled.len_bytes() != len {
        let message = format!("the buffer has {} bytes, not {len}", filled.len_bytes());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    if let Some(own) = filled.own() {
        if write.claim {
            let message = "nothing is proven of bytes that the plugin has put there";
            return Err(Error::new(ErrorKind::NotPermitted, message));
        }
        ground.write_changed(to, operation.offset, own).await?;
        return Ok(Answered::bytes(len));
    }
    let Some(bytes) = filled.clone().into_read() else { return Ok(Answered::default()) };
    if !write.claim {
        ground.write_changed(to, operation.offset, bytes.into_plain()).await?;
    } else if bytes.range() == range(&operation) {
        ground.write_proven(to, bytes).await?;
    } else {
        let message = "bytes are unchanged only where they were read";
        return Err(Error::new(ErrorKind::NotPermitted, message));
    }
    Ok(Answered::bytes(len))
}

/// Why an operation's claim was refused, if it was that which failed it.
fn refused_claim(children: &[PluginChild], action: &Action, error: &Error) -> Option<Refused> {
    let to = match action {
        Action::Copy(copy) if copy.claim => copy.to,
        Action::Write(write) if write.claim => write.operation.child,
        _ => return None,
    };
    match error.kind() {
        ErrorKind::Stale => Some(Refused::Stale),
        // Without a grant it was not looked at.
        ErrorKind::NotPermitted if granted(children, to, writing(true)).is_ok() => {
            Some(Refused::NotProven)
        }
        _ => None,
    }
}

/// What lets a plugin write: either of these.
fn writing(claim: bool) -> Grants {
    if claim { Grants::WRITE.union(Grants::WRITE_UNCHANGED) } else { Grants::WRITE }
}

fn range(operation: &Operation) -> std::ops::Range<u64> {
    operation.offset..operation.offset.saturating_add(operation.len)
}

fn at(children: &[PluginChild], index: ChildIndex) -> Result<&PluginChild> {
    children.iter().find(|child| child.index == index).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("it has no child number {}", index.0))
    })
}

/// The edge of a child for which one of the grants is there.
fn granted(children: &[PluginChild], index: ChildIndex, any: Grants) -> Result<usize> {
    let child = at(children, index)?;
    if child.granted.intersects(any) {
        return Ok(child.edge);
    }
    let message = format!("its child `{}` lacks the grant {any}", child.name);
    Err(Error::new(ErrorKind::NotPermitted, message))
}

fn described(operation: &Operation, extents: &[Extent]) -> Answered {
    let mut answered = Answered::default();
    for extent in extents {
        let flags = match extent.kind {
            ExtentKind::Data | ExtentKind::Unreadable => ExtentFlags::ALLOCATED,
            ExtentKind::Zero | ExtentKind::Hole => ExtentFlags::ALLOCATED.with(ExtentFlags::ZERO),
            ExtentKind::Unallocated => ExtentFlags::NONE,
        };
        let (token, offset, len) = (operation.token, extent.offset, extent.len);
        answered.extents.push(abi::Extent { token, flags, offset, len });
        answered.value = answered.value.saturating_add(len);
    }
    answered
}
