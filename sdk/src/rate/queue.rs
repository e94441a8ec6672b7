//! Limits at work, and the queues of those that wait for them.

use std::collections::VecDeque;

use super::Bucket;

/// How far a member that did not use its share may be behind the others.
pub const CREDIT_NS: u64 = 100_000_000;

/// Of what [`FairQueue::save`] returns.
const FORM: u64 = 1;

/// A limit at work.
#[derive(Clone, Debug)]
pub struct Limiter<const LANES: usize> {
    /// Names it: where another one takes its place, and in what is saved.
    pub id: u64,
    /// Which of a request's costs it limits.
    pub unit: usize,
    /// Whose.
    pub lanes: [bool; LANES],
    /// What it has admitted.
    pub bucket: Bucket,
}

/// Requests of one member.
#[derive(Clone, Debug)]
struct Member<K, const LANES: usize, const UNITS: usize> {
    /// What it has used, in nanoseconds of the rate.
    used_ns: u64,
    /// What waits, with its costs.
    queues: [VecDeque<(K, [u64; UNITS])>; LANES],
    /// Whose turn it is.
    turn: usize,
}

impl<K, const LANES: usize, const UNITS: usize> Member<K, LANES, UNITS> {
    /// Which of its queues goes next, of those that may.
    fn next(&self, may: [bool; LANES]) -> Option<usize> {
        let mut lanes = (self.turn..LANES).chain(0..self.turn);
        lanes.find(|&lane| may[lane] && !self.queues[lane].is_empty())
    }
}

/// Limits, what they have admitted, and what waits for them, by keys of the caller's.
///
/// - A request of a member, as a node, starts at once while nothing waits and the limits allow it; else it is
///   queued by its member and lane, as reads and writes are, and those of one queue start in the order of their
///   arrival. Lanes that no limit has in common do not wait for each other.
/// - Members that wait get equal shares of the rate, in the time that their requests take at it, however many
///   they have queued; lanes of one member take turns. A member that asked for less is owed at most
///   [`CREDIT_NS`], and what one does not use is there for the others.
/// - A request larger than a burst starts whole, and those after it wait for it.
/// - Time that passes between the moment a request could start and that at which somebody asks for it is not
///   lost: the schedule goes on from the former.
///
/// ```
/// use blockloom_sdk::rate::{FairQueue, Limit, Next};
/// use std::time::Duration;
///
/// let limit = Limit { rate: 1000, ..Limit::default() };
/// let limiters = limit.limiters(Duration::from_millis(1), (0, 0, [true])).collect();
/// let mut queue = FairQueue::<_>::new(limiters);
/// let now_ns = 7_000_000;
/// assert!(queue.offer((0, 0), [1], 'a', now_ns));
/// assert!(queue.offer((0, 0), [1], 'b', now_ns));
/// assert!(!queue.offer((0, 0), [1], 'c', now_ns), "it waits");
/// assert_eq!(queue.next(now_ns), Next::At(8_000_000));
/// assert_eq!(queue.next(8_000_000), Next::Start('c'));
/// assert_eq!(queue.next(8_000_000), Next::Idle);
/// ```
#[derive(Clone, Debug)]
pub struct FairQueue<K, const LANES: usize = 1, const UNITS: usize = 1> {
    limiters: Vec<Limiter<LANES>>,
    members: Vec<Member<K, LANES, UNITS>>,
    /// By lane: how many wait, and since when any do.
    waiting: [(usize, u64); LANES],
    /// Where the member stands whose turn it was last.
    served_ns: u64,
}

/// What is to be done with those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<K> {
    /// It starts.
    Start(K),
    /// None may start before that time, in nanoseconds.
    At(u64),
    /// None waits.
    Idle,
}

impl<K: Copy + PartialEq, const LANES: usize, const UNITS: usize> FairQueue<K, LANES, UNITS> {
    /// One that has admitted nothing.
    #[must_use]
    pub fn new(limiters: Vec<Limiter<LANES>>) -> Self {
        Self { limiters, members: Vec::new(), waiting: [(0, 0); LANES], served_ns: 0 }
    }

