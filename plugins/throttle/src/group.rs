//! What the members of a throttle share: the limits, and the queues of those that wait for them.
//!
//! - A request starts at once while nothing waits and the limits allow it; else it is queued by its member
//!   and direction, and those of one queue start in the order of their arrival.
//! - Members that wait get equal shares of the rate, in the time that their requests take at it, however many
//!   they have queued; reads and writes of one member take turns. A member that asked for less is owed at most
//!   [`CREDIT_NS`], and what one does not use is there for the others.
//! - A request larger than a burst starts whole, and those after it wait for it.
//! - Time that passes between the moment a request could start and that at which somebody asks for it is not
//!   lost: the schedule goes on from the former.

use std::collections::VecDeque;

use blockloom_sdk::Kind;

use crate::ThrottleConfig;
use crate::bucket::Bucket;

/// How far a member that did not use its share may be behind the others.
pub const CREDIT_NS: u64 = 100_000_000;

/// Of what [`Throttle::save`] returns.
const FORM: u64 = 1;
/// Reads and writes.
const DIRECTIONS: [usize; 2] = [0, 1];

/// A limit at work.
#[derive(Clone, Debug)]
struct Limiter {
    /// The place of the limit, and whether it is that of a burst.
    place: (usize, usize, bool),
    bucket: Bucket,
}

impl Limiter {
    fn applies_to(&self, direction: usize) -> bool {
        let (_, which, _) = self.place;
        which == 0 || which == direction + 1
    }
}

fn place_number((quantity, which, is_burst): (usize, usize, bool)) -> u64 {
    (quantity as u64) << 16 | (which as u64) << 8 | u64::from(is_burst)
}

/// Requests of one member.
#[derive(Clone, Debug)]
struct Member<K> {
    /// What it has used, in nanoseconds of the rate.
    used_ns: u64,
    /// What waits, with its requests and bytes as they count.
    queues: [VecDeque<(K, [u64; 2])>; 2],
    /// Whose turn it is.
    turn: usize,
}

impl<K> Member<K> {
    /// Which of its queues goes next, of those that may.
    fn next(&self, may: [bool; 2]) -> Option<usize> {
        [self.turn, 1 - self.turn].into_iter().find(|&it| may[it] && !self.queues[it].is_empty())
    }
}

/// The limits of a throttle, what they have admitted, and what waits for them, by keys of the caller's.
///
/// ```
/// use blockloom_plugin_throttle::{Next, Throttle, ThrottleConfig};
/// use blockloom_sdk::Kind;
///
/// let config = ThrottleConfig::from_json(r#"{ "iops": 1000, "burst": "1ms" }"#)?;
/// let mut throttle = Throttle::new(&config);
/// let now_ns = 7_000_000;
/// assert!(throttle.offer(0, Kind::Read, 4096, 'a', now_ns));
/// assert!(throttle.offer(0, Kind::Read, 4096, 'b', now_ns));
/// assert!(!throttle.offer(0, Kind::Read, 4096, 'c', now_ns), "it waits");
/// assert_eq!(throttle.next(now_ns), Next::At(8_000_000));
/// assert_eq!(throttle.next(8_000_000), Next::Start('c'));
/// assert_eq!(throttle.next(8_000_000), Next::Idle);
/// # Ok::<(), blockloom_sdk::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Throttle<K> {
    iops_size: u64,
    limiters: Vec<Limiter>,
    members: Vec<Member<K>>,
    /// By direction: how many wait, and since when any do.
    waiting: [(usize, u64); 2],
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

impl<K: Copy + PartialEq> Throttle<K> {
    /// A throttle that has admitted nothing.
    #[must_use]
    #[inline(never)]
    pub fn new(config: &ThrottleConfig) -> Self {
        let mut limiters = Vec::new();
        for (quantity, limits) in config.limits.iter().enumerate() {
            for (which, limit) in limits.iter().enumerate() {
                for (is_burst, (rate, depth_ns)) in limit.buckets(config.burst) {
                    let place = (quantity, which, is_burst);
                    limiters.push(Limiter { place, bucket: Bucket::new(rate, depth_ns) });
                }
            }
        }
        let (members, waiting) = (Vec::new(), [(0, 0); 2]);
        Self { iops_size: config.iops_size, limiters, members, waiting, served_ns: 0 }
    }

    /// Puts other limits in force. What was admitted under the former ones counts on: where a quantity stays
    /// limited, the new rate begins when the old has leaked out.
    pub fn reconfigure(&mut self, config: &ThrottleConfig) {
        let Self { iops_size, mut limiters, .. } = Self::new(config);
        for new in &mut limiters {
            let former = self.limiters.iter().find(|old| old.place == new.place);
            former.iter().for_each(|old| new.bucket.follow(&old.bucket));
        }
        (self.iops_size, self.limiters) = (iops_size, limiters);
    }

