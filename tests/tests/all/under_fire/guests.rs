//! Guests that write all the time, and what a disk holds after so many writes of each.
//!
//! A guest issues one write after the other, each a whole block of its own part of the disk that holds the write's
//! number; some zero theirs. So whatever a backup restores, of one instant, is what the disk held after some number
//! of writes of each guest: at least those that had been answered before the checkpoint was asked for, and at most
//! those that had been issued when it had been made.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Scope;

use blockloom_tests::eventually;
use blockloom_tests::nbd::{Client, command};

use super::{BLOCK, GUESTS_SIZE};

const BLOCKS: u64 = GUESTS_SIZE / BLOCK;
/// They write at once; block n is of guest n modulo this.
pub(super) const GUESTS: u64 = 2;
/// Parts of the disk.
const PARTS: u64 = 16;
/// After so many writes a guest goes on to the next part.
const PART_WRITES: u64 = 1000;

/// Which block write `number` of a guest is of.
fn place(guest: u64, number: u64) -> u64 {
    let mixed = (number * GUESTS + guest).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    // A part of the disk is written more often than the rest, of which one part after the other is.
    let part = BLOCKS / GUESTS / PARTS;
    let turn = if number.is_multiple_of(3) { number / PART_WRITES % PARTS } else { 0 };
    (turn * part + mixed % part) * GUESTS + guest
}

/// What it is then.
fn value(number: u64) -> u64 {
    if number.is_multiple_of(11) { 0 } else { number }
}

/// Writes that have been answered, by guest.
pub(super) type Counts = [u64; GUESTS as usize];

#[derive(Default)]
pub(super) struct Guests {
    answered: [AtomicU64; GUESTS as usize],
    over: AtomicBool,
}

impl Guests {
    /// Has them write until [`Guests::stop`].
    pub(super) fn start<'s>(&'s self, scope: &'s Scope<'s, '_>, uri: &str) {
        for guest in 0..GUESTS {
            let mut client = Client::open(uri);
            scope.spawn(move || {
                let mut number = 0;
                while !self.over.load(Ordering::Relaxed) {
                    number += 1;
                    let (at, value) = (place(guest, number) * BLOCK, value(number));
                    let errno = match value {
                        0 => client.plain(command::WRITE_ZEROES, 0, at, BLOCK as u32),
                        _ => client.write(0, at, &value.to_le_bytes().repeat(BLOCK as usize / 8)),
                    };
                    assert_eq!(errno, 0, "write {number} of guest {guest}");
                    self.answered[guest as usize].store(number, Ordering::SeqCst);
                }
                client.disconnect();
            });
        }
    }

    pub(super) fn answered(&self) -> Counts {
        self.answered.each_ref().map(|count| count.load(Ordering::SeqCst))
    }

    /// No more than these have been issued: one more of each than have been answered.
    pub(super) fn issued(&self) -> Counts {
        self.answered().map(|count| count + 1)
    }

    /// Waits until each has written so much more.
    pub(super) fn go_on(&self, writes: u64) {
        let from = self.answered();
        eventually("the guests write", || {
            let mut counts = self.answered().into_iter().zip(from);
            counts.all(|(now, from)| now >= from + writes).then_some(())
        });
    }
}

/// Also when an assertion fails.
pub(super) struct Stopping<'g>(pub(super) &'g Guests);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Granules of so many bytes in which guests have written between `from` and `to`.
pub(super) fn touched((from, to): (Counts, Counts), granule: u64) -> BTreeSet<u64> {
    let writes = |guest: u64| from[guest as usize] + 1..=to[guest as usize];
    let places = (0..GUESTS).flat_map(|guest| writes(guest).map(move |it| place(guest, it)));
    places.map(|block| block * BLOCK / granule).collect()
}

/// What the guests' blocks of an image hold.
fn values(image: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let block = |(at, block): (usize, &[u8])| {
        let first = word(&block[..8]);
        let is_whole = block.chunks(8).all(|bytes| word(bytes) == first);
        assert!(is_whole, "block {at} is of two writes");
        first
    };
    image[..GUESTS_SIZE as usize].chunks(BLOCK as usize).enumerate().map(block).collect()
}

/// How many writes of a guest an image holds, if it holds just these.
fn held(values: &[u64], guest: u64, within: RangeInclusive<u64>) -> Option<u64> {
    let mut expect = vec![0; values.len()];
    (1..=*within.start()).for_each(|it| expect[place(guest, it) as usize] = value(it));
    let own = |block: &usize| *block as u64 % GUESTS == guest;
    let mut wrong =
        (0..values.len()).filter(own).filter(|block| expect[*block] != values[*block]).count();
    let mut number = *within.start();
    while wrong > 0 && number < *within.end() {
        number += 1;
        let block = place(guest, number) as usize;
        let was_wrong = expect[block] != values[block];
        expect[block] = value(number);
        wrong = wrong + usize::from(expect[block] != values[block]) - usize::from(was_wrong);
    }
    (wrong == 0).then_some(number)
}

/// Checks that an image is of one instant, after so many writes.
pub(super) fn check(image: &[u8], (from, to): (Counts, Counts), what: &str) {
    let values = values(image);
    for guest in 0..GUESTS {
        let within = from[guest as usize]..=to[guest as usize];
        let shown = format!("{what}: guest {guest}, writes {within:?}");
        assert!(held(&values, guest, within).is_some(), "{shown}: it is of no instant between");
    }
}
