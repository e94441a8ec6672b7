//! Bodies that wait: operations, timers, notices, jobs, locks, and the limits of a call.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use blockloom_abi::{Action, BitmapIndex, Extent, ExtentFlags, MAX_ACTIONS, Parent, Token};
use blockloom_sdk::testing::{Answer, Harness};
use blockloom_sdk::{
    ConfigError, Control, ControlKind, Cx, Description, Errno, FILE, Filter, Kind, Kinds, Level,
    NodeIndex, RangeLocks, Request, Verdict,
};

/// Does something else for each kind, so that one filter has every kind of wait.
#[derive(Default)]
struct Probe {
    locks: RangeLocks,
    ended: RefCell<Vec<(u64, Result<(), Errno>)>>,
    rounds: Cell<u32>,
    controls: RefCell<Vec<ControlKind>>,
}

impl Filter for Probe {
    const KINDS: Kinds = Kinds::ALL;
    const NOTIFY: Kinds = Kinds::RESIZE;
    const JOB: bool = true;

    fn describe() -> Description {
        Description::new("probe", "1")
    }

    fn configure(_: &str) -> Result<Self, ConfigError> {
        Ok(Self::default())
    }

    async fn read(&self, request: Request, cx: &Cx) -> Verdict {
        let range = request.offset..request.offset + request.len;
        let Ok(extents) = cx.status(FILE, range.clone()).await else {
            return Verdict::Fail(Errno::EIO);
        };
        if extents.iter().all(|extent| extent.flags.contains(ExtentFlags::ALLOCATED)) {
            return Verdict::Forward;
        }
        match cx.copy(FILE, FILE, range).claim().serve().clear(BitmapIndex(3)).await {
            Ok(()) => Verdict::Served,
            Err(Errno::ESTALE) => Verdict::Forward,
            Err(errno) => Verdict::Fail(errno),
        }
    }

    async fn write(&self, request: Request, cx: &Cx) -> Verdict {
        let _held = self.locks.lock(request.offset..request.offset + request.len).await;
        cx.sleep_until(cx.now() + Duration::from_millis(1)).await;
        Verdict::Forward
    }

    async fn zero(&self, request: Request, cx: &Cx) -> Verdict {
        let range = request.offset..request.offset + request.len;
        match cx.read(FILE, range.clone()).await {
            Ok(buffer) => match cx.write_unchanged(FILE, range, &buffer).await {
                Ok(()) => Verdict::Forward,
                Err(errno) => Verdict::Fail(errno),
            },
            Err(errno) => Verdict::Fail(errno),
        }
    }

    async fn discard(&self, request: Request, cx: &Cx) -> Verdict {
        // Starts an operation and gives it up at once.
        let mut read = Box::pin(cx.read(FILE, request.offset..request.offset + request.len));
        std::future::poll_fn(|context| {
            let _ = read.as_mut().poll(context);
            std::task::Poll::Ready(())
        })
        .await;
        Verdict::Forward
    }

    async fn flush(&self, _: Request, cx: &Cx) -> Verdict {
        match cx.flush(FILE).await {
            Ok(()) => Verdict::Forward,
            Err(errno) => Verdict::Fail(errno),
        }
    }

    async fn done(&self, request: Request, result: Result<(), Errno>, _: &Cx) -> Result<(), Errno> {
        self.ended.borrow_mut().push((request.len, result));
        result.map_err(|_| Errno::ENOSPC)
    }

    async fn job(&self, node: NodeIndex, cx: &Cx) {
        while !cx.stop_requested() {
            self.rounds.set(self.rounds.get() + 1);
            blockloom_sdk::log(Level::Debug, "round");
            let _ = cx.zero(FILE, 0..512).await;
        }
        assert_eq!(cx.node(), node);
    }

    fn control(&self, control: Control) {
        self.controls.borrow_mut().push(control.kind);
    }
}

fn host() -> Harness<Probe> {
    Harness::new("{}").expect("valid")
}

fn hole(offset: u64, len: u64) -> Extent {
    Extent { token: Token(0), flags: ExtentFlags::ZERO, offset, len }
}

#[test]
fn a_body_waits_for_one_operation_after_another() {
    let mut host = host();
    let id = host.submit(Kind::Read, 4096, 512);
    assert!(matches!(host.operations(), [Action::Status { above: None, .. }]));
    host.end_status(Ok(()), &[hole(4096, 512)]);
    let [Action::Copy(copy)] = host.operations() else { panic!("{:?}", host.operations()) };
    assert!(copy.claim && copy.serve && copy.clear == Some(BitmapIndex(3)));
    assert_eq!((copy.offset, copy.len, copy.parent), (4096, 512, Parent::Request(id)));
    assert_eq!(host.answer(id), None);
    host.end_operation(Ok(()));
    assert_eq!(host.answer(id), Some(Answer::Completed(Ok(()))));

    let stale = host.submit(Kind::Read, 0, 512);
    host.end_status(Ok(()), &[hole(0, 512)]);
    host.end_operation(Err(Errno::ESTALE));
    assert_eq!(host.answer(stale), Some(Answer::forwarded_now()));
}

