//! Buffers that a ring knows by number: the kernel has their pages at hand, and does not have to find and hold each of
//! them for every operation past the page cache.
//!
//! Memory is registered when the ring first uses most of it, and has its number until it is freed. Its pages are held
//! until the ring's next turn. There are only so many numbers, so memory that nobody uses gives its own up: when it comes
//! to be kept by another thread, whose ring does not know it; and when none is left for memory that is used.
#![allow(unsafe_code, reason = "the kernel holds the pages of registered memory")]

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::SegQueue;
use io_uring::IoUring;

use super::buf::{Memory, forget_idle_place};
use crate::limits::RING_BUFFERS_MAX;

thread_local! {
    /// The ring of the current thread.
    static OWN_RING: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Where a ring knows some memory; it gives its number back when dropped.
pub(super) struct Place {
    ring: u64,
    number: u16,
    freed: Arc<SegQueue<u16>>,
}

impl Place {
    /// Whether it is that of the current thread.
    pub(super) fn is_of_own_ring(&self) -> bool {
        OWN_RING.get() == Some(self.ring)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.freed.push(self.number);
    }
}

/// What one ring knows.
pub(super) struct Registered {
    ring: u64,
    /// Numbers that stand for nothing.
    unused: RefCell<Vec<u16>>,
    /// Numbers of memory that was freed. Bounded by those that there are.
    freed: Arc<SegQueue<u16>>,
    /// The kernel knows of such numbers.
    is_on: bool,
    /// It had no more memory that stays in place when it was last asked.
    is_full: Cell<bool>,
    /// Memory that nobody uses has given a number up in this turn: to hold others' pages takes longer than to find them
    /// once.
    has_taken: Cell<bool>,
}

impl Registered {
    /// None yet. An older kernel knows none.
    pub(super) fn new(ring: &IoUring) -> Self {
        static RINGS: AtomicU64 = AtomicU64::new(0);
        let is_on = ring.submitter().register_buffers_sparse(RING_BUFFERS_MAX.into()).is_ok();
        let number = RINGS.fetch_add(1, Ordering::Relaxed);
        OWN_RING.set(Some(number));
        Self {
            ring: number,
            unused: RefCell::new((0..RING_BUFFERS_MAX).rev().collect()),
            freed: Arc::default(),
            is_on,
            is_full: Cell::new(false),
            has_taken: Cell::new(false),
        }
    }

    /// The number of some memory of which `used` bytes are used. It is registered if it can be, and that is most of it.
    pub(super) fn number_of(&self, ring: &IoUring, memory: &Memory, used: usize) -> Option<u16> {
        if memory.place().is_none()
            && used >= memory.capacity() / 2
            && let Some(place) = self.register(ring, memory)
        {
            memory.set_place(place);
        }
        memory.place().filter(|place| place.ring == self.ring).map(|place| place.number)
    }

    fn register(&self, ring: &IoUring, memory: &Memory) -> Option<Place> {
        if !self.is_on || self.is_full.get() {
            return None;
        }
        loop {
            let number = self.unused.borrow_mut().pop();
            let failed = match number.map(|number| (number, set(ring, number, Some(memory)))) {
                None => None,
                Some((number, Ok(()))) => {
                    let freed = Arc::clone(&self.freed);
                    return Some(Place { ring: self.ring, number, freed });
                }
                Some((number, Err(error))) => {
                    self.unused.borrow_mut().push(number);
                    Some(error)
                }
            };
            if !self.has_taken.replace(true) && forget_idle_place() {
                self.tidy(ring);
                continue;
            }
            // All goes on as without.
            if let Some(error) = failed {
                tracing::debug!("a buffer has no number in its ring: {error}");
                self.is_full.set(true);
            }
            return None;
        }
    }

    /// A turn begins: lets go of the pages of memory that was freed.
    pub(super) fn begin_turn(&self, ring: &RefCell<IoUring>) {
        self.has_taken.set(false);
        if !self.freed.is_empty() {
            self.tidy(&ring.borrow());
        }
    }

    fn tidy(&self, ring: &IoUring) {
        while let Some(number) = self.freed.pop() {
            match set(ring, number, None) {
                Ok(()) => self.unused.borrow_mut().push(number),
                // Then it stands for what nobody names any more.
                Err(error) => tracing::debug!("a buffer keeps its number in its ring: {error}"),
            }
            self.is_full.set(false);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if OWN_RING.get() == Some(self.ring) {
            OWN_RING.set(None);
        }
    }
}

/// Has a number stand for some memory, or for nothing.
fn set(ring: &IoUring, number: u16, memory: Option<&Memory>) -> io::Result<()> {
    let (start, len) =
        memory.map_or((ptr::null_mut(), 0), |memory| (memory.start_ptr(), memory.capacity()));
    let part = libc::iovec { iov_base: start.cast(), iov_len: len };
    // SAFETY: `Memory` is one mapping of that length. The kernel holds its pages themselves: once the memory is freed its
    // number is in no entry any more, and those pages nobody's.
    unsafe { ring.submitter().register_buffers_update(number.into(), &[part], None) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{
        Buf, BufMut, EngineChoice, EngineKind, File, OpenOptions, run_on_thread, trim_pool,
    };
    use super::*;

    const LEN: usize = 128 << 10;
    const RING: EngineChoice = EngineChoice::Exactly(EngineKind::IoUring);

    /// The number that the ring of this thread has for it.
    fn number(buf: &Buf) -> Option<u16> {
        let place = buf.memory().and_then(Memory::place);
        place.filter(|place| place.is_of_own_ring()).map(|place| place.number)
    }

    async fn write(file: &Arc<File>, at: usize, byte: u8) -> Buf {
        let mut buf = BufMut::new(LEN);
        buf.fill(byte);
        let buf = buf.freeze();
        file.write_at((at * LEN) as u64, buf.clone()).await.expect("write");
        buf
    }

    async fn read(file: &Arc<File>, at: usize) -> BufMut {
        let (count, buf) = file.read_at((at * LEN) as u64, BufMut::new(LEN)).await;
        assert_eq!(count.expect("read"), LEN);
        buf
    }

    /// More buffers than have numbers, parts of them, and buffers of another ring: all hold what they should, and who
    /// comes after others that are gone has a number again.
    #[test]
    fn numbers_are_given_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = OpenOptions { direct: true, create_new: true, ..OpenOptions::default() };
        let file = File::open(&dir.path().join("file"), &options).expect("a file");
        let file = Arc::new(file);
        let places = usize::from(RING_BUFFERS_MAX);
        let other = Arc::clone(&file);
        let of_first = run_on_thread(RING, async move {
            let mut kept = Vec::new();
            for at in 0..places + 2 {
                kept.push(write(&other, at, at as u8 + 1).await);
            }
            let numbers: Vec<_> = kept.iter().filter_map(number).collect();
            assert!(numbers.len() <= places, "no more than there are");
            let part = Buf::copy_of(&kept[0].slice(4096..8192));
            // What is kept for re-use is freed as well; the ring lets go of it in its next turn.
            drop(kept);
            trim_pool();
            other.write_at(LEN as u64, Buf::zeros(4096)).await.expect("write");
            other.write_at(LEN as u64, part).await.expect("write");
            let again = write(&other, places, 77).await;
            assert_eq!(number(&again).is_some(), !numbers.is_empty());
            again
        });
        let of_first = of_first.expect("a ring");
        let done = run_on_thread(RING, async move {
            file.write_at(0, of_first.slice(0..4096)).await.expect("write");
            for at in 0..places + 2 {
                let bytes = read(&file, at).await;
                let expect = if at == places { 77 } else { at as u8 + 1 };
                let head = [77, 1].get(at).copied().unwrap_or(expect);
                assert!(bytes[..4096].iter().all(|it| *it == head), "start of {at}");
                assert!(bytes[4096..].iter().all(|it| *it == expect), "rest of {at}");
            }
        });
        done.expect("a ring");
    }
    fn file() -> (tempfile::TempDir, Arc<File>) {
        let dir = tempfile::tempdir().expect("a directory");
        let options = OpenOptions { direct: true, create_new: true, ..OpenOptions::default() };
        let file = File::open(&dir.path().join("file"), &options).expect("a file");
        (dir, Arc::new(file))
    }

    /// As many buffers as there are numbers; and whether they have some: not on a kernel that has none, nor where memory
    /// may not be held.
    async fn all(file: &Arc<File>) -> (Vec<Buf>, bool) {
        let mut kept = Vec::new();
        for at in 0..usize::from(RING_BUFFERS_MAX) {
            kept.push(write(file, at, 1).await);
        }
        let has_numbers = kept.iter().any(|buf| number(buf).is_some());
        (kept, has_numbers)
    }

    /// Memory that is kept for re-use has no number that somebody else needs.
    #[test]
    fn what_is_not_used_gives_its_number_up() {
        let (_dir, file) = file();
        let done = run_on_thread(RING, async move {
            let (kept, has_numbers) = all(&file).await;
            drop(kept);
            let mut larger = Vec::new();
            for at in 0..8 {
                let buf = Buf::copy_of(&vec![at as u8 + 1; 2 * LEN]);
                file.write_at((at * 2 * LEN) as u64, buf.clone()).await.expect("write");
                assert_eq!(number(&buf).is_some(), has_numbers, "{at}");
                larger.push(buf);
            }
            for at in 0..16 {
                let expect = at as u8 / 2 + 1;
                assert!(read(&file, at).await.iter().all(|byte| *byte == expect), "{at}");
            }
        });
        done.expect("a ring");
    }

    /// What a ring knows, and another thread comes to keep, has a number there.
    #[test]
    fn what_goes_to_another_thread_leaves_its_ring() {
        let (_dir, file) = file();
        let other = Arc::clone(&file);
        let of_first = run_on_thread(RING, async move { all(&other).await });
        let (kept, has_numbers) = of_first.expect("a ring");
        let done = run_on_thread(RING, async move {
            let addresses: Vec<_> = kept.iter().map(|buf| buf.as_ptr()).collect();
            assert!(kept.iter().all(|buf| number(buf).is_none()));
            drop(kept);
            for at in 0..4 {
                let buf = write(&file, at, at as u8 + 2).await;
                assert!(addresses.contains(&buf.as_ptr()), "it is used again");
                assert_eq!(number(&buf).is_some(), has_numbers, "{at}");
            }
            for at in 0..4 {
                assert!(read(&file, at).await.iter().all(|byte| *byte == at as u8 + 2), "{at}");
            }
        });
        done.expect("a ring");
    }
}
