//! The layout as the crate documents it: every tag there and back, and every stray bit refused.

use blockloom_abi::{
    Action, ActionTag, BitmapIndex, ChildIndex, Complete, Control, ControlKind, CopyRange, Done,
    Entry, Errno, Event, EventTag, Extent, ExtentFlags, Forward, Kind, Kinds, MAX_ACTIONS,
    MAX_COPY_BYTES, MAX_EVENTS, NodeIndex, Operation, Parent, PollOne, Request, RequestFlags,
    RequestId, Subject, Token, Violation, Write,
};

fn id() -> RequestId {
    RequestId::new(0xbeef, 0xfeed).expect("not 0")
}

const TOKEN: Token = Token(0xaabb_ccdd);

fn events() -> Vec<Event> {
    let mut events = Vec::new();
    for &kind in Kind::ALL {
        for bits in 0..=RequestFlags::ALL.bits() {
            let flags = RequestFlags::from_bits(bits);
            let (id, node) = (id(), NodeIndex(u16::MAX));
            events.push(Event::Request(Request { id, node, kind, flags, offset: 1 << 40, len: 9 }));
        }
    }
    for subject in [Subject::Operation(TOKEN), Subject::Request(id())] {
        for result in [Ok(()), Err(Errno::ESTALE), Err(Errno::EOPNOTSUPP)] {
            events.push(Event::Done(Done { subject, result, value: u64::MAX }));
        }
    }
    for bits in 0..=ExtentFlags::ALL.bits() {
        let flags = ExtentFlags::from_bits(bits);
        events.push(Event::Extent(Extent { token: TOKEN, flags, offset: u64::MAX - 1, len: 1 }));
    }
    for &kind in ControlKind::ALL {
        let node = NodeIndex(3);
        events.push(Event::Control(Control { kind, node, first: u64::MAX, second: u64::MAX }));
    }
    events
}

fn actions() -> Vec<Action> {
    let mut actions = Vec::new();
    for (notify, claim) in [(false, false), (false, true), (true, false), (true, true)] {
        let not_before_ns = u64::MAX;
        actions.push(Action::Forward(Forward { id: id(), not_before_ns, notify, claim }));
    }
    for result in [Ok(()), Err(Errno::EIO)] {
        actions.push(Action::Complete(Complete { id: id(), result }));
    }
    for parent in
        [Parent::Request(id()), Parent::Job(NodeIndex(u16::MAX)), Parent::Job(NodeIndex(0))]
    {
        let operation =
            Operation { token: TOKEN, parent, child: ChildIndex(200), offset: 7, len: 5 };
        for clear in [None, Some(BitmapIndex(0)), Some(BitmapIndex(u32::MAX))] {
            for claim in [false, true] {
                let serve = claim && matches!(parent, Parent::Request(_));
                let (from, to) = (ChildIndex(1), ChildIndex(2));
                let (offset, len) = (1 << 50, MAX_COPY_BYTES);
                actions.push(Action::Copy(CopyRange {
                    token: TOKEN,
                    parent,
                    from,
                    to,
                    offset,
                    len,
                    claim,
                    serve,
                    clear,
                }));
            }
        }
        for claim in [false, true] {
            actions.push(Action::Write(Write { operation, source: Token(u32::MAX), claim }));
        }
        for above in [None, Some(ChildIndex(0)), Some(ChildIndex(254))] {
            actions.push(Action::Status { operation, above });
        }
        actions.push(Action::Read(operation));
        actions.push(Action::Make { token: TOKEN, parent, len: MAX_COPY_BYTES });
        actions.push(Action::Zero(operation));
        actions.push(Action::Discard(operation));
        actions.push(Action::Flush(Operation { offset: 0, len: 0, ..operation }));
    }
    actions.push(Action::Timer { token: TOKEN, at_ns: u64::MAX });
    actions.push(Action::Drop { token: TOKEN });
    actions.push(Action::JobEnd { node: NodeIndex(u16::MAX) });
    actions
}

#[test]
fn every_entry_comes_back_as_it_went() {
    for event in events() {
        assert_eq!(Event::decode(event.encode()), Ok(event));
    }
    for action in actions() {
        assert_eq!(Action::decode(action.encode()), Ok(action));
    }
}

#[test]
fn the_samples_cover_every_tag_and_no_other_tag_is_known() {
    for tag in 0..=u8::MAX {
        let has = |entry: Entry| entry.tag() == tag;
        let event = events().into_iter().any(|event| has(event.encode()));
        let action = actions().into_iter().any(|action| has(action.encode()));
        assert_eq!(event, EventTag::from_bits(tag).is_ok(), "event {tag}");
        assert_eq!(action, ActionTag::from_bits(tag).is_ok(), "action {tag}");
        let entry = Entry([u64::from(tag), 0, 0, 0]);
        assert_eq!(Event::decode(entry) == Err(Violation::UnknownTag(tag)), !event);
        assert_eq!(Action::decode(entry) == Err(Violation::UnknownTag(tag)), !action);
    }
}

/// Flips each bit of each sample. What is then still accepted must mean exactly what it says.
#[test]
fn no_bit_is_ignored() {
    fn check<T: PartialEq>(
        entry: Entry,
        decode: fn(Entry) -> Result<T, Violation>,
        encode: fn(T) -> Entry,
    ) {
        for bit in 0..256 {
            let mut flipped = entry;
            flipped.0[bit / 64] ^= 1 << (bit % 64);
            if let Ok(meaning) = decode(flipped) {
                assert_eq!(encode(meaning), flipped, "bit {bit} of {entry:x?}");
            }
        }
    }
    events().into_iter().for_each(|event| check(event.encode(), Event::decode, Event::encode));
    actions().into_iter().for_each(|action| check(action.encode(), Action::decode, Action::encode));
}

