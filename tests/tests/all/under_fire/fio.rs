//! fio as a guest that nobody here knows the writes of: it reads them back itself, all the time.

use std::io::Read;
use std::ops::Range;
use std::process::{Command, Stdio};

use blockloom_tests::Killed;
use blockloom_tests::tools::have;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Writes a second at most, so that the rest comes to its turn.
const RATE: u32 = 1000;

/// A running fio; killed when dropped.
pub(super) struct Fio(Killed);

impl Fio {
    /// Writes somewhere in a range of a disk, until it is told to end; `None` if there is no fio.
    pub(super) fn start(uri: &str, range: Range<u64>) -> Option<Self> {
        if !have(&["fio"]) {
            return None;
        }
        let options = [
            "name=fire",
            "ioengine=nbd",
            &format!("uri={uri}"),
            "rw=randwrite",
            "bs=4k",
            "iodepth=4",
            &format!("offset={}", range.start),
            &format!("size={}", range.end - range.start),
            &format!("rate_iops={RATE}"),
            "time_based",
            "runtime=1h",
            "verify=crc32c",
            "verify_backlog=64",
            "verify_fatal=1",
            "verify_state_save=0",
            "output-format=json",
        ];
        let options = options.iter().map(|option| format!("--{option}"));
        let mut command = Command::new("fio");
        command.args(options).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Some(Self(command.spawn().expect("start fio").into()))
    }

    /// Ends it; gives how many writes it has done, all of which it has found again as far as it has looked.
    pub(super) fn finish(mut self) -> u64 {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process");
        assert_eq!(self.0.try_wait().expect("wait"), None, "fio has ended by itself");
        kill_process(pid, Signal::INT).expect("send a signal");
        let mut output = String::new();
        let mut stdout = self.0.stdout.take().expect("stdout is piped");
        stdout.read_to_string(&mut output).expect("what fio says");
        self.0.wait().expect("wait");
        let json = output.find('{').map_or("", |start| &output[start..]);
        let report: Value = serde_json::from_str(json).unwrap_or_else(|_| panic!("{output}"));
        let job = &report["jobs"][0];
        assert_eq!(job["error"], 0, "{job}");
        let count = |what: &str| job[what]["total_ios"].as_u64().expect("a number");
        assert!(count("read") > 0, "it has looked at none of {} writes", count("write"));
        count("write")
    }
}
