//! Random transactions of bitmap actions and changes of a drive's root against a model that makes them one
//! after the other; those that fail must change nothing.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::scene::*;
use crate::bitmap::{BitmapName, BitmapState, Granularity};
use crate::graph::transaction::{Action, BitmapAction, BitmapRef, Transaction, Unproven};
use crate::graph::{BitmapDecl, BitmapScope};

const BLOCKS: u64 = SIZE / BLOCK as u64;

type Set = BTreeSet<u64>;

/// A bitmap, in blocks.
#[derive(Clone, Debug)]
struct Model {
    scope: usize,
    name: u8,
    /// Blocks that a granule has.
    unit: u64,
    state: BitmapState,
    recording: Option<Set>,
    still: Option<Set>,
}

impl Model {
    fn rounded(&self, blocks: impl IntoIterator<Item = u64>) -> Set {
        let granule = |block: u64| {
            let start = block / self.unit * self.unit;
            start..(start + self.unit).min(BLOCKS)
        };
        blocks.into_iter().flat_map(granule).collect()
    }

    fn mark(&mut self, blocks: impl IntoIterator<Item = u64>) {
        let rounded = self.rounded(blocks);
        self.recording.iter_mut().for_each(|recording| recording.extend(&rounded));
    }

    fn shown(&self) -> Set {
        self.recording.iter().chain(&self.still).flatten().copied().collect()
    }

    fn hold(&mut self, set: Set) {
        (self.state, self.recording, self.still) = match self.recording.is_some() {
            true => (BitmapState::Recording, Some(set), None),
            false => (BitmapState::Disabled, None, Some(set)),
        };
    }

    /// Whether it can be done.
    fn act(&mut self, action: &Change) -> bool {
        let is_frozen = self.state == BitmapState::Frozen;
        let ends = matches!(action, Change::MergeBack | Change::Abdicate);
        if is_frozen != ends {
            return false;
        }
        let shown = self.shown();
        match action {
            Change::Clear => self.hold(Set::new()),
            Change::Enable => {
                (self.state, self.recording, self.still) =
                    (BitmapState::Recording, Some(shown), None);
            }
            Change::Disable => {
                (self.state, self.recording, self.still) =
                    (BitmapState::Disabled, None, Some(shown));
            }
            Change::Freeze | Change::Checkpoint => {
                if matches!(action, Change::Checkpoint) && self.recording.is_none() {
                    return false;
                }
                let successor = self.recording.as_ref().map(|_| Set::new());
                (self.state, self.recording, self.still) =
                    (BitmapState::Frozen, successor, Some(shown));
            }
            Change::MergeBack => self.hold(shown),
            Change::Abdicate => {
                let since = self.recording.clone().unwrap_or_default();
                self.hold(since);
            }
            Change::Hold(set) => {
                let set = self.rounded(set.iter().copied());
                self.hold(set);
            }
        }
        true
    }
}

enum Change {
    Clear,
    Enable,
    Disable,
    Freeze,
    Checkpoint,
    MergeBack,
    Abdicate,
    Hold(Set),
}

/// Bitmaps, and whether drive `d` shows node `x` or `z`.
#[derive(Clone, Debug)]
struct World {
    bitmaps: Vec<Model>,
    on_x: bool,
}

fn scope(number: usize) -> BitmapScope {
    match number {
        0 => of_drive("d"),
        1 => of_drive("e"),
        _ => of_node("x"),
    }
}

fn name(number: u8) -> BitmapName {
    BitmapName::new(&format!("b{number}")).expect("a name")
}

impl World {
    fn named(&self, at: usize) -> BitmapRef {
        let Model { scope: of, name: number, .. } = self.bitmaps[at];
        BitmapRef::Named { scope: scope(of), name: name(number).to_string() }
    }

    fn write(&mut self, drive: usize, block: u64) {
        let sees = |it: &&mut Model| it.scope == drive || (drive == 0 && it.scope == 2);
        let on_x = self.on_x;
        let all = self.bitmaps.iter_mut().filter(sees).filter(|it| it.scope != 2 || on_x);
        all.for_each(|bitmap| bitmap.mark([block]));
    }

    fn has(&self, scope: usize, name: u8) -> bool {
        self.bitmaps.iter().any(|it| it.scope == scope && it.name == name)
    }

    fn add(&mut self, [_, which, name, how]: [u8; 4]) -> bool {
        let (scope, name) = (usize::from(which % 3), name % 4);
        if self.has(scope, name) {
            return false;
        }
        let (unit, enabled) = (if how % 2 == 0 { 1 } else { 4 }, how % 3 > 0);
        let (state, recording, still) = match enabled {
            true => (BitmapState::Recording, Some(Set::new()), None),
            false => (BitmapState::Disabled, None, Some(Set::new())),
        };
        self.bitmaps.push(Model { scope, name, unit, state, recording, still });
        true
    }

