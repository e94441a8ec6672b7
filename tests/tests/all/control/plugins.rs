//! Plugins by command.

use std::fs;

use blockloom::plugin::bundled;
use blockloom_tests::nbd::Client;
use serde_json::json;

use super::Controlled;
use crate::memory_disk;

#[test]
fn plugins_are_loaded_reloaded_and_listed() {
    let host = Controlled::start(&memory_disk(crate::MIB), &[]);
    let mut client = host.client();
    assert_eq!(client.run("query-plugins", json!({})), json!([]));
    let module = bundled("throttle").expect("a plugin");
    fs::write(host.scratch.path("slow.wasm"), module).expect("a file");
    let info = client.run("plugin-load", json!({"plugin": "slow.wasm"}));
    assert_eq!((&info["name"], &info["instances"]), (&json!("throttle"), &json!([])));
    assert!(info["abi"].as_str().is_some_and(|abi| abi.starts_with("blockloom:filter@")), "{info}");
    let (_, desc) = client.fail("plugin-load", json!({"plugin": "none"}));
    assert!(desc.contains("there is no bundled plugin `none`"), "{desc}");
    let (_, desc) = client.fail("plugin-load", json!({"plugin": "graph.toml"}));
    assert!(desc.contains("graph.toml"), "{desc}");

    let filter = json!({"driver": "plugin", "plugin": "slow.wasm", "node-name": "slow",
        "config": {"iops": 1000}});
    client.run("blockdev-insert-filter", json!({"filter": filter, "above": "disk"}));
    let mut nbd = Client::open(host.daemon.uri("vda"));
    assert_eq!(nbd.write(0, 0, b"x"), 0);
    let plugins = client.run("query-plugins", json!({}));
    let instance = plugins[0]["instances"][0].clone();
    assert_eq!((&instance["nodes"], &instance["state"]), (&json!(["slow"]), &json!("running")));
    assert_eq!((&instance["reloads"], &instance["faults"]), (&json!(0), &json!(0)));

    client.run("plugin-reload", json!({"node": "slow", "config": {"iops": 2000}}));
    let (_, desc) =
        client.fail("plugin-reload", json!({"node": "slow", "config": {"iops": "many"}}));
    assert!(desc.contains("its configuration is refused"), "{desc}");
    let changed: Vec<u8> = module.iter().copied().chain([0, 2, 1, b'x']).collect();
    fs::write(host.scratch.path("slow.wasm"), changed).expect("a file");
    client.run("plugin-reload", json!({"node": "slow"}));
    let (_, desc) = client.fail("plugin-reload", json!({"node": "disk"}));
    assert!(desc.contains("no node of a plugin"), "{desc}");
    assert_eq!(client.event("PLUGIN_RELOADED")["data"]["node-name"], "slow");
    assert_eq!(nbd.read(0, 1), Ok(b"x".to_vec()));
    let plugins = client.run("query-plugins", json!({}));
    let all = plugins.as_array().expect("a list");
    let instances = all.iter().flat_map(|it| it["instances"].as_array().expect("a list"));
    let reloads: Vec<_> = instances.map(|it| it["reloads"].clone()).collect();
    assert_eq!(reloads, [json!(1)]);
    client.run("blockdev-remove-filter", json!({"node-name": "slow"}));
    host.finish();
}
