//! The data that a guest may see: what requests carry, and what is in buffers, for nodes that grant it.
//!
//! A request's bytes are handed over with the offer ([`Handed`]) and reach the store in which it is offered
//! ([`StoreBytes`]), where the guest names them by the request's id; those of a buffer come with the end of
//! the operation that filled it. What a guest puts takes effect by the answer that follows: a store that is
//! lost takes it along, and the next one finds the request as it came.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockloom_abi::{Errno, Kind, MAX_COPY_BYTES, RequestId, Token};

use super::bindings::blockloom::filter::bytes::{Holder, Host};
use super::bindings::exports::blockloom::filter::control;
use super::local::Ticket;
use super::store::{HostState, Lasting};
use crate::io::{Buf, BufMut};

/// Bytes that one call moves.
pub(super) const CALL_BYTES_MAX: u32 = 64 << 10;
/// Longest request whose data a guest may transform, as one operation moves no more.
pub(super) const TRANSFORM_MAX_BYTES: u32 = MAX_COPY_BYTES as u32;

/// What a plugin may do with the data of a node's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ByteAccess {
    /// Nothing.
    #[default]
    None,
    /// Look at it.
    Read,
    /// Make it other data: the node shows bytes of its own.
    Transform,
}

impl ByteAccess {
    /// The word in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Transform => "transform",
        }
    }

    pub(super) fn of_wants(wants: control::ByteAccess) -> Self {
        match wants {
            control::ByteAccess::None => Self::None,
            control::ByteAccess::Read => Self::Read,
            control::ByteAccess::Transform => Self::Transform,
        }
    }

    pub(super) fn to_wire(self) -> control::ByteAccess {
        match self {
            Self::None => control::ByteAccess::None,
            Self::Read => control::ByteAccess::Read,
            Self::Transform => control::ByteAccess::Transform,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A part of some bytes that a guest names.
fn part(offset: u32, len: usize, of: usize) -> Result<std::ops::Range<usize>, Errno> {
    let start = offset as usize;
    let end = start.checked_add(len).filter(|end| *end <= of).ok_or(Errno::EINVAL)?;
    Ok(start..end)
}

/// Puts bytes over others, of which a copy is made only if some of them stay.
fn overlaid(given: &[u8], offset: u32, bytes: &[u8]) -> Result<BufMut, Errno> {
    let range = part(offset, bytes.len(), given.len())?;
    if range.len() == given.len() {
        return Ok(BufMut::copy_of(bytes));
    }
    let mut put = BufMut::copy_of(given);
    put[range].copy_from_slice(bytes);
    Ok(put)
}

/// What a request has of data.
enum Data {
    /// None, by its kind.
    None,
    /// A read that nobody has given bytes to.
    Open,
    /// A read: what the child gave, or the guest.
    Answer { bytes: BufMut, is_put: bool },
    /// A write: what the guest of the disk gave, and what the plugin has made of it.
    Payload { given: Buf, put: Option<BufMut> },
}

struct Request {
    data: Data,
    /// It has been forwarded.
    is_forwarded: bool,
    /// It has, and the child has not answered.
    is_gone: bool,
    /// The store is no more that was to make an answer of what the child gave.
    is_lost: bool,
}

/// The data of one request.
pub(super) struct RequestBytes {
    access: ByteAccess,
    len: usize,
    request: Mutex<Request>,
}

impl RequestBytes {
    fn new(access: ByteAccess, len: usize, data: Data) -> Arc<Self> {
        let request = Request { data, is_forwarded: false, is_gone: false, is_lost: false };
        let request = Mutex::new(request);
        Arc::new(Self { access, len, request })
    }

    /// It is offered anew: nothing that a former store did to it counts.
    fn renew(&self) {
        let mut request = lock(&self.request);
        (request.is_forwarded, request.is_gone, request.is_lost) = (false, false, false);
        match &mut request.data {
            Data::Payload { put, .. } => *put = None,
            data @ Data::Answer { .. } => *data = Data::Open,
            Data::None | Data::Open => {}
        }
    }

    /// It goes to the child: what a guest has put to a read does not count. To forward it again changes its
    /// time alone, and the child may have answered by then.
    fn go(&self) {
        let mut request = lock(&self.request);
        if std::mem::replace(&mut request.is_forwarded, true) {
            return;
        }
        request.is_gone = true;
        if let data @ Data::Answer { .. } = &mut request.data {
            *data = Data::Open;
        }
    }

    fn is_put(&self) -> bool {
        match &lock(&self.request).data {
            Data::Answer { is_put, .. } => *is_put,
            Data::Payload { put, .. } => put.is_some(),
            Data::None | Data::Open => false,
        }
    }

    fn get(&self, offset: u32, len: u32) -> Result<Vec<u8>, Errno> {
        let request = lock(&self.request);
        let bytes: &[u8] = match &request.data {
            Data::None => return Err(Errno::EINVAL),
            Data::Open => return Err(Errno::EBUSY),
            Data::Payload { .. } if request.is_gone => return Err(Errno::EBUSY),
            Data::Answer { bytes, .. } => bytes,
            Data::Payload { given, put } => put.as_deref().unwrap_or(given),
        };
        Ok(bytes[part(offset, len as usize, bytes.len())?].to_vec())
    }

    fn put(&self, offset: u32, bytes: &[u8]) -> Result<(), Errno> {
        if self.access != ByteAccess::Transform {
            return Err(Errno::EPERM);
        }
        let range = part(offset, bytes.len(), self.len)?;
        let mut request = lock(&self.request);
        if request.is_gone {
            return Err(Errno::EBUSY);
        }
        match &mut request.data {
            Data::None => return Err(Errno::EINVAL),
            data @ Data::Open => {
                let mut answer = BufMut::zeroed(self.len);
                answer[range].copy_from_slice(bytes);
                *data = Data::Answer { bytes: answer, is_put: true };
            }
            Data::Answer { bytes: answer, is_put } => {
                answer[range].copy_from_slice(bytes);
                *is_put = true;
            }
            Data::Payload { put: Some(put), .. } => put[range].copy_from_slice(bytes),
            Data::Payload { given, put } => *put = Some(overlaid(given, offset, bytes)?),
        }
        Ok(())
    }
}

/// The data of a request on its way through a plugin's node: lent to the store in which it is offered. One that
/// is dropped may have been lent, and is offered with its data: the guest knows of no difference.
pub(super) struct Handed {
    bytes: Arc<RequestBytes>,
    lasting: Arc<Lasting>,
}

impl Handed {
    fn new(lasting: &Arc<Lasting>, bytes: Arc<RequestBytes>) -> Self {
        Self { bytes, lasting: Arc::clone(lasting) }
    }

    /// Of a read.
    pub(super) fn of_read(lasting: &Arc<Lasting>, access: ByteAccess, len: usize) -> Self {
        Self::new(lasting, RequestBytes::new(access, len, Data::Open))
    }

    /// Of a write.
    pub(super) fn of_write(lasting: &Arc<Lasting>, access: ByteAccess, given: Buf) -> Self {
        let (len, data) = (given.len(), Data::Payload { given, put: None });
        Self::new(lasting, RequestBytes::new(access, len, data))
    }

    /// Of a request without data.
    pub(super) fn of_none(lasting: &Arc<Lasting>, access: ByteAccess) -> Self {
        Self::new(lasting, RequestBytes::new(access, 0, Data::None))
    }

    /// Lends it to the store that is offered the request of that ticket.
    pub(super) fn lend(&self, ticket: Ticket) {
        self.bytes.renew();
        lock(&self.lasting.bytes.lent).insert(ticket, Arc::clone(&self.bytes));
    }

    /// What is to be written.
    pub(super) fn payload(&self) -> Buf {
        match &mut lock(&self.bytes.request).data {
            Data::Payload { given, put: put @ Some(_) } => {
                // Nobody puts anything to what has gone.
                let frozen = put.take().map(BufMut::freeze);
                frozen.unwrap_or_else(|| given.clone())
            }
            Data::Payload { given, .. } => given.clone(),
            _ => Buf::zeros(0),
        }
    }

    /// The child has given these bytes.
    pub(super) fn give(&self, bytes: BufMut) {
        let mut request = lock(&self.bytes.request);
        request.is_gone = false;
        request.data = Data::Answer { bytes, is_put: false };
    }

    /// The guest that was to say what answers the request is no more.
    pub(super) fn lose(&self) {
        lock(&self.bytes.request).is_lost = true;
    }

    /// Whether what the child gave is not the answer, and nobody is there to make one of it.
    pub(super) fn is_lost(&self) -> bool {
        self.bytes.access == ByteAccess::Transform && lock(&self.bytes.request).is_lost
    }

    /// What answers a read.
    pub(super) fn answer(&self) -> BufMut {
        let mut request = lock(&self.bytes.request);
        match std::mem::replace(&mut request.data, Data::None) {
            Data::Answer { bytes, .. } => bytes,
            _ => BufMut::zeroed(self.bytes.len),
        }
    }
}

/// What is in a buffer that a guest may see.
pub(super) struct BufferBytes {
    access: ByteAccess,
    content: Mutex<Content>,
}

enum Content {
    /// As it was read.
    Read(Buf),
    /// The guest's, and of no other origin.
    Put(BufMut),
    /// The same while something writes it.
    Frozen(Buf),
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Read(buf) | Self::Frozen(buf) => buf,
            Self::Put(buf) => buf,
        }
    }
}

