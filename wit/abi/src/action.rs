//! Actions: what a guest tells the host to do.

use crate::event::{wire_enum, wire_flags};
use crate::{
    A, AUX, B, BitmapIndex, ChildIndex, ENTRY_WORDS, Entry, Errno, Head, ID, MAX_COPY_BYTES,
    NodeIndex, PARENT, Parent, RequestId, TAG, Token, Violation, WORD, flag_bits, range,
};

wire_enum! {
    /// Tags of actions.
    ActionTag, UnknownTag {
        /// Pass a request to the node's own child.
        Forward = 1,
        /// Answer a request.
        Complete = 2,
        /// Copy a range from child to child under a guard.
        Copy = 3,
        /// Read a range of a child into a host buffer.
        Read = 4,
        /// Write a host buffer to a child.
        Write = 5,
        /// Ask for the block status of a range of a child.
        Status = 6,
        /// Make a range of a child read as zero.
        Zero = 7,
        /// Give a range of a child back.
        Discard = 8,
        /// Make a child's completed writes durable.
        Flush = 9,
        /// Ask for a DONE at a time.
        Timer = 10,
        /// Let go of a host buffer.
        Drop = 11,
        /// Make a host buffer of zeros.
        Make = 12,
        /// A node's job has ended.
        JobEnd = 15,
    }
}

wire_flags! {
    /// Flags of actions; which of them a tag takes is drawn in the crate's table.
    ActionFlags {
        /// Tell the guest when the forwarded request ended, and let it complete it.
        NOTIFY = 1,
        /// The bytes written are those the view already shows.
        CLAIM = 2,
        /// The bytes copied answer the parent request.
        SERVE = 4,
        /// Clear the covered bits of the bitmap once settled.
        CLEAR = 8,
    }
}

/// Passes a request to the node's own child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The request.
    pub id: RequestId,
    /// The earliest time; 0 for now.
    pub not_before_ns: u64,
    /// Whether a DONE is wanted, after which the guest completes.
    pub notify: bool,
    /// Whether the request's bytes are claimed to leave the view unchanged.
    pub claim: bool,
}

impl Forward {
    const FLAGS: ActionFlags = ActionFlags::NOTIFY.with(ActionFlags::CLAIM);

    /// Forwards at once, and leaves the rest to the host.
    #[inline]
    #[must_use]
    pub const fn now(id: RequestId) -> Self {
        Self { id, not_before_ns: 0, notify: false, claim: false }
    }

    /// The entry.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> Entry {
        let flags = (self.notify as u8) | (self.claim as u8) << 1;
        let head = Head { tag: ActionTag::Forward as u8, a: 0, b: 0, flags, aux: 0 };
        Entry::pack(head, self.id.bits(), 0, self.not_before_ns, 0)
    }

    /// Reads an entry whose tag says FORWARD.
    ///
    /// # Errors
    ///
    /// What the layout does not allow.
    #[inline]
    pub fn decode(entry: Entry) -> Result<Self, Violation> {
        entry.only([TAG | flag_bits(Self::FLAGS.bits()), ID, WORD, 0])?;
        let flags = ActionFlags::from_bits(entry.flags());
        Ok(Self {
            id: RequestId::from_bits(entry.id())?,
            not_before_ns: entry.w2(),
            notify: flags.contains(ActionFlags::NOTIFY),
            claim: flags.contains(ActionFlags::CLAIM),
        })
    }
}

/// Answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Complete {
    /// The request.
    pub id: RequestId,
    /// The answer; success only after it was forwarded or served.
    pub result: Result<(), Errno>,
}

impl Complete {
    /// The entry.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> Entry {
        let aux = Errno::bits(self.result);
        let head = Head { tag: ActionTag::Complete as u8, a: 0, b: 0, flags: 0, aux };
        Entry::pack(head, self.id.bits(), 0, 0, 0)
    }

    /// Reads an entry whose tag says COMPLETE.
    ///
    /// # Errors
    ///
    /// What the layout does not allow.
    #[inline]
    pub fn decode(entry: Entry) -> Result<Self, Violation> {
        entry.only([TAG | AUX, ID, 0, 0])?;
        let result = Errno::from_bits(entry.aux())?;
        Ok(Self { id: RequestId::from_bits(entry.id())?, result })
    }
}

/// Copies a range from child to child, under a guard of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CopyRange {
    /// Names the operation in its DONE.
    pub token: Token,
    /// For what it is done.
    pub parent: Parent,
    /// Where the bytes come from.
    pub from: ChildIndex,
    /// Where they go.
    pub to: ChildIndex,
    /// Where the range starts, in bytes, on both sides.
    pub offset: u64,
    /// How long it is: 1 to [`MAX_COPY_BYTES`].
    pub len: u64,
    /// Whether the write is claimed to leave the view unchanged.
    pub claim: bool,
    /// Whether the bytes answer the parent, which is then a request.
    pub serve: bool,
    /// The bitmap whose covered bits are cleared once settled.
    pub clear: Option<BitmapIndex>,
}

