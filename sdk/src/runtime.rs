//! What the generated bindings call, and the one allocation function that the host calls.
//!
//! Besides the bindings this is the only file of the crate with `unsafe`.
#![allow(unsafe_code, reason = "memory handed over the component border")]

use std::alloc::{Layout, alloc, dealloc};
#[cfg(target_family = "wasm")]
use std::alloc::{handle_alloc_error, realloc};
use std::ptr::{self, NonNull};

/// Memory for the arguments of an import, freed when dropped.
#[derive(Debug)]
pub(crate) struct Cleanup {
    start: NonNull<u8>,
    layout: Layout,
}

impl Cleanup {
    /// Memory of that layout, and what frees it; nothing for a layout without bytes.
    pub(crate) fn new(layout: Layout) -> (*mut u8, Option<Self>) {
        if layout.size() == 0 {
            return (ptr::without_provenance_mut(layout.align()), None);
        }
        // SAFETY: the layout has a size.
        let start = unsafe { alloc(layout) };
        match NonNull::new(start) {
            Some(start) => (start.as_ptr(), Some(Self { start, layout })),
            None => std::alloc::handle_alloc_error(layout),
        }
    }

    /// Leaves the memory to the host.
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // SAFETY: `start` was allocated with this layout and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Memory for what the host passes to an export: lists and strings.
///
/// # Safety
///
/// As the canonical ABI has it: `old` is null, or `old_len` bytes that an earlier call returned
/// with the same alignment, a power of two.
#[cfg(target_family = "wasm")]
#[unsafe(no_mangle)]
unsafe extern "C" fn cabi_realloc(
    old: *mut u8,
    old_len: usize,
    align: usize,
    new_len: usize,
) -> *mut u8 {
    // SAFETY: the alignment is a power of two, and the host cannot ask for more than the memory has.
    let layout = |len| unsafe { Layout::from_size_align_unchecked(len, align) };
    let new = match (old_len, new_len) {
        (0, 0) => return ptr::without_provenance_mut(align),
        // SAFETY: the layout has a size.
        (0, _) => unsafe { alloc(layout(new_len)) },
        // SAFETY: `old` was allocated with the old layout, by this function's contract; the
        // canonical ABI never shrinks to nothing.
        (_, _) => unsafe { realloc(old, layout(old_len), new_len) },
    };
    if new.is_null() {
        handle_alloc_error(layout(new_len));
    }
    new
}
