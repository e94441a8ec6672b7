//! `blockloom ctl`: one command to a host, by its control socket.

mod arguments;
mod client;
mod complete;
mod jobs;
mod schema;

use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use serde_json::{Value, json};

use super::{complain, println};
use crate::config::suggest::nearest;
use crate::control::qapi::{Place, QapiType};
use crate::draw::GraphDescription;
use crate::io::{Signal, Signals, background};
use client::Client;
pub(super) use client::Failure;
use schema::Schema;

/// Options of `blockloom ctl`.
#[derive(clap::Args)]
pub(super) struct CtlOptions {
    /// Waits until the jobs that the command starts have ended, or wait for something; a terminal shows how far
    /// they are, and waits always. The exit code says whether they have succeeded.
    #[arg(long)]
    wait: bool,
    /// The control socket of the host.
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// A command of the host; `watch` prints events until it is interrupted; `complete WORD…` prints what the
    /// last word can be.
    command: String,
    /// Its arguments: `key=value`, with dots for members of members, or one JSON object.
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    arguments: Vec<String>,
}

/// Runs it.
pub(super) fn run(options: &CtlOptions) -> ExitCode {
    let result = match options.command.as_str() {
        "watch" => watch(&options.control),
        "complete" => complete(&options.control, &options.arguments),
        command => execute(options, command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// What `query-graph` of a host says.
pub(super) fn query_graph(control: &Path) -> Result<GraphDescription, Failure> {
    let description = Client::open(control)?.run("query-graph", json!({}))?;
    GraphDescription::parse(description, &Place::ROOT)
        .map_err(|error| Failure::Connection(format!("the host's graph makes no sense: {error}")))
}

fn execute(options: &CtlOptions, command: &str) -> Result<(), Failure> {
    let mut client = Client::open(&options.control)?;
    let schema = Schema::of(&mut client)?;
    if !schema.has_command(command) {
        let near = nearest(command, schema.commands());
        let near = near.map(|name| format!(": did you mean `{name}`?")).unwrap_or_default();
        return Err(Failure::Usage(format!("the host has no command `{command}`{near}")));
    }
    let arguments =
        arguments::read(&options.arguments, &schema, command).map_err(Failure::Usage)?;
    let started = jobs::started_by(&schema, command, &arguments);
    let value = client.run(command, arguments)?;
    let is_nothing = value.as_object().is_some_and(serde_json::Map::is_empty);
    if !is_nothing {
        println(format_args!("{}", pretty(&value)));
    }
    jobs::follow(&mut client, &started, options.wait)
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

/// Until the host ends, or the reader, or somebody has had enough.
fn watch(control: &Path) -> Result<(), Failure> {
    let mut client = Client::open(control)?;
    let failed = |error: std::io::Error| Failure::Connection(format!("no signals: {error}"));
    let mut signals = Signals::new().map_err(failed)?;
    let ends = move || {
        while signals.wait() == Signal::Report {}
        process::exit(0);
    };
    background("signals", ends).map_err(failed)?;
    jobs::watch(&mut client)
}

/// The members `id` of a list.
fn ids(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|it| it["id"].as_str().map(str::to_owned)).collect()
}

fn complete(control: &Path, words: &[String]) -> Result<(), Failure> {
    let mut client = Client::open(control)?;
    let schema = Schema::of(&mut client)?;
    let description = client.run("query-graph", json!({}))?;
    let graph = GraphDescription::parse(description, &Place::ROOT).ok();
    // What cannot be asked is not offered.
    let mut of = |query| client.run(query, json!({})).map(|list| ids(&list)).unwrap_or_default();
    let (jobs, checkpoints) = (of("query-jobs"), of("query-checkpoints"));
    let known = complete::Known { graph, jobs, checkpoints };
    for candidate in complete::candidates(words, &schema, &known) {
        println(format_args!("{candidate}"));
    }
    Ok(())
}
