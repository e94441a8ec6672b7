//! Events: what the host tells a guest.

use crate::{
    A, AUX, Entry, Errno, Head, ID, NodeIndex, RequestId, TAG, Token, Violation, WORD, flag_bits,
    range,
};

macro_rules! wire_enum {
    (
        $(#[$meta:meta])* $name:ident, $violation:ident {
            $($(#[$doc:meta])* $variant:ident = $value:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant = $value,)* }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Reads the wire form.
            ///
            /// # Errors
            ///
            #[doc = concat!("[`Violation::", stringify!($violation), "`] for any other number.")]
            #[inline]
            pub const fn from_bits(bits: u8) -> Result<Self, Violation> {
                match bits {
                    $($value => Ok(Self::$variant),)*
                    other => Err(Violation::$violation(other)),
                }
            }
        }
    };
}

macro_rules! wire_flags {
    (
        $(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $flag:ident = $value:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[repr(transparent)]
        pub struct $name(u8);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$doc])* pub const $flag: Self = Self($value);)*
            /// Every flag there is.
            pub const ALL: Self = Self($($value)|*);

            /// The wire form.
            #[inline]
            #[must_use]
            pub const fn bits(self) -> u8 {
                self.0
            }

            /// Reads the wire form; bits without a meaning are left out.
            #[inline]
            #[must_use]
            pub const fn from_bits(bits: u8) -> Self {
                Self(bits & Self::ALL.0)
            }

            /// Whether all of `flags` are set.
            #[inline]
            #[must_use]
            pub const fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }

            /// These flags and `more`.
            #[inline]
            #[must_use]
            pub const fn with(self, more: Self) -> Self {
                Self(self.0 | more.0)
            }
        }
    };
}
pub(crate) use {wire_enum, wire_flags};

wire_enum! {
    /// Tags of events.
    EventTag, UnknownTag {
        /// A request arrived.
        Request = 1,
        /// An operation, or a forwarded request, ended.
        Done = 2,
        /// A part of a STATUS answer.
        Extent = 3,
        /// Something changed around the guest.
        Control = 4,
    }
}

wire_enum! {
    /// Kinds of requests.
    Kind, UnknownKind {
        /// Read a range.
        Read = 0,
        /// Write a range.
        Write = 1,
        /// Make a range read as zero.
        Zero = 2,
        /// Give a range back; what it reads as afterwards is the child's matter.
        Discard = 3,
        /// Make completed writes durable.
        Flush = 4,
        /// Change the size.
        Resize = 5,
    }
}

/// A set of request kinds: bit n is the kind with number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Kinds(u32);

impl Kinds {
    /// No kind.
    pub const NONE: Self = Self(0);
    /// Every kind of this version.
    pub const ALL: Self = Self(0b11_1111);
    /// Reads.
    pub const READ: Self = Self::of(Kind::Read);
    /// Writes.
    pub const WRITE: Self = Self::of(Kind::Write);
    /// Zeroing.
    pub const ZERO: Self = Self::of(Kind::Zero);
    /// Discards.
    pub const DISCARD: Self = Self::of(Kind::Discard);
    /// Flushes.
    pub const FLUSH: Self = Self::of(Kind::Flush);
    /// Resizes.
    pub const RESIZE: Self = Self::of(Kind::Resize);

    /// The set of one kind.
    #[inline]
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        Self(1 << kind as u8)
    }

    /// These and `more`.
    #[inline]
    #[must_use]
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Whether `kind` is one of them.
    #[inline]
    #[must_use]
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & Self::of(kind).0 != 0
    }

    /// Whether the kind with this number is one of them.
    #[inline]
    #[must_use]
    pub const fn contains_number(self, number: u8) -> bool {
        number < u32::BITS as u8 && self.0 >> number & 1 != 0
    }

    /// The wire form.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Reads the wire form; none if a bit has no meaning in this version.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::ALL.0 == 0 { Some(Self(bits)) } else { None }
    }
}

wire_flags! {
    /// Flags of a request.
    RequestFlags {
        /// Durable before it completes.
        FUA = 1,
        /// The host has proof that the write leaves the view of the receiving node as it is.
        UNCHANGED = 2,
        /// Zeroing must not deallocate.
        NO_UNMAP = 4,
    }
}

wire_flags! {
    /// Flags of an extent.
    ExtentFlags {
        /// The child itself holds the bytes, rather than what it is backed by.
        ALLOCATED = 1,
        /// Reads as zero.
        ZERO = 2,
    }
}

wire_enum! {
    /// Kinds of control events.
    ControlKind, UnknownControl {
        /// Rules of this epoch (w2) are in force for every request in flight.
        Armed = 0,
        /// A rule's budget was used up; w2 is its epoch.
        BudgetUsed = 1,
        /// The node is being drained: no new request follows until `Resume`.
        Pause = 2,
        /// The drain is over.
        Resume = 3,
        /// Start the node's job. It runs until a JOB-END.
        JobStart = 4,
        /// End the node's job soon: a JOB-END follows. It comes before the node is removed, before the
        /// plugin is replaced, and when the host ends.
        JobStop = 5,
        /// The node's size changed, or the configuration; w2 is the size in bytes. Held requests may be
        /// given another time in answer.
        Reconfigured = 6,
    }
}

/// A request to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Names it in the answer.
    pub id: RequestId,
    /// The node it arrived at.
    pub node: NodeIndex,
    /// What is asked.
    pub kind: Kind,
    /// How.
    pub flags: RequestFlags,
    /// Where the range starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; of a resize, the new size.
    pub len: u64,
}