#[test]
fn many_bodies_wait_at_once_and_each_gets_its_own_result() {
    let mut host = host();
    let ids = host.submit_all((0..100).map(|_| (Kind::Flush, 0, 0)));
    assert_eq!(host.operations().len(), 100);
    for index in 0..100 {
        host.end_operation(if index % 3 == 0 { Err(Errno::EIO) } else { Ok(()) });
    }
    for (index, id) in ids.into_iter().enumerate() {
        let failed = Answer::Completed(Err(Errno::EIO));
        let expect = if index % 3 == 0 { failed } else { Answer::forwarded_now() };
        assert_eq!(host.answer(id), Some(expect));
    }
}

#[test]
fn timers_and_locks_order_bodies() {
    let mut host = host();
    let ids =
        host.submit_all([(Kind::Write, 0, 512), (Kind::Write, 256, 512), (Kind::Write, 4096, 1)]);
    host.advance(Duration::from_millis(1));
    assert!(host.answer(ids[0]).is_some() && host.answer(ids[2]).is_some());
    assert_eq!(host.answer(ids[1]), None, "its range was held");
    host.advance(Duration::from_millis(1));
    assert_eq!(host.answer(ids[1]), Some(Answer::forwarded_now()));
}

#[test]
fn a_buffer_is_named_by_its_read_and_given_back() {
    let mut host = host();
    let id = host.submit(Kind::Zero, 0, 4096);
    let [Action::Read(read)] = *host.operations() else { panic!("{:?}", host.operations()) };
    host.end_operation(Ok(()));
    let [Action::Write(write)] = *host.operations() else { panic!("{:?}", host.operations()) };
    assert_eq!((write.source, write.claim), (read.token, true));
    host.end_operation(Err(Errno::EPERM));
    assert_eq!(host.operations(), [Action::Drop { token: read.token }]);
    assert_eq!(host.answer(id), Some(Answer::Completed(Err(Errno::EPERM))));
}

#[test]
fn an_abandoned_read_gives_its_buffer_back_when_it_ends() {
    let mut host = host();
    let id = host.submit(Kind::Discard, 0, 4096);
    assert_eq!(host.answer(id), Some(Answer::forwarded_now()));
    let [Action::Read(read)] = *host.operations() else { panic!("{:?}", host.operations()) };
    host.end_operation(Ok(()));
    assert_eq!(host.operations(), [Action::Drop { token: read.token }]);
}

#[test]
fn what_the_layout_does_not_allow_is_not_sent() {
    let mut host = host();
    let id = host.submit(Kind::Zero, 0, 2 << 20);
    assert_eq!(host.answer(id), Some(Answer::Completed(Err(Errno::EINVAL))));
    assert!(host.operations().is_empty());
}

#[test]
fn the_end_of_a_forwarded_request_is_told() {
    let mut host = host();
    let id = host.submit(Kind::Resize, 0, 1 << 30);
    let Some(Answer::Forwarded { notify: true, .. }) = host.answer(id) else { panic!("no notice") };
    host.end(id, Err(Errno::EIO));
    assert_eq!(host.answer(id), Some(Answer::Completed(Err(Errno::ENOSPC))));
    assert_eq!(*host.filter().ended.borrow(), [(1 << 30, Err(Errno::EIO))]);
}

#[test]
fn a_job_runs_until_it_is_told_to_stop() {
    let mut host = host();
    let node = NodeIndex(5);
    host.control(Control { kind: ControlKind::JobStart, node, first: 0, second: 0 });
    for _ in 0..3 {
        let [Action::Zero(zero)] = *host.operations() else { panic!("{:?}", host.operations()) };
        assert_eq!(zero.parent, Parent::Job(node));
        host.end_operation(Ok(()));
    }
    host.control(Control { kind: ControlKind::JobStop, node, first: 0, second: 0 });
    assert!(host.job_runs(node));
    host.end_operation(Ok(()));
    assert!(host.operations().is_empty() && !host.job_runs(node));
    assert_eq!(host.filter().rounds.get(), 4);
    assert_eq!(host.logged().len(), 4);
    assert_eq!(*host.filter().controls.borrow(), [ControlKind::JobStart, ControlKind::JobStop]);
}

#[test]
fn more_actions_than_a_call_takes_are_sent_in_the_next() {
    let mut host = host();
    // Each discard sends a READ and its FORWARD, and at its end a DROP.
    let ids = host.submit_all((0..1000).map(|_| (Kind::Discard, 0, 512)));
    assert_eq!(host.operations().len(), 1000);
    assert!(ids.iter().all(|id| host.answer(*id).is_some()));
    const { assert!(MAX_ACTIONS == 2048) };
}
