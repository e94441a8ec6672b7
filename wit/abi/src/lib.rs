//! The packed data-plane layout that a Blockloom host and its filter plugins share, version 0.1.
//!
//! One call carries what a worker's turn brought: `poll(now, events) -> actions`, both lists of
//! `u64` words, four words an entry. Times are nanoseconds of the host's monotonic clock.
//!
//! ```text
//!      63            48 47           32 31     24 23     16 15      8 7       0
//!     +--------------------------------+---------+---------+---------+---------+
//! w0  |              aux               |  flags  |    b    |    a    |   tag   |
//!     +--------------------------------+---------+---------+---------+---------+
//! w1  |             parent             |                  id                   |
//!     +--------------------------------+---------------------------------------+
//! w2  |                          offset, or a time                             |
//!     +------------------------------------------------------------------------+
//! w3  |                          length, or a value                            |
//!     +------------------------------------------------------------------------+
//!
//!      31            16 15            0
//!     +----------------+--------------+
//! id  |   generation   |     slot     |   a request's, given by the host; generation is never 0
//!     +----------------+--------------+
//! id  |             token             |   the guest's own, given back as it came
//!     +-------------------------------+
//! parent: the id of the request served, or 0 | node index for work of that node's own (its job)
//! ```
//!
//! Every field and bit that a tag does not name is reserved and zero; a set one is a [`Violation`].
//!
//! Events, host to guest:
//!
//! | tag | entry | a | b | flags | aux | id | parent | w2 | w3 |
//! |---|---|---|---|---|---|---|---|---|---|
//! | 1 | REQUEST | [`Kind`] | | 1 fua, 2 unchanged, 4 no-unmap | node | request | | offset | length |
//! | 2 | DONE | 0 operation, 1 request | | | errno | token or request | | | value |
//! | 3 | EXTENT | | | 1 allocated, 2 zero | | token | | offset | length |
//! | 4 | CONTROL | [`ControlKind`] | | | node | | | value | value |
//!
//! Actions, guest to host:
//!
//! | tag | entry | a | b | flags | aux | id | parent | w2 | w3 |
//! |---|---|---|---|---|---|---|---|---|---|
//! | 1 | FORWARD | | | 1 notify, 2 claim | | request | | not before | |
//! | 2 | COMPLETE | | | | errno | request | | | |
//! | 3 | COPY | from | to | 2 claim, 4 serve, 8 clear | bitmap | token | yes | offset | length |
//! | 4 | READ | child | | | | token | yes | offset | length |
//! | 5 | WRITE | child | | 2 claim | buffer token | token | yes | offset | length |
//! | 6 | STATUS | child | above, or 255 | | | token | yes | offset | length |
//! | 7 | ZERO | child | | | | token | yes | offset | length |
//! | 8 | DISCARD | child | | | | token | yes | offset | length |
//! | 9 | FLUSH | child | | | | token | yes | | |
//! | 10 | TIMER | | | | | token | | time | |
//! | 11 | DROP | | | | token | | | | |
//! | 12 | MAKE | | | | | token | yes | | length |
//! | 15 | JOB-END | | | | node | | | | |
//!
//! Tags 13 and 14 are kept for forward-part and remap.
//!
//! - REQUEST `unchanged`: the host has proof that the write leaves this node's view as it is.
//!   A resize has offset 0 and the new size as its length; a flush has neither.
//! - FORWARD passes a request to the node's own child, not before a time (0: now). Without
//!   `notify` the host finishes it with the child's result; with it a DONE that names the request
//!   follows, and the guest completes. Sent again for a request still held, it changes the time.
//! - COMPLETE with errno 0 is in order only after the request was forwarded or served. Of a node whose
//!   data the guest may transform also for a read to which it has put bytes, a write and a zeroing.
//! - COPY runs under a range guard. `serve`: its bytes answer the parent request. `clear`: once
//!   settled, the covered bits of the bitmap are cleared before the guard is released.
//! - READ fills a host buffer that its token names until a DROP, MAKE makes one of zeros for bytes of the
//!   guest's own; WRITE writes such a buffer. A DROP before the DONE of the READ or MAKE lets the buffer go as
//!   soon as it is filled; until then the token stays in use.
//! - TIMER has a DONE at its time, or at once for one that has passed. Sent again under the token of one that
//!   runs, it changes the time. A DROP ends it without a DONE, unless that is under way already. A timer that
//!   runs counts as an operation in flight.
//! - JOB-END: the node's job, begun by `job-start`, has ended. It answers `job-stop`, or comes by itself; what
//!   the job has read is dropped. An operation for a job that does not run is a violation.
//! - STATUS answers with EXTENT entries before its DONE.
//! - An operation ends in one DONE. A refused claim reports [`Errno::ESTALE`] (the bytes may have
//!   changed since they were read) or [`Errno::EPERM`] (not proven); an action that this host does
//!   not offer reports [`Errno::EOPNOTSUPP`]. A violation of the layout ends the instance instead.
//!
//! `poll-one(now, head, id, offset, len)` is the flat twin for a single event: its four last
//! arguments are w0 to w3 of the event, its result is a [`PollOne`] word.
//!
//! The types here only encode and judge; no input makes them panic.
//!
//! ```
//! use blockloom_abi::{
//!     Action, Entry, Event, Forward, Kind, MAX_ACTIONS, NodeIndex, Request, RequestFlags, RequestId,
//! };
//!
//! let id = RequestId::new(7, 1).expect("a generation that is not 0");
//! let request = Request {
//!     id, node: NodeIndex(0), kind: Kind::Read, flags: RequestFlags::NONE, offset: 4096, len: 512,
//! };
//! assert_eq!(Event::decode(request.encode()), Ok(Event::Request(request)));
//!
//! let words = Action::Forward(Forward::now(id)).encode().0;
//! for entry in Entry::list(&words, MAX_ACTIONS)? {
//!     assert!(matches!(Action::decode(entry)?, Action::Forward(_)));
//! }
//! # Ok::<(), blockloom_abi::Violation>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

