//! Error numbers of the transmission phase.

/// What a reply can say went wrong (specification, section "Error values").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NbdErrno {
    /// Not permitted: a write to a read-only export.
    Perm = 1,
    /// The device failed.
    Io = 5,
    /// Out of memory.
    NoMemory = 12,
    /// The request makes no sense here.
    Invalid = 22,
    /// No space, or a write past the end.
    NoSpace = 28,
    /// Too long to be served in one piece.
    Overflow = 75,
    /// A fast zero that would not be fast.
    NotSupported = 95,
    /// The server is going down.
    Shutdown = 108,
}

/// Linux numbers that have a meaning in the protocol but no number of their own.
mod linux {
    pub(super) const EACCES: i32 = 13;
    pub(super) const EFBIG: i32 = 27;
    pub(super) const EROFS: i32 = 30;
    pub(super) const EDQUOT: i32 = 122;
}

impl NbdErrno {
    /// The number on the wire.
    pub fn to_wire(self) -> u32 {
        self as u32
    }

    /// The closest protocol error to a Linux errno, given as a positive number. What the protocol
    /// cannot express is an I/O error, so that a client never takes a fault of the server for a
    /// mistake of its own.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            1 | linux::EACCES | linux::EROFS => Self::Perm,
            12 => Self::NoMemory,
            22 => Self::Invalid,
            28 | linux::EFBIG | linux::EDQUOT => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NbdErrno;

    #[test]
    fn every_errno_has_a_protocol_error() {
        let check = |errno, expected: NbdErrno, wire| {
            assert_eq!(NbdErrno::from_errno(errno), expected, "errno {errno}");
            assert_eq!(expected.to_wire(), wire);
        };
        check(1, NbdErrno::Perm, 1);
        check(13, NbdErrno::Perm, 1);
        check(30, NbdErrno::Perm, 1);
        check(5, NbdErrno::Io, 5);
        check(12, NbdErrno::NoMemory, 12);
        check(22, NbdErrno::Invalid, 22);
        check(27, NbdErrno::NoSpace, 28);
        check(28, NbdErrno::NoSpace, 28);
        check(122, NbdErrno::NoSpace, 28);
        check(75, NbdErrno::Overflow, 75);
        check(95, NbdErrno::NotSupported, 95);
        check(108, NbdErrno::Shutdown, 108);
        for other in [0, -5, i32::MIN, i32::MAX, 9, 110] {
            check(other, NbdErrno::Io, 5);
        }
    }
}