#[test]
fn words_are_where_the_documentation_draws_them() {
    let request = Request {
        id: id(),
        node: NodeIndex(0x1234),
        kind: Kind::Zero,
        flags: RequestFlags::FUA.with(RequestFlags::NO_UNMAP),
        offset: 0x1000,
        len: 0x200,
    };
    assert_eq!(request.encode().0, [0x0000_1234_0500_0201, 0xfeed_beef, 0x1000, 0x200]);
    let copy = CopyRange {
        token: TOKEN,
        parent: Parent::Request(id()),
        from: ChildIndex(1),
        to: ChildIndex(2),
        offset: 0,
        len: 1,
        claim: true,
        serve: true,
        clear: Some(BitmapIndex(6)),
    };
    let words = Action::Copy(copy).encode().0;
    assert_eq!(words, [0x0000_0006_0e02_0103, 0xfeed_beef_aabb_ccdd, 0, 1]);
    let forward = Forward { id: id(), not_before_ns: 77, notify: true, claim: true };
    assert_eq!(forward.encode().0, [0x0300_0001, 0xfeed_beef, 77, 0]);
    let failed = Complete { id: id(), result: Err(Errno::EIO) };
    assert_eq!(failed.encode().0, [0x0000_0005_0000_0002, 0xfeed_beef, 0, 0]);
}

#[test]
fn what_is_not_allowed_is_named() {
    let action = |words| Action::decode(Entry(words)).expect_err("refused");
    let event = |words| Event::decode(Entry(words)).expect_err("refused");
    assert_eq!(action([1, 5, 0, 0]), Violation::RequestId(5));
    assert_eq!(action([1, 1 << 16, 0, 4]), Violation::Reserved { word: 3, bits: 4 });
    assert_eq!(
        action([1 | 4 << 24, 1 << 16, 0, 0]),
        Violation::Reserved { word: 0, bits: 4 << 24 }
    );
    assert_eq!(action([2 | 4096 << 32, 1 << 16, 0, 0]), Violation::Errno(4096));
    assert_eq!(action([3, 0, 0, MAX_COPY_BYTES + 1]), Violation::Length(MAX_COPY_BYTES + 1));
    assert_eq!(action([4, 0, 0, 0]), Violation::Length(0));
    assert_eq!(action([3 | 4 << 24, 9, 0, 1]), Violation::ServesNothing);
    assert_eq!(action([7, 0, 9, u64::MAX]), Violation::Range { offset: 9, len: u64::MAX });
    assert_eq!(action([9, 0, 0, 1]), Violation::Reserved { word: 3, bits: 1 });
    assert_eq!(event([1 | 9 << 8, 1 << 16, 0, 0]), Violation::UnknownKind(9));
    assert_eq!(event([4 | 7 << 8, 0, 0, 0]), Violation::UnknownControl(7));
    assert_eq!(event([4 | 1 << 48, 0, 0, 0]), Violation::Node(1 << 16));
}

#[test]
fn lists_are_whole_and_bounded() {
    let words = [0; 4 * (MAX_EVENTS + 1)];
    let list = |count: usize| Entry::list(&words[..count], MAX_EVENTS).map(|list| list.len());
    assert_eq!(list(0), Ok(0));
    assert_eq!(list(8), Ok(2));
    assert_eq!(list(7), Err(Violation::Words { count: 7 }));
    assert_eq!(list(4 * MAX_EVENTS), Ok(MAX_EVENTS));
    let (count, limit) = (MAX_EVENTS + 1, MAX_EVENTS);
    assert_eq!(list(4 * count), Err(Violation::TooMany { count, limit }));
    const { assert!(MAX_ACTIONS * size_of::<Entry>() == 64 << 10) };
}

#[test]
fn the_verdict_word_round_trips() {
    for not_before_ns in [0, 1, PollOne::MAX_NOT_BEFORE_NS] {
        let verdict = PollOne::Forward { not_before_ns };
        assert_eq!(PollOne::decode(verdict.encode()), Ok(verdict));
    }
    assert_eq!(PollOne::decode(PollOne::Queued.encode()), Ok(PollOne::Queued));
    let late = PollOne::Forward { not_before_ns: u64::MAX }.encode();
    let latest = PollOne::Forward { not_before_ns: PollOne::MAX_NOT_BEFORE_NS };
    assert_eq!(PollOne::decode(late), Ok(latest));
    for word in [2, 0xff, 0x100, u64::MAX] {
        assert_eq!(PollOne::decode(word), Err(Violation::PollOne(word)));
    }
}

#[test]
fn sets_and_errors_have_no_unknown_members() {
    for &kind in Kind::ALL {
        assert!(Kinds::ALL.contains(kind));
        assert!(!Kinds::NONE.contains(kind));
    }
    assert_eq!(Kinds::from_bits(1 << Kind::ALL.len()), None);
    assert_eq!(Kinds::from_bits(Kinds::ALL.bits()), Some(Kinds::ALL));
    assert_eq!(Errno::new(0), None);
    assert_eq!(Errno::new(4096), None);
    assert_eq!(Errno::new(116), Some(Errno::ESTALE));
    assert_eq!(Errno::ESTALE.to_string(), "ESTALE");
}
