//! The load, and what it measures.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use blockloom_tests::tools;
use serde_json::Value;

use crate::options::Options;
use crate::servers::Server;

/// A pattern of requests.
pub(crate) struct Workload {
    /// As printed.
    pub(crate) name: &'static str,
    rw: &'static str,
    block_bytes: u32,
    depth: u32,
    /// What ends it: so many MiB, at the same offsets each time; 0 for the time.
    mib: u32,
}

const fn workload(name: &'static str, rw: &'static str, block_bytes: u32, depth: u32) -> Workload {
    Workload { name, rw, block_bytes, depth, mib: 0 }
}

pub(crate) const READ_4K_32: &str = "read 4 KiB, depth 32";
pub(crate) const WRITE_4K_32: &str = "write 4 KiB, depth 32";
pub(crate) const READ_4K_1: &str = "read 4 KiB, depth 1";
pub(crate) const WRITE_4K_1: &str = "write 4 KiB, depth 1";
pub(crate) const READ_1M: &str = "read 1 MiB, depth 8";
pub(crate) const WRITE_1M: &str = "write 1 MiB, depth 8";

/// 4 KiB at random offsets, 1 MiB in sequence.
pub(crate) const WORKLOADS: [Workload; 6] = [
    workload(READ_4K_32, "randread", 4096, 32),
    workload(WRITE_4K_32, "randwrite", 4096, 32),
    workload(READ_4K_1, "randread", 4096, 1),
    workload(WRITE_4K_1, "randwrite", 4096, 1),
    workload(READ_1M, "read", 1 << 20, 8),
    workload(WRITE_1M, "write", 1 << 20, 8),
];

/// Writes that mostly meet clusters which are not there yet.
pub(crate) const ALLOCATE_4K_32: &str = "allocate 4 KiB, depth 32";
pub(crate) const ALLOCATING: Workload = workload(ALLOCATE_4K_32, "randwrite", 4096, 32);

/// Writes before which what they overwrite is mostly to be copied.
pub(crate) const CBW_4K_32: &str = "copy before 4 KiB writes";
pub(crate) const COPYING: Workload =
    Workload { mib: 64, ..workload(CBW_4K_32, "randwrite", 4096, 32) };

/// Whether the load can be made here.
pub(crate) fn has_fio() -> bool {
    let engine = Command::new("fio").arg("--enghelp=nbd").stdin(Stdio::null()).output();
    engine.is_ok_and(|output| output.status.success())
}

fn fio(server: &Server, options: &[String]) -> Value {
    let mut all = vec!["ioengine=nbd".to_owned()];
    all.extend_from_slice(options);
    for (index, uri) in server.uris.iter().enumerate() {
        all.extend([format!("name=peers{index}"), format!("uri={uri}")]);
    }
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    tools::fio(&all)
}

/// Writes random data to the whole disk.
pub(crate) fn fill(server: &Server, size_mib: u64) {
    let options = ["rw=write", "bs=1m", "iodepth=8", "refill_buffers=1", "randrepeat=0"];
    let options = options.map(str::to_owned);
    fio(server, &[&options[..], &[format!("size={size_mib}m")]].concat());
}

/// What one run came to.
#[derive(Clone, Copy)]
pub(crate) struct Figure {
    /// Requests a second.
    pub(crate) iops: f64,
    /// CPU seconds of the server for a million requests: microseconds for one.
    pub(crate) cpu: f64,
}

/// One run, over the first part of the disk.
pub(crate) fn measure(
    server: &Server,
    workload: &Workload,
    options: &Options,
    size_mib: u64,
) -> Figure {
    let before = server.cpu_seconds();
    let mut load = vec![
        format!("rw={}", workload.rw),
        format!("bs={}", workload.block_bytes),
        format!("iodepth={}", workload.depth),
        format!("size={size_mib}m"),
        "norandommap=1".to_owned(),
    ];
    load.extend(match workload.mib {
        0 => vec![
            format!("runtime={}", options.secs),
            "time_based=1".to_owned(),
            "randrepeat=0".to_owned(),
        ],
        mib => vec![format!("io_size={mib}m"), "randrepeat=1".to_owned()],
    });
    let report = fio(server, &load);
    let cpu_seconds = server.cpu_seconds() - before;
    let sum = |key: &str| -> f64 {
        let jobs = report["jobs"].as_array().into_iter().flatten();
        let all = jobs.flat_map(|job| [&job["read"][key], &job["write"][key]]);
        all.filter_map(Value::as_f64).sum()
    };
    Figure { iops: sum("iops"), cpu: cpu_seconds * 1e6 / sum("total_ios").max(1.0) }
}

