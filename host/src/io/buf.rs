//! Data buffers: owned, page-aligned, pooled and reference-counted.
//!
//! An operation owns its buffers until it completes, also when the future that asked for it is
//! dropped; so nothing here borrows across an `await`. [`BufMut`] has one owner and may be written;
//! [`BufMut::freeze`] turns it into a [`Buf`], which is shared, read-only and cheap to slice.
//!
//! Memory comes from a pool of the current thread in power-of-two classes from one page to
//! [`POOL_CLASS_MAX_BYTES`]; larger buffers are allocated alone. A re-used buffer holds the bytes of
//! its former use: whoever fills one fills all of it or reports an error.
//!
//! All `unsafe` of buffers is here: allocation, and the one view of it as a slice.
#![allow(unsafe_code, reason = "aligned allocation and its slice view")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::registered::Place;
use crate::limits::{POOL_BYTES_MAX, POOL_CLASS_MAX_BYTES, ZERO_CHUNK_BYTES};

/// Alignment of every buffer's start, bytes.
pub const BUFFER_ALIGN: usize = 4096;

const CLASS_MIN_SHIFT: u32 = BUFFER_ALIGN.trailing_zeros();
const CLASSES: usize = (POOL_CLASS_MAX_BYTES.trailing_zeros() - CLASS_MIN_SHIFT + 1) as usize;

/// From this size on memory comes from the kernel and goes back there: untouched pages cost nothing until
/// they are used, so a peer that announces a large request does not make us hold it.
const MAPPED_MIN_BYTES: usize = 128 << 10;

/// One aligned allocation, initialised from the start.
pub(super) struct Memory {
    start: NonNull<u8>,
    /// Bytes, a multiple of [`BUFFER_ALIGN`]; at least [`MAPPED_MIN_BYTES`] if it is mapped.
    capacity: usize,
    /// Where a ring knows it.
    place: OnceLock<Place>,
}

// SAFETY: `Memory` owns its allocation; the pointer is reached only through `BufMut` (unique) or
// `Buf` (shared, read-only), which follow the rules of `Box<[u8]>` and `Arc<[u8]>`.
unsafe impl Send for Memory {}
// SAFETY: as above; a shared `Memory` is only read.
unsafe impl Sync for Memory {}

fn layout(capacity: usize) -> Layout {
    match Layout::from_size_align(capacity, BUFFER_ALIGN) {
        Ok(layout) => layout,
        Err(_) => panic!("a buffer of {capacity} bytes exceeds the address space"),
    }
}

impl Memory {
    fn new(capacity_bytes: usize) -> Self {
        let capacity = capacity_bytes.max(1).next_multiple_of(BUFFER_ALIGN);
        let layout = layout(capacity);
        let start = if capacity >= MAPPED_MIN_BYTES {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new private mapping, wherever the kernel has room; nobody else knows it.
            let mapped = unsafe { mmap_anonymous(ptr::null_mut(), capacity, access, flags) };
            mapped.unwrap_or(ptr::null_mut()).cast()
        } else {
            // SAFETY: `layout` has a non-zero size.
            unsafe { alloc_zeroed(layout) }
        };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, capacity, place: OnceLock::new() }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn start_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Whether it has pages of its own.
    fn is_mapped(&self) -> bool {
        self.capacity >= MAPPED_MIN_BYTES
    }

    /// Whether it is worth a place: it has pages of its own, and is used again.
    pub(super) fn is_placed(&self) -> bool {
        self.is_mapped() && self.capacity <= POOL_CLASS_MAX_BYTES
    }

    pub(super) fn place(&self) -> Option<&Place> {
        self.place.get()
    }

    /// It keeps the first place that it gets, until it is freed, or kept for re-use and somebody needs the place more.
    pub(super) fn set_place(&self, place: Place) {
        let _ = self.place.set(place);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.is_mapped() {
            // SAFETY: the whole mapping made for this capacity, unmapped once, here. Its owner is gone.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.capacity) };
            debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
        } else {
            // SAFETY: allocated with this layout and freed once, here.
            unsafe { dealloc(self.start.as_ptr(), layout(self.capacity)) }
        }
    }
}