mod action;
mod event;
mod ids;
mod poll_one;
mod violation;

pub use action::{Action, ActionFlags, ActionTag, Complete, CopyRange, Forward, Operation, Write};
pub use event::{
    Control, ControlKind, Done, Event, EventTag, Extent, ExtentFlags, Kind, Kinds, Request,
    RequestFlags, Subject,
};
pub use ids::{BitmapIndex, ChildIndex, Errno, NodeIndex, Parent, RequestId, Token};
pub use poll_one::PollOne;
pub use violation::Violation;

/// The version of this layout, as a plugin's description states it.
pub const LAYOUT_VERSION: u32 = 1;
/// The version of the WIT package that goes with it.
pub const PACKAGE: &str = "blockloom:filter@0.1.0";

/// Words in an entry.
pub const ENTRY_WORDS: usize = 4;
/// Events in one call, at most (32 KiB).
pub const MAX_EVENTS: usize = 1024;
/// Actions that one call may answer with, at most (64 KiB).
pub const MAX_ACTIONS: usize = 2048;
/// Bytes that one COPY, READ or WRITE may move.
pub const MAX_COPY_BYTES: u64 = 1 << 20;

/// One entry of either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Entry(pub [u64; ENTRY_WORDS]);

impl Entry {
    /// Puts the fields together.
    #[inline]
    #[must_use]
    pub const fn pack(head: Head, id: u32, parent: u32, w2: u64, w3: u64) -> Self {
        Self([head.word(), id as u64 | (parent as u64) << 32, w2, w3])
    }

