//! Offload rules: which requests the guest is asked about. The others are forwarded without a call.
//!
//! A set of rules is immutable; a node has one at a time, and each worker keeps it as long as it is the
//! current one. A request keeps the set under which it passed, by a rule or by the guest's own word, until the
//! child has ended it: so when all older sets are gone, whatever passed before has finished, and the guest is
//! told (`armed`). One that the guest has not answered when the rules change has not passed: from then on it
//! goes by the new ones, and a guest may keep it until they are armed.
//! Asking more often than a rule demands is always right, asking less never.

use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use blockloom_abi::{ChildIndex, Control, ControlKind, Kind, Kinds, NodeIndex};

use super::bindings::blockloom::filter::host;
use super::bitmaps::{PluginBitmaps, Probe};
use crate::io::{Time, turn_now};

/// Rules of one node.
const RULES_MAX: usize = 32;

/// Events for the guest that no request and no operation brings. Of what is said of a node's rules the latest
/// counts: so there are at most two of each node.
#[derive(Default)]
pub(super) struct Controls {
    queue: Mutex<VecDeque<Control>>,
    len: AtomicUsize,
}

impl Controls {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Control>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, control: Control) {
        let mut queue = self.lock();
        if matches!(control.kind, ControlKind::Armed | ControlKind::BudgetUsed) {
            queue.retain(|it| (it.kind, it.node) != (control.kind, control.node));
        }
        queue.push_back(control);
        self.len.store(queue.len(), Ordering::Release);
    }

    pub(super) fn pop(&self) -> Option<Control> {
        if self.is_empty() {
            return None;
        }
        let mut queue = self.lock();
        let control = queue.pop_front();
        self.len.store(queue.len(), Ordering::Release);
        control
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }
}

/// What a rule asks of a request.
enum Only {
    Always,
    AnySet(u32, Probe),
    Unallocated(ChildIndex),
}

struct Budget {
    requests: AtomicU64,
    bytes: AtomicU64,
    until: Time,
    is_used: AtomicBool,
}

struct Rule {
    kinds: Kinds,
    only: Only,
    budget: Option<Budget>,
}

/// The rules of a node at one time.
pub(super) struct RuleSet {
    /// How the guest names them; none for no rules: everything is asked.
    epoch: Option<u32>,
    rules: Vec<Rule>,
    home: Weak<NodeRules>,
}

impl Drop for RuleSet {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.check_armed();
        }
    }
}

/// Rules as one worker keeps them, and whoever goes by them on it.
pub(super) struct KeptRules(pub(super) Arc<RuleSet>);

impl Deref for KeptRules {
    type Target = RuleSet;

    fn deref(&self) -> &RuleSet {
        &self.0
    }
}

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// The guest is asked.
    Ask,
    /// It passes.
    Pass,
    /// The guest is asked if the child has nothing allocated somewhere in the range.
    AskIfUnallocated(ChildIndex),
}

struct State {
    current: Arc<RuleSet>,
    /// The sets before it that somebody may still have.
    older: Vec<Weak<RuleSet>>,
    is_armed: bool,
}

/// The rules of a node.
pub(super) struct NodeRules {
    node: NodeIndex,
    generation: AtomicU64,
    state: Mutex<State>,
    controls: Arc<Controls>,
}

