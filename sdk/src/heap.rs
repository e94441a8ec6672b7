//! The guest's memory: free lists of blocks whose sizes are powers of two.
//!
//! Taking and giving back a block is a few instructions, whatever was done before; each call of
//! the data plane does both once. Blocks are never split or joined, so memory grows to at most
//! about twice what was in use at once of each size, and stays there.
#![allow(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr;

/// Sizes from 16 bytes to 2 GiB.
const SMALLEST_SHIFT: u32 = 4;
const CLASSES: usize = 28;
const PAGE_BYTES: usize = 64 << 10;

/// An allocator for one thread.
pub(crate) struct Heap {
    /// The first free block of each size; each holds the address of the next.
    free: [Cell<*mut u8>; CLASSES],
    /// What was never handed out: from where, and how much.
    fresh: Cell<*mut u8>,
    fresh_bytes: Cell<usize>,
    /// Gives so many more pages, aligned to a page; null if there are none.
    more: fn(usize) -> *mut u8,
}

// SAFETY: a component has one thread; the tests use each heap from one.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) const fn new(more: fn(usize) -> *mut u8) -> Self {
        Self {
            free: [const { Cell::new(ptr::null_mut()) }; CLASSES],
            fresh: Cell::new(ptr::null_mut()),
            fresh_bytes: Cell::new(0),
            more,
        }
    }

    /// A block from memory that was never handed out, aligned to its size or to a page.
    #[cold]
    fn carve(&self, block_bytes: usize) -> *mut u8 {
        let align = block_bytes.min(PAGE_BYTES);
        let mut skipped = self.fresh.get().align_offset(align);
        if skipped.saturating_add(block_bytes) > self.fresh_bytes.get() {
            let pages = block_bytes.div_ceil(PAGE_BYTES);
            let start = (self.more)(pages);
            if start.is_null() {
                return start;
            }
            // What was left over is given up, unless the new pages follow on it.
            let follows = self.fresh.get().wrapping_add(self.fresh_bytes.get()) == start;
            if follows && !self.fresh.get().is_null() {
                self.fresh_bytes.set(self.fresh_bytes.get() + pages * PAGE_BYTES);
            } else {
                self.fresh.set(start);
                self.fresh_bytes.set(pages * PAGE_BYTES);
            }
            skipped = self.fresh.get().align_offset(align);
            if skipped + block_bytes > self.fresh_bytes.get() {
                return self.carve(block_bytes);
            }
        }
        let block = self.fresh.get().wrapping_add(skipped);
        self.fresh.set(block.wrapping_add(block_bytes));
        self.fresh_bytes.set(self.fresh_bytes.get() - skipped - block_bytes);
        block
    }
}

/// The class of a layout: the power of two that holds its size and alignment.
#[inline]
fn class(layout: Layout) -> usize {
    let bytes = layout.size().max(layout.align()).max(1 << SMALLEST_SHIFT);
    (usize::BITS - (bytes - 1).leading_zeros() - SMALLEST_SHIFT) as usize
}

// SAFETY: a block is handed out to one owner at a time, is as large as its class, and aligned to
// its size up to a page. Larger alignments get no memory.
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let class = class(layout);
        if layout.align() > PAGE_BYTES {
            return ptr::null_mut();
        }
        let Some(first) = self.free.get(class) else { return ptr::null_mut() };
        let block = first.get();
        if block.is_null() {
            return self.carve(1 << (class as u32 + SMALLEST_SHIFT));
        }
        // SAFETY: a free block holds the address of the next, written by `dealloc`.
        first.set(unsafe { block.cast::<*mut u8>().read() });
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(first) = self.free.get(class(layout)) {
            // SAFETY: the block is the caller's to give back, and holds at least 16 bytes.
            unsafe { block.cast::<*mut u8>().write(first.get()) };
            first.set(block);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        // SAFETY: by the contract of `realloc`, the new size is valid with this alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_bytes, layout.align()) };
        if class(layout) == class(new_layout) {
            return block;
        }
        // SAFETY: the caller's contract; the two blocks do not overlap, and the old one is given
        // back once.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size().min(new_bytes));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

#[cfg(target_family = "wasm")]
fn grow(pages: usize) -> *mut u8 {
    match core::arch::wasm32::memory_grow(0, pages) {
        usize::MAX => ptr::null_mut(),
        old_pages => ptr::with_exposed_provenance_mut(old_pages * PAGE_BYTES),
    }
}

#[cfg(target_family = "wasm")]
#[global_allocator]
static HEAP: Heap = Heap::new(grow);

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages that are never given back: a heap keeps them.
    fn leak(pages: usize) -> *mut u8 {
        let layout = Layout::from_size_align(pages * PAGE_BYTES, PAGE_BYTES).expect("valid");
        // SAFETY: the layout has a size.
        unsafe { std::alloc::alloc(layout) }
    }

    fn layout(bytes: usize, align: usize) -> Layout {
        Layout::from_size_align(bytes, align).expect("valid")
    }

    #[test]
    fn blocks_are_aligned_apart_and_used_again() {
        let heap = Heap::new(leak);
        let mut blocks = Vec::new();
        for round in 0..200 {
            for (bytes, align) in [(1, 1), (17, 8), (100, 64), (5000, 16), (70_000, 8), (3, 4096)] {
                let layout = layout(bytes, align);
                // SAFETY: the layout has a size.
                let block = unsafe { heap.alloc(layout) };
                assert_eq!(block.align_offset(align), 0);
                // SAFETY: the block is that large.
                unsafe { block.write_bytes(round as u8, bytes) };
                blocks.push((block, layout, round as u8));
            }
        }
        for (block, layout, mark) in blocks {
            // SAFETY: the block was written above, and is given back once.
            unsafe {
                let bytes = std::slice::from_raw_parts(block, layout.size());
                assert!(bytes.iter().all(|byte| *byte == mark), "overwritten");
                heap.dealloc(block, layout);
            }
        }
        // SAFETY: the layouts have sizes, and each block is given back once.
        unsafe {
            let first = heap.alloc(layout(100, 8));
            heap.dealloc(first, layout(100, 8));
            assert_eq!(heap.alloc(layout(65, 8)), first);
        }
    }

    #[test]
    fn growing_keeps_the_bytes_and_only_moves_when_it_must() {
        let heap = Heap::new(leak);
        // SAFETY: the layouts have sizes and follow the block.
        unsafe {
            let block = heap.alloc(layout(33, 8));
            block.write_bytes(7, 33);
            assert_eq!(heap.realloc(block, layout(33, 8), 64), block);
            let moved = heap.realloc(block, layout(64, 8), 65);
            assert_ne!(moved, block);
            assert!(std::slice::from_raw_parts(moved, 33).iter().all(|byte| *byte == 7));
            assert_eq!(heap.alloc(layout(64, 8)), block, "the old one is free");
        }
    }

    #[test]
    fn what_cannot_be_had_is_null() {
        let heap = Heap::new(|_| ptr::null_mut());
        // SAFETY: the layouts have sizes.
        unsafe {
            assert!(heap.alloc(layout(1, 1)).is_null());
            assert!(heap.alloc(layout(1, 2 * PAGE_BYTES)).is_null());
            assert!(heap.alloc(layout(usize::MAX >> 2, 1)).is_null());
        }
    }
}
