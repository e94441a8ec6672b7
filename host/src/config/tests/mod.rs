//! Tests: what users type, and what they read.

mod drawings;
mod exports;
mod filters;
mod graph;
mod hostile;
mod images;
mod nodes;
mod qapi;
mod qcow2;
mod real_images;
mod sharing;
mod top_level;
mod values;
mod world;

use expect_test::Expect;

use super::{GraphSpec, parse};
use crate::draw;

/// Checks what `text` is answered with: the diagnostics, or "ok".
fn check(text: &str, expected: &Expect) {
    let found = match parse("graph.toml", text) {
        Ok(_) => "ok".to_owned(),
        Err(found) => found.to_string(),
    };
    expected.assert_eq(&found);
}

fn tree(spec: &GraphSpec) -> String {
    draw::tree(&draw::of_spec(spec))
}

fn dot(spec: &GraphSpec) -> String {
    draw::dot(&draw::of_spec(spec))
}

fn good(text: &str) -> GraphSpec {
    parse("graph.toml", text).unwrap_or_else(|found| panic!("{found}"))
}

/// Every table and nearly every key of this release.
const KITCHEN_SINK: &str = r#"
[host]
workers = 4
engine = "io-uring"
poll = "50us"

[node.disk]
driver = "file"
path = "disk.img"
create = "1GiB"
direct = true
locking = "on"
discard = false

[node.pass]
driver = "plugin"
plugin = "pass"
child.file = "disk"
grant.file = ["read", "write-unchanged"]
on-fault = "fail"
limits = { memory = "1MiB", call = "1ms", in-flight = 16, hold = "2m" }

[node.slow]
driver = "plugin"
plugin = "throttle"
child.file = "pass"
instance = "group"
config = { iops = 20000, bps = "400MiB", burst = "1s", tiers = [{ at = 1.5 }, { at = 2 }] }

[node.ram]
driver = "memory"
size = "64M"
block-size = 512

[node.part]
driver = "raw"
file = { driver = "raw", file = { driver = "null", size = "1TiB", read-zeroes = true, latency = "5ms" } }
offset = "1MiB"
size = "1GiB"
read-only = true

[node.native]
driver = "throttle"
child.file = "ram"
config = { iops = 100 }

[drive.vda]
root = "slow"

[drive.vdb]
root = "native"

[drive.cdrom]

[bitmap.daily]
drive = "vda"
granularity = "128KiB"
persist = "none"

[bitmap.below]
node = "disk"
name = "lower"
enabled = false

[export.vda]
type = "nbd"
drive = "vda"
listen = "unix:vda.sock"
writable = true
bitmaps = ["daily", "below"]
description = "the \"first\" disk"

[export.vdb]
type = "nbd"
drive = "vdb"
listen = "tcp:[::1]:10809"
name = "second"

[export.peek]
type = "nbd"
node = "part"
listen = "unix:vda.sock"
"#;

/// The example of the documentation, as far as this release goes.
const EXAMPLE: &str = r#"
[node.disk]
driver = "file"
path = "disk.img"
create = "1GiB"

[node.slow]
driver = "plugin"
plugin = "throttle"
child.file = "disk"
on-fault = "fail"
limits = { memory = "16MiB", call = "5ms", in-flight = 256, hold = "30s" }
config = { iops = 20000, bps = "400MiB", burst = "1s" }

[drive.vda]
root = "slow"

[bitmap.daily]
drive = "vda"
granularity = "64KiB"
persist = "none"

[export.vda]
type = "nbd"
drive = "vda"
listen = "unix:/run/blockloom/vda.sock"
writable = true
bitmaps = ["daily"]
"#;
