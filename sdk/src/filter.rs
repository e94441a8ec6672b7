//! What a plugin's author writes: the trait, and the types its methods take and return.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use blockloom_abi::{
    BitmapIndex, ChildIndex, Control, Errno, Kind, Kinds, LAYOUT_VERSION, NodeIndex, Request,
    RequestId,
};

use crate::{ConfigError, Cx};

/// A block filter.
///
/// One instance serves one or more nodes. Every body starts from what passes a request through,
/// so a filter states only what it does differently. Bodies are asynchronous: while one waits,
/// others run, always on one thread; state that changes lives in `Cell` or `RefCell`, and no
/// borrow of it may be held across an await.
///
/// A request's body is polled once when the request arrives. What is decided then costs no
/// allocation; nor does what is decided later, once as many requests have been in flight at once.
#[allow(async_fn_in_trait, reason = "a plugin has one thread")]
pub trait Filter: Sized + 'static {
    /// The kinds of requests for which a body is written. For kinds that neither this nor
    /// [`DECIDE`](Self::DECIDE) names, nothing is run, and unless [`describe`](Self::describe)
    /// asks for them, the plugin is not called.
    const KINDS: Kinds;

    /// The kinds of requests for which [`decide`](Self::decide) is asked first.
    const DECIDE: Kinds = Kinds::NONE;

    /// The kinds of requests after whose end [`done`](Self::done) is run.
    const NOTIFY: Kinds = Kinds::NONE;

    /// The kinds of requests that [`decide`](Self::decide) may have held.
    const HOLDS: Kinds = Kinds::NONE;

    /// Whether [`job`](Self::job) is written.
    const JOB: bool = false;

    /// What the filter is, and which children and grants it wants.
    fn describe() -> Description;

    /// Makes an instance from its configuration, a JSON object (see [`Table`](crate::Table)).
    ///
    /// # Errors
    ///
    /// What is wrong with the configuration; the host shows it at the line of the key.
    fn configure(config: &str) -> Result<Self, ConfigError>;

    /// Takes another configuration, while requests may be in flight.
    ///
    /// # Errors
    ///
    /// What is wrong with it; the former one stays in force. By default, that it cannot be changed.
    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        let _ = config;
        Err(ConfigError::new("", "cannot be changed while the plugin runs; load it again"))
    }

    /// From now on the instance also serves this node.
    ///
    /// # Errors
    ///
    /// Why it cannot.
    fn add_node(&self, node: Node) -> Result<(), String> {
        let _ = node;
        Ok(())
    }

    /// The node has no request left and gets no more; its job has ended. Its index may be another node's later.
    fn remove_node(&self, node: NodeIndex) {
        let _ = node;
    }

    /// Decides at once, without the making of a future. What it leaves undecided (none) goes to the
    /// body, or is forwarded where there is none.
    #[inline]
    fn decide(&self, request: &Request, now: Time) -> Option<Verdict> {
        let _ = (request, now);
        None
    }

    /// Lets held requests go ([`Verdict::Hold`]): by their ids, in the order in which they are to go. Asked at
    /// the end of every call for as long as it returns when to ask again at the latest; none says that no
    /// request is held.
    fn release(&self, now: Time, let_go: &mut dyn FnMut(RequestId)) -> Option<Time> {
        let _ = (now, let_go);
        None
    }

    /// A held request is gone, although it was not let go: the host lets all go when their node is drained,
    /// and each after `limits.hold`.
    fn gone(&self, request: &Request) {
        let _ = request;
    }

    /// A read.
    async fn read(&self, request: Request, cx: &Cx) -> Verdict {
        let _ = (request, cx);
        Verdict::Forward
    }

    /// A write.
    async fn write(&self, request: Request, cx: &Cx) -> Verdict {
        let _ = (request, cx);
        Verdict::Forward
    }

    /// A zeroing; by default, what is done for a write.
    async fn zero(&self, request: Request, cx: &Cx) -> Verdict {
        self.write(request, cx).await
    }

    /// A discard; by default, what is done for a write.
    async fn discard(&self, request: Request, cx: &Cx) -> Verdict {
        self.write(request, cx).await
    }

    /// A flush.
    async fn flush(&self, request: Request, cx: &Cx) -> Verdict {
        let _ = (request, cx);
        Verdict::Forward
    }

    /// A resize; its length is the new size.
    async fn resize(&self, request: Request, cx: &Cx) -> Verdict {
        let _ = (request, cx);
        Verdict::Forward
    }

    /// A forwarded request of a kind in [`NOTIFY`](Self::NOTIFY) ended.
    ///
    /// # Errors
    ///
    /// What it returns is what the request ends with.
    async fn done(
        &self,
        request: Request,
        result: Result<(), Errno>,
        cx: &Cx,
    ) -> Result<(), Errno> {
        let _ = (request, cx);
        result
    }

    /// Work of a node's own (see [`JOB`](Self::JOB)), from the host's start to its return;
    /// [`Cx::stop_requested`] says when the host wants it to end.
    async fn job(&self, node: NodeId, cx: &Cx) {
        let _ = (node, cx);
    }

    /// Something changed around a node.
    fn control(&self, control: Control) {
        let _ = control;
    }

    /// The state to hand to a new version of the plugin; called when nothing is in flight and no job runs. At
    /// most 1 MiB. Begin it with a number of its form: what reads it may be older or newer than what wrote
    /// it. By default there is none.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over a state that [`save`](Self::save) returned, after [`configure`](Self::configure) and every
    /// [`add_node`](Self::add_node). Not called for an empty one. If it fails the former version goes on.
    ///
    /// # Errors
    ///
    /// Why it cannot. By default any state but the empty one is refused.
    fn restore(&self, state: &[u8]) -> Result<(), String> {
        if state.is_empty() { Ok(()) } else { Err("this plugin keeps no state".to_owned()) }
    }
}

