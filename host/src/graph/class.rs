//! Classes, and the closure that says which of them a change affects.
//!
//! Nodes joined by `filtered` and `data` edges show one view: a class. A change that enters a class
//! affects it and every class from which it can be seen: at the same range along view edges, at an
//! unknown range through an *opaque* node, which shows its child's bytes at other offsets. What stands
//! above an opaque node cannot know which of its bytes changed.
//!
//! **Invariant**: [`Views::reached`] is the only place that says what a change affects. An exemption is
//! this same closure, *cut*: at the class for which a write is proven, as what stands above that class sees
//! the write through it alone, or at an edge whose parent announces its own writes. A class that is
//! reached round the cut by another way stays affected.
//!
//! Pure: it knows roles and indices, no drivers.

use super::mutation::{Mutation, mutated};
use super::permission::Role;
use crate::error::{Error, ErrorKind, Result};

/// Nodes that show one view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(u32);

impl Class {
    /// Position in tables by class.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }

    fn at(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

/// An edge by its parent's index and its position there.
pub(super) type EdgeId = (usize, usize);

/// A node's edges, as far as views are concerned: role and child. Children come before parents.
pub(super) type Edges = [(Role, usize)];

/// A way by which a change of a class is seen from another place.
#[derive(Clone, Copy)]
struct Step {
    edge: EdgeId,
    to: Class,
    /// Through an opaque node: it may alter any byte.
    is_whole: bool,
}

/// What a change does not affect, or has announced by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// The view for which the change is proven to alter nothing.
    pub(super) class: Option<Class>,
    /// A driver's edge to its own container: its users' changes were announced above.
    pub(super) edge: Option<EdgeId>,
}

/// What a change affects: each class once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// At the range of the change.
    pub(super) ranged: Vec<Class>,
    /// Anywhere.
    pub(super) whole: Vec<Class>,
}

/// The classes of one snapshot.
#[derive(Debug, Default)]
pub(super) struct Views {
    class_of: Box<[Class]>,
    /// By class.
    steps: Box<[Box<[Step]>]>,
    /// By lower class, then by upper class: whether the upper one stands on it along view edges.
    above: Box<[Box<[bool]>]>,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} → {:?}{}", self.edge, self.to, if self.is_whole { " (whole)" } else { "" })
    }
}

impl Views {
    /// The classes of nodes with these edges.
    ///
    /// # Errors
    /// `EINVAL`, with the node's index, for a node with more than one view edge.
    pub(super) fn of(nodes: &[Box<Edges>]) -> Result<Self, (usize, Error)> {
        let mut class_of: Vec<Class> = Vec::with_capacity(nodes.len());
        let mut classes = 0;
        for (node, edges) in nodes.iter().enumerate() {
            let mut views = edges.iter().filter(|(role, _)| role.is_view());
            let view = views.next();
            if views.next().is_some() {
                let message = "it has more than one child of which it shows the bytes: it can \
                               have one `filtered`, `data` or `backing` edge";
                return Err((node, Error::new(ErrorKind::Invalid, message)));
            }
            let class = match view {
                Some((role, child)) if role.is_same_view() => class_of[*child],
                _ => {
                    classes += 1;
                    Class::at(classes - 1)
                }
            };
            class_of.push(class);
        }
        let steps = steps(nodes, &class_of, classes);
        let above = above(&steps);
        Ok(Self { class_of: class_of.into(), steps, above })
    }

    /// The class of a node.
    pub(super) fn class(&self, node: usize) -> Class {
        self.class_of[node]
    }

    /// Whether `upper` is `lower`, or stands on it along view edges.
    pub(super) fn is_at_or_above(&self, upper: Class, lower: Class) -> bool {
        self.above[lower.index()][upper.index()]
    }

    /// What a change that enters class `from` affects.
    pub(super) fn reached(&self, from: Class, cut: Cut) -> Reached {
        let cut = match mutated(Mutation::ProofsExemptNothing) {
            true => Cut::default(),
            false => cut,
        };
        #[derive(Clone, Copy, PartialEq, PartialOrd)]
        enum Seen {
            No,
            Ranged,
            Whole,
        }
        let mut seen = vec![Seen::No; self.steps.len()];
        let mut pending = Vec::new();
        if cut.class != Some(from) {
            seen[from.index()] = Seen::Ranged;
            pending.push(from);
        }
        while let Some(class) = pending.pop() {
            let here = seen[class.index()];
            for step in &self.steps[class.index()] {
                if cut.edge == Some(step.edge) || cut.class == Some(step.to) {
                    continue;
                }
                let there = if step.is_whole { Seen::Whole } else { here };
                if seen[step.to.index()] < there {
                    seen[step.to.index()] = there;
                    pending.push(step.to);
                }
            }
        }
        if mutated(Mutation::MarksOneClass)
            || (mutated(Mutation::ProofExemptsTooMuch) && cut.class.is_some())
        {
            let ranged = if cut.class == Some(from) { Vec::new() } else { vec![from] };
            return Reached { ranged, whole: Vec::new() };
        }
        let of = |wanted| {
            let classes = seen.iter().enumerate().filter(move |(_, seen)| **seen == wanted);
            classes.map(|(index, _)| Class::at(index)).collect()
        };
        Reached { ranged: of(Seen::Ranged), whole: of(Seen::Whole) }
    }
}

