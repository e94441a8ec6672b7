//! What happens, step by step.

use std::time::Duration;

use super::guest::Guest;
use super::ledger::Ledger;
use super::place::Place;
use super::scene::{SIZE, Scene, words};
use super::table::{Row, table};
use crate::block_on;
use crate::graph::{BitmapAction, BitmapRef, Transaction, Unproven};
use crate::host::PluginBinary;
use crate::job::{BackupSpec, BackupSync, CommitSpec, JobKind, JobSpec, StreamSpec};
use crate::plugin::bundled;

/// How long a guest works between two steps.
const WORK: Duration = Duration::from_millis(1200);

/// Granules that a guest reads at first, and later.
const SOME: u64 = 128;
const ALL: u64 = u64::MAX;

/// Tells all of it; gives the table.
///
/// # Errors
/// In words: what did not happen as it should, or that it was to end early.
pub(super) fn tell(place: &Place) -> Result<String, String> {
    let (mut scene, installed, below) = Scene::start(place)?;
    scene.say(
        "An overlay of an installed image is served, through the plugins copy-on-read, throttle",
    );
    scene.say("and backup. A guest reads and writes all the time, over NBD.");
    let socket = place.path("vda.sock");
    let guest = Guest::start(&socket, "vda", installed.clone(), Ledger::over(below))?;
    let rows = steps(&mut scene, &guest, &installed);
    let requests = guest.end();
    let ended = scene.host.end().map_err(words);
    let (rows, requests) = (rows?, requests?);
    ended?;
    scene.say(&format!("{requests} requests of the guest, none failed."));
    Ok(table(&rows))
}

fn steps(scene: &mut Scene<'_>, guest: &Guest, installed: &[u8]) -> Result<Vec<Row>, String> {
    work(scene, guest, 0, SOME)?;
    let mut rows = Vec::new();
    scene.say("1. A checkpoint and a full backup, at one instant.");
    scene.add_image("full", "")?;
    rows.push(back_up(scene, guest, "full", BackupSync::Full)?);

    scene.say("2. The guest goes on: what it reads is copied up, which is no change.");
    work(scene, guest, 100, ALL)?;

    scene.say("3. A snapshot: another overlay comes on top, under load.");
    scene.add_image("later", "backing = \"overlay\"\n")?;
    {
        let mut known = guest.pause();
        let snapshot = scene.host.replace_node("overlay", "later", Unproven::Refuse);
        block_on(snapshot).map_err(words)?;
        known.ledger.snapshot();
    }
    work(scene, guest, 300, ALL)?;

    scene.say("4. An incremental backup.");
    scene.add_image("first", "backing = \"full\"\n")?;
    rows.push(back_up(scene, guest, "first", BackupSync::Incremental)?);

    scene.say("5. A stream: the first overlay gets what it shows of the base, and stands alone.");
    run(scene, JobKind::Stream(StreamSpec::of("overlay")), "stream")?;
    work(scene, guest, 500, ALL)?;

    scene.say("6. A commit: the later overlay goes to the first one, which takes its place.");
    let commit = CommitSpec { completes: true, ..CommitSpec::of("later", "overlay") };
    {
        let kind = JobKind::Commit(commit);
        run(scene, kind, "commit")?;
        guest.pause().ledger.commit();
    }
    block_on(scene.host.remove_node("later")).map_err(words)?;

    scene.say("7. A plugin is killed, starts again, and is replaced by another of its kind.");
    block_on(scene.host.kill_plugin("slow")).map_err(words)?;
    work(scene, guest, 700, ALL)?;
    let next = bundled("throttle").ok_or("there is no plugin `throttle`")?;
    let config = r#"{ "iops": 40000 }"#;
    let reload = scene.host.reload_plugin("slow", PluginBinary::from(next.to_vec()), Some(config));
    block_on(reload).map_err(words)?;
    work(scene, guest, 800, ALL)?;

    scene.say("8. Another incremental backup.");
    scene.add_image("second", "backing = \"first\"\n")?;
    rows.push(back_up(scene, guest, "second", BackupSync::Incremental)?);

    if scene.read_node("then")? != installed {
        return Err("the view of the plugin `backup` shows something else".into());
    }
    scene.say("The view of the plugin `backup` still shows what there was at the start.");
    Ok(rows)
}

/// Lets the guest work for a while, writing from this granule on, and reading so many.
fn work(scene: &Scene<'_>, guest: &Guest, hot: u64, read: u64) -> Result<(), String> {
    {
        let mut known = guest.pause();
        (known.hot, known.read) = (hot, read);
    }
    scene.place.wait(WORK)?;
    guest.pause().failed.clone().map_or(Ok(()), Err)
}

fn run(scene: &mut Scene<'_>, kind: JobKind, id: &str) -> Result<(), String> {
    let (_, job) = scene.start_job(JobSpec::new(id, kind), Transaction::new())?;
    scene.follow(&job).map(drop)
}

/// Makes a backup to the image `target`, and compares it with what the disk showed at its instant.
fn back_up(
    scene: &mut Scene<'_>,
    guest: &Guest,
    target: &'static str,
    sync: BackupSync,
) -> Result<Row, String> {
    let daily = BitmapRef::of_drive("vda", "daily");
    let is_full = sync == BackupSync::Full;
    let (bitmap, with) = match is_full {
        // From this instant on it says what changes.
        true => (None, Transaction::new().with(BitmapAction::Clear.of(daily))),
        false => (Some(daily), Transaction::new()),
    };
    let spec = BackupSpec { sync, bitmap, ..BackupSpec::of("vda", target) };
    let spec = JobSpec::new(target, JobKind::Backup(spec));
    let (job, expect, changes) = {
        let mut known = guest.pause();
        let (_, job) = scene.start_job(spec, with)?;
        (job, known.bytes.clone(), known.ledger.cut())
    };
    let copied_bytes = scene.follow(&job)?;
    let restored = scene.read_node(target)?;
    if restored != expect || restored.len() as u64 != SIZE {
        return Err(format!("what is restored from `{target}` is not what there was"));
    }
    scene.say(&format!("   `{target}.qcow2` restores what the disk showed at that instant."));
    Ok(Row { name: target, changes, copied_bytes, is_full })
}