/// A node, by its index among those that the instance serves.
pub type NodeId = NodeIndex;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on to the filtered child.
    Forward,
    /// Passed on, but not before a time. The host holds it and needs no further word.
    ForwardAt(Time),
    /// Kept by the host until [`release`](Filter::release) lets it go; see [`HOLDS`](Filter::HOLDS).
    Hold,
    /// Refused.
    Fail(Errno),
    /// Answered by a copy that serves it, or by the bytes that were put to it; a write or zeroing of a filter
    /// that transforms data: done by its operations.
    Served,
}

/// A moment of the host's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The moment that many nanoseconds after the clock's start.
    #[inline]
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    #[inline]
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// The moment that much later, or the last one there is.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_nanos().try_into().unwrap_or(u64::MAX)))
    }
}

impl Sub for Time {
    type Output = Duration;

    /// The time since `earlier`, nothing if that is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ns", self.0)
    }
}

/// What a plugin tells the host about itself.
///
/// ```
/// use blockloom_sdk::{ChildWant, Description, Grants};
///
/// let description = Description::new("mirror", "1.2.0")
///     .child(ChildWant::new("target").wants(Grants::WRITE).optional());
/// assert_eq!(description.children[0].name, "file");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The version of the packed layout.
    pub layout: u32,
    /// The plugin's name.
    pub name: &'static str,
    /// The plugin's version.
    pub version: &'static str,
    /// Kinds that are offered besides those in [`Filter::KINDS`].
    pub also_offered: Kinds,
    /// The children; the first is the filtered one.
    pub children: Vec<ChildWant>,
    /// Names of the point-in-time views it offers.
    pub views: Vec<&'static str>,
    /// Bitmaps that it reads, and whether it cannot do without.
    pub bitmaps: Vec<(&'static str, bool)>,
    /// What it wants to do with the data of requests.
    pub bytes: ByteAccess,
    /// Whether requests may go to the filtered child without it, should it fail.
    pub may_bypass: bool,
}

impl Description {
    /// A filter of a child `file`, to which it only forwards.
    #[must_use]
    pub fn new(name: &'static str, version: &'static str) -> Self {
        Self {
            layout: LAYOUT_VERSION,
            name,
            version,
            also_offered: Kinds::NONE,
            children: vec![ChildWant::new("file")],
            views: Vec::new(),
            bitmaps: Vec::new(),
            bytes: ByteAccess::None,
            may_bypass: false,
        }
    }

    /// Offer these kinds too, although no body is written for them.
    #[must_use]
    pub fn also_offered(self, kinds: Kinds) -> Self {
        Self { also_offered: kinds, ..self }
    }

    /// What it wants to do to the filtered child on its own account.
    #[must_use]
    pub fn wants(mut self, grants: Grants) -> Self {
        if let Some(file) = self.children.first_mut() {
            file.wants = grants;
        }
        self
    }

    /// Nobody else may change what the filtered child shows, but through the node: for a filter that keeps old
    /// bytes before they are changed. Others may read it, and write what is proven to change nothing.
    #[must_use]
    pub fn exclusive(mut self) -> Self {
        if let Some(file) = self.children.first_mut() {
            file.exclusive = true;
        }
        self
    }

    /// One child more.
    #[must_use]
    pub fn child(mut self, child: ChildWant) -> Self {
        self.children.push(child);
        self
    }

    /// What it wants to do with the data of requests: see [`Cx::bytes`].
    #[must_use]
    pub fn bytes(self, bytes: ByteAccess) -> Self {
        Self { bytes, ..self }
    }