impl Request {
    /// The bytes that it is about; of a resize, those that there are then.
    #[inline]
    #[must_use]
    pub const fn range(self) -> core::ops::Range<u64> {
        // A request that ends past the last number does not decode.
        self.offset..self.offset.saturating_add(self.len)
    }

    /// The entry.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> Entry {
        let head = Head {
            tag: EventTag::Request as u8,
            a: self.kind as u8,
            b: 0,
            flags: self.flags.bits(),
            aux: self.node.0 as u32,
        };
        Entry::pack(head, self.id.bits(), 0, self.offset, self.len)
    }

    /// Reads an entry whose tag says REQUEST.
    ///
    /// # Errors
    ///
    /// What the layout does not allow.
    #[inline]
    pub fn decode(entry: Entry) -> Result<Self, Violation> {
        entry.only([TAG | A | flag_bits(RequestFlags::ALL.bits()) | AUX, ID, WORD, WORD])?;
        let (offset, len) = range(entry)?;
        Ok(Self {
            id: RequestId::from_bits(entry.id())?,
            node: NodeIndex::from_aux(entry.aux())?,
            kind: Kind::from_bits(entry.a())?,
            flags: RequestFlags::from_bits(entry.flags()),
            offset,
            len,
        })
    }
}

/// What a DONE is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// An operation that the guest asked for.
    Operation(Token),
    /// A request that was forwarded with `notify`.
    Request(RequestId),
}

/// The end of an operation or of a forwarded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Done {
    /// What ended.
    pub subject: Subject,
    /// How.
    pub result: Result<(), Errno>,
    /// Bytes moved or described; 0 where there are none.
    pub value: u64,
}

impl Done {
    /// The entry.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> Entry {
        let (a, id) = match self.subject {
            Subject::Operation(token) => (0, token.0),
            Subject::Request(id) => (1, id.bits()),
        };
        let aux = Errno::bits(self.result);
        Entry::pack(
            Head { tag: EventTag::Done as u8, a, b: 0, flags: 0, aux },
            id,
            0,
            0,
            self.value,
        )
    }

    /// Reads an entry whose tag says DONE.
    ///
    /// # Errors
    ///
    /// What the layout does not allow.
    #[inline]
    pub fn decode(entry: Entry) -> Result<Self, Violation> {
        entry.only([TAG | 1 << 8 | AUX, ID, 0, WORD])?;
        let subject = match entry.a() {
            0 => Subject::Operation(Token(entry.id())),
            _ => Subject::Request(RequestId::from_bits(entry.id())?),
        };
        Ok(Self { subject, result: Errno::from_bits(entry.aux())?, value: entry.w3() })
    }
}

/// A part of what STATUS asked for, before its DONE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The STATUS operation.
    pub token: Token,
    /// What the part is.
    pub flags: ExtentFlags,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
}

impl Extent {
    /// The entry.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> Entry {
        let flags = self.flags.bits();
        let head = Head { tag: EventTag::Extent as u8, a: 0, b: 0, flags, aux: 0 };
        Entry::pack(head, self.token.0, 0, self.offset, self.len)
    }

    /// Reads an entry whose tag says EXTENT.
    ///
    /// # Errors
    ///
    /// What the layout does not allow.
    #[inline]
    pub fn decode(entry: Entry) -> Result<Self, Violation> {
        entry.only([TAG | flag_bits(ExtentFlags::ALL.bits()), ID, WORD, WORD])?;
        let (offset, len) = range(entry)?;
        let flags = ExtentFlags::from_bits(entry.flags());
        Ok(Self { token: Token(entry.id()), flags, offset, len })
    }
}

/// Something changed around the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Control {
    /// What.
    pub kind: ControlKind,
    /// For which node.
    pub node: NodeIndex,
    /// Word 2; its meaning is the kind's.
    pub first: u64,
    /// Word 3; its meaning is the kind's.
    pub second: u64,
}

impl Control {
    /// The entry.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> Entry {
        let aux = self.node.0 as u32;
        let head = Head { tag: EventTag::Control as u8, a: self.kind as u8, b: 0, flags: 0, aux };
        Entry::pack(head, 0, 0, self.first, self.second)
    }

    /// Reads an entry whose tag says CONTROL.
    ///
    /// # Errors
    ///
    /// What the layout does not allow.
    #[inline]
    pub fn decode(entry: Entry) -> Result<Self, Violation> {
        entry.only([TAG | A | AUX, 0, WORD, WORD])?;
        Ok(Self {
            kind: ControlKind::from_bits(entry.a())?,
            node: NodeIndex::from_aux(entry.aux())?,
            first: entry.w2(),
            second: entry.w3(),
        })
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A request arrived.
    Request(Request),
    /// An operation, or a forwarded request, ended.
    Done(Done),
    /// A part of a STATUS answer.
    Extent(Extent),
    /// Something changed around the guest.
    Control(Control),
}

impl Event {
    /// The entry.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> Entry {
        match self {
            Self::Request(request) => request.encode(),
            Self::Done(done) => done.encode(),
            Self::Extent(extent) => extent.encode(),
            Self::Control(control) => control.encode(),
        }
    }

    /// Reads and judges an entry.
    ///
    /// # Errors
    ///
    /// What the layout does not allow.
    #[inline]
    pub fn decode(entry: Entry) -> Result<Self, Violation> {
        match EventTag::from_bits(entry.tag())? {
            EventTag::Request => Request::decode(entry).map(Self::Request),
            EventTag::Done => Done::decode(entry).map(Self::Done),
            EventTag::Extent => Extent::decode(entry).map(Self::Extent),
            EventTag::Control => Control::decode(entry).map(Self::Control),
        }
    }
}