impl CopyRange {
    const FLAGS: ActionFlags = ActionFlags::CLAIM.with(ActionFlags::SERVE).with(ActionFlags::CLEAR);

    const fn encode(self) -> Entry {
        let (clear, aux) = match self.clear {
            Some(bitmap) => (ActionFlags::CLEAR.bits(), bitmap.0),
            None => (0, 0),
        };
        let flags = (self.claim as u8) << 1 | (self.serve as u8) << 2 | clear;
        let head = Head { tag: ActionTag::Copy as u8, a: self.from.0, b: self.to.0, flags, aux };
        Entry::pack(head, self.token.0, self.parent.bits(), self.offset, self.len)
    }

    fn decode(entry: Entry) -> Result<Self, Violation> {
        let flags = ActionFlags::from_bits(entry.flags());
        let clear = flags.contains(ActionFlags::CLEAR);
        let aux = if clear { AUX } else { 0 };
        let head = TAG | A | B | flag_bits(Self::FLAGS.bits()) | aux;
        entry.only([head, WORD, WORD, WORD])?;
        let (offset, len) = moved(entry)?;
        let parent = Parent::from_bits(entry.parent());
        let serve = flags.contains(ActionFlags::SERVE);
        if serve && matches!(parent, Parent::Job(_)) {
            return Err(Violation::ServesNothing);
        }
        Ok(Self {
            token: Token(entry.id()),
            parent,
            from: ChildIndex(entry.a()),
            to: ChildIndex(entry.b()),
            offset,
            len,
            claim: flags.contains(ActionFlags::CLAIM),
            serve,
            clear: clear.then_some(BitmapIndex(entry.aux())),
        })
    }
}

/// What READ, WRITE, STATUS, ZERO, DISCARD and FLUSH have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Names the operation in its DONE; of a READ also the buffer.
    pub token: Token,
    /// For what it is done.
    pub parent: Parent,
    /// The child it is done to.
    pub child: ChildIndex,
    /// Where the range starts, in bytes; 0 for FLUSH.
    pub offset: u64,
    /// How long it is, in bytes: 1 to [`MAX_COPY_BYTES`] for READ and WRITE, 0 for FLUSH.
    pub len: u64,
}

impl Operation {
    const fn encode(self, tag: ActionTag, b: u8, flags: u8, aux: u32) -> Entry {
        let head = Head { tag: tag as u8, a: self.child.0, b, flags, aux };
        Entry::pack(head, self.token.0, self.parent.bits(), self.offset, self.len)
    }

    fn decode(entry: Entry, head: u64, (offset, len): (u64, u64)) -> Result<Self, Violation> {
        entry.only([TAG | A | head, ID | PARENT, WORD, WORD])?;
        Ok(Self {
            token: Token(entry.id()),
            parent: Parent::from_bits(entry.parent()),
            child: ChildIndex(entry.a()),
            offset,
            len,
        })
    }
}

/// Writes a host buffer to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Where, and for what.
    pub operation: Operation,
    /// The READ or MAKE from which the buffer comes.
    pub source: Token,
    /// Whether the write is claimed to leave the view unchanged.
    pub claim: bool,
}

/// One action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Pass a request to the node's own child.
    Forward(Forward),
    /// Answer a request.
    Complete(Complete),
    /// Copy a range from child to child under a guard.
    Copy(CopyRange),
    /// Read a range of a child into a host buffer.
    Read(Operation),
    /// Write a host buffer to a child.
    Write(Write),
    /// Ask for the block status of a range of a child.
    Status {
        /// The range, and for what it is asked.
        operation: Operation,
        /// Count as allocated only what lies above this child.
        above: Option<ChildIndex>,
    },
    /// Make a range of a child read as zero.
    Zero(Operation),
    /// Give a range of a child back.
    Discard(Operation),
    /// Make a child's completed writes durable.
    Flush(Operation),
    /// Ask for a DONE at a time.
    Timer {
        /// Names the timer in its DONE.
        token: Token,
        /// When; a time that has passed is due at once.
        at_ns: u64,
    },
    /// Let go of a host buffer, or of a timer, which then has no DONE unless that is under way.
    Drop {
        /// The READ or MAKE from which it comes, or the TIMER.
        token: Token,
    },
    /// Make a host buffer of zeros, for bytes of the guest's own.
    Make {
        /// Names the operation in its DONE, and the buffer.
        token: Token,
        /// For what it is done.
        parent: Parent,
        /// How long it is, in bytes: 1 to [`MAX_COPY_BYTES`].
        len: u64,
    },
    /// A node's job has ended: by itself, or because it was to stop.
    JobEnd {
        /// Whose.
        node: NodeIndex,
    },
}

