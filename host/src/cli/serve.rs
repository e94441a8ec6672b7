//! `blockloom serve`.

use std::path::Path;
use std::process;
use std::sync::Arc;

use super::stdout::{self, println};
use crate::control::{Control, ControlOptions};
use crate::error::{Error, ErrorKind};
use crate::host::{ChangedPlugin, Host, Overrides, StartError, block_on, start};
use crate::io::{EngineChoice, Signal, Signals, ask_to_end, background};

/// Serves until told to end; then drains, flushes, and says what happened.
pub(super) fn serve(
    graph: &Path,
    workers: Option<u8>,
    engine: Option<EngineChoice>,
    control: Option<ControlOptions>,
) -> Result<(), StartError> {
    // From here on a signal is an order to end in order, also while the graph opens.
    let mut signals =
        Signals::new().map_err(|error| Error::os("cannot take over signals", &error))?;
    let (host, exports) = start(graph, Overrides { workers: workers.map(usize::from), engine })?;
    let host = Arc::new(host);
    tracing::info!("file I/O by {}", host.engine());
    let mut control = match control {
        Some(options) => Some(Control::start(Arc::clone(&host), options, ask_to_end)?),
        None => None,
    };
    for export in &exports {
        println(format_args!("export {} {}", export.id, export.uri));
    }
    println(format_args!("ready"));
    // Whoever waits to be told would wait for ever.
    let told = stdout::check();
    while told.is_ok() {
        match signals.wait() {
            Signal::Report => log_report(&host.report()),
            Signal::Reload => reload_plugins(&host),
            Signal::Terminate => break,
        }
    }
    control.iter_mut().for_each(Control::stop);
    tracing::info!("ending: {} clients are connected", host.connections());
    // A second order ends without waiting for anybody.
    let watcher = background("signals", move || {
        while signals.wait() != Signal::Terminate {}
        tracing::warn!("ending without waiting");
        process::exit(1);
    });
    watcher.map_err(|error| Error::new(ErrorKind::NoMemory, error.to_string()))?;
    let graph = host.graph();
    let ended = host.end();
    control.into_iter().for_each(Control::finish);
    log_report(&crate::host::report_of(&graph));
    Ok(told.and(ended)?)
}

/// Replaces plugins whose files have changed.
fn reload_plugins(host: &Host) {
    let changed = block_on(host.reload_changed_plugins());
    if changed.is_empty() {
        tracing::info!("no plugin's file has changed");
    }
    for ChangedPlugin { plugin, file, result } in changed {
        let file = file.display();
        match result {
            Ok(()) => tracing::info!("plugin `{plugin}` was replaced by what is in {file} now"),
            Err(error) => {
                tracing::error!("plugin `{plugin}` goes on as it was, not as in {file}: {error}");
            }
        }
    }
}

fn log_report(report: &str) {
    for line in report.lines() {
        tracing::info!("{line}");
    }
}