    /// What was admitted, for [`Throttle::restore`]: the number of this form; then for each limit its place, its
    /// rate, when all has leaked out, and what is left over; little-endian words. What waits is not in it.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut state = FORM.to_le_bytes().to_vec();
        for Limiter { place, bucket } in &self.limiters {
            let words = [place_number(*place)].into_iter().chain(bucket.level());
            words.for_each(|word| state.extend_from_slice(&word.to_le_bytes()));
        }
        state
    }

    /// Takes over what another throttle has admitted, as by [`Throttle::reconfigure`] if that had other limits.
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
            let [place, level @ ..] = level.map(u64::from_le_bytes);
            let of = self.limiters.iter_mut().find(|it| place_number(it.place) == place);
            of.into_iter().for_each(|it| it.bucket.take_level(level));
        }
        Ok(())
    }

    /// Offers a request of a member: whether it may start at once. If not, it waits under `key` until
    /// [`next`](Self::next) names it.
    ///
    /// Zeroing and discarding count as writes, as one request each and as no bytes: their length is not what
    /// they cost, and no data comes from the client. A flush or a resize never waits.
    #[inline]
    pub fn offer(&mut self, member: u16, kind: Kind, len: u64, key: K, now_ns: u64) -> bool {
        let (direction, bytes) = match kind {
            Kind::Read => (0, len),
            Kind::Write => (1, len),
            Kind::Zero | Kind::Discard => (1, 0),
            Kind::Flush | Kind::Resize => return true,
        };
        let requests = match self.iops_size {
            0 => 1,
            size => bytes.div_ceil(size).max(1),
        };
        let (member, costs) = (usize::from(member), [requests, bytes]);
        if self.members.len() <= member {
            self.add_members(member);
        }
        let is_first = self.waiting[direction].0 == 0
            && (self.waiting[1 - direction].0 == 0 || !self.is_shared());
        if is_first && self.ready_ns(direction) <= now_ns {
            self.start(member, direction, costs, now_ns);
            return true;
        }
        let (waiting, since_ns) = &mut self.waiting[direction];
        if *waiting == 0 {
            *since_ns = now_ns;
        }
        *waiting += 1;
        self.members[member].queues[direction].push_back((key, costs));
        false
    }

    /// What starts next of what waits, or when.
    pub fn next(&mut self, now_ns: u64) -> Next<K> {
        let ready = DIRECTIONS.map(|it| match self.waiting[it].0 {
            0 => None,
            _ => Some(self.ready_ns(it)),
        });
        let may = ready.map(|ready| ready.is_some_and(|ready| ready <= now_ns));
        let due = self.members.iter().enumerate().filter(|(_, it)| it.next(may).is_some());
        let next = due.min_by_key(|(_, it)| self.place_of(it)).map(|(index, _)| index);
        let Some(member) = next else {
            return ready.into_iter().flatten().min().map_or(Next::Idle, Next::At);
        };
        let Some(direction) = self.members[member].next(may) else { return Next::Idle };
        self.members[member].turn = 1 - direction;
        let Some((key, costs)) = self.members[member].queues[direction].pop_front() else {
            return Next::Idle;
        };
        let (waiting, since_ns) = &mut self.waiting[direction];
        *waiting -= 1;
        let start_ns = ready[direction].unwrap_or(now_ns).max(*since_ns);
        self.start(member, direction, costs, start_ns);
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
        let (used_ns, turn) = (0, 0);
        let new = || Member { used_ns, queues: [VecDeque::new(), VecDeque::new()], turn };
        self.members.resize_with(member + 1, new);
    }

    /// Whether reads and writes share a limit.
    fn is_shared(&self) -> bool {
        self.limiters.iter().any(|it| DIRECTIONS.iter().all(|&direction| it.applies_to(direction)))
    }

    /// When the next request of a direction may start.
    #[inline]
    fn ready_ns(&self, direction: usize) -> u64 {
        let of = self.limiters.iter().filter(|it| it.applies_to(direction));
        of.map(|it| it.bucket.ready_ns()).max().unwrap_or(0)
    }

    #[inline]
    fn place_of(&self, member: &Member<K>) -> u64 {
        member.used_ns.max(self.served_ns.saturating_sub(CREDIT_NS))
    }

    #[inline]
    fn start(&mut self, member: usize, direction: usize, costs: [u64; 2], start_ns: u64) {
        let mut used_ns = 0;
        for limiter in self.limiters.iter_mut().filter(|it| it.applies_to(direction)) {
            let (quantity, ..) = limiter.place;
            used_ns = used_ns.max(limiter.bucket.charge(costs[quantity], start_ns));
        }
        let place_ns = self.place_of(&self.members[member]);
        self.members[member].used_ns = place_ns.saturating_add(used_ns);
        self.served_ns = self.served_ns.max(place_ns);
    }
}
