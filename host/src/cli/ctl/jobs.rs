//! Jobs as they go on: those that a command has started, and all while somebody watches.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Client, Failure, Next};
use super::schema::Schema;
use crate::cli::progress::{Bars, Progress, Steady};
use crate::cli::stdout::is_over;

/// How often a host is asked how far its jobs are.
const LOOK_PAUSE: Duration = Duration::from_millis(150);
/// The same where there are none: nobody is asked then.
const IDLE_PAUSE: Duration = Duration::from_secs(3600);
/// How long the event of a job that is gone may take to come.
const END_WAIT: Duration = Duration::from_secs(5);

/// The jobs that a command starts: those whose arguments could say so.
pub(super) fn started_by(schema: &Schema, command: &str, arguments: &Value) -> Vec<String> {
    let starts = |command: &str| {
        let of = schema.arguments_of(command);
        of.is_some_and(|of| schema.type_at(of, "job-id").is_some())
    };
    let id = |arguments: &Value| {
        let id = arguments["job-id"].as_str().or_else(|| arguments["device"].as_str());
        id.map(str::to_owned)
    };
    if starts(command) {
        return id(arguments).into_iter().collect();
    }
    let actions = arguments["actions"].as_array().into_iter().flatten();
    let starting = actions.filter(|action| action["type"].as_str().is_some_and(starts));
    starting.filter_map(|action| id(&action["data"])).collect()
}

/// A job, and whether it goes on only if it is told to.
struct Job {
    progress: Progress,
    is_at_rest: bool,
    /// How it has ended, if it waits to be dismissed.
    end: Option<End>,
}

/// What there is to say of a job that has ended well, or not.
type End = Result<String, String>;

/// How jobs have ended, by id.
type Ends = BTreeMap<String, End>;

/// Shows how far jobs are, until each has ended or waits for something.
///
/// # Errors
/// What the first one that has not succeeded says.
pub(super) fn follow(client: &mut Client, ids: &[String], waits: bool) -> Result<(), Failure> {
    let (mut bars, mut steady, mut ends) = (Bars::new(), Steady::default(), Ends::new());
    if ids.is_empty() {
        return Ok(());
    }
    if !bars.is_terminal() && !waits {
        let all = query(client)?;
        let of_them = all.iter().filter(|job| ids.contains(&job.progress.name));
        of_them.for_each(|job| bars.print(&job.progress.line()));
        return Ok(());
    }
    loop {
        let mut jobs = query(client)?;
        jobs.retain(|job| ids.contains(&job.progress.name));
        bars.show(steady.bars(jobs.iter().map(|job| &job.progress)));
        if jobs.iter().all(|job| job.is_at_rest) {
            // The event may not have come yet.
            ends.extend(
                jobs.iter().filter_map(|job| Some((job.progress.name.clone(), job.end.clone()?))),
            );
            let waiting: Vec<Progress> = jobs.into_iter().map(|job| job.progress).collect();
            return conclude(client, &mut bars, ids, (&waiting, ends));
        }
        take_events(client, LOOK_PAUSE, &mut ends)?;
    }
}

/// Says how jobs that are at rest have ended.
fn conclude(
    client: &mut Client,
    bars: &mut Bars,
    ids: &[String],
    (waiting, mut ends): (&[Progress], Ends),
) -> Result<(), Failure> {
    let is_waiting = |id: &String| waiting.iter().any(|job| job.name == *id);
    let mut left = END_WAIT;
    while !ids.iter().all(|id| ends.contains_key(id) || is_waiting(id)) && !left.is_zero() {
        take_events(client, LOOK_PAUSE, &mut ends)?;
        left = left.saturating_sub(LOOK_PAUSE);
    }
    bars.show(Vec::new());
    waiting.iter().filter(|job| !ends.contains_key(&job.name)).for_each(|job| {
        bars.print(&job.line());
    });
    let mut failed = None;
    for id in ids {
        match ends.remove(id) {
            Some(Ok(line)) => bars.print(&line),
            Some(Err(line)) => {
                failed.get_or_insert(line);
            }
            None => {}
        }
    }
    failed.map_or(Ok(()), |line| Err(Failure::Refused(line)))
}

/// Takes the events that come within a time, and notes which jobs have ended.
fn take_events(client: &mut Client, time: Duration, ends: &mut Ends) -> Result<(), Failure> {
    let mut time = time;
    loop {
        match client.event_within(time)? {
            Next::Nothing => return Ok(()),
            Next::End => return Err(Failure::Connection("the host has ended".into())),
            Next::Event(event) => {
                ends.extend(end_of(&event));
                // What has come with it comes at once.
                time = Duration::ZERO;
            }
        }
    }
}

/// The job that has ended by an event, and how.
fn end_of(event: &Value) -> Option<(String, End)> {
    let data = &event["data"];
    let text = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
    let (id, kind) = (text("device"), text("type"));
    let end = match (event["event"].as_str()?, data["error"].as_str()) {
        ("BLOCK_JOB_COMPLETED", error) => ended((&kind, &id), &data["offset"], error),
        ("BLOCK_JOB_CANCELLED", _) => ended((&kind, &id), &data["offset"], Some(CANCELLED)),
        _ => return None,
    };
    Some((id, end))
}