impl fmt::Debug for BufferBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferBytes").field("access", &self.access).finish_non_exhaustive()
    }
}

impl BufferBytes {
    /// Of bytes that were read.
    pub(super) fn of_read(access: ByteAccess, bytes: Buf) -> Arc<Self> {
        Arc::new(Self { access, content: Mutex::new(Content::Read(bytes)) })
    }

    /// Zeros.
    pub(super) fn made(access: ByteAccess, len: usize) -> Arc<Self> {
        Arc::new(Self { access, content: Mutex::new(Content::Put(BufMut::zeroed(len))) })
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.content).bytes().len()
    }

    /// The guest's own bytes, if they are its own.
    pub(super) fn own(&self) -> Option<Buf> {
        let mut content = lock(&self.content);
        let frozen = match &mut *content {
            Content::Read(_) => return None,
            Content::Frozen(buf) => return Some(buf.clone()),
            Content::Put(buf) => std::mem::replace(buf, BufMut::new(0)).freeze(),
        };
        *content = Content::Frozen(frozen.clone());
        Some(frozen)
    }

    fn get(&self, offset: u32, len: u32) -> Result<Vec<u8>, Errno> {
        let content = lock(&self.content);
        let bytes = content.bytes();
        Ok(bytes[part(offset, len as usize, bytes.len())?].to_vec())
    }

    fn put(&self, offset: u32, bytes: &[u8]) -> Result<(), Errno> {
        if self.access != ByteAccess::Transform {
            return Err(Errno::EPERM);
        }
        let mut content = lock(&self.content);
        if let Content::Put(own) = &mut *content {
            let range = part(offset, bytes.len(), own.len())?;
            own[range].copy_from_slice(bytes);
            return Ok(());
        }
        let put = overlaid(content.bytes(), offset, bytes)?;
        *content = Content::Put(put);
        Ok(())
    }
}

