//! Who is served when, and by which threads.

use super::testing::{take_thread, use_own_pool};
use super::*;
use crate::io::{EngineChoice, run_on_thread};

#[test]
fn results_come_from_other_threads() {
    let sum = run_on_thread(EngineChoice::Auto, async {
        let here = std::thread::current().id();
        let all: Vec<_> = (0..100_u64)
            .map(|number| {
                let urgency = if number % 2 == 0 { Urgency::Now } else { Urgency::Later };
                compute(urgency, move || (number, std::thread::current().id()))
            })
            .collect();
        let mut sum = 0;
        for computed in all {
            let (number, thread) = computed.await.expect("computed");
            assert_ne!(thread, here);
            sum += number;
        }
        sum
    });
    assert_eq!(sum.expect("a worker"), 4950);
}

#[test]
fn a_panic_is_an_error_for_who_waits() {
    let failed = run_on_thread(EngineChoice::Auto, async {
        let mut failed = true;
        for urgency in [Urgency::Now, Urgency::Later] {
            let panics = compute(urgency, || -> u64 { panic!("on purpose") });
            failed &= panics.await.is_err();
            failed &= compute(urgency, || true).await.expect("the next one is computed");
        }
        failed
    });
    assert!(failed.expect("a worker"));
}

/// When a thread of jobs is free again, what a guest waits for has it first, as long as they keep one; what
/// comes to it alone does not wait for jobs.
#[test]
fn what_a_guest_waits_for_goes_first_and_jobs_go_on() {
    let (order, taken) = std::sync::mpsc::channel();
    let done = run_on_thread(EngineChoice::Auto, async move {
        use_own_pool(2);
        let say = |urgency, word: &'static str| {
            let order = order.clone();
            compute(urgency, move || order.send(word).is_ok())
        };
        let (go_first, first) = take_thread(Urgency::Later);
        let (go_second, second) = take_thread(Urgency::Later);
        assert!(say(Urgency::Now, "a thread more").await.expect("computed"));
        let (go_third, third) = take_thread(Urgency::Now);
        // No thread is left.
        let rest = [
            say(Urgency::Later, "a job"),
            say(Urgency::Now, "a guest"),
            say(Urgency::Now, "another guest"),
        ];
        drop(go_first);
        for computed in rest {
            assert!(computed.await.expect("computed"));
        }
        // Guests have all threads but one; jobs get the next.
        drop((go_second, go_third));
        for computed in [first, second, third] {
            computed.await.expect("computed");
        }
    });
    done.expect("a worker");
    let order: Vec<&str> = taken.iter().collect();
    assert_eq!(order, ["a thread more", "a guest", "another guest", "a job"]);
}

/// However much guests want, jobs come to an end.
#[test]
fn jobs_keep_a_thread() {
    let (order, taken) = std::sync::mpsc::channel();
    let done = run_on_thread(EngineChoice::Auto, async move {
        use_own_pool(1);
        let (go_first, first) = take_thread(Urgency::Now);
        let (go_second, second) = take_thread(Urgency::Now);
        let mut rest = Vec::new();
        for (urgency, word) in
            [(Urgency::Now, "a guest"), (Urgency::Now, "another"), (Urgency::Later, "a job")]
        {
            let order = order.clone();
            rest.push(compute(urgency, move || order.send(word).is_ok()));
        }
        drop(go_first);
        for computed in rest {
            assert!(computed.await.expect("computed"));
        }
        drop(go_second);
        for computed in [first, second] {
            computed.await.expect("computed");
        }
    });
    done.expect("a worker");
    let order: Vec<&str> = taken.iter().collect();
    assert_eq!(order, ["a job", "a guest", "another"]);
}

/// What a guest comes to wait for does not stay behind what jobs have before it.
#[test]
fn what_is_hurried_does_not_wait_for_jobs() {
    let done = run_on_thread(EngineChoice::Auto, async {
        use_own_pool(1);
        let (go_on, busy) = take_thread(Urgency::Later);
        let mut pieces: Vec<_> =
            (0..4).map(|number| compute(Urgency::Later, move || number)).collect();
        let mut third = pieces.remove(2);
        third.hurry();
        third.hurry();
        // The only thread for jobs is taken.
        assert_eq!(third.await.expect("computed"), 2);
        drop(go_on);
        busy.await.expect("it ends");
        for (piece, number) in pieces.into_iter().zip([0, 1, 3]) {
            let mut piece = piece;
            piece.hurry();
            assert_eq!(piece.await.expect("computed"), number);
        }
    });
    done.expect("a worker");
}
