//! Limits of throttles that change while requests wait for them.

use super::*;

const MIB: u64 = 1 << 20;

/// A throttle over a disk of its own.
fn throttle(name: &str, more: Value) -> Value {
    let disk = json!({ "driver": "null-co", "size": MIB });
    let mut node = json!({ "driver": "throttle", "node-name": name, "file": disk });
    node.as_object_mut().expect("an object").extend(keys(more));
    node
}

fn keys(more: Value) -> serde_json::Map<String, Value> {
    let Value::Object(keys) = more else { panic!("an object") };
    keys
}

/// What is said of it again.
fn again(name: &str, more: Value) -> Value {
    let mut node = json!({ "driver": "throttle", "node-name": name });
    node["child"] = json!({ "file": file_of(name) });
    node.as_object_mut().expect("an object").extend(keys(more));
    node
}

fn file_of(name: &str) -> String {
    format!("{name}-disk")
}

fn added(host: &Host, name: &str, more: Value) {
    let mut node = throttle(name, more);
    node["file"]["node-name"] = file_of(name).into();
    add(host, node);
    drive(host, &format!("d-{name}"), name, true);
}

/// So slow that what waits would do so for hours: one byte a second.
fn slow() -> Value {
    json!({ "bps": 1 })
}

/// Reads until one waits; has that go on by `change`.
fn goes_on_by(host: &Host, name: &str, change: impl FnOnce()) {
    let drive = host.drive(&format!("d-{name}")).expect("a drive");
    block_on(drive.read(0, 4096)).expect("the first one starts at once");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let reads = (0..4).map(|at| block_on(drive.read(at * 4096, 4096)));
            reads.collect::<crate::Result<Vec<_>>>()
        });
        change();
        waits.join().expect("a reader").expect("reads");
    });
}

#[test]
fn limits_change() {
    let host = host();
    added(&host, "slow", json!({ "config": slow() }));
    goes_on_by(&host, "slow", || reopen(&host, &[again("slow", json!({ "config": {} }))]));
    // What is left out stays.
    reopen(&host, &[again("slow", json!({ "config": slow() }))]);
    reopen(&host, &[again("slow", json!({}))]);
    let faster = json!({ "config": { "bps": "1GiB" } });
    goes_on_by(&host, "slow", || reopen(&host, &[again("slow", faster)]));
    let wrong = refused(&host, &[again("slow", json!({ "config": { "bpz": 1 } }))]);
    assert!(wrong.contains("node `slow`: `config`: bpz: unknown key"), "{wrong}");
    host.shutdown().expect("an end in order");
}

/// They are those of all that share them, also of who comes later.
#[test]
fn limits_of_a_group_change() {
    let host = host();
    let grouped = |config: Value| json!({ "throttle-group": "g", "config": config });
    added(&host, "one", grouped(slow()));
    added(&host, "two", grouped(slow()));
    goes_on_by(&host, "two", || reopen(&host, &[again("one", grouped(json!({})))]));
    added(&host, "three", json!({ "throttle-group": "g" }));
    let differs = host.add(&Fragment::blockdev(throttle("four", grouped(slow()))));
    let differs = differs.expect_err("the group has no limits").brief();
    assert!(differs.contains("share instance `g`, but differ in `config`"), "{differs}");
    let (bytes, requests) = (json!({ "bps": 5 }), json!({ "iops": 5 }));
    let both = [again("one", grouped(bytes.clone())), again("two", grouped(requests))];
    let message = refused(&host, &both);
    assert!(message.contains("node `two`: it shares its limits with node `one`"), "{message}");
    reopen(&host, &[again("one", grouped(bytes.clone())), again("two", grouped(bytes))]);
    host.shutdown().expect("an end in order");
}

/// What waits in the group that it leaves goes on.
#[test]
fn a_node_goes_to_another_group() {
    let host = host();
    let to = |group: &str| json!({ "throttle-group": group });
    added(&host, "other", json!({ "throttle-group": "fast", "config": { "bps": "1GiB" } }));
    added(&host, "slow", json!({ "throttle-group": "g", "config": slow() }));
    added(&host, "last", to("g"));
    goes_on_by(&host, "slow", || reopen(&host, &[again("slow", to("fast"))]));
    // The limits of that group are its own now, and of the other one it has no more.
    let limits = json!({ "throttle-group": "fast", "config": {} });
    reopen(&host, &[again("other", limits)]);
    let drive = host.drive("d-slow").expect("a drive");
    block_on(drive.read(0, 1 << 20)).expect("a read without limits");
    // A group of its own keeps what it had.
    reopen(&host, &[again("last", to("own"))]);
    added(&host, "joined", to("own"));
    let none = json!({ "throttle-group": "own", "config": {} });
    goes_on_by(&host, "joined", || reopen(&host, &[again("last", none)]));
    host.shutdown().expect("an end in order");
}
