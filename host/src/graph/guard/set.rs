//! Sources, sets of them, and when a change in a set meets a guard of one.

use std::ops::Range;

/// A node that guards and watches can be of. Its number is the slot that the node keeps from snapshot
/// to snapshot; whoever builds snapshots gives it out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SourceId(pub(crate) u32);

/// A range of a source's view, in bytes: what a guard, a watch or an operation is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SourceRange {
    pub(crate) source: SourceId,
    pub(crate) range: Range<u64>,
}

impl SourceRange {
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        overlap(&self.range, &other.range) && self.source == other.source
    }
}

/// The sources whose down-sets a change enters. Those entered through an opaque node are entered
/// *whole*: the change's range says nothing about where it shows there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SourceSet {
    members: Members,
    has_whole: bool,
}

/// Set in a member that is entered whole.
const WHOLE: u32 = 1 << 31;

/// Sources that fit without an allocation: a change rarely enters more at one edge.
const INLINE_MAX: usize = 6;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Members {
    Inline { len: u8, members: [u32; INLINE_MAX] },
    Boxed(Box<[u32]>),
}

impl Default for Members {
    fn default() -> Self {
        Self::Inline { len: 0, members: [0; INLINE_MAX] }
    }
}

impl SourceSet {
    /// `ranged`: entered at the change's own range; `whole`: anywhere. A source in both is whole.
    pub(crate) fn new(ranged: &[SourceId], whole: &[SourceId]) -> Self {
        let of_range = ranged.iter().filter(|source| !whole.contains(source)).map(|id| id.0);
        let all: Vec<u32> = of_range.chain(whole.iter().map(|id| id.0 | WHOLE)).collect();
        debug_assert!(ranged.iter().chain(whole).all(|id| id.0 < WHOLE), "ids are small slots");
        let mut members = [0; INLINE_MAX];
        let members = match members.get_mut(..all.len()) {
            Some(inline) => {
                inline.copy_from_slice(&all);
                Members::Inline { len: all.len() as u8, members }
            }
            None => Members::Boxed(all.into()),
        };
        Self { members, has_whole: !whole.is_empty() }
    }

    /// What is not in `other`; `None` if nothing is left.
    pub(crate) fn without(&self, other: &Self) -> Option<Self> {
        let gone = |member: &&u32| {
            let id = *member & !WHOLE;
            other.members().iter().any(|other| other & !WHOLE == id)
        };
        let left = self.members().iter().filter(|member| !gone(member));
        let (whole, ranged): (Vec<u32>, Vec<u32>) = left.partition(|&&member| member & WHOLE != 0);
        let ids = |members: Vec<u32>| -> Vec<SourceId> {
            members.into_iter().map(|member| SourceId(member & !WHOLE)).collect()
        };
        let left = Self::new(&ids(ranged), &ids(whole));
        (!left.is_empty()).then_some(left)
    }

    /// Whether it has no members.
    pub(crate) fn is_empty(&self) -> bool {
        self.members().is_empty()
    }

    /// Whether something that enters these sources at `range` may touch `place`.
    #[inline]
    pub(super) fn touch(&self, range: &Range<u64>, place: &SourceRange) -> bool {
        let in_range = overlap(range, &place.range);
        // Ranges rarely overlap, so they are compared first.
        (in_range || self.has_whole)
            && self.members().iter().any(|&member| {
                member & !WHOLE == place.source.0 && (in_range || member & WHOLE != 0)
            })
    }

    /// The part of `place` that something entering these sources at `range` may touch; empty if none.
    pub(super) fn touched_part(&self, range: &Range<u64>, place: &SourceRange) -> Range<u64> {
        if self.members().contains(&(place.source.0 | WHOLE)) {
            return place.range.clone();
        }
        range.start.max(place.range.start)..range.end.min(place.range.end)
    }

    /// The sources, in any order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = SourceId> {
        self.members().iter().map(|member| SourceId(member & !WHOLE))
    }

    #[inline]
    fn members(&self) -> &[u32] {
        match &self.members {
            Members::Inline { len, members } => &members[..usize::from(*len)],
            Members::Boxed(members) => members,
        }
    }
}

/// An empty range overlaps what it lies inside: waiting for it does no harm.
#[inline]
fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(source: u32, range: Range<u64>) -> SourceRange {
        SourceRange { source: SourceId(source), range }
    }

    #[test]
    fn a_set_touches_by_source_and_range() {
        let set = SourceSet::new(&[SourceId(1), SourceId(2)], &[SourceId(3)]);
        let check = |source, range, expect| {
            assert_eq!(set.touch(&(10..20), &place(source, range)), expect);
        };
        check(1, 19..30, true);
        check(2, 0..11, true);
        check(1, 20..30, false);
        check(1, 0..10, false);
        check(4, 0..100, false);
        check(3, 90..91, true);
        assert_eq!(set.touched_part(&(10..20), &place(1, 15..30)), 15..20);
        assert_eq!(set.touched_part(&(10..20), &place(3, 15..30)), 15..30);
    }

    #[test]
    fn a_set_without_another_has_what_is_in_it_alone() {
        let set = SourceSet::new(&[SourceId(1), SourceId(2)], &[SourceId(3)]);
        let check = |other: SourceSet, left| assert_eq!(set.without(&other), left);
        check(SourceSet::default(), Some(set.clone()));
        check(SourceSet::new(&[SourceId(2), SourceId(9)], &[]), {
            Some(SourceSet::new(&[SourceId(1)], &[SourceId(3)]))
        });
        check(SourceSet::new(&[SourceId(3)], &[SourceId(1), SourceId(2)]), None);
    }

    #[test]
    fn a_large_set_is_boxed_and_whole_wins() {
        let ids: Vec<SourceId> = (0..20).map(SourceId).collect();
        let set = SourceSet::new(&ids, &[SourceId(7)]);
        assert!(matches!(set.members, Members::Boxed(_)));
        assert!(set.touch(&(0..1), &place(7, 5..6)));
        assert!(!set.touch(&(0..1), &place(8, 5..6)));
        assert!(SourceSet::default().is_empty() && !set.is_empty());
    }
}