fn steps(nodes: &[Box<Edges>], class_of: &[Class], classes: usize) -> Box<[Box<[Step]>]> {
    let mut steps: Vec<Vec<Step>> = vec![Vec::new(); classes];
    for (parent, edges) in nodes.iter().enumerate() {
        for (position, (role, child)) in edges.iter().enumerate() {
            let is_whole = match role {
                Role::Backing => false,
                Role::Storage => true,
                // One class; or not shown at all.
                Role::Root | Role::Filtered | Role::Data | Role::Source | Role::Target => continue,
            };
            let is_shown_by_another = |edges: &Edges| {
                edges.iter().any(|(role, below)| role.is_same_view() && below == child)
            };
            if mutated(Mutation::ForgetsTheIdentityChild)
                && nodes.iter().any(|edges| is_shown_by_another(edges))
            {
                continue;
            }
            let (edge, to) = ((parent, position), class_of[parent]);
            steps[class_of[*child].index()].push(Step { edge, to, is_whole });
        }
    }
    steps.into_iter().map(Vec::into_boxed_slice).collect()
}

fn above(steps: &[Box<[Step]>]) -> Box<[Box<[bool]>]> {
    let upper_of = |lower: usize| {
        let mut above = vec![false; steps.len()];
        let mut pending = vec![lower];
        while let Some(class) = pending.pop() {
            if !std::mem::replace(&mut above[class], true) {
                let views = steps[class].iter().filter(|step| !step.is_whole);
                pending.extend(views.map(|step| step.to.index()));
            }
        }
        above.into_boxed_slice()
    };
    (0..steps.len()).map(upper_of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn views(nodes: &[&Edges]) -> Views {
        let nodes: Vec<Box<Edges>> = nodes.iter().map(|edges| Box::from(*edges)).collect();
        Views::of(&nodes).expect("nodes with one view edge each")
    }

    fn reached(views: &Views, from: usize, cut: Cut) -> (Vec<u32>, Vec<u32>) {
        let Reached { ranged, whole } = views.reached(views.class(from), cut);
        let numbers = |classes: Vec<Class>| classes.into_iter().map(|class| class.0).collect();
        (numbers(ranged), numbers(whole))
    }

    /// base ← filter ← overlay a ← filter; base ← overlay b.
    fn two_overlays() -> Views {
        views(&[
            &[],
            &[(Role::Filtered, 0)],
            &[(Role::Backing, 1)],
            &[(Role::Filtered, 2)],
            &[(Role::Backing, 0)],
        ])
    }

    #[test]
    fn filters_join_a_class_and_overlays_stand_on_it() {
        let views = two_overlays();
        let classes: Vec<u32> = (0..5).map(|node| views.class(node).0).collect();
        assert_eq!(classes, [0, 0, 1, 1, 2]);
        assert!(views.is_at_or_above(views.class(3), views.class(0)));
        assert!(!views.is_at_or_above(views.class(3), views.class(4)));
        assert!(!views.is_at_or_above(views.class(0), views.class(3)));
    }

    #[test]
    fn a_change_affects_its_class_and_all_that_stand_on_it() {
        let views = two_overlays();
        assert_eq!(reached(&views, 0, Cut::default()), (vec![0, 1, 2], vec![]));
        assert_eq!(reached(&views, 3, Cut::default()), (vec![1], vec![]));
    }

    #[test]
    fn a_proof_exempts_its_view_and_what_stands_on_it() {
        let views = two_overlays();
        let proven = |node: usize| Cut { class: Some(views.class(node)), edge: None };
        assert_eq!(reached(&views, 0, proven(0)), (vec![], vec![]), "copy-on-read, stream");
        assert_eq!(reached(&views, 0, proven(2)), (vec![0, 2], vec![]), "commit: another overlay");
    }

    /// An intermediate class between A and N is not exempt.
    #[test]
    fn a_proof_does_not_exempt_what_lies_between() {
        let views = views(&[&[], &[(Role::Backing, 0)], &[(Role::Backing, 1)]]);
        let proven = Cut { class: Some(views.class(2)), edge: None };
        assert_eq!(reached(&views, 0, proven), (vec![0, 1], vec![]));
    }

    #[test]
    fn an_opaque_node_and_all_above_it_may_change_anywhere() {
        let views =
            views(&[&[], &[(Role::Storage, 0)], &[(Role::Backing, 1)], &[(Role::Backing, 0)]]);
        assert_eq!(reached(&views, 0, Cut::default()), (vec![0, 3], vec![1, 2]));
        let own = Cut { class: None, edge: Some((1, 0)) };
        assert_eq!(reached(&views, 0, own), (vec![0, 3], vec![]), "its own writes");
        assert_eq!(reached(&views, 1, Cut::default()), (vec![1, 2], vec![]));
    }

    /// Two ways to one view: the proof covers one of them.
    #[test]
    fn what_is_reached_round_the_proof_stays_affected() {
        let views = views(&[&[], &[(Role::Backing, 0)], &[(Role::Storage, 1), (Role::Storage, 0)]]);
        let proven = Cut { class: Some(views.class(1)), edge: None };
        assert_eq!(reached(&views, 0, proven), (vec![0], vec![2]));
    }

    #[test]
    fn a_node_shows_one_child_at_most() {
        let nodes: Vec<Box<Edges>> = vec![
            Box::from([]),
            Box::from([]),
            Box::from([(Role::Filtered, 0), (Role::Backing, 1)]),
        ];
        let (node, error) = Views::of(&nodes).expect_err("two view edges");
        assert_eq!((node, error.kind()), (2, ErrorKind::Invalid));
    }

    struct Walk<'a> {
        nodes: &'a [Box<Edges>],
        views: &'a Views,
        from: Class,
        cut: Cut,
    }

    /// Whether, and how, class `class` shows a change: by walking down from it.
    fn shows(walk: &Walk<'_>, class: Class) -> (bool, bool) {
        let &Walk { nodes, views, from, cut } = walk;
        if cut.class == Some(class) {
            return (false, false);
        }
        // Any node of a class shows its view.
        let mut ranged = class == from;
        let mut whole = false;
        for (parent, edges) in nodes.iter().enumerate() {
            for (position, (role, child)) in edges.iter().enumerate() {
                let crosses = matches!(role, Role::Backing | Role::Storage);
                let is_cut = cut.edge == Some((parent, position));
                if views.class(parent) != class || !crosses || is_cut {
                    continue;
                }
                let (below_ranged, below_whole) = shows(walk, views.class(*child));
                if *role == Role::Storage {
                    whole |= below_ranged || below_whole;
                } else {
                    (ranged, whole) = (ranged || below_ranged, whole || below_whole);
                }
            }
        }
        (ranged && !whole, whole)
    }

    prop_compose! {
        fn random_nodes()(
            seeds in prop::collection::vec((0..4_u8, any::<u32>(), 0..3_u8, any::<u32>()), 1..9),
        ) -> Vec<Box<Edges>> {
            let node = |(index, (view, below, other, beside)): (usize, &(u8, u32, u8, u32))| {
                let mut edges = Vec::new();
                let pick = |seed: u32| seed as usize % index;
                let role = [None, Some(Role::Filtered), Some(Role::Backing), Some(Role::Data)];
                if let (true, Some(role)) = (index > 0, role[usize::from(*view)]) {
                    edges.push((role, pick(*below)));
                }
                let role = [None, Some(Role::Storage), Some(Role::Source)];
                // A container is beside backing; beside a filter's child it could make classes circular.
                let fits = *view % 2 == 0 || *other == 2;
                if let (true, Some(role)) = (index > 0 && fits, role[usize::from(*other)]) {
                    edges.push((role, pick(*beside)));
                }
                edges.into_boxed_slice()
            };
            seeds.iter().enumerate().map(node).collect()
        }
    }

    proptest! {
        #[test]
        fn the_closure_agrees_with_a_walk_down_from_each_view(
            nodes in random_nodes(),
            from in any::<prop::sample::Index>(),
            exempt in prop::option::of(any::<prop::sample::Index>()),
            own in prop::option::of((any::<prop::sample::Index>(), 0..2_usize)),
        ) {
            let views = Views::of(&nodes).expect("one view edge each");
            let from = from.index(nodes.len());
            let cut = Cut {
                class: exempt.map(|at| views.class(at.index(nodes.len()))),
                edge: own.map(|(parent, position)| (parent.index(nodes.len()), position)),
            };
            let Reached { ranged, whole } = views.reached(views.class(from), cut);
            let mut expected = (BTreeSet::new(), BTreeSet::new());
            let walk = Walk { nodes: &nodes, views: &views, from: views.class(from), cut };
            for at in 0..nodes.len() {
                match shows(&walk, views.class(at)) {
                    (_, true) => drop(expected.1.insert(views.class(at))),
                    (true, false) => drop(expected.0.insert(views.class(at))),
                    (false, false) => {}
                }
            }
            prop_assert_eq!(ranged.into_iter().collect::<BTreeSet<_>>(), expected.0);
            prop_assert_eq!(whole.into_iter().collect::<BTreeSet<_>>(), expected.1);
        }
    }
}
