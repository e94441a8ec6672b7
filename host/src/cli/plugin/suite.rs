//! `plugin test`: random requests through a plugin, compared with a model of bytes.
//!
//! A case is a list of rounds; the requests of a round run at once. Every byte that is read must be one that
//! the filtered child held at some time while the read ran: what was there, or what a request of the same
//! round writes. What a request that failed would have written may be there or not. Of a plugin that transforms
//! data what comes out has to be what went in. Half of the cases have children of which some requests fail; some
//! have the children, or bitmaps, that the plugin can do without. Failing a request is always allowed, and counted.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use super::super::println;
use super::checked::{Checked, SIZE_BYTES, Surroundings, first_bytes};
use super::model::{Model, VALUES};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Drive, StartError, block_on};
use crate::io::Buf;
use crate::node::WriteFlags;
use crate::plugin::PluginModule;

const ROUNDS: u64 = 24;
const ROUND_MAX: u64 = 6;
/// Runs of one case to make it smaller.
const SHRINK_RUNS: usize = 300;
/// Of so many requests of a failing child one fails.
const FAULT_ONE_IN: u64 = 7;
/// Longest request, bytes; most are much shorter.
const LONGEST: u64 = 64 << 10;

/// Tests a plugin and says what came of it.
pub(super) fn test(
    module: &Arc<PluginModule>,
    config: &str,
    seed: u64,
    cases: u64,
) -> std::result::Result<(), StartError> {
    let surroundings = startable(module, config)?;
    let mut tally = Tally::default();
    for seed in (0..cases).map(|case| seed.wrapping_add(case)) {
        let case = Case::new(seed, &surroundings);
        match case.run(module, config) {
            Ok(of_case) => tally.add(&of_case),
            Err(wrong) => {
                let (case, wrong) = case.smallest(module, config, wrong);
                println(format_args!("FAIL  plugin `{}`: {wrong}", module.name()));
                println(format_args!("{case}"));
                println(format_args!("again: --seed {seed} --cases 1"));
                let message = format!("plugin `{}` does not keep the rules", module.name());
                return Err(Error::new(ErrorKind::Invalid, message).into());
            }
        }
    }
    println(format_args!(
        "PASS  plugin `{}`: {cases} cases from seed {seed}, {tally}",
        module.name()
    ));
    Ok(())
}

/// What the plugin starts with: its configuration may rule out some of what it can do without.
///
/// # Errors
/// What is wrong if there is nothing: that is not a finding of a case.
fn startable(module: &Arc<PluginModule>, config: &str) -> Result<Vec<Surroundings>> {
    let mut refused = None;
    let mut found = Vec::new();
    for surroundings in Surroundings::all() {
        match Checked::start(module, config, surroundings).and_then(Checked::end) {
            Ok(()) => found.push(surroundings),
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    match refused {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// Requests that were made.
#[derive(Default)]
struct Tally {
    requests: u64,
    failed: u64,
    failed_without_fault: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.failed_without_fault += other.failed_without_fault;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failed, failed_without_fault } = self;
        write!(
            f,
            "{requests} requests, {failed} failed, {failed_without_fault} without a fault below"
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Read,
    /// With this value.
    Write(u8),
    Zero,
    Discard,
    Flush,
}

#[derive(Clone)]
struct Step {
    what: What,
    range: Range<u64>,
    flags: WriteFlags,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, len) = (self.range.start, self.range.end - self.range.start);
        let durable = if self.flags.fua { ", durable" } else { "" };
        let kept = if self.flags.no_unmap { ", without unmapping" } else { "" };
        match self.what {
            What::Read => write!(f, "read {len} bytes at {at}"),
            What::Write(value) => write!(f, "write {len} bytes of {value} at {at}{durable}"),
            What::Zero => write!(f, "zero {len} bytes at {at}{durable}{kept}"),
            What::Discard => write!(f, "discard {len} bytes at {at}"),
            What::Flush => write!(f, "flush"),
        }
    }
}

#[derive(Clone)]
struct Case {
    rounds: Vec<Vec<Step>>,
    has_faults: bool,
    surroundings: Surroundings,
}

/// One line a round.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = if self.has_faults { "fails now and then" } else { "never fails" };
        let more = match (self.surroundings.has_children, self.surroundings.has_bitmaps) {
            (false, false) => "",
            (true, false) => ", with all children",
            (false, true) => ", with all bitmaps",
            (true, true) => ", with all children and bitmaps",
        };
        write!(f, "over a child of {SIZE_BYTES} bytes that {faults}{more}:")?;
        for (number, round) in self.rounds.iter().enumerate() {
            let steps: Vec<String> = round.iter().map(Step::to_string).collect();
            write!(f, "\n{:>4}. {}", number + 1, steps.join("; "))?;
        }
        Ok(())
    }
}