#[derive(Default)]
struct Pool {
    classes: [Vec<Arc<Memory>>; CLASSES],
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// The pool class that holds `len` bytes; `None` when such a buffer is not pooled.
fn class_of(len: usize) -> Option<usize> {
    let size = len.max(BUFFER_ALIGN).checked_next_power_of_two()?;
    let class = (size.trailing_zeros() - CLASS_MIN_SHIFT) as usize;
    (class < CLASSES).then_some(class)
}

fn take(len: usize) -> Arc<Memory> {
    let Some(class) = class_of(len) else { return Arc::new(Memory::new(len)) };
    let pooled = POOL
        .try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let memory = pool.classes[class].pop()?;
            pool.bytes -= memory.capacity();
            Some(memory)
        })
        .ok()
        .flatten();
    pooled.unwrap_or_else(|| Arc::new(Memory::new(BUFFER_ALIGN << class)))
}

/// Gives back memory that has no other owner; shared memory is left to its last owner.
fn give_back(memory: &mut Option<Arc<Memory>>) {
    let Some(mut memory) = memory.take() else { return };
    let Some(alone) = Arc::get_mut(&mut memory) else { return };
    if alone.place().is_some_and(|place| !place.is_of_own_ring()) {
        // Nobody uses it by that ring again.
        alone.place.take();
    }
    let capacity = memory.capacity();
    let Some(class) = class_of(capacity).filter(|class| BUFFER_ALIGN << class == capacity) else {
        return;
    };
    // A thread that is ending has no pool any more: the memory is then simply freed.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.bytes + capacity <= POOL_BYTES_MAX {
            pool.bytes += capacity;
            pool.classes[class].push(memory);
        }
    });
}

/// Has memory that the current thread keeps for re-use give up its place, if any has one.
pub(super) fn forget_idle_place() -> bool {
    let forget = |pool: &RefCell<Pool>| {
        let mut pool = pool.borrow_mut();
        // What was used longest ago comes first.
        let mut idle = pool.classes.iter_mut().flatten().filter_map(Arc::get_mut);
        idle.find_map(|memory| memory.place.take()).is_some()
    };
    POOL.try_with(forget).unwrap_or(false)
}

/// Frees the memory that the current thread keeps for re-use.
pub(crate) fn trim_pool() {
    let _ = POOL.try_with(|pool| *pool.borrow_mut() = Pool::default());
}

/// A buffer with one owner, who may write it.
pub struct BufMut {
    memory: Option<Arc<Memory>>,
    len: usize,
}

impl BufMut {
    /// A buffer of `len` bytes whose contents are unspecified (but initialised).
    pub fn new(len: usize) -> Self {
        Self { memory: Some(take(len)), len }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::new(len);
        buf.fill(0);
        buf
    }

    /// A buffer with a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::new(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Shortens the buffer to its first `len` bytes; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Gives up the right to write; free of cost.
    pub fn freeze(mut self) -> Buf {
        Buf { memory: self.memory.take(), start: 0, len: self.len }
    }

    /// What it lies in.
    pub(super) fn memory(&self) -> Option<&Memory> {
        self.memory.as_deref()
    }

    fn start(&self) -> *mut u8 {
        self.memory.as_ref().map_or(NonNull::dangling(), |memory| memory.start).as_ptr()
    }
}

