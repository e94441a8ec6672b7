//! One worker's side of an instance: the batch that the turn gathers, who waits for an answer (`waiting.rs`), and the
//! rules by which requests go (`rules.rs`).

mod rules;
mod waiting;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::num::NonZeroU64;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use blockloom_abi::{Errno, Kind, NodeIndex, RequestFlags, RequestId};

use super::counters::Refused;
use super::enter::Asked;
use super::faults::Phase;
use super::instance::Instance;
use super::operation::Ended;
use super::rules::KeptRules;
use super::store::Lasting;
use crate::io::{Time, TurnHook, current, is_more_to_come, sleep_until, spawn, turn_now};

use rules::Ruled;
use waiting::Waiters;
pub(super) use waiting::{Arrival, Named, Ticket, Verdict, Waiting};

/// What goes to the instance with the next batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offer {
    /// A request to be judged.
    Request {
        ticket: Ticket,
        node: NodeIndex,
        kind: Kind,
        flags: RequestFlags,
        offset: u64,
        len: u64,
    },
    /// The child's result of a request forwarded with notify.
    Done { id: RequestId, result: Result<(), Errno> },
    /// A held request has gone to the child.
    LetGo { id: RequestId },
    /// A node's job is to begin; its operations go to that ticket.
    Job { ticket: Ticket, node: NodeIndex },
}

/// See the module.
pub(super) struct LocalPlugin {
    instance: Arc<Instance>,
    worker: u32,
    pending: RefCell<Vec<Offer>>,
    batch: RefCell<Vec<Offer>>,
    waiters: RefCell<Waiters>,
    queued: Cell<bool>,
    /// It is to be entered later, as it has used up its processor time.
    put_off: Cell<bool>,
    /// Who waits for a new store, by arrival.
    resting: RefCell<BTreeMap<u64, Waker>>,
    /// How often the instance's phase had changed when they were last woken.
    phases_seen: Cell<u64>,
    watched: Cell<bool>,
    /// When the instance is to be entered for its timers.
    alarm: Cell<Option<Time>>,
    /// Of the task that sees to it, while there is one.
    alarm_task: RefCell<Option<Waker>>,
    /// The rules of each node, as this worker has them.
    rules: RefCell<Vec<Ruled>>,
    /// How often rules had changed when this worker last let go of those before.
    rules_seen: Cell<u64>,
}

/// Someone who waits for a new store.
struct Resting<'a> {
    plugin: &'a LocalPlugin,
    sequence: u64,
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.plugin.resting.borrow_mut().remove(&self.sequence);
    }
}

thread_local! {
    /// By instance.
    static PLUGINS: RefCell<Vec<(usize, Rc<LocalPlugin>)>> = const { RefCell::new(Vec::new()) };
    /// Those with something pending.
    static QUEUED: RefCell<Vec<Rc<LocalPlugin>>> = const { RefCell::new(Vec::new()) };
    static HOOKED: Cell<bool> = const { Cell::new(false) };
    /// Requests so far, of all instances: a ticket is never another's.
    static SEQUENCE: Cell<NonZeroU64> = const { Cell::new(NonZeroU64::MIN) };
}

/// Takes each instance what the turn brought it.
struct PluginTurn;

impl TurnHook for PluginTurn {
    fn run_turn(&self) -> bool {
        let mut any = false;
        let mut index = 0;
        while let Some(plugin) =
            PLUGINS.with(|plugins| plugins.borrow().get(index).map(|(_, plugin)| Rc::clone(plugin)))
        {
            any |= plugin.catch_up();
            if plugin.is_left() {
                // The instance may go with it, which may take long.
                let left = PLUGINS.with(|plugins| plugins.borrow_mut().swap_remove(index));
                plugin.instance.forget_worker(plugin.worker);
                drop((plugin, left));
            } else {
                index += 1;
            }
        }
        let queued = QUEUED.with(|queued| std::mem::take(&mut *queued.borrow_mut()));
        any |= !queued.is_empty();
        for plugin in queued {
            plugin.flush();
        }
        any
    }

    fn end(&self) {
        HOOKED.set(false);
        QUEUED.take();
        PLUGINS.take();
    }
}

impl LocalPlugin {
    /// The current worker's side of `instance`.
    pub(super) fn of(instance: &Arc<Instance>) -> Rc<Self> {
        let id = instance.id();
        Self::known(id).unwrap_or_else(|| {
            let plugin = Rc::new(Self::new(instance));
            PLUGINS.with(|plugins| plugins.borrow_mut().push((id, Rc::clone(&plugin))));
            plugin
        })
    }

    /// The current worker's side of the instance with this number, if it has one.
    fn known(id: usize) -> Option<Rc<Self>> {
        let known = PLUGINS.try_with(|plugins| {
            let plugins = plugins.borrow();
            plugins.iter().find(|(known, _)| *known == id).map(|(_, plugin)| Rc::clone(plugin))
        });
        known.ok().flatten()
    }