/// Numbers of a seed (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn step(random: &mut Random) -> Step {
    let len = match random.below(8) {
        0..4 => 1 + random.below(1500),
        4..7 => 512 * (1 + random.below(16)),
        _ => 1 + random.below(LONGEST),
    };
    // Half of them near each other, so that they meet.
    let space = if random.below(2) == 0 { SIZE_BYTES } else { LONGEST * 2 };
    let start = random.below(space - len);
    let start = if random.below(2) == 0 { start } else { start & !511 };
    let what = match random.below(12) {
        0..5 => What::Read,
        5..9 => What::Write(1 + random.below(u64::from(VALUES) - 1) as u8),
        9 => What::Zero,
        10 => What::Discard,
        _ => return Step { what: What::Flush, range: 0..0, flags: WriteFlags::NONE },
    };
    let fua = matches!(what, What::Write(_) | What::Zero) && random.below(4) == 0;
    let no_unmap = what == What::Zero && random.below(2) == 0;
    let flags = WriteFlags { fua, no_unmap, ..WriteFlags::NONE };
    Step { what, range: start..start + len, flags }
}

impl Case {
    fn new(seed: u64, surroundings: &[Surroundings]) -> Self {
        let mut random = Random(seed);
        let has_faults = random.below(2) == 0;
        let chosen = random.below(surroundings.len() as u64) as usize;
        let surroundings = Surroundings { seed, ..surroundings[chosen] };
        let mut round = || (0..=random.below(ROUND_MAX)).map(|_| step(&mut random)).collect();
        Self { rounds: (0..ROUNDS).map(|_| round()).collect(), has_faults, surroundings }
    }

    /// Runs it over children of its own. What is wrong with the plugin is the error.
    fn run(&self, module: &Arc<PluginModule>, config: &str) -> std::result::Result<Tally, String> {
        let checked = Checked::start(module, config, self.surroundings);
        let checked = checked.map_err(|error| error.to_string())?;
        let mut tally = Tally::default();
        let mut model = Model::of(&first_bytes());
        checked.faults.set(if self.has_faults { FAULT_ONE_IN } else { 0 });
        let rounds = self.rounds.iter().try_for_each(|round| {
            self.round(round, &checked, &mut model, &mut tally)?;
            match checked.instance.failure() {
                Some(failure) => Err(format!("it has failed: {failure}")),
                None => Ok(()),
            }
        });
        checked.faults.set(0);
        let end = rounds.and_then(|()| last_look(&checked.drive, &model));
        // At its end the host flushes, which the plugin may fail like any request.
        let _ = checked.end();
        end.map(|()| tally)
    }

    fn round(
        &self,
        round: &[Step],
        checked: &Checked,
        model: &mut Model,
        tally: &mut Tally,
    ) -> std::result::Result<(), String> {
        let (flushes, durable) = (checked.faults.flushes(), checked.faults.durable());
        let results = block_on(all(round.iter().map(|step| run(&checked.drive, step)).collect()));
        tally.requests += round.len() as u64;
        let failed = results.iter().filter(|result| result.is_err()).count() as u64;
        tally.failed += failed;
        tally.failed_without_fault += if self.has_faults { 0 } else { failed };
        let ends: Vec<(&Step, bool)> =
            round.iter().zip(&results).map(|(step, result)| (step, result.is_ok())).collect();
        let mut meanwhile = model.clone();
        for (step, _) in &ends {
            if let Some(value) = written(step) {
                meanwhile.allow(&step.range, value);
            }
        }
        for (step, result) in round.iter().zip(&results) {
            match (step.what, result) {
                (What::Read, Ok(bytes)) => {
                    let checked = meanwhile.check(step.range.start, bytes);
                    checked.map_err(|wrong| {
                        format!(
                            "`{step}` has {} at {}, where {:?} is right",
                            wrong.found, wrong.at, wrong.expect
                        )
                    })?;
                }
                (What::Write(_) | What::Zero, Ok(_))
                    if step.flags.fua && checked.faults.durable() == durable =>
                {
                    return Err(format!("`{step}` has ended well, and nothing is durable"));
                }
                (What::Flush, Ok(_)) if checked.faults.flushes() == flushes => {
                    return Err("`flush` has ended well, and none reached the child".to_owned());
                }
                _ => {}
            }
        }
        settle(model, &ends);
        Ok(())
    }

