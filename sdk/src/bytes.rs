//! The data of requests and buffers.
//!
//! Only what calls these functions imports the interface `bytes`: a filter that never does, and the host sees
//! that it cannot.

use std::marker::PhantomData;
use std::ops::Range;

use blockloom_abi::Errno;

#[cfg(target_family = "wasm")]
use crate::bindings::blockloom::filter::bytes as wit;

/// Bytes that one call moves.
const PIECE_BYTES: u64 = 64 << 10;

/// Who holds bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    Request(u32),
    Buffer(u32),
}

/// Bytes that the host holds: of a request ([`Cx::bytes`](crate::Cx::bytes)) or of a buffer
/// ([`Buffer::bytes`](crate::Buffer::bytes)). Each call copies, 64 KiB at a time.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    holder: Option<Holder>,
    len: u64,
    of: PhantomData<&'a ()>,
}

impl Bytes<'_> {
    pub(crate) const fn of(holder: Holder, len: u64) -> Self {
        Self { holder: Some(holder), len, of: PhantomData }
    }

    /// Of nobody.
    pub(crate) const fn none() -> Self {
        Self { holder: None, len: 0, of: PhantomData }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of some of them, counted from the first.
    ///
    /// # Errors
    ///
    /// [`Errno::EPERM`] if that is not granted, [`Errno::EINVAL`] for bytes that there are not,
    /// [`Errno::EBUSY`] for a request that is with the child.
    pub fn get(&self, range: Range<u64>) -> Result<Vec<u8>, Errno> {
        let mut all = Vec::with_capacity(self.part(&range)?);
        for piece in pieces(range) {
            all.append(&mut self.get_piece(&piece)?);
        }
        Ok(all)
    }

    /// Puts bytes over them, from an offset on.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get); [`Errno::EPERM`] also where looking is all that is granted.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(Errno::EINVAL)?;
        self.part(&(offset..end))?;
        for piece in pieces(offset..end) {
            let of = (piece.start - offset) as usize..(piece.end - offset) as usize;
            put(self.holder.ok_or(Errno::EINVAL)?, piece.start, &bytes[of])?;
        }
        Ok(())
    }

    /// Makes other bytes of all of them: `make` gets them piece by piece, and where each begins.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put); pieces before the one that failed are put.
    pub fn alter(&self, mut make: impl FnMut(u64, &mut [u8])) -> Result<(), Errno> {
        for piece in pieces(0..self.len) {
            let mut bytes = self.get_piece(&piece)?;
            make(piece.start, &mut bytes);
            put(self.holder.ok_or(Errno::EINVAL)?, piece.start, &bytes)?;
        }
        Ok(())
    }

    fn get_piece(&self, piece: &Range<u64>) -> Result<Vec<u8>, Errno> {
        get(self.holder.ok_or(Errno::EINVAL)?, piece.start, piece.end - piece.start)
    }

    /// The length of a range of them.
    fn part(&self, range: &Range<u64>) -> Result<usize, Errno> {
        if range.start > range.end || range.end > self.len {
            return Err(Errno::EINVAL);
        }
        usize::try_from(range.end - range.start).map_err(|_| Errno::EINVAL)
    }
}

fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let piece = at..range.end.min(at.saturating_add(PIECE_BYTES));
        at = piece.end;
        (piece.start < piece.end).then_some(piece)
    })
}

#[cfg(target_family = "wasm")]
fn lower(holder: Holder) -> wit::Holder {
    match holder {
        Holder::Request(id) => wit::Holder::Request(id),
        Holder::Buffer(token) => wit::Holder::Buffer(token),
    }
}

#[cfg(target_family = "wasm")]
fn errno(number: u32) -> Errno {
    Errno::new(number).unwrap_or(Errno::EIO)
}

#[cfg(target_family = "wasm")]
fn place(number: u64) -> Result<u32, Errno> {
    u32::try_from(number).map_err(|_| Errno::EINVAL)
}

fn get(holder: Holder, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
    #[cfg(target_family = "wasm")]
    return wit::get(lower(holder), place(offset)?, place(len)?).map_err(errno);
    #[cfg(not(target_family = "wasm"))]
    return crate::testing::bytes_get(holder, offset, len);
}

fn put(holder: Holder, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    #[cfg(target_family = "wasm")]
    return wit::put(lower(holder), place(offset)?, bytes).map_err(errno);
    #[cfg(not(target_family = "wasm"))]
    return crate::testing::bytes_put(holder, offset, bytes);
}
