//! How long does it take to load a plugin, and to have another one after a fault?

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockloom::graph::PermissionSet;
use blockloom::io::BufMut;
use blockloom::plugin::{
    Instance, OnFault, PluginLimits, PluginModule, PluginNode, PluginRuntime, RestartBudget,
    bundled, bundled_names,
};

use crate::{drive_over, verdict};

const ROUNDS: usize = 5;
/// Milliseconds for each KiB of a core module.
const LOAD_LIMIT: f64 = 2.5;
/// Milliseconds.
const RESTART_LIMIT: f64 = 1.0;
/// What the host waits before it makes another instance after a first fault.
const BACK_OFF: Duration = Duration::from_millis(10);

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Loads every bundled plugin, then loses instances of one.
pub(crate) async fn table(runtime: &Arc<PluginRuntime>) {
    println!();
    for name in bundled_names() {
        let kib = bundled(name).expect("a module").len() as f64 / 1024.0;
        let load = |_| {
            let start = Instant::now();
            PluginModule::load_bundled(runtime, name).expect("a plugin");
            start.elapsed()
        };
        let ms = median((0..ROUNDS).map(load).collect());
        let what = format!("load of `{name}`, {kib:.0} KiB in {ms:.0} ms, for each KiB");
        verdict(&what, ms / kib, LOAD_LIMIT, "ms");
    }
    for name in ["throttle", "pass"] {
        let mut times = Vec::new();
        let module = Arc::new(PluginModule::load_bundled(runtime, name).expect("a plugin"));
        for _ in 0..4 * ROUNDS {
            times.push(restart(&module).await);
        }
        let what = format!("`{name}`: from a trap to the next answer, without the wait");
        verdict(&what, median(times), RESTART_LIMIT, "ms");
    }
}

/// From the call that traps to the end of the request that was in it.
async fn restart(module: &Arc<PluginModule>) -> Duration {
    let policy = OnFault::Restart(RestartBudget::default());
    let instance = Instance::with_policy(module, "{}", PluginLimits::default(), policy);
    let instance = instance.expect("an instance");
    let node = Arc::new(PluginNode::new(&instance).expect("a node"));
    let drive = drive_over(Some(node), PermissionSet::NONE);
    drive.read(0, BufMut::new(4096)).await.expect("a read");
    instance.confuse();
    let start = Instant::now();
    drive.read(0, BufMut::new(4096)).await.expect("a read");
    let time = start.elapsed();
    assert_eq!(instance.restarts(), 1, "it was not restarted");
    time.saturating_sub(BACK_OFF)
}