    fn new(instance: &Arc<Instance>) -> Self {
        let Some(local) = current() else { panic!("plugins are used on workers") };
        if !HOOKED.replace(true) {
            local.add_turn_hook(Rc::new(PluginTurn));
        }
        let instance = Arc::clone(instance);
        instance.register(local.handle());
        Self {
            instance,
            worker: local.index() as u32,
            pending: RefCell::default(),
            batch: RefCell::default(),
            waiters: RefCell::default(),
            queued: Cell::new(false),
            put_off: Cell::new(false),
            resting: RefCell::default(),
            phases_seen: Cell::new(0),
            watched: Cell::new(false),
            alarm: Cell::new(None),
            alarm_task: RefCell::default(),
            rules: RefCell::default(),
            rules_seen: Cell::new(0),
        }
    }

    /// Whether nobody uses the instance any more, and nobody here waits for anything of it.
    #[inline]
    fn is_left(self: &Rc<Self>) -> bool {
        self.instance.has_no_users() && self.has_nothing_to_do()
    }

    /// Who turns to it holds it, beside the list of this worker.
    #[cold]
    fn has_nothing_to_do(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) == 2
            && self.pending.borrow().is_empty()
            && self.waiters.borrow().places.iter().all(|place| place.sequence == 0)
    }

    /// Begins a node's job: what the guest does in it comes to the place that is returned.
    pub(super) fn begin_job(self: &Rc<Self>, node: NodeIndex) -> Waiting {
        let sequence = Self::next_sequence();
        let waiter = self.waiters.borrow_mut().insert(sequence, turn_now());
        self.waiters.borrow_mut().places[waiter as usize].is_job = true;
        let ticket = Ticket::new(self.worker, waiter, sequence);
        self.offer(Offer::Job { ticket, node });
        Waiting { plugin: Rc::clone(self), ticket }
    }

    fn next_sequence() -> NonZeroU64 {
        let sequence = SEQUENCE.get();
        SEQUENCE.set(sequence.saturating_add(1));
        sequence
    }

    /// Takes answers that other workers brought out, and wakes those who wait for a new store; whether there
    /// was any.
    fn catch_up(self: &Rc<Self>) -> bool {
        // In this order: what the guest answered before it changed them is here then.
        let rules_published = self.instance.lasting().rules_published();
        let any = self.instance.drain_outbox(self);
        if self.rules_seen.replace(rules_published) != rules_published {
            self.refresh_rules();
            self.requests_go_by_new_rules();
        }
        if self.instance.has_controls() || self.instance.take_left() {
            self.queue();
        }
        let phases = self.instance.phase_changes();
        if self.phases_seen.replace(phases) != phases {
            let resting = self.resting.take();
            let any = any || !resting.is_empty();
            resting.into_values().for_each(Waker::wake);
            return any;
        }
        any
    }

    /// Offers a request that goes by `rules`.
    ///
    /// # Errors
    /// The rules, when it may go to the child already.
    #[inline]
    pub(super) fn request(
        self: &Rc<Self>,
        since: Time,
        rules: Rc<KeptRules>,
        request: impl FnOnce(Ticket) -> Offer,
    ) -> Result<Waiting, Rc<KeptRules>> {
        let sequence = Self::next_sequence();
        let waiter = self.waiters.borrow_mut().insert(sequence, since);
        let ticket = Ticket::new(self.worker, waiter, sequence);
        let request = request(ticket);
        // If nothing of this turn is going to join it, it need not wait for the turn's end.
        let alone = !is_more_to_come()
            && self.pending.borrow().is_empty()
            && self.instance.put_off_until().is_none();
        let asked = if alone { self.instance.ask(&request, self) } else { Asked::NotOffered };
        match asked {
            Asked::Forward => {
                let _ = self.waiters.borrow_mut().remove(waiter as usize);
                return Err(rules);
            }
            Asked::Offered => {}
            Asked::NotOffered => self.offer(request),
        }
        self.waiters.borrow_mut().places[waiter as usize].rules = Some(rules);
        if !self.watched.replace(true) {
            spawn(watch(Rc::clone(self)));
        }
        Ok(Waiting { plugin: Rc::clone(self), ticket })
    }

    /// Adds to the batch that goes at the end of this turn.
    pub(super) fn offer(self: &Rc<Self>, offer: Offer) {
        self.pending.borrow_mut().push(offer);
        self.queue();
    }

    /// Has the instance entered at the end of this turn.
    pub(super) fn queue(self: &Rc<Self>) {
        if !self.queued.replace(true) {
            // At the end of a thread what waited is dropped, and nobody goes in any more.
            let _ = QUEUED.try_with(|queued| queued.borrow_mut().push(Rc::clone(self)));
        }
    }

    /// Has the instance entered at a time. What is offered until then waits; exports bound it.
    fn queue_at(self: &Rc<Self>, at: Time) {
        if self.put_off.replace(true) {
            return;
        }
        let plugin = Rc::clone(self);
        spawn(async move {
            sleep_until(at).await;
            plugin.put_off.set(false);
            plugin.queue();
        });
    }

    /// The same, for one who does not hold it.
    pub(super) fn enter_soon(&self) {
        if let Some(plugin) = Self::known(self.instance.id()) {
            plugin.queue();
        }
    }

    fn flush(self: &Rc<Self>) {
        self.queued.set(false);
        self.enter();
    }

    /// Takes the instance what there is for it.
    fn enter(self: &Rc<Self>) {
        if let Some(until) = self.instance.put_off_until() {
            return self.queue_at(until);
        }
        let mut batch = self.batch.take();
        std::mem::swap(&mut batch, &mut *self.pending.borrow_mut());
        self.instance.enter(self, &mut batch);
        batch.clear();
        *self.batch.borrow_mut() = batch;
    }

    /// An operation has ended: the guest learns of it with the next batch.
    pub(super) fn end_operation(self: &Rc<Self>, ended: Ended) {
        self.instance.end_operation(ended);
        self.queue();
    }

    /// The same, for one that has ended in the turn in which its request is at work: if nothing of the turn is going
    /// to join it, the guest learns of it now.
    pub(super) fn end_at_once(self: &Rc<Self>, ended: Ended) {
        self.instance.end_operation(ended);
        if is_more_to_come() {
            self.queue();
        } else {
            self.enter();
        }
    }

    /// Has the instance entered at a time, unless that is going to be sooner.
    pub(super) fn alarm_at(&self, at: Time) {
        let former = self.alarm.get();
        if former.is_some_and(|former| former <= at) {
            return;
        }
        self.alarm.set(Some(at));
        if let Some(task) = self.alarm_task.borrow().as_ref() {
            task.wake_by_ref();
        } else if former.is_none()
            && let Some(plugin) = Self::known(self.instance.id())
        {
            spawn(ring(plugin));
        }
    }

    /// Has a new store made at a time, if the place of the lost one is still empty then.
    pub(super) fn restart_at(&self, at: Time) {
        let Some(plugin) = Self::known(self.instance.id()) else { return };
        let lost = self.instance.store_number();
        spawn(async move {
            sleep_until(at).await;
            let instance = &plugin.instance;
            let changing = instance.change().await;
            if instance.phase() == Phase::Down && instance.store_number() == lost {
                instance.restart(&plugin).await;
            }
            drop(changing);
        });
    }

    /// A place among those who wait for a new store, behind those that came before.
    pub(super) fn arrive(&self) -> Arrival {
        Arrival { sequence: Self::next_sequence().get(), since: turn_now() }
    }

    /// Waits as long as the instance stands so; says how it stands then.
    pub(super) async fn rest(&self, arrival: Arrival, while_it: impl Fn(Phase) -> bool) -> Phase {
        let _resting = Resting { plugin: self, sequence: arrival.sequence };
        poll_fn(|cx| match self.instance.phase() {
            phase if while_it(phase) => {
                self.resting.borrow_mut().insert(arrival.sequence, cx.waker().clone());
                Poll::Pending
            }
            phase => Poll::Ready(phase),
        })
        .await
    }

    /// What outlives the guest.
    pub(super) fn lasting(&self) -> &Lasting {
        self.instance.lasting()
    }

    /// The plugin's name, for messages.
    pub(super) fn name(&self) -> Arc<str> {
        self.instance.plugin()
    }

    /// Counts a claim that was refused.
    pub(super) fn claim_refused(&self, node: NodeIndex, why: Refused) {
        self.instance.claim_refused(node, why);
    }

    /// This worker's number.
    pub(super) fn worker(&self) -> u32 {
        self.worker
    }
}

/// Has the instance entered when its timers come due, for as long as there are any.
async fn ring(plugin: Rc<LocalPlugin>) {
    while let Some(at) = plugin.alarm.get() {
        let mut sleep = pin!(sleep_until(at));
        poll_fn(|cx| {
            // It may have become sooner.
            if plugin.alarm.get() != Some(at) {
                return Poll::Ready(());
            }
            *plugin.alarm_task.borrow_mut() = Some(cx.waker().clone());
            sleep.as_mut().poll(cx)
        })
        .await;
        if at <= turn_now() {
            plugin.alarm.set(None);
            plugin.instance.ring();
            plugin.queue();
        }
    }
    plugin.alarm_task.take();
}

/// Bounds how long the guest keeps requests, for as long as there are any.
async fn watch(plugin: Rc<LocalPlugin>) {
    let hold = plugin.instance.limits().hold;
    while plugin.waiters.borrow().live().next().is_some() {
        sleep_until(turn_now() + hold / 4).await;
        plugin.instance.check_overdue(&plugin);
    }
    plugin.watched.set(false);
}