    /// The entries of a list.
    ///
    /// # Errors
    ///
    /// [`Violation::Words`] if the list ends inside an entry, [`Violation::TooMany`] if it is
    /// longer than `limit` entries.
    #[inline]
    pub fn list(
        words: &[u64],
        limit: usize,
    ) -> Result<impl ExactSizeIterator<Item = Self> + Clone + '_, Violation> {
        let (entries, rest) = words.as_chunks::<ENTRY_WORDS>();
        if !rest.is_empty() {
            return Err(Violation::Words { count: words.len() });
        }
        if entries.len() > limit {
            return Err(Violation::TooMany { count: entries.len(), limit });
        }
        Ok(entries.iter().copied().map(Self))
    }

    /// The tag, which says what the other fields mean.
    #[inline]
    #[must_use]
    pub const fn tag(self) -> u8 {
        self.0[0] as u8
    }

    /// Field `a`.
    #[inline]
    #[must_use]
    pub const fn a(self) -> u8 {
        (self.0[0] >> 8) as u8
    }

    /// Field `b`.
    #[inline]
    #[must_use]
    pub const fn b(self) -> u8 {
        (self.0[0] >> 16) as u8
    }

    /// The flags.
    #[inline]
    #[must_use]
    pub const fn flags(self) -> u8 {
        (self.0[0] >> 24) as u8
    }

    /// Field `aux`.
    #[inline]
    #[must_use]
    pub const fn aux(self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// The id: a request's or a token.
    #[inline]
    #[must_use]
    pub const fn id(self) -> u32 {
        self.0[1] as u32
    }

    /// The parent's id.
    #[inline]
    #[must_use]
    pub const fn parent(self) -> u32 {
        (self.0[1] >> 32) as u32
    }

    /// Word 2: an offset or a time.
    #[inline]
    #[must_use]
    pub const fn w2(self) -> u64 {
        self.0[2]
    }

    /// Word 3: a length or a value.
    #[inline]
    #[must_use]
    pub const fn w3(self) -> u64 {
        self.0[3]
    }

    /// Refuses bits outside `allowed`, a mask for each word.
    #[inline]
    pub(crate) const fn only(self, allowed: [u64; ENTRY_WORDS]) -> Result<(), Violation> {
        let [w0, w1, w2, w3] = self.0;
        let stray = [w0 & !allowed[0], w1 & !allowed[1], w2 & !allowed[2], w3 & !allowed[3]];
        if stray[0] | stray[1] | stray[2] | stray[3] == 0 { Ok(()) } else { Err(reserved(stray)) }
    }
}

#[cold]
const fn reserved(stray: [u64; ENTRY_WORDS]) -> Violation {
    let mut word = 0;
    while stray[word] == 0 && word + 1 < ENTRY_WORDS {
        word += 1;
    }
    Violation::Reserved { word: word as u8, bits: stray[word] }
}

/// The fields of word 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// What the entry is.
    pub tag: u8,
    /// First small field.
    pub a: u8,
    /// Second small field.
    pub b: u8,
    /// Flags of the tag.
    pub flags: u8,
    /// The wide field.
    pub aux: u32,
}

impl Head {
    const fn word(self) -> u64 {
        self.tag as u64
            | (self.a as u64) << 8
            | (self.b as u64) << 16
            | (self.flags as u64) << 24
            | (self.aux as u64) << 32
    }
}

// Masks of a word's fields, for `Entry::only`.
pub(crate) const TAG: u64 = 0xff;
pub(crate) const A: u64 = 0xff << 8;
pub(crate) const B: u64 = 0xff << 16;
pub(crate) const AUX: u64 = 0xffff_ffff << 32;
pub(crate) const ID: u64 = 0xffff_ffff;
pub(crate) const PARENT: u64 = 0xffff_ffff << 32;
pub(crate) const WORD: u64 = u64::MAX;

pub(crate) const fn flag_bits(flags: u8) -> u64 {
    (flags as u64) << 24
}

/// A range as both directions have it: it must end within 64 bits.
#[inline]
pub(crate) const fn range(entry: Entry) -> Result<(u64, u64), Violation> {
    let (offset, len) = (entry.w2(), entry.w3());
    match offset.checked_add(len) {
        Some(_) => Ok((offset, len)),
        None => Err(Violation::Range { offset, len }),
    }
}