    /// Puts other limits in force. What was admitted under the former ones counts on: where one has the id of a
    /// former one, its rate begins when what that has admitted has leaked out.
    pub fn reconfigure(&mut self, mut limiters: Vec<Limiter<LANES>>) {
        for new in &mut limiters {
            let former = self.limiters.iter().find(|old| old.id == new.id);
            former.into_iter().for_each(|old| new.bucket.follow(&old.bucket));
        }
        self.limiters = limiters;
    }

    /// What was admitted, for [`restore`](Self::restore): the number of this form; then for each limit its id, its
    /// rate, when all has leaked out, and what is left over; little-endian words. What waits is not in it.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut state = FORM.to_le_bytes().to_vec();
        for Limiter { id, bucket, .. } in &self.limiters {
            let words = [*id].into_iter().chain(bucket.level());
            words.for_each(|word| state.extend_from_slice(&word.to_le_bytes()));
        }
        state
    }

    /// Takes over what another queue has admitted, as by [`reconfigure`](Self::reconfigure) if that had other
    /// limits.
    ///
    /// # Errors
    ///
    /// A state of another form.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), &'static str> {
        const WRONG: &str = "its form is not known";
        let (words, []) = state.as_chunks::<8>() else { return Err(WRONG) };
        let (form, levels) = words.split_first().ok_or(WRONG)?;
        let (levels, []) = levels.as_chunks::<4>() else { return Err(WRONG) };
        if u64::from_le_bytes(*form) != FORM {
            return Err(WRONG);
        }
        for level in levels {
            let [id, level @ ..] = level.map(u64::from_le_bytes);
            let of = self.limiters.iter_mut().find(|it| it.id == id);
            of.into_iter().for_each(|it| it.bucket.take_level(level));
        }
        Ok(())
    }

    /// Offers a request of a member in a lane, with what it costs of each unit: whether it may start at once. If
    /// not, it waits under `key` until [`next`](Self::next) names it.
    ///
    /// # Panics
    ///
    /// If there is no such lane.
    #[inline]
    pub fn offer(
        &mut self,
        (member, lane): (u16, usize),
        costs: [u64; UNITS],
        key: K,
        now_ns: u64,
    ) -> bool {
        let member = usize::from(member);
        if self.members.len() <= member {
            self.add_members(member);
        }
        let is_first = self.waiting[lane].0 == 0
            && (self.waiting.iter().all(|(waiting, _)| *waiting == 0) || !self.is_shared());
        if is_first && self.ready_ns(lane) <= now_ns {
            self.start((member, lane), costs, now_ns);
            return true;
        }
        let (waiting, since_ns) = &mut self.waiting[lane];
        if *waiting == 0 {
            *since_ns = now_ns;
        }
        *waiting += 1;
        self.members[member].queues[lane].push_back((key, costs));
        false
    }

    /// What starts next of what waits, or when.
    pub fn next(&mut self, now_ns: u64) -> Next<K> {
        let ready: [_; LANES] =
            std::array::from_fn(|lane| (self.waiting[lane].0 > 0).then(|| self.ready_ns(lane)));
        let may = ready.map(|ready| ready.is_some_and(|ready| ready <= now_ns));
        let due = self.members.iter().enumerate();
        let due = due.filter_map(|(index, it)| it.next(may).map(|lane| (index, lane, it)));
        let next = due.min_by_key(|(.., it)| self.place_of(it));
        let Some((member, lane, _)) = next else {
            return ready.into_iter().flatten().min().map_or(Next::Idle, Next::At);
        };
        self.members[member].turn = (lane + 1) % LANES;
        let Some((key, costs)) = self.members[member].queues[lane].pop_front() else {
            return Next::Idle;
        };
        let (waiting, since_ns) = &mut self.waiting[lane];
        *waiting -= 1;
        let start_ns = ready[lane].unwrap_or(now_ns).max(*since_ns);
        self.start((member, lane), costs, start_ns);
        Next::Start(key)
    }

    /// A request waits no more.
    pub fn forget(&mut self, member: u16, key: K) {
        let Some(member) = self.members.get_mut(usize::from(member)) else { return };
        for (queue, (waiting, _)) in member.queues.iter_mut().zip(&mut self.waiting) {
            if let Some(at) = queue.iter().position(|(it, _)| *it == key) {
                queue.remove(at);
                *waiting -= 1;
            }
        }
    }

    #[cold]
    fn add_members(&mut self, member: usize) {
        let queues = || std::array::from_fn(|_| VecDeque::new());
        self.members.resize_with(member + 1, || Member { used_ns: 0, queues: queues(), turn: 0 });
    }

    /// Whether lanes share a limit.
    fn is_shared(&self) -> bool {
        self.limiters.iter().any(|it| it.lanes.iter().filter(|lane| **lane).count() > 1)
    }

    /// When the next request of a lane may start.
    #[inline]
    fn ready_ns(&self, lane: usize) -> u64 {
        let of = self.limiters.iter().filter(|it| it.lanes[lane]);
        of.map(|it| it.bucket.ready_ns()).max().unwrap_or(0)
    }

    #[inline]
    fn place_of(&self, member: &Member<K, LANES, UNITS>) -> u64 {
        member.used_ns.max(self.served_ns.saturating_sub(CREDIT_NS))
    }

    #[inline]
    fn start(&mut self, (member, lane): (usize, usize), costs: [u64; UNITS], start_ns: u64) {
        let mut used_ns = 0;
        for limiter in self.limiters.iter_mut().filter(|it| it.lanes[lane]) {
            used_ns = used_ns.max(limiter.bucket.charge(costs[limiter.unit], start_ns));
        }
        let place_ns = self.place_of(&self.members[member]);
        self.members[member].used_ns = place_ns.saturating_add(used_ns);
        self.served_ns = self.served_ns.max(place_ns);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rate::Limit;

    const SECOND: u64 = 1_000_000_000;

    /// Ten a second in each of some lanes, without a burst.
    fn limiters<const LANES: usize>(id: u64, lanes: [bool; LANES]) -> Vec<Limiter<LANES>> {
        let limit = Limit { rate: 10, ..Limit::default() };
        limit.limiters(Duration::ZERO, (id, 0, lanes)).collect()
    }

    #[test]
    fn lanes_of_a_member_take_turns_and_members_share() {
        let mut queue = FairQueue::<_, 3>::new(limiters(0, [true; 3]));
        assert!(queue.offer((0, 0), [1], 0, SECOND));
        for (key, at) in [(1, (0, 0)), (2, (0, 0)), (3, (0, 2)), (4, (0, 1)), (5, (1, 1))] {
            assert!(!queue.offer(at, [1], key, SECOND));
        }
        let mut order = Vec::new();
        let mut now = SECOND;
        loop {
            match queue.next(now) {
                Next::Start(key) => order.push(key),
                Next::At(at) => now = at,
                Next::Idle => break,
            }
        }
        assert_eq!(order, [5, 1, 4, 3, 2]);
        assert_eq!(now, SECOND + SECOND / 2);
    }

    #[test]
    fn lanes_without_a_common_limit_do_not_wait_for_each_other() {
        let each = [limiters(0, [true, false]), limiters(2, [false, true])].concat();
        let mut queue = FairQueue::<_, 2>::new(each);
        assert!(queue.offer((0, 0), [1], 'a', SECOND));
        assert!(!queue.offer((0, 0), [1], 'b', SECOND));
        assert!(queue.offer((0, 1), [1], 'c', SECOND));
        queue.forget(0, 'b');
        assert_eq!(queue.next(2 * SECOND), Next::Idle);
    }

    #[test]
    fn what_was_admitted_counts_on() {
        let mut queue = FairQueue::<_>::new(limiters(4, [true]));
        assert!(queue.offer((0, 0), [20], 'a', SECOND));
        let mut next = FairQueue::new(limiters(4, [true]));
        next.restore(&queue.save()).expect("its state");
        for queue in [&mut queue, &mut next] {
            queue.reconfigure([limiters(4, [true]), limiters(6, [true])].concat());
            assert!(!queue.offer((0, 0), [1], 'b', SECOND));
            assert_eq!(queue.next(SECOND), Next::At(3 * SECOND));
            queue.reconfigure(limiters(6, [true]));
            assert_eq!(queue.next(SECOND), Next::Start('b'), "nothing of another id");
        }
        queue.restore(&[1; 8]).expect_err("of another form");
    }
}
