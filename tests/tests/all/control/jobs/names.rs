//! Images that clients name by their files, found as by qemu-storage-daemon.

use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use super::scene::{can_start, host, life, peer, status};
use crate::scratch;

/// Starts a job that is not to end, and has it end; what it answers, without the directory.
fn tries(client: &mut Qmp, directory: &str, command: &str, arguments: &Value) -> Value {
    let text = arguments.to_string().replace("DIR", directory);
    let mut arguments: Value = serde_json::from_str(&text).expect("JSON");
    (arguments["job-id"], arguments["device"]) = (json!("j"), json!("top"));
    arguments["auto-finalize"] = json!(false);
    let answer = client.ask(command, arguments);
    if answer.get("error").is_none() {
        client.run("job-cancel", json!({"id": "j"}));
        life(client, "j", status("null"));
        return json!("started");
    }
    let text = answer["error"]["desc"].to_string().replace(directory, "DIR");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn an_image_of_the_chain_is_found_by_its_file() {
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let (mut ours, mut peers) = (host.client(), Qmp::open_peer(&peer.socket));
    let directory = |scratch: &blockloom_tests::Scratch| {
        let path = scratch.image("base.qcow2").canonicalize().expect("an image");
        path.parent().expect("a directory").to_str().expect("a name").to_owned()
    };
    let (our_directory, their_directory) = (directory(&host.scratch), directory(&theirs));
    let mut check = |command: &str, arguments: Value, expect: &str| {
        // It knows the images by their whole names, and does not stand in their directory.
        let is_whole = arguments.get("top").is_none() && arguments["base"] == "DIR/base.qcow2";
        if expect != "started" || is_whole {
            let theirs = tries(&mut peers, &their_directory, command, &arguments);
            assert_eq!(theirs, expect, "qemu-storage-daemon: {command} {arguments}");
        }
        let ours = tries(&mut ours, &our_directory, command, &arguments);
        assert_eq!(ours, expect, "{command} {arguments}");
    };
    for base in ["base.qcow2", "./base.qcow2", "DIR/base.qcow2", "DIR/./base.qcow2"] {
        check("block-stream", json!({"base": base}), "started");
        check("block-commit", json!({"top-node": "mid", "base": base}), "started");
        let top = base.replace("base", "mid");
        check("block-commit", json!({"top": top, "base": base}), "started");
    }
    for base in ["nothing.qcow2", "tgt.qcow2", "DIR/tgt.qcow2"] {
        let expect = format!("Can't find '{base}' in the backing chain");
        check("block-stream", json!({"base": base}), &expect);
        check("block-commit", json!({"base": base}), &expect);
    }
    host.finish();
}