impl Deref for BufMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` ≤ capacity, all of it initialised, and `self` is the only owner.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the view unique.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for BufMut {
    fn drop(&mut self) {
        give_back(&mut self.memory);
    }
}

impl fmt::Debug for BufMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufMut({} bytes)", self.len)
    }
}

/// A shared, read-only buffer.
pub struct Buf {
    memory: Option<Arc<Memory>>,
    start: usize,
    len: usize,
}

impl Buf {
    /// A buffer with a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        BufMut::copy_of(bytes).freeze()
    }

    /// The shared zero buffer, clipped to `len` bytes: at most [`ZERO_CHUNK_BYTES`].
    pub fn zeros(len: usize) -> Self {
        static ZEROS: OnceLock<Buf> = OnceLock::new();
        let zeros = ZEROS.get_or_init(|| Buf {
            memory: Some(Arc::new(Memory::new(ZERO_CHUNK_BYTES))),
            start: 0,
            len: ZERO_CHUNK_BYTES,
        });
        zeros.slice(0..len.min(ZERO_CHUNK_BYTES))
    }

    /// The right to write it: free of cost if nobody else has it, else that to a copy.
    pub fn into_mut(mut self) -> BufMut {
        let is_alone =
            self.start == 0 && self.memory.as_mut().is_none_or(|it| Arc::get_mut(it).is_some());
        if !is_alone {
            return BufMut::copy_of(&self);
        }
        BufMut { memory: self.memory.take(), len: self.len }
    }

    /// What it lies in.
    pub(super) fn memory(&self) -> Option<&Memory> {
        self.memory.as_deref()
    }

    /// A part of the buffer, sharing its memory.
    ///
    /// # Panics
    /// When `range` does not lie in the buffer.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "slice outside its buffer");
        Self {
            memory: self.memory.clone(),
            start: self.start + range.start,
            len: range.end - range.start,
        }
    }
}

impl Clone for Buf {
    fn clone(&self) -> Self {
        self.slice(0..self.len)
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let base = self.memory.as_ref().map_or(NonNull::dangling(), |memory| memory.start);
        // SAFETY: `start + len` ≤ capacity, all of it initialised, and shared memory is never written.
        unsafe { std::slice::from_raw_parts(base.as_ptr().add(self.start), self.len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        give_back(&mut self.memory);
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

/// Whether every byte is zero. Looks at the first word alone when that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (head, words) = bytes.as_chunks::<64>();
    // One compare of a whole line at a time lets the compiler use vector registers.
    head.iter().all(|line| line == &[0; 64]) && words.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freeze_slice_and_reuse_keep_their_bytes() {
        let mut buf = BufMut::zeroed(10_000);
        buf[9_999] = 7;
        let whole = buf.freeze();
        let tail = whole.slice(9_000..10_000);
        drop(whole);
        let other = BufMut::zeroed(10_000);
        assert_eq!(tail[999], 7, "memory with another owner must not return to the pool");
        assert!(is_zero(&other));
        assert_eq!(other.as_ptr() as usize % BUFFER_ALIGN, 0);
    }

    #[test]
    fn who_is_alone_may_write_without_a_copy() {
        let buf = Buf::copy_of(&[7; 5000]);
        let (address, tail) = (buf.as_ptr(), buf.slice(4000..5000));
        let mut copy = tail.into_mut();
        assert_eq!(copy[..], [7; 1000]);
        copy.fill(8);
        let mut same = buf.into_mut();
        assert_eq!((same.as_ptr(), same.len()), (address, 5000));
        assert_eq!(same[..], [7; 5000]);
        same.fill(9);
        let shared = same.freeze();
        let other = shared.clone();
        assert_ne!(shared.into_mut().as_ptr(), address);
        assert_eq!(other[..], [9; 5000]);
    }

    #[test]
    fn the_pool_is_bounded_and_reuses() {
        trim_pool();
        let first = BufMut::new(4096);
        let address = first.as_ptr();
        drop(first);
        assert_eq!(BufMut::new(100).as_ptr(), address);
        let many: Vec<_> = (0..8).map(|_| BufMut::new(POOL_CLASS_MAX_BYTES)).collect();
        drop(many);
        POOL.with(|pool| assert!(pool.borrow().bytes <= POOL_BYTES_MAX));
        let large = BufMut::new(POOL_CLASS_MAX_BYTES + 1);
        drop(large);
        POOL.with(|pool| assert!(pool.borrow().bytes <= POOL_BYTES_MAX));
    }

    #[test]
    fn zero_detection_sees_every_byte() {
        for len in [0_usize, 1, 63, 64, 65, 200] {
            let mut bytes = vec![0_u8; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes));
                bytes[at] = 0;
            }
        }
    }
}