impl Action {
    /// The entry.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> Entry {
        match self {
            Self::Forward(forward) => forward.encode(),
            Self::Complete(complete) => complete.encode(),
            other => other.encode_rare(),
        }
    }

    const fn encode_rare(self) -> Entry {
        match self {
            Self::Forward(forward) => forward.encode(),
            Self::Complete(complete) => complete.encode(),
            Self::Copy(copy) => copy.encode(),
            Self::Read(operation) => operation.encode(ActionTag::Read, 0, 0, 0),
            Self::Write(write) => {
                let flags = (write.claim as u8) << 1;
                write.operation.encode(ActionTag::Write, 0, flags, write.source.0)
            }
            Self::Status { operation, above } => {
                let above = match above {
                    Some(child) => child.0,
                    None => ChildIndex::NONE,
                };
                operation.encode(ActionTag::Status, above, 0, 0)
            }
            Self::Zero(operation) => operation.encode(ActionTag::Zero, 0, 0, 0),
            Self::Discard(operation) => operation.encode(ActionTag::Discard, 0, 0, 0),
            Self::Flush(operation) => {
                Operation { offset: 0, len: 0, ..operation }.encode(ActionTag::Flush, 0, 0, 0)
            }
            Self::Timer { token, at_ns } => {
                let head = Head { tag: ActionTag::Timer as u8, a: 0, b: 0, flags: 0, aux: 0 };
                Entry::pack(head, token.0, 0, at_ns, 0)
            }
            Self::Drop { token } => {
                let tag = ActionTag::Drop as u8;
                Entry::pack(Head { tag, a: 0, b: 0, flags: 0, aux: token.0 }, 0, 0, 0, 0)
            }
            Self::Make { token, parent, len } => {
                let head = Head { tag: ActionTag::Make as u8, a: 0, b: 0, flags: 0, aux: 0 };
                Entry::pack(head, token.0, parent.bits(), 0, len)
            }
            Self::JobEnd { node } => {
                let (tag, aux) = (ActionTag::JobEnd as u8, node.0 as u32);
                Entry::pack(Head { tag, a: 0, b: 0, flags: 0, aux }, 0, 0, 0, 0)
            }
        }
    }

    /// Reads and judges an entry.
    ///
    /// # Errors
    ///
    /// What the layout does not allow.
    #[inline]
    pub fn decode(entry: Entry) -> Result<Self, Violation> {
        const FORWARD: u8 = ActionTag::Forward as u8;
        const COMPLETE: u8 = ActionTag::Complete as u8;
        match entry.tag() {
            FORWARD => Forward::decode(entry).map(Self::Forward),
            COMPLETE => Complete::decode(entry).map(Self::Complete),
            _ => Self::decode_rare(entry),
        }
    }

    fn decode_rare(entry: Entry) -> Result<Self, Violation> {
        match ActionTag::from_bits(entry.tag())? {
            ActionTag::Forward => Forward::decode(entry).map(Self::Forward),
            ActionTag::Complete => Complete::decode(entry).map(Self::Complete),
            ActionTag::Copy => CopyRange::decode(entry).map(Self::Copy),
            ActionTag::Read => Operation::decode(entry, 0, moved(entry)?).map(Self::Read),
            ActionTag::Write => {
                let head = flag_bits(ActionFlags::CLAIM.bits()) | AUX;
                let operation = Operation::decode(entry, head, moved(entry)?)?;
                let claim = ActionFlags::from_bits(entry.flags()).contains(ActionFlags::CLAIM);
                Ok(Self::Write(Write { operation, source: Token(entry.aux()), claim }))
            }
            ActionTag::Status => {
                let operation = Operation::decode(entry, B, range(entry)?)?;
                let above = match entry.b() {
                    ChildIndex::NONE => None,
                    child => Some(ChildIndex(child)),
                };
                Ok(Self::Status { operation, above })
            }
            ActionTag::Zero => Operation::decode(entry, 0, range(entry)?).map(Self::Zero),
            ActionTag::Discard => Operation::decode(entry, 0, range(entry)?).map(Self::Discard),
            ActionTag::Flush => {
                entry.only([WORD, WORD, 0, 0])?;
                Operation::decode(entry, 0, (0, 0)).map(Self::Flush)
            }
            ActionTag::Timer => {
                entry.only([TAG, ID, WORD, 0])?;
                Ok(Self::Timer { token: Token(entry.id()), at_ns: entry.w2() })
            }
            ActionTag::Drop => {
                entry.only([TAG | AUX, 0, 0, 0])?;
                Ok(Self::Drop { token: Token(entry.aux()) })
            }
            ActionTag::Make => {
                entry.only([TAG, ID | PARENT, 0, WORD])?;
                let parent = Parent::from_bits(entry.parent());
                let (_, len) = moved(entry)?;
                Ok(Self::Make { token: Token(entry.id()), parent, len })
            }
            ActionTag::JobEnd => {
                entry.only([TAG | AUX, 0, 0, 0])?;
                Ok(Self::JobEnd { node: NodeIndex::from_aux(entry.aux())? })
            }
        }
    }
}

/// The range of an operation that moves bytes through a host buffer.
fn moved(entry: Entry) -> Result<(u64, u64), Violation> {
    match range(entry)? {
        (offset, len @ 1..=MAX_COPY_BYTES) => Ok((offset, len)),
        (_, len) => Err(Violation::Length(len)),
    }
}

const _: () = assert!(size_of::<Entry>() == ENTRY_WORDS * size_of::<u64>());
