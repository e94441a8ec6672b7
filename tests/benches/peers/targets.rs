//! The standing targets.

use std::path::Path;
use std::time::Duration;

use blockloom_tests::{Daemon, Scratch};

use crate::load::{
    ALLOCATE_4K_32, Figure, Figures, READ_1M, READ_4K_1, READ_4K_32, WRITE_1M, WRITE_4K_1,
    WRITE_4K_32, median,
};
use crate::servers::{BLOCKLOOM, NBDKIT, QCOW2, QSD_QCOW2, RAW_FILE, WITH_THROTTLE};

/// Starts of which the median counts.
const STARTS: usize = 9;

/// Time in which a server that has just started comes to rest.
const REST: Duration = Duration::from_secs(1);

/// What was measured, beside what was to be reached.
#[derive(Default)]
pub(crate) struct Targets(Vec<String>);

/// What counts as reached.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Targets {
    /// One more.
    pub(crate) fn add(&mut self, what: &str, value: Option<f64>, unit: &str, bound: Bound) {
        let (met, sign, limit) = match bound {
            Bound::AtMost(limit) => (value.map(|value| value <= limit), "<=", limit),
            Bound::AtLeast(limit) => (value.map(|value| value >= limit), ">=", limit),
        };
        let (Some(value), Some(met)) = (value, met) else {
            self.0.push(format!("SKIPPED          {what}: a server is missing"));
            return;
        };
        let verdict = if met { "PASS  " } else { "MISSED" };
        self.0
            .push(format!("{verdict}  {value:8.2} {unit:3} {what} (target {sign} {limit} {unit})"));
    }

    /// Against nbdkit, and with a plugin against without.
    pub(crate) fn of_requests(&mut self, figures: &Figures) {
        let (cpu, iops) = (|run: &Figure| run.cpu, |run: &Figure| run.iops);
        let pair = (BLOCKLOOM, NBDKIT);
        let value = figures.ratio(READ_4K_32, pair, cpu);
        self.add(&format!("CPU of nbdkit, {READ_4K_32}"), value, "x", Bound::AtMost(0.6));
        let value = figures.ratio(READ_4K_32, pair, iops);
        self.add(&format!("IOPS of nbdkit, {READ_4K_32}"), value, "x", Bound::AtLeast(1.5));
        for workload in [READ_4K_1, WRITE_4K_1] {
            let value = figures.ratio(workload, pair, iops);
            self.add(&format!("IOPS of nbdkit, {workload}"), value, "x", Bound::AtLeast(2.0));
        }
        for workload in [READ_1M, WRITE_1M] {
            let value = figures.ratio(workload, pair, cpu);
            self.add(&format!("CPU of nbdkit, {workload}"), value, "x", Bound::AtMost(1.0));
        }
        for workload in [READ_4K_32, WRITE_4K_32] {
            let value = figures.ratio(workload, (WITH_THROTTLE, BLOCKLOOM), cpu);
            let what = format!("CPU with `throttle` of CPU without, {workload}");
            self.add(&what, value, "x", Bound::AtMost(1.1));
        }
    }

    /// Images against the best of QEMU's in each round, and against a raw file.
    pub(crate) fn of_images(&mut self, place: &str, figures: &Figures) {
        let (cpu, iops) = (|run: &Figure| run.cpu, |run: &Figure| run.iops);
        let of_cpu = |load| figures.ratio_to_best(load, QCOW2, &QSD_QCOW2, cpu, f64::min);
        let of_iops = |load| figures.ratio_to_best(load, QCOW2, &QSD_QCOW2, iops, f64::max);
        for load in [READ_4K_32, WRITE_4K_32] {
            let what = format!("CPU of qsd's best, {load}, {place}");
            self.add(&what, of_cpu(load), "x", Bound::AtMost(0.35));
            let what = format!("IOPS of qsd's best, {load}, {place}");
            self.add(&what, of_iops(load), "x", Bound::AtLeast(2.0));
        }
        for (load, limit) in [(ALLOCATE_4K_32, 1.5), (READ_1M, 1.0), (WRITE_1M, 1.0)] {
            let what = format!("IOPS of qsd's best, {load}, {place}");
            self.add(&what, of_iops(load), "x", Bound::AtLeast(limit));
        }
        let value = figures.ratio(READ_4K_32, (QCOW2, RAW_FILE), cpu);
        let what = format!("CPU of a raw file, {READ_4K_32}, {place}");
        self.add(&what, value, "x", Bound::AtMost(1.15));
    }

    /// What an idle server with a large disk weighs.
    pub(crate) fn of_idle_servers(&mut self, program: &Path, scratch: &Scratch) {
        let graph = scratch.graph("idle.toml", &graph(scratch, "1TiB", false));
        let daemon = Daemon::start(program, &graph, &[]);
        std::thread::sleep(REST);
        let mib = daemon.resident_bytes() as f64 / f64::from(1 << 20);
        let what = "resident when idle, with 1 TiB and a bitmap";
        self.add(what, Some(mib), "MiB", Bound::AtMost(48.0));
        daemon.finish();
    }

    /// From the start of the process to `ready`.
    pub(crate) fn of_starts(&mut self, program: &Path, scratch: &Scratch) {
        for (what, plugins, limit) in
            [("without plugins", false, 100.0), ("with two plugins", true, 200.0)]
        {
            let graph = scratch.graph("start.toml", &graph(scratch, "1GiB", plugins));
            let start = || {
                let daemon = Daemon::start(program, &graph, &[]);
                let time = daemon.start_time();
                daemon.finish();
                time.as_secs_f64() * 1e3
            };
            let value = median((0..STARTS).map(|_| start()));
            self.add(
                &format!("from start to ready, {what}"),
                Some(value),
                "ms",
                Bound::AtMost(limit),
            );
        }
    }

    /// Prints them.
    pub(crate) fn print(&self) {
        println!();
        for line in &self.0 {
            println!("{line}");
        }
    }
}

/// A sparse file, a bitmap, an export; `pass` and `throttle` between if `plugins`.
fn graph(scratch: &Scratch, size: &str, plugins: bool) -> String {
    let image = scratch.image(&format!("{size}.img"));
    let mut text = format!(
        "[node.file]\ndriver = \"file\"\npath = \"{}\"\ncreate = \"{size}\"\n",
        image.display()
    );
    let mut root = "file";
    for plugin in ["pass", "throttle"].into_iter().filter(|_| plugins) {
        text += &format!(
            "[node.{plugin}]\ndriver = \"plugin\"\nplugin = \"{plugin}\"\nchild.file = \"{root}\"\n"
        );
        root = plugin;
    }
    text + &format!(
        "[drive.vda]\nroot = \"{root}\"\n[bitmap.daily]\ndrive = \"vda\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:vda.sock\"\n\
         writable = true\nbitmaps = [\"daily\"]\n"
    )
}
