//! What a disk may show: for each byte, the values that are in order.

use std::ops::Range;

/// Values that bytes have in a case: a set of them is one word.
pub(super) const VALUES: u8 = 64;

/// A set of values for each byte.
#[derive(Clone)]
pub(super) struct Model(Vec<u64>);

impl Model {
    /// Exactly these bytes, all below [`VALUES`].
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| 1 << byte).collect())
    }

    fn part(&mut self, range: &Range<u64>) -> &mut [u64] {
        &mut self.0[range.start as usize..range.end as usize]
    }

    /// One more value is in order.
    pub(super) fn allow(&mut self, range: &Range<u64>, value: u8) {
        self.part(range).iter_mut().for_each(|set| *set |= 1 << value);
    }

    /// What was in order no longer is.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        self.part(range).fill(0);
    }

    /// The first byte that is not in order: where it is, and what is in order there.
    pub(super) fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), Wrong> {
        let sets = &self.0[offset as usize..];
        let wrong = bytes.iter().zip(sets).position(|(byte, set)| !contains(*set, *byte));
        let Some(at) = wrong else { return Ok(()) };
        let expect = (0..VALUES).filter(|value| contains(sets[at], *value)).collect();
        Err(Wrong { at: offset + at as u64, found: bytes[at], expect })
    }
}

fn contains(set: u64, value: u8) -> bool {
    value < VALUES && set >> value & 1 != 0
}

/// A byte that is not in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) at: u64,
    pub(super) found: u8,
    pub(super) expect: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_in_order_or_not() {
        let mut model = Model::of(&[1, 2, 3, 4]);
        assert_eq!(model.check(1, &[2, 3]), Ok(()));
        model.allow(&(1..3), 63);
        assert_eq!(model.check(0, &[1, 63, 3, 4]), Ok(()));
        let wrong = Wrong { at: 2, found: 200, expect: vec![3, 63] };
        assert_eq!(model.check(0, &[1, 2, 200]), Err(wrong));
        model.forget(&(1..2));
        model.allow(&(1..2), 9);
        assert_eq!(model.check(1, &[2]), Err(Wrong { at: 1, found: 2, expect: vec![9] }));
    }
}