/// What a job that was cancelled tells as its error.
const CANCELLED: &str = "Operation canceled";

fn ended((kind, id): (&str, &str), done_bytes: &Value, error: Option<&str>) -> End {
    match error {
        None => {
            let done = crate::cli::progress::size(done_bytes.as_u64().unwrap_or(0));
            Ok(format!("{kind} job `{id}` has ended: {done}"))
        }
        Some(CANCELLED) => Err(format!("{kind} job `{id}` was cancelled")),
        Some(error) => Err(format!("{kind} job `{id}` failed: {error}")),
    }
}

/// How far all jobs are.
fn query(client: &mut Client) -> Result<Vec<Job>, Failure> {
    let jobs = client.run("query-block-jobs", json!({}))?;
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    let number = |of: &Value| of.as_u64().unwrap_or(0);
    let jobs = jobs.as_array().into_iter().flatten().map(|job| Job {
        end: (job["status"] == "concluded").then(|| {
            let of = (&*text(&job["type"]), &*text(&job["device"]));
            ended(of, &job["offset"], job["error"].as_str())
        }),
        progress: Progress {
            kind: text(&job["type"]),
            name: text(&job["device"]),
            state: text(&job["status"]),
            done_bytes: number(&job["offset"]),
            total_bytes: number(&job["len"]),
        },
        is_at_rest: match job["status"].as_str().unwrap_or_default() {
            "ready" => true,
            "pending" => job["auto-finalize"] == false,
            "concluded" => job["auto-dismiss"] == false,
            _ => false,
        },
    });
    Ok(jobs.collect())
}

/// Prints events as they come, and on a terminal, below them, how far jobs are.
pub(super) fn watch(client: &mut Client) -> Result<(), Failure> {
    let (mut bars, mut steady) = (Bars::new(), Steady::default());
    let mut has_jobs = |client: &mut Client, bars: &mut Bars| -> Result<bool, Failure> {
        let jobs = query(client)?;
        bars.show(steady.bars(jobs.iter().map(|job| &job.progress)));
        Ok(!jobs.is_empty())
    };
    let mut shows = bars.is_terminal() && has_jobs(client, &mut bars)?;
    loop {
        let wait = if shows { LOOK_PAUSE } else { IDLE_PAUSE };
        match client.event_within(wait)? {
            Next::End => return Ok(()),
            Next::Nothing => {}
            Next::Event(event) => {
                bars.print(&event.to_string());
                if is_over() {
                    return Ok(());
                }
                shows |= bars.is_terminal() && event["event"] == "JOB_STATUS_CHANGE";
            }
        }
        if shows {
            shows = match has_jobs(client, &mut bars) {
                // It has told that it ends.
                Err(Failure::Connection(_)) => false,
                shows => shows?,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_that_a_command_starts() {
        let schema = Schema::new(json!([
            {"name": "start", "meta-type": "command", "arg-type": "Start"},
            {"name": "look", "meta-type": "command", "arg-type": "Look"},
            {"name": "transaction", "meta-type": "command", "arg-type": "Look"},
            {"name": "Start", "meta-type": "object", "members": [
                {"name": "job-id", "type": "str"}, {"name": "device", "type": "str"},
            ]},
            {"name": "Look", "meta-type": "object", "members": [{"name": "device", "type": "str"}]},
        ]));
        let check = |command: &str, arguments: Value, expect: &[&str]| {
            assert_eq!(started_by(&schema, command, &arguments), expect, "{arguments}");
        };
        check("start", json!({"job-id": "j", "device": "vda"}), &["j"]);
        check("start", json!({"device": "vda"}), &["vda"]);
        check("start", json!({}), &[]);
        check("look", json!({"device": "vda"}), &[]);
        let actions = json!([
            {"type": "start", "data": {"job-id": "a"}},
            {"type": "look", "data": {"device": "vda"}},
            {"type": "start", "data": {"device": "b"}},
        ]);
        check("transaction", json!({"actions": actions}), &["a", "b"]);
        check("nosuch", json!({"actions": 5}), &[]);
    }

    #[test]
    fn how_jobs_have_ended() {
        let event = |name: &str, error: Value| {
            let mut data = json!({"device": "j", "type": "stream", "offset": 1 << 20});
            data["error"] = error;
            end_of(&json!({"event": name, "data": data})).map(|(_, end)| end)
        };
        let done = event("BLOCK_JOB_COMPLETED", Value::Null);
        assert_eq!(done, Some(Ok("stream job `j` has ended: 1 MiB".into())));
        let failed = event("BLOCK_JOB_COMPLETED", json!("no space"));
        assert_eq!(failed, Some(Err("stream job `j` failed: no space".into())));
        let cancelled = event("BLOCK_JOB_CANCELLED", Value::Null);
        assert_eq!(cancelled, Some(Err("stream job `j` was cancelled".into())));
        assert_eq!(event("BLOCK_JOB_READY", Value::Null), None);
    }
}
