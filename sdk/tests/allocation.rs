//! Once as many requests have waited at once as ever will, a request allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use blockloom_abi::{
    Done, Entry, Event, Kind, NodeIndex, Request, RequestFlags, RequestId, Subject,
};
use blockloom_sdk::{ConfigError, Cx, Description, FILE, Filter, Instance, Kinds, Verdict};

struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + 1);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Waits;

impl Filter for Waits {
    const KINDS: Kinds = Kinds::ALL;

    fn describe() -> Description {
        Description::new("waits", "1")
    }

    fn configure(_: &str) -> Result<Self, ConfigError> {
        Ok(Self)
    }

    async fn flush(&self, _: Request, cx: &Cx) -> Verdict {
        match cx.flush(FILE).await {
            Ok(()) => Verdict::Forward,
            Err(errno) => Verdict::Fail(errno),
        }
    }
}

/// One turn: `count` requests that wait, as many that do not, and then the end of all operations.
fn turn(instance: &mut Instance<Waits>, count: u16) -> usize {
    let kinds = [Kind::Flush, Kind::Read];
    let mut events = Vec::with_capacity(8 * 4 * usize::from(count));
    for slot in 0..2 * count {
        let id = RequestId::new(slot, 1).expect("not 0");
        let (node, flags, kind) = (NodeIndex(0), RequestFlags::NONE, kinds[usize::from(slot % 2)]);
        let request = Request { id, node, kind, flags, offset: 0, len: 0 };
        events.extend(request.encode().0);
    }
    let before = ALLOCATED.get();
    let mut actions = instance.poll(0, events);
    let mut allocated = ALLOCATED.get() - before;
    assert_eq!(actions.len(), 4 * 2 * usize::from(count));

    let done: Vec<Entry> = Entry::list(&actions, 2 * usize::from(count))
        .expect("whole")
        .filter_map(|entry| match blockloom_abi::Action::decode(entry) {
            Ok(blockloom_abi::Action::Flush(flush)) => {
                let subject = Subject::Operation(flush.token);
                Some(Event::Done(Done { subject, result: Ok(()), value: 0 }).encode())
            }
            _ => None,
        })
        .collect();
    assert_eq!(done.len(), usize::from(count));
    actions.clear();
    done.iter().for_each(|entry| actions.extend(entry.0));
    let before = ALLOCATED.get();
    let actions = instance.poll(0, actions);
    allocated += ALLOCATED.get() - before;
    assert_eq!(actions.len(), 4 * usize::from(count));
    allocated
}

#[test]
fn a_warm_instance_allocates_nothing() {
    let mut instance = Instance::new(Waits);
    assert!(turn(&mut instance, 64) > 0, "slots are made at first");
    turn(&mut instance, 64);
    for count in [64, 1, 32] {
        assert_eq!(turn(&mut instance, count), 0, "{count} at once");
    }
}
