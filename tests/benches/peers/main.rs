//! What does a request cost, against the peers?
//!
//! A disk in memory behind NBD on a unix socket, without and with the `throttle` plugin (unlimited) in
//! the path, against `nbdkit memory` and, where installed, qemu-storage-daemon with a raw file on
//! tmpfs. The load is fio's nbd engine. All disks are filled with random data first, so that no server
//! profits from zeros. Servers run side by side and are measured in turn, round by round; figures are
//! medians of the rounds, ratios are medians of each round's ratio. Then what an idle server weighs
//! and how long a start takes.
//!
//! ```text
//! cargo bench -p blockloom-tests --bench peers -- [--rounds N] [--secs S] [--size-mib M] [--program FILE]
//! ```
//!
//! A missed target is printed, not failed: only an idle machine proves anything.

mod load;
mod options;
mod servers;
mod targets;

use blockloom_tests::Scratch;

use load::{Figures, WORKLOADS, fill, measure};
use options::Options;
use servers::Server;
use targets::Targets;

fn main() {
    let Some(options) = Options::from_arguments() else { return };
    // Images lie where cargo lets benchmarks write; sockets have short paths of their own.
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR").as_ref());
    println!("program: {}", options.program.display());
    print_load();
    let mut targets = Targets::default();
    if load::has_fio() {
        let servers = servers::start_all(&options, &scratch);
        let figures = compare(&options, &servers);
        targets.of_requests(&figures);
    } else {
        println!("SKIPPED: all comparisons need `fio` with its `nbd` engine");
    }
    targets.of_idle_servers(&options.program, &scratch);
    targets.of_starts(&options.program, &scratch);
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
                figures.add(workload, server, measure(server, workload, options));
            }
        }
        figures.print(workload, servers);
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