    /// Makes an action of a seed; returns it, and whether it can be done.
    fn step(&mut self, seed: [u8; 4]) -> (Action, bool) {
        let [kind, which, other, how] = seed;
        let count = self.bitmaps.len();
        if count == 0 || kind % 16 == 0 {
            let decl = BitmapDecl {
                scope: scope(usize::from(which % 3)),
                name: name(other % 4),
                granularity: Granularity::from_bytes(if how % 2 == 0 { 512 } else { 2048 })
                    .expect("a granularity"),
                enabled: how % 3 > 0,
            };
            return (Action::AddBitmap(decl), self.add(seed));
        }
        let (at, from) = (usize::from(which) % count, usize::from(other) % count);
        let bitmap = self.named(at);
        let (action, change) = match kind % 16 {
            1 => {
                let can = self.bitmaps[at].state != BitmapState::Frozen;
                if can {
                    self.bitmaps.remove(at);
                }
                return (BitmapAction::Remove.of(bitmap), can);
            }
            2 => {
                let new = other % 4;
                let own = self.bitmaps[at].scope;
                let can = self.bitmaps[at].name == new || !self.has(own, new);
                if can {
                    self.bitmaps[at].name = new;
                }
                return (BitmapAction::Rename(name(new)).of(bitmap), can);
            }
            3 | 4 => {
                self.on_x = other % 2 == 0;
                let node = if self.on_x { "x" } else { "z" };
                return (Action::SetRoot { drive: "d".into(), node: node.into() }, true);
            }
            5 | 6 => {
                let mut all: Vec<usize> = vec![at, from];
                all.truncate(1 + usize::from(how % 2));
                let bitmaps = all.iter().map(|at| self.named(*at)).collect();
                let mut can = true;
                all.iter().for_each(|at| can &= self.bitmaps[*at].act(&Change::Checkpoint));
                return (Action::Checkpoint { bitmaps }, can);
            }
            7 => (BitmapAction::Enable, Change::Enable),
            8 => (BitmapAction::Disable, Change::Disable),
            9 => (BitmapAction::Freeze, Change::Freeze),
            10 => (BitmapAction::MergeBack, Change::MergeBack),
            11 => (BitmapAction::Abdicate, Change::Abdicate),
            12 | 13 => {
                let mut sum = self.bitmaps[at].shown();
                sum.extend(self.bitmaps[from].shown());
                (BitmapAction::merge([self.named(from)]), Change::Hold(sum))
            }
            14 => {
                let copy = self.bitmaps[from].shown();
                (BitmapAction::CopyOf(self.named(from)), Change::Hold(copy))
            }
            _ => (BitmapAction::Clear, Change::Clear),
        };
        (action.of(bitmap), self.bitmaps[at].act(&change))
    }

    /// Makes a transaction of seeds, marking what it alters after action `altering`. Returns whether it
    /// can be done, and the last action that set the root.
    fn transact(
        &mut self,
        seeds: &[[u8; 4]],
        altering: Option<usize>,
    ) -> (Transaction, bool, Option<usize>) {
        let (mut all, mut can_all, mut last_root) = (Transaction::new(), true, None);
        for (number, seed) in seeds.iter().enumerate() {
            let (action, can) = self.step(*seed);
            if matches!(action, Action::SetRoot { .. }) {
                last_root = Some(number);
            }
            if altering == Some(number) {
                let of_drive = self.bitmaps.iter_mut().filter(|it| it.scope == 0);
                of_drive.for_each(|bitmap| bitmap.mark(0..BLOCKS));
            }
            all = all.with_unproven(action, Unproven::MarkWhole);
            can_all &= can;
        }
        (all, can_all, last_root)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64),
    Transact(Vec<[u8; 4]>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..2_usize, 0..BLOCKS).prop_map(|(drive, block)| Step::Write(drive, block)),
        prop::collection::vec(any::<[u8; 4]>(), 1..6).prop_map(Step::Transact),
    ]
}

fn compare(scene: &Scene, world: &World) {
    let graph = scene.cell.load();
    assert_eq!(graph.bitmaps().count(), world.bitmaps.len());
    for model in &world.bitmaps {
        let (scope, name) = (scope(model.scope), name(model.name));
        let bitmap = graph.find_bitmap(&scope, name.as_str()).expect("a bitmap of the model");
        let what = format!("{name} of {scope}");
        assert_eq!(bitmap.state(), model.state, "{what}");
        assert_eq!(dirty_blocks(bitmap), model.shown().into_iter().collect::<Vec<_>>(), "{what}");
        let still = bitmap.read().still().map(|still| {
            let blocks = |it: std::ops::Range<u64>| it.start / BLOCK as u64..it.end / BLOCK as u64;
            still.ranges(0..u64::MAX).flat_map(blocks).collect::<Set>()
        });
        assert_eq!(still, model.still, "{what}");
    }
}

async fn follow(steps: Vec<Step>) {
    let nodes = vec![memory("x"), memory("y"), memory("z")];
    let scene = Scene::new(nodes, vec![drive("d", "x"), drive("e", "y")], vec![]);
    let mut world = World { bitmaps: Vec::new(), on_x: true };
    for number in 0..6_u8 {
        let seed = [0, number, number / 3, 3 * (number % 2) + 1];
        let (add, can) = world.step(seed);
        assert!(can);
        scene.act(add).await;
    }
    for step in steps {
        match step {
            Step::Write(number, block) => {
                scene.write(["d", "e"][number], block, 1).await;
                world.write(number, block);
            }
            Step::Transact(seeds) => {
                let mut next = world.clone();
                let (_, _, last_root) = next.transact(&seeds, None);
                let altering = last_root.filter(|_| next.on_x != world.on_x);
                let mut next = world.clone();
                let (all, can, _) = next.transact(&seeds, altering);
                if can {
                    scene.all(all).await;
                    world = next;
                } else {
                    scene.fails(all).await;
                }
            }
        }
        compare(&scene, &world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn transactions_are_their_actions_in_turn_or_nothing(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        // A thread that fails as a worker cannot be one again.
        let followed = std::thread::spawn(|| run(follow(steps))).join();
        followed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