/// The data of an instance's requests that no store has taken in. Bounded by its offers.
#[derive(Default)]
pub(super) struct LentBytes {
    is_granted: AtomicBool,
    lent: Mutex<HashMap<Ticket, Arc<RequestBytes>>>,
}

impl LentBytes {
    /// A node grants something.
    pub(super) fn grant(&self) {
        self.is_granted.store(true, Ordering::Relaxed);
    }

    /// No store takes in the request of that ticket.
    pub(super) fn take_back(&self, ticket: Ticket) {
        if self.is_granted() {
            lock(&self.lent).remove(&ticket);
        }
    }

    #[inline]
    pub(super) fn is_granted(&self) -> bool {
        self.is_granted.load(Ordering::Relaxed)
    }
}

/// What the guest of one store may name. Bounded by its requests and buffers.
#[derive(Default)]
pub(super) struct StoreBytes {
    requests: HashMap<u32, (Ticket, Arc<RequestBytes>)>,
    buffers: HashMap<Token, (Ticket, Arc<BufferBytes>)>,
}

impl StoreBytes {
    /// A request is offered; what the guest may do with its data.
    #[cold]
    pub(super) fn offer(&mut self, lent: &LentBytes, id: RequestId, ticket: Ticket) -> ByteAccess {
        let Some(bytes) = lock(&lent.lent).remove(&ticket) else { return ByteAccess::None };
        let access = bytes.access;
        self.requests.insert(id.bits(), (ticket, bytes));
        access
    }

    /// Whether the guest has put bytes to a request.
    #[inline]
    pub(super) fn is_put(&self, id: RequestId) -> bool {
        !self.requests.is_empty()
            && self.requests.get(&id.bits()).is_some_and(|(_, bytes)| bytes.is_put())
    }

    /// A request has been forwarded, and its guest may name it still.
    #[inline]
    pub(super) fn go(&self, id: RequestId) {
        if let Some((_, bytes)) = self.requests.get(&id.bits()) {
            bytes.go();
        }
    }

