//! Names of things on the wire: requests, tokens, nodes, children, bitmaps, errors.

use core::fmt;

use crate::Violation;

/// A request, named by the host: a slot and the slot's generation. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct RequestId(u32);

impl RequestId {
    /// The id of a slot's `generation`; none if the generation is 0.
    #[inline]
    #[must_use]
    pub const fn new(slot: u16, generation: u16) -> Option<Self> {
        if generation == 0 { None } else { Some(Self(slot as u32 | (generation as u32) << 16)) }
    }

    /// The id in its wire form.
    ///
    /// # Errors
    ///
    /// [`Violation::RequestId`] if its generation is 0.
    #[inline]
    pub const fn from_bits(bits: u32) -> Result<Self, Violation> {
        if bits >> 16 == 0 { Err(Violation::RequestId(bits)) } else { Ok(Self(bits)) }
    }

    /// The wire form.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The slot in the host's table of requests.
    #[inline]
    #[must_use]
    pub const fn slot(self) -> u16 {
        self.0 as u16
    }

    /// The generation of that slot.
    #[inline]
    #[must_use]
    pub const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// A name that the guest gives to one of its operations or buffers; the host only gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Token(pub u32);

/// A node that an instance serves, by the index that `add-node` gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct NodeIndex(pub u16);

impl NodeIndex {
    #[inline]
    pub(crate) const fn from_aux(aux: u32) -> Result<Self, Violation> {
        if aux >> 16 == 0 { Ok(Self(aux as u16)) } else { Err(Violation::Node(aux)) }
    }
}

/// A child of a node, by its place in the description's list of children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ChildIndex(pub u8);

impl ChildIndex {
    /// No child, where one is optional.
    pub(crate) const NONE: u8 = u8::MAX;
}

/// A bitmap of a node, by the index that `add-node` gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BitmapIndex(pub u32);

/// For what an operation is done: its lineage, and the node whose children and grants it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parent {
    /// To serve a request.
    Request(RequestId),
    /// As work of a node's own.
    Job(NodeIndex),
}

impl Parent {
    /// The wire form. A request's is told from a job's by its generation, which is never 0.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Request(id) => id.bits(),
            Self::Job(node) => node.0 as u32,
        }
    }

    /// Reads the wire form, in which every value has a meaning.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        match RequestId::from_bits(bits) {
            Ok(id) => Self::Request(id),
            Err(_) => Self::Job(NodeIndex(bits as u16)),
        }
    }
}

/// An error number, as Linux numbers them: 1 to 4095.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($name:ident = $number:literal, $what:literal;)*) => {
        impl Errno {
            $(#[doc = concat!("Number ", $number, ": ", $what, ".")]
            pub const $name: Self = Self($number);)*

            /// The symbol, if it is one of those named here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// The error with that symbol, if it is one of those named here.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "not permitted; a claim that is not proven";
    EIO = 5, "input or output failed";
    ENOMEM = 12, "no memory, or a limit of memory reached";
    EACCES = 13, "access denied";
    EBUSY = 16, "in use";
    EINVAL = 22, "invalid argument";
    ENOSPC = 28, "no space left, or past the end of the device";
    EROFS = 30, "read-only";
    EOVERFLOW = 75, "a value is too large";
    EOPNOTSUPP = 95, "not supported";
    ESHUTDOWN = 108, "the node or the host is being shut down";
    ETIMEDOUT = 110, "took too long";
    ESTALE = 116, "the bytes may have changed since they were read";
    ECANCELED = 125, "cancelled";
}

impl Errno {
    const MAX: u32 = 4095;

    /// An error by its number; none for 0 and for what no kernel reports.
    #[inline]
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 || number > Self::MAX { None } else { Some(Self(number as u16)) }
    }

    /// Its number.
    #[inline]
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// A result in its wire form: 0 for success.
    #[inline]
    #[must_use]
    pub const fn bits(result: Result<(), Self>) -> u32 {
        match result {
            Ok(()) => 0,
            Err(errno) => errno.number(),
        }
    }

    /// Reads the wire form of a result.
    ///
    /// # Errors
    ///
    /// [`Violation::Errno`] for a number past the last errno.
    #[inline]
    pub const fn from_bits(bits: u32) -> Result<Result<(), Self>, Violation> {
        match (bits, Self::new(bits)) {
            (0, _) => Ok(Ok(())),
            (_, Some(errno)) => Ok(Err(errno)),
            (_, None) => Err(Violation::Errno(bits)),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl core::error::Error for Errno {}
