//! What does a request cost, against the peers?
//!
//! A disk in memory behind NBD on a unix socket, without and with the `throttle` plugin (unlimited) in
//! the path, against `nbdkit memory` and, where installed, qemu-storage-daemon with a raw file on
//! tmpfs. The load is fio's nbd engine. All disks are filled with random data first, so that no server
//! profits from zeros. Servers run side by side and are measured in turn, round by round; figures are
//! medians of the rounds, ratios are medians of each round's ratio. Then what an idle server weighs
//! and how long a start takes, the same for images (`qcow2.rs`), what filters cost (`filters.rs`), and jobs (`jobs.rs`).
//!
//! ```text
//! cargo bench -p blockloom-tests --bench peers -- [--only SECTION] [--rounds N] [--secs S] [--size-mib M]
//!     [--program FILE]
//! ```
//!
//! Sections are `requests`, `starts`, `qcow2-tmpfs`, `qcow2-disk`, `qcow2-open`, `filters-steady`,
//! `filters-workers`, `filters-cbw-tmpfs`, `filters-cbw-disk` and `jobs`; the beginning of a name stands for all that
//! begin so.
//!
//! A missed target is printed, not failed: only an idle machine proves anything.

mod filters;
mod jobs;
mod load;
mod options;
mod qcow2;
mod servers;
mod targets;

use blockloom_tests::Scratch;

use load::{Figures, WORKLOADS, fill, measure};
use options::Options;
use servers::{NBDKIT, Server};
use targets::Targets;

fn main() {
    let Some(options) = Options::from_arguments() else { return };
    // Images lie where cargo lets benchmarks write; sockets have short paths of their own.
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR").as_ref());
    println!("program: {}", options.program.display());
    print_load();
    let mut targets = Targets::default();
    if !load::has_fio() {
        println!("SKIPPED: all comparisons need `fio` with its `nbd` engine");
    } else {
        if options.has("requests") {
            let servers = servers::start_all(&options, &scratch);
            let figures = compare(&options, &servers);
            targets.of_requests(&figures);
        }
        qcow2::compare(&options, &scratch, &mut targets);
        filters::compare(&options, &scratch, &mut targets);
        jobs::compare(&options, &scratch, &mut targets);
    }
    if options.has("starts") {
        targets.of_idle_servers(&options.program, &scratch);
        targets.of_starts(&options.program, &scratch);
    }
    if options.has("qcow2-open") {
        qcow2::open(&options, &scratch, &mut targets);
    }
    print_load();
    targets.print();
}

/// All workloads on all servers.
fn compare(options: &Options, servers: &[Server]) -> Figures {
    for server in servers {
        fill(server, options.size_mib);
    }
    println!("\n{:24} {:20} {:>10} {:>14}", "workload", "server", "IOPS", "CPU s / M I/Os");
    let mut figures = Figures::default();
    for workload in &WORKLOADS {
        for _ in 0..options.rounds {
            for server in servers {
                let figure = measure(server, workload, options, options.size_mib);
                figures.add(workload.name, server.name, figure);
            }
        }
        let names: Vec<_> = servers.iter().map(|server| server.name).collect();
        figures.print(workload.name, &names, NBDKIT);
    }
    figures
}

/// Whoever reads the figures must know whether the machine was idle.
fn print_load() {
    let average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let minutes: Vec<_> = average.split(' ').take(2).collect();
    println!("load average of 1 and 5 min.: {} ({cores} cores)", minutes.join(", "));
}