    /// The shortest case found that goes wrong, too, and how.
    fn smallest(self, module: &Arc<PluginModule>, config: &str, wrong: String) -> (Self, String) {
        let (mut best, mut wrong, mut runs) = (self, wrong, 0);
        let mut is_smaller = true;
        while is_smaller && runs < SHRINK_RUNS {
            is_smaller = false;
            for candidate in best.smaller() {
                runs += 1;
                if runs > SHRINK_RUNS {
                    break;
                }
                if let Err(found) = candidate.run(module, config) {
                    (best, wrong, is_smaller) = (candidate, found, true);
                    break;
                }
            }
        }
        (best, wrong)
    }

    /// Cases that are a little less than this one, the least first.
    fn smaller(&self) -> Vec<Self> {
        let mut cases = Vec::new();
        let mut len = self.rounds.len() / 2;
        while len > 0 {
            for at in (0..self.rounds.len()).step_by(len) {
                let mut case = self.clone();
                case.rounds.drain(at..self.rounds.len().min(at + len));
                cases.push(case);
            }
            len /= 2;
        }
        for (at, round) in self.rounds.iter().enumerate() {
            let parts = if round.len() > 1 { round.len() } else { 0 };
            for part in 0..parts {
                let mut case = self.clone();
                case.rounds[at].remove(part);
                cases.push(case);
            }
            for (part, step) in round.iter().enumerate() {
                let len = step.range.end - step.range.start;
                if len > 1 {
                    let mut case = self.clone();
                    case.rounds[at][part].range.end -= len / 2;
                    cases.push(case);
                }
            }
        }
        if self.has_faults {
            cases.push(Self { has_faults: false, ..self.clone() });
        }
        cases
    }
}

/// The value that a step puts into its range, if any.
fn written(step: &Step) -> Option<u8> {
    match step.what {
        What::Write(value) => Some(value),
        What::Zero | What::Discard => Some(0),
        What::Read | What::Flush => None,
    }
}

/// What may be there after the steps of a round: nothing of before where one has surely written.
fn settle(model: &mut Model, ends: &[(&Step, bool)]) {
    for (step, is_ok) in ends {
        // A discard is advice.
        if *is_ok && matches!(step.what, What::Write(_) | What::Zero) {
            model.forget(&step.range);
        }
    }
    for (step, _) in ends {
        if let Some(value) = written(step) {
            model.allow(&step.range, value);
        }
    }
}

async fn run(drive: &Drive, step: &Step) -> Result<Vec<u8>> {
    let (offset, len) = (step.range.start, step.range.end - step.range.start);
    match step.what {
        What::Read => return Ok(drive.read(offset, len as usize).await?.to_vec()),
        What::Write(value) => {
            let data = Buf::copy_of(&vec![value; len as usize]);
            drive.write_buf(offset, data, step.flags).await?;
        }
        What::Zero => drive.zero(offset, len, step.flags).await?,
        What::Discard => drive.discard(offset, len).await?,
        What::Flush => drive.flush().await?,
    }
    Ok(Vec::new())
}

/// Everything once more, as far as the plugin lets it be read.
fn last_look(drive: &Drive, model: &Model) -> std::result::Result<(), String> {
    for offset in (0..SIZE_BYTES).step_by(4096) {
        let Ok(bytes) = block_on(drive.read(offset, 4096)) else { continue };
        model.check(offset, &bytes).map_err(|wrong| {
            format!(
                "at the end {} is at {}, where {:?} is right",
                wrong.found, wrong.at, wrong.expect
            )
        })?;
    }
    Ok(())
}

/// Awaits all at once.
async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<Pin<Box<_>>> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        for (future, done) in running.iter_mut().zip(&mut done) {
            if done.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if done.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(done.iter_mut().filter_map(Option::take).collect())
    })
    .await
}