/// How long a guest waits for 99 of 100 reads of 4 KiB, at depth 1, within a second, us.
pub(crate) fn wait_99_us(server: &Server, size_mib: u64) -> f64 {
    let load = ["rw=randread", "bs=4k", "iodepth=1", "runtime=1", "time_based=1", "norandommap=1"];
    let load = load.map(str::to_owned);
    let report = fio(server, &[&load[..], &[format!("size={size_mib}m")]].concat());
    let wait = &report["jobs"][0]["read"]["clat_ns"]["percentile"]["99.000000"];
    wait.as_f64().expect("a percentile") / 1e3
}

/// All runs, by workload and server, in the order of rounds.
#[derive(Default)]
pub(crate) struct Figures(BTreeMap<(&'static str, &'static str), Vec<Figure>>);

impl Figures {
    /// Keeps a run.
    pub(crate) fn add(&mut self, workload: &'static str, server: &'static str, figure: Figure) {
        self.0.entry((workload, server)).or_default().push(figure);
    }

    /// All runs of a workload on a server, if there are any.
    pub(crate) fn runs(&self, workload: &'static str, server: &'static str) -> Option<&[Figure]> {
        self.0.get(&(workload, server)).map(Vec::as_slice)
    }

    /// Median of each round's ratio of two servers; `None` unless both ran.
    pub(crate) fn ratio(
        &self,
        workload: &'static str,
        (server, other): (&'static str, &'static str),
        of: impl Fn(&Figure) -> f64,
    ) -> Option<f64> {
        self.ratio_to_best(workload, server, &[other], of, f64::max)
    }

    /// As [`Self::ratio`], with what is best of several others in each round; `None` unless all ran.
    pub(crate) fn ratio_to_best(
        &self,
        workload: &'static str,
        server: &'static str,
        others: &[&'static str],
        of: impl Fn(&Figure) -> f64,
        best: impl Fn(f64, f64) -> f64,
    ) -> Option<f64> {
        let runs = self.0.get(&(workload, server))?;
        let others = others.iter().map(|other| self.0.get(&(workload, *other)));
        let others = others.collect::<Option<Vec<_>>>()?;
        let in_round = |(round, run): (usize, &Figure)| {
            let values = others.iter().filter_map(|runs| runs.get(round)).map(&of);
            values.reduce(&best).map(|best| of(run) / best)
        };
        Some(median(runs.iter().enumerate().filter_map(in_round)))
    }

    /// The medians of one workload, as far as there are any.
    pub(crate) fn print(
        &self,
        workload: &'static str,
        servers: &[&'static str],
        base: &'static str,
    ) {
        for &server in servers {
            let Some(runs) = self.0.get(&(workload, server)) else { continue };
            let iops = median(runs.iter().map(|run| run.iops));
            let cpu = median(runs.iter().map(|run| run.cpu));
            let mut line = format!("{workload:24} {server:20} {iops:10.0} {cpu:14.2}");
            let iops = self.ratio(workload, (server, base), |run| run.iops);
            let cpu = self.ratio(workload, (server, base), |run| run.cpu);
            if let (Some(iops), Some(cpu)) = (iops, cpu)
                && server != base
            {
                line += &format!("   {iops:5.2} x IOPS, {cpu:5.2} x CPU of {base}");
            }
            println!("{line}");
        }
        println!();
    }
}

/// The middle one; of an even number the mean of the middle two.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    f64::midpoint(low, high)
}