    /// One bitmap more that it reads, if `bitmap.NAME` of its node lends one.
    #[must_use]
    pub fn bitmap(mut self, name: &'static str, required: bool) -> Self {
        self.bitmaps.push((name, required));
        self
    }

    /// Nothing that anybody relies on is lost where requests go to the filtered child without it: a
    /// configuration may have them do so once it has failed (`on-fault = "bypass"`).
    #[must_use]
    pub fn may_bypass(self) -> Self {
        Self { may_bypass: true, ..self }
    }

    /// One view more.
    #[must_use]
    pub fn view(mut self, name: &'static str) -> Self {
        self.views.push(name);
        self
    }
}

/// A child that a plugin wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildWant {
    /// Its name, as in `child.NAME` of the graph.
    pub name: &'static str,
    /// Whether the plugin cannot do without it.
    pub required: bool,
    /// What the plugin wants to do to it on its own account.
    pub wants: Grants,
    /// Whether nobody else may change what it shows, but through the node.
    pub exclusive: bool,
}

impl ChildWant {
    /// A required child, to which nothing is done on the plugin's own account.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, required: true, wants: Grants::NONE, exclusive: false }
    }

    /// The plugin can do without it.
    #[must_use]
    pub const fn optional(self) -> Self {
        Self { required: false, ..self }
    }

    /// What the plugin wants to do to it on its own account.
    #[must_use]
    pub const fn wants(self, wants: Grants) -> Self {
        Self { wants, ..self }
    }

    /// Nobody else may change what it shows, but through the node.
    #[must_use]
    pub const fn exclusive(self) -> Self {
        Self { exclusive: true, ..self }
    }
}

/// What a plugin may do to a child on its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grants(u8);

impl Grants {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Read it.
    pub const READ: Self = Self(1);
    /// Write what its view already shows.
    pub const WRITE_UNCHANGED: Self = Self(2);
    /// Write anything.
    pub const WRITE: Self = Self(4);
    /// Discard.
    pub const DISCARD: Self = Self(8);
    /// Resize it.
    pub const RESIZE: Self = Self(16);

    /// These and `more`.
    #[must_use]
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Whether all of `grants` are among them.
    #[must_use]
    pub const fn contains(self, grants: Self) -> bool {
        self.0 & grants.0 == grants.0
    }

    /// As bits, in the order of the WIT.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From bits in the order of the WIT; others are left out.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0b1_1111)
    }
}

/// What a plugin may do with the data of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ByteAccess {
    /// Nothing.
    #[default]
    None,
    /// Look at it.
    Read,
    /// Make it other data: the node shows bytes of its own. A zeroing is then a write, and a discard does
    /// nothing, unless [`Filter::KINDS`] has them.
    Transform,
}

/// A node that the instance serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Names it in requests.
    pub index: NodeId,
    /// Its name in the graph.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Whether no writes can come.
    pub read_only: bool,
    /// The children, as the description lists them; none where an optional one is absent.
    pub children: Vec<Option<Child>>,
    /// The bitmaps it may use.
    pub bitmaps: Vec<Bitmap>,
    /// What it may do with the data of requests.
    pub bytes: ByteAccess,
}

impl Node {
    /// A child, if the node has it.
    #[must_use]
    pub fn child(&self, index: ChildIndex) -> Option<&Child> {
        self.children.get(usize::from(index.0))?.as_ref()
    }
}

impl Node {
    /// A bitmap of that name.
    #[must_use]
    pub fn bitmap(&self, name: &str) -> Option<(BitmapIndex, &Bitmap)> {
        let bitmap = self.bitmaps.iter().find(|bitmap| bitmap.name == name)?;
        Some((bitmap.index, bitmap))
    }
}

/// A child as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its size.
    pub size_bytes: u64,
    /// What the plugin may do to it on its own account.
    pub granted: Grants,
}

/// A bitmap that a node may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Names it in calls and operations.
    pub index: BitmapIndex,
    /// Bytes for each of its bits.
    pub granularity_bytes: u64,
    /// Whether the node owns it, so that the plugin may change it.
    pub owned: bool,
}

/// The filtered child of every filter.
pub const FILE: ChildIndex = ChildIndex(0);

/// Runs the body for a request's kind.
pub(crate) async fn body<F: Filter>(filter: &F, request: Request, cx: &Cx) -> Verdict {
    match request.kind {
        Kind::Read => filter.read(request, cx).await,
        Kind::Write => filter.write(request, cx).await,
        Kind::Zero => filter.zero(request, cx).await,
        Kind::Discard => filter.discard(request, cx).await,
        Kind::Flush => filter.flush(request, cx).await,
        Kind::Resize => filter.resize(request, cx).await,
    }
}