    /// A buffer has been filled for the request, or job, of that ticket.
    pub(super) fn fill(&mut self, token: Token, ticket: Ticket, bytes: Arc<BufferBytes>) {
        self.buffers.insert(token, (ticket, bytes));
    }

    /// A buffer is no more.
    pub(super) fn forget(&mut self, token: Token) {
        self.buffers.remove(&token);
    }

    /// A request is answered: nothing of it can be named any more.
    #[inline]
    pub(super) fn end(&mut self, ticket: Ticket) {
        if !self.requests.is_empty() {
            self.requests.retain(|_, (of, _)| *of != ticket);
        }
        if !self.buffers.is_empty() {
            self.buffers.retain(|_, (of, _)| *of != ticket);
        }
    }
}

impl HostState {
    /// A request is offered: takes in what was lent with it. What the guest may do with its data.
    #[inline]
    pub(super) fn take_lent(&mut self, id: RequestId, ticket: Ticket) -> ByteAccess {
        match self.lasting.bytes.is_granted() {
            true => self.bytes.offer(&self.lasting.bytes, id, ticket),
            false => ByteAccess::None,
        }
    }

    fn held<T>(
        &self,
        of: Holder,
        request: impl FnOnce(&RequestBytes) -> Result<T, Errno>,
        buffer: impl FnOnce(&BufferBytes) -> Result<T, Errno>,
    ) -> Result<T, u32> {
        let missing = if self.lasting.bytes.is_granted() { Errno::EINVAL } else { Errno::EPERM };
        let held = match of {
            Holder::Request(id) => self.bytes.requests.get(&id).map(|(_, bytes)| request(bytes)),
            Holder::Buffer(token) => {
                self.bytes.buffers.get(&Token(token)).map(|(_, bytes)| buffer(bytes))
            }
        };
        held.unwrap_or(Err(missing)).map_err(Errno::number)
    }
}

impl Host for HostState {
    fn get(&mut self, of: Holder, offset: u32, len: u32) -> wasmtime::Result<Result<Vec<u8>, u32>> {
        if len > CALL_BYTES_MAX {
            return Ok(Err(Errno::EINVAL.number()));
        }
        Ok(self.held(of, |bytes| bytes.get(offset, len), |bytes| bytes.get(offset, len)))
    }

    fn put(
        &mut self,
        of: Holder,
        offset: u32,
        bytes: Vec<u8>,
    ) -> wasmtime::Result<Result<(), u32>> {
        Ok(self.held(of, |of| of.put(offset, &bytes), |of| of.put(offset, &bytes)))
    }
}

/// Whether a kind of request, which the plugin does not want, has data in it that the plugin makes other data.
pub(super) fn is_lowered(access: ByteAccess, kind: Kind) -> bool {
    access == ByteAccess::Transform && matches!(kind, Kind::Zero | Kind::Discard)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::super::PluginLimits;
    use super::*;

    #[test]
    fn a_request_that_was_dropped_is_offered_with_its_data() {
        let lasting: Arc<Lasting> = Arc::default();
        lasting.bytes.grant();
        let mut state = HostState::new("a", &PluginLimits::default(), Arc::clone(&lasting));
        let id = RequestId::new(0, 1).expect("an id");
        let ticket = |at| Ticket::new(0, 0, NonZeroU64::MIN.saturating_add(at));
        for sequence in 1..=2 {
            let bytes = Buf::copy_of(&[1, 2, 3, 4]);
            let handed = Handed::of_write(&lasting, ByteAccess::Transform, bytes);
            handed.lend(ticket(sequence));
        }
        lasting.bytes.take_back(ticket(2));
        assert_eq!(state.take_lent(id, ticket(1)), ByteAccess::Transform);
        assert_eq!(state.get(Holder::Request(id.bits()), 1, 2).expect("no trap"), Ok(vec![2, 3]));
        assert_eq!(state.take_lent(id, ticket(2)), ByteAccess::None);
        assert!(lock(&lasting.bytes.lent).is_empty());
    }

    #[test]
    fn what_the_child_gave_outlives_another_time_for_the_request() {
        let handed = Handed::of_read(&Arc::default(), ByteAccess::Transform, 4);
        handed.bytes.go();
        handed.give(BufMut::copy_of(&[1, 2, 3, 4]));
        handed.bytes.go();
        assert_eq!(handed.bytes.get(0, 4), Ok(vec![1, 2, 3, 4]));
        assert_eq!(handed.bytes.put(1, &[9]), Ok(()));
        assert_eq!(handed.answer()[..], [1, 9, 3, 4]);
    }
}
