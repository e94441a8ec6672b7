//! The program under test as a process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{DEADLINE, Killed, eventually};

/// A running `blockloom serve`; killed when dropped.
pub struct Daemon {
    process: Process,
    exports: BTreeMap<String, String>,
    start_time: Duration,
}

/// How a daemon ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its log.
    pub log: String,
}

/// A daemon that ended instead of becoming ready.
#[derive(Debug)]
pub struct Refused {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to stderr.
    pub stderr: String,
}

struct Process {
    child: Killed,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Also gives the lines of its stdout, which end with the process.
    fn spawn(program: &Path, graph: &Path, arguments: &[&str]) -> (Self, Receiver<String>) {
        let child = Command::new(program)
            .arg("serve")
            .arg(graph)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = Killed::from(child.expect("start the program under test"));
        let stderr = Arc::new(Mutex::new(String::new()));
        let (send, stdout) = channel();
        let output = child.stdout.take().expect("stdout is piped");
        let errors = child.stderr.take().expect("stderr is piped");
        let log = Arc::clone(&stderr);
        let readers = vec![
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    // Nobody listens once the program is ready.
                    let _ = send.send(line);
                }
            }),
            std::thread::spawn(move || gather(errors, &log)),
        ];
        (Self { child, stderr, readers }, stdout)
    }

    fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let status = eventually("the program ends", || child.try_wait().expect("wait"));
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader of the program's output");
        }
        status
    }

    fn log(&self) -> String {
        self.stderr.lock().expect("log").clone()
    }
}

fn gather(mut stream: impl Read, into: &Mutex<String>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        into.lock().expect("log").push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

impl Daemon {
    /// Starts `program serve graph arguments…` and waits until it is ready.
    ///
    /// # Panics
    /// When it ends instead, or does not become ready in time.
    pub fn start(program: &Path, graph: &Path, arguments: &[&str]) -> Self {
        Self::try_start(program, graph, arguments)
            .unwrap_or_else(|refused| panic!("it did not start: {}", refused.stderr))
    }

    /// As [`Daemon::start`], where a refusal is expected.
    ///
    /// # Errors
    /// When it ends instead of becoming ready.
    ///
    /// # Panics
    /// When it does neither in time, or prints something else than exports and `ready`.
    pub fn try_start(program: &Path, graph: &Path, arguments: &[&str]) -> Result<Self, Refused> {
        let begin = Instant::now();
        let (mut process, stdout) = Process::spawn(program, graph, arguments);
        let mut exports = BTreeMap::new();
        loop {
            let left = DEADLINE.saturating_sub(begin.elapsed());
            match stdout.recv_timeout(left) {
                Ok(line) if line == "ready" => break,
                Ok(line) => {
                    let mut words = line.split(' ');
                    let (Some("export"), Some(id), Some(uri), None) =
                        (words.next(), words.next(), words.next(), words.next())
                    else {
                        panic!("unexpected line on stdout: {line}");
                    };
                    exports.insert(id.to_owned(), uri.to_owned());
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("not ready in {DEADLINE:?}: {}", process.log())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let code = process.wait().code();
                    return Err(Refused { code, stderr: process.log() });
                }
            }
        }
        Ok(Self { process, exports, start_time: begin.elapsed() })
    }

    /// The URI that was printed for an export.
    ///
    /// # Panics
    /// When none was.
    pub fn uri(&self, export: &str) -> &str {
        let known = &self.exports;
        known.get(export).unwrap_or_else(|| panic!("no export `{export}` among {known:?}"))
    }

    /// From the start of the process to `ready`.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// What it has written to stderr by now.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until its log contains `text`, and gives the log.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for_log(&self, text: &str) -> String {
        eventually(&format!("the log says `{text}`"), || {
            Some(self.log()).filter(|it| it.contains(text))
        })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process number");
        kill_process(pid, signal).expect("send a signal");
    }

    /// Waits for its end, which something else brings about.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(mut self) -> Ended {
        let status = self.process.wait();
        Ended { status, log: self.process.log() }
    }

    /// SIGTERM; waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGTERM; its end must be clean.
    ///
    /// # Panics
    /// When its exit code is not 0; the log is shown.
    pub fn finish(self) -> String {
        let ended = self.terminate();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
        assert!(!ended.log.contains("panicked"), "{}", ended.log);
        ended.log
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn kill(self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Memory that it has resident, bytes.
    ///
    /// # Panics
    /// When `/proc` does not tell.
    pub fn resident_bytes(&self) -> u64 {
        let status = self.proc_file("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib * 1024
    }

    /// CPU time that it has used, in clock ticks (1/100 s).
    ///
    /// # Panics
    /// When `/proc` does not tell.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = self.proc_file("stat");
        let fields: Vec<_> = stat[stat.rfind(')').expect("a name") + 2..].split(' ').collect();
        // proc(5): fields 14 and 15, utime and stime; the first here is field 3.
        let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("a number of ticks");
        ticks(14) + ticks(15)
    }

    fn proc_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid())).expect("/proc")
    }
}