impl NodeRules {
    /// The rules of a node that had not been there: their generations are those of nobody before.
    pub(super) fn new(node: NodeIndex, birth: u32, controls: Arc<Controls>) -> Arc<Self> {
        Arc::new_cyclic(|home| {
            let none = RuleSet { epoch: None, rules: Vec::new(), home: Weak::clone(home) };
            let state = State { current: Arc::new(none), older: Vec::new(), is_armed: true };
            let generation = AtomicU64::new(u64::from(birth) << 32);
            Self { node, generation, state: Mutex::new(state), controls }
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn node(&self) -> NodeIndex {
        self.node
    }

    /// Changes with each set.
    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The current set, with its generation.
    pub(super) fn current(&self) -> (u64, Arc<RuleSet>) {
        let state = self.lock();
        (self.generation.load(Ordering::Relaxed), Arc::clone(&state.current))
    }

    /// From now on these are the rules.
    #[cfg(test)]
    fn set(
        self: &Arc<Self>,
        rules: &[host::Rule],
        epoch: u32,
        bitmaps: &PluginBitmaps,
    ) -> Result<(), String> {
        self.install(self.prepare(rules, epoch, bitmaps)?);
        Ok(())
    }

    /// Rules that may become those of the node.
    pub(super) fn prepare(
        self: &Arc<Self>,
        rules: &[host::Rule],
        epoch: u32,
        bitmaps: &PluginBitmaps,
    ) -> Result<RuleSet, String> {
        if rules.len() > RULES_MAX {
            return Err(format!("a node has at most {RULES_MAX} rules"));
        }
        let rules: Result<Vec<Rule>, String> = rules.iter().map(|it| rule(it, bitmaps)).collect();
        Ok(RuleSet { epoch: Some(epoch), rules: rules?, home: Arc::downgrade(self) })
    }

    /// From now on these are the rules.
    pub(super) fn install(self: &Arc<Self>, mut set: RuleSet) {
        self.replace(set.epoch, std::mem::take(&mut set.rules));
    }

    /// The same rules, with the bitmaps that there are now.
    pub(super) fn renew(self: &Arc<Self>, bitmaps: &PluginBitmaps) {
        let (_, current) = self.current();
        if current.epoch.is_some() {
            let rules = current.rules.iter().map(|rule| rule.renewed(bitmaps)).collect();
            self.replace(current.epoch, rules);
        }
    }

    /// There are no rules any more: a new instance begins so.
    pub(super) fn reset(self: &Arc<Self>) {
        self.replace(None, Vec::new());
    }

    fn replace(self: &Arc<Self>, epoch: Option<u32>, rules: Vec<Rule>) {
        let next = Arc::new(RuleSet { epoch, rules, home: Arc::downgrade(self) });
        let mut state = self.lock();
        let former = std::mem::replace(&mut state.current, next);
        state.older.retain(|set| set.strong_count() > 0);
        state.older.push(Arc::downgrade(&former));
        state.is_armed = epoch.is_none();
        self.generation.fetch_add(1, Ordering::Release);
        // What it does when it is the last one needs the lock.
        drop(state);
        drop(former);
        self.check_armed();
    }

    /// Tells the guest once that nothing is in flight that passed under older rules.
    fn check_armed(&self) {
        let mut state = self.lock();
        if state.is_armed || state.older.iter().any(|set| set.strong_count() > 0) {
            return;
        }
        state.older.clear();
        state.is_armed = true;
        if let Some(epoch) = state.current.epoch {
            self.tell(ControlKind::Armed, epoch);
        }
    }

    fn tell(&self, kind: ControlKind, epoch: u32) {
        let (node, first) = (self.node, u64::from(epoch));
        self.controls.push(Control { kind, node, first, second: 0 });
    }
}

fn rule(rule: &host::Rule, bitmaps: &PluginBitmaps) -> Result<Rule, String> {
    let kinds = Kinds::from_bits(rule.kinds)
        .ok_or_else(|| format!("{:#b} names unknown kinds of requests", rule.kinds))?;
    let only = match rule.only {
        host::Condition::Always => Only::Always,
        host::Condition::AnySet(index) => Only::AnySet(
            index,
            bitmaps.probe(index).ok_or_else(|| format!("there is no bitmap {index} to look at"))?,
        ),
        host::Condition::Unallocated(child) => Only::Unallocated(ChildIndex(child)),
    };
    let budget = rule.budget.as_ref().map(|budget| Budget {
        requests: AtomicU64::new(budget.requests),
        bytes: AtomicU64::new(budget.bytes),
        until: Time::from_nanos(budget.until),
        is_used: AtomicBool::new(false),
    });
    Ok(Rule { kinds, only, budget })
}

impl Rule {
    fn renewed(&self, bitmaps: &PluginBitmaps) -> Self {
        let only = match &self.only {
            Only::AnySet(index, _) => {
                bitmaps.probe(*index).map_or(Only::Always, |probe| Only::AnySet(*index, probe))
            }
            Only::Always => Only::Always,
            Only::Unallocated(child) => Only::Unallocated(*child),
        };
        let left = |counter: &AtomicU64| AtomicU64::new(counter.load(Ordering::Relaxed));
        let budget = self.budget.as_ref().map(|budget| Budget {
            requests: left(&budget.requests),
            bytes: left(&budget.bytes),
            until: budget.until,
            is_used: AtomicBool::new(budget.is_used.load(Ordering::Relaxed)),
        });
        Self { kinds: self.kinds, only, budget }
    }
}

impl RuleSet {
    /// The node whose rules they are, or were.
    pub(super) fn home(&self) -> Option<Arc<NodeRules>> {
        self.home.upgrade()
    }

    /// What is to be done with a request of a kind that the guest wants.
    #[inline]
    pub(super) fn judge(&self, kind: Kind, range: &Range<u64>) -> Ruling {
        if self.epoch.is_none() {
            return Ruling::Ask;
        }
        let mut ruling = Ruling::Pass;
        for rule in self.rules.iter().filter(|rule| rule.kinds.contains(kind)) {
            let has_range = !matches!(kind, Kind::Flush | Kind::Resize);
            let applies = match &rule.only {
                Only::AnySet(_, probe) if has_range => {
                    probe.any_set(range.start, range.end - range.start)
                }
                Only::Unallocated(child) if has_range && rule.budget.is_none() => {
                    if ruling == Ruling::Pass {
                        ruling = Ruling::AskIfUnallocated(*child);
                        continue;
                    }
                    true
                }
                _ => true,
            };
            if applies && !self.is_in_budget(rule, range) {
                return Ruling::Ask;
            }
        }
        ruling
    }

    fn is_in_budget(&self, rule: &Rule, range: &Range<u64>) -> bool {
        let Some(budget) = &rule.budget else { return false };
        if budget.is_used.load(Ordering::Relaxed) {
            return false;
        }
        let len = range.end - range.start;
        let fits =
            turn_now() < budget.until && take(&budget.requests, 1) && take(&budget.bytes, len);
        if !fits
            && !budget.is_used.swap(true, Ordering::Relaxed)
            && let (Some(home), Some(epoch)) = (self.home.upgrade(), self.epoch)
        {
            home.tell(ControlKind::BudgetUsed, epoch);
        }
        fits
    }
}

/// Takes from what is left, if there is that much.
fn take(left: &AtomicU64, amount: u64) -> bool {
    let less = |left: u64| left.checked_sub(amount);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> (Arc<Controls>, Arc<NodeRules>, PluginBitmaps) {
        let controls = Arc::new(Controls::default());
        let rules = NodeRules::new(NodeIndex(2), 0, Arc::clone(&controls));
        let bitmaps = PluginBitmaps::default();
        bitmaps.add_node(NodeIndex(2), 1 << 20);
        (controls, rules, bitmaps)
    }

    fn always(kinds: Kinds) -> host::Rule {
        host::Rule { kinds: kinds.bits(), only: host::Condition::Always, budget: None }
    }

    fn told(controls: &Controls) -> Option<(ControlKind, u64)> {
        controls.pop().map(|control| (control.kind, control.first))
    }

    #[test]
    fn armed_comes_when_what_passed_before_has_ended() {
        let (controls, rules, bitmaps) = scene();
        rules.set(&[], 1, &bitmaps).expect("rules");
        assert_eq!(told(&controls), Some((ControlKind::Armed, 1)), "all was asked before");
        let (_, passed) = rules.current();
        rules.set(&[always(Kinds::WRITE)], 2, &bitmaps).expect("rules");
        let (_, passed_later) = rules.current();
        rules.set(&[always(Kinds::ALL)], 3, &bitmaps).expect("rules");
        assert_eq!(told(&controls), None);
        drop(passed_later);
        assert_eq!(told(&controls), None, "one is left of those before");
        drop(passed);
        assert_eq!(told(&controls), Some((ControlKind::Armed, 3)));
        rules.reset();
        let (_, none) = rules.current();
        assert_eq!((told(&controls), none.judge(Kind::Flush, &(0..0))), (None, Ruling::Ask));
        rules.set(&[], 4, &bitmaps).expect("rules");
        assert_eq!(told(&controls), None, "what was asked without rules counts as well");
        drop(none);
        assert_eq!(told(&controls), Some((ControlKind::Armed, 4)));
    }

    /// A guest that sets rules all the time is told of the last ones: nothing piles up.
    #[test]
    fn what_is_said_of_rules_is_said_once() {
        let (controls, rules, bitmaps) = scene();
        let budget = Some(host::Budget { requests: 0, bytes: 0, until: 0 });
        for epoch in 1..=1000 {
            rules
                .set(&[host::Rule { budget, ..always(Kinds::READ) }], epoch, &bitmaps)
                .expect("rules");
            let (_, current) = rules.current();
            assert_eq!(current.judge(Kind::Read, &(0..1)), Ruling::Ask);
        }
        let mut all: Vec<_> = std::iter::from_fn(|| told(&controls)).collect();
        all.sort_by_key(|(kind, _)| *kind as u8);
        assert_eq!(all, [(ControlKind::Armed, 1000), (ControlKind::BudgetUsed, 1000)]);
        assert!(controls.is_empty());
    }

    #[test]
    fn rules_say_what_is_asked() {
        let (_, rules, bitmaps) = scene();
        let todo = bitmaps.own(NodeIndex(2), "todo", 4096).expect("a bitmap").index;
        bitmaps.set(todo, 8192, 4096, true).expect("its own");
        let only = host::Condition::AnySet(todo);
        let set = host::Rule { kinds: Kinds::WRITE.bits(), only, budget: None };
        let only = host::Condition::Unallocated(1);
        let hole = host::Rule { kinds: Kinds::READ.bits(), only, budget: None };
        rules.set(&[set, hole], 1, &bitmaps).expect("rules");
        let (_, current) = rules.current();
        assert_eq!(current.judge(Kind::Write, &(0..8192)), Ruling::Pass);
        assert_eq!(current.judge(Kind::Write, &(0..8193)), Ruling::Ask);
        assert_eq!(current.judge(Kind::Zero, &(0..8193)), Ruling::Pass);
        assert_eq!(current.judge(Kind::Read, &(0..1)), Ruling::AskIfUnallocated(ChildIndex(1)));
        bitmaps.set(todo, 0, 4096, true).expect("its own");
        assert_eq!(current.judge(Kind::Write, &(0..1)), Ruling::Ask, "it is looked at each time");
        let bad = host::Rule { kinds: 1 << 31, only: host::Condition::Always, budget: None };
        rules.set(&[bad], 2, &bitmaps).expect_err("unknown kinds");
        let only = host::Condition::AnySet(99);
        rules.set(&[host::Rule { kinds: 1, only, budget: None }], 2, &bitmaps).expect_err("none");
    }

    #[test]
    fn a_budget_is_used_up_once() {
        let (controls, rules, bitmaps) = scene();
        let budget = Some(host::Budget { requests: 2, bytes: 4096, until: u64::MAX });
        let rule = host::Rule { budget, ..always(Kinds::READ) };
        rules.set(&[rule], 7, &bitmaps).expect("rules");
        assert_eq!(told(&controls), Some((ControlKind::Armed, 7)));
        let (_, current) = rules.current();
        assert_eq!(current.judge(Kind::Read, &(0..4096)), Ruling::Pass);
        assert_eq!(current.judge(Kind::Read, &(0..1)), Ruling::Ask, "no bytes are left");
        assert_eq!(current.judge(Kind::Read, &(0..1)), Ruling::Ask);
        assert_eq!(told(&controls), Some((ControlKind::BudgetUsed, 7)));
        assert_eq!(told(&controls), None);
    }
}
