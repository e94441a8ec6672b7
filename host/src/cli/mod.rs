//! The command line.
//!
//! Exit codes: 0 done, 1 run-time failure, 2 wrong command line or configuration; those of `image check` are
//! `qemu-img`'s.

mod ctl;
mod demo;
mod image;
mod plugin;
mod progress;
mod serve;
mod stdout;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The memory allocator of the program: a library leaves the choice to whoever embeds it.
pub use mimalloc::MiMalloc as Allocator;

use clap::{Parser, Subcommand, ValueEnum};

use crate::control::ControlOptions;
use crate::draw::{self, GraphDescription};
use crate::host::{StartError, check};
use crate::io::EngineChoice;
use crate::text::printable;
use stdout::println;

/// Serves virtual disks from a block graph of native nodes and sandboxed WebAssembly filters.
#[derive(Parser)]
#[command(name = "blockloom", version, about)]
struct Arguments {
    /// What goes to the log on stderr: `info` unless said, and nothing of the demonstration.
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<LogLevel>,
    /// How the log looks.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum DrawFormat {
    Tree,
    Dot,
    Svg,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the graph of a file and serves its exports until SIGTERM or SIGINT.
    Serve {
        /// The graph file.
        graph: PathBuf,
        /// Worker threads; the default is one a core.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
        workers: Option<u8>,
        /// How file I/O is done: auto, io-uring or threads.
        #[arg(long, value_name = "ENGINE")]
        engine: Option<EngineChoice>,
        /// Lets clients control it by QMP, on a unix socket that its owner alone may use.
        #[arg(long, value_name = "SOCKET")]
        control: Option<PathBuf>,
        /// Lets these users control it, and nobody else; may be given several times.
        #[arg(long, value_name = "UID", requires = "control")]
        control_uid: Vec<u32>,
    },
    /// Checks everything about a graph file that can be checked without side effects.
    Check {
        /// The graph file.
        graph: PathBuf,
    },
    /// Draws the graph of a file or of a host: nodes, edges with roles and permissions, drives, bitmaps, exports.
    Graph {
        /// The graph file.
        #[arg(required_unless_present = "control", conflicts_with = "control")]
        graph: Option<PathBuf>,
        /// The control socket of the host whose graph to draw.
        #[arg(long, value_name = "SOCKET")]
        control: Option<PathBuf>,
        /// How to draw it.
        #[arg(long, default_value = "tree")]
        format: DrawFormat,
    },
    /// Runs one command of a host, by its control socket.
    Ctl {
        #[command(flatten)]
        options: ctl::CtlOptions,
    },
    /// Shows what this is for, in one run on temporary files: an overlay behind plugins, under load; backups that
    /// are restored; a snapshot, a stream, a commit; and what QEMU's rules would have copied.
    Demo,
    /// Offline work on images.
    Image {
        #[command(subcommand)]
        command: image::ImageCommand,
    },
    /// Tools for plugins.
    Plugin {
        #[command(subcommand)]
        command: plugin::PluginCommand,
    },
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    stdout::conclude(match Arguments::try_parse() {
        Ok(arguments) => run(arguments),
        Err(error) if error.use_stderr() => error.exit(),
        // What was asked for is the text.
        Err(text) => {
            stdout::note(text.print());
            ExitCode::SUCCESS
        }
    })
}

fn run(arguments: Arguments) -> ExitCode {
    let is_quiet = matches!(arguments.command, Command::Demo);
    let level = if is_quiet { LogLevel::Off } else { LogLevel::Info };
    start_log(arguments.log.unwrap_or(level), arguments.log_format);
    let result = match arguments.command {
        Command::Serve { graph, workers, engine, control, control_uid } => {
            let control = control.map(|path| ControlOptions { path, uids: control_uid });
            serve::serve(&graph, workers, engine, control)
        }
        Command::Check { graph } => {
            check(&graph).map(|_| println(format_args!("{}: ok", graph.display())))
        }
        Command::Graph { graph: Some(graph), format, .. } => draw_file(&graph, format),
        Command::Graph { control, format, .. } => {
            return draw_host(&control.unwrap_or_default(), format);
        }
        Command::Ctl { options } => return ctl::run(&options),
        Command::Demo => return demo::run(),
        Command::Image { command } => return image::run(command),
        Command::Plugin { command } => plugin::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Failed(error)) => {
            complain(&error);
            ExitCode::from(1)
        }
        Err(StartError::File(error)) => {
            complain(&error);
            ExitCode::from(2)
        }
        Err(StartError::Config(diagnostics)) => {
            // Several lines, of which each is escaped.
            let _ = writeln!(std::io::stderr().lock(), "{diagnostics}");
            ExitCode::from(2)
        }
    }
}

/// Says what went wrong, in one line; if nobody can be told, the exit code says it.
fn complain(error: &dyn Display) {
    let _ = writeln!(std::io::stderr().lock(), "error: {}", printable(&error.to_string()));
}

fn draw_file(graph: &Path, format: DrawFormat) -> Result<(), StartError> {
    let spec = crate::host::read_spec(graph)?;
    println(format_args!("{}", drawing(&draw::of_spec(&spec), format).trim_end()));
    Ok(())
}

fn draw_host(control: &Path, format: DrawFormat) -> ExitCode {
    match ctl::query_graph(control) {
        Ok(graph) => {
            println(format_args!("{}", drawing(&graph, format).trim_end()));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            complain(&failure);
            ExitCode::from(1)
        }
    }
}

fn drawing(graph: &GraphDescription, format: DrawFormat) -> String {
    match format {
        DrawFormat::Tree => draw::tree(graph),
        DrawFormat::Dot => draw::dot(graph),
        DrawFormat::Svg => draw::svg(graph),
    }
}

fn start_log(level: LogLevel, format: LogFormat) {
    use tracing::level_filters::LevelFilter;
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Who reads the log may go, and its disk may be full: that is no matter of who serves.
    let builder = tracing_subscriber::fmt().with_max_level(level).log_internal_errors(false);
    let builder = builder.with_target(false).without_time();
    match format {
        LogFormat::Text => builder.with_ansi(false).with_writer(|| LogLine(io::stderr())).init(),
        // Its strings have escapes of their own.
        LogFormat::Json => builder.json().with_writer(io::stderr).init(),
    }
}

/// Takes a log line with each write: what it says has been escaped, and only its end breaks the line.
struct LogLine<W>(W);

impl<W: Write> Write for LogLine<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let shown = printable(text.strip_suffix('\n').unwrap_or(&text)) + "\n";
        self.0.write_all(shown.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics in here").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What others say fakes no line, in a message or in a field of one.
    #[test]
    fn an_event_is_one_line_of_the_log() {
        let written = Shared::default();
        let to = written.clone();
        let log = tracing_subscriber::fmt()
            .with_target(false)
            .without_time()
            .with_ansi(false)
            .with_writer(move || LogLine(to.clone()))
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::info!("export `a\nERROR the disk is full`");
            tracing::warn!(name = "x\x1b[2J", "\u{9b}31m and ü");
        });
        let written = written.0.lock().expect("nobody panics in here").clone();
        let text = String::from_utf8(written).expect("text");
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        assert_eq!(lines[0], "INFO export `a\\nERROR the disk is full`");
        assert!(lines[1].starts_with("WARN \\u{9b}31m and ü name="), "{text}");
        assert_eq!((lines.len(), text.contains('\x1b')), (2, false), "{text}");
    }
}
