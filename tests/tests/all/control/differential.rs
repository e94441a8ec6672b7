//! The same input to us and to qemu-storage-daemon: the same answers, word by word, but for what is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Killed, tools};
use serde_json::{Value, json};

use super::Controlled;

/// qemu-storage-daemon; killed when dropped.
pub(super) struct Peer {
    child: Killed,
    pub(super) socket: PathBuf,
}

impl Peer {
    /// Starts it, with a monitor at `socket`.
    pub(super) fn start(mut command: Command, socket: PathBuf) -> Self {
        let chardev = format!("socket,path={},server=on,wait=off,id=c", socket.display());
        command.args(["--chardev", &chardev, "--monitor", "chardev=c"]);
        let child = command.stdin(Stdio::null()).spawn().expect("start qemu-storage-daemon");
        Self { child: child.into(), socket }
    }
}

/// Both, with a null node `n0` of 1 MiB.
pub(super) fn both() -> Option<(Controlled, Peer)> {
    if !tools::have(&["qemu-storage-daemon"]) {
        return None;
    }
    let graph = "[node.n0]\ndriver = \"null\"\nsize = \"1MiB\"\nread-zeroes = true\n";
    let host = Controlled::start(graph, &[]);
    let socket = host.scratch.path("peer.sock");
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", "null-co,node-name=n0,size=1048576,read-zeroes=on"]);
    let peer = Peer::start(command, socket);
    Some((host, peer))
}

/// Answers to an input, without what depends on who answers.
pub(super) fn answers(client: &mut Qmp, input: &[u8]) -> Vec<Value> {
    client.send(input);
    client.send("\n{\"execute\": \"query-version\", \"id\": \"the end\"}\n");
    let mut all = Vec::new();
    loop {
        let mut answer = client.answer();
        if answer["id"] == "the end" {
            return all;
        }
        if answer["return"]["qemu"].is_object() {
            answer["return"] = json!("a version");
        }
        all.push(answer);
    }
}

const BEFORE_NEGOTIATION: [&str; 6] = [
    r#"{"execute":"query-version"}"#,
    r#"{"execute":"nosuch","id":1}"#,
    r#"{"execute":"query-version","x":1}"#,
    r#"{"id":1}"#,
    r#"{"execute":"qmp_capabilities","arguments":{"x":1}}"#,
    r#"{"execute":"qmp_capabilities","arguments":{"enable":"oob"}}"#,
];

const SAME: [&str; 83] = [
    r#"{"execute":"qmp_capabilities"}"#,
    r#"{"execute":"query-version","id":{"a":[1,2.5,"x",null]}}"#,
    r#"{"execute":"query-version","arguments":{}}"#,
    r#"{"execute":"nosuch"}"#,
    r#"{"execute":"nosuch","arguments":3}"#,
    r#"{"execute":""}"#,
    r#"{"execute":5}"#,
    r#"{}"#,
    r#"{"id":4}"#,
    r#"{"id":null}"#,
    r#"[1,2]"#,
    r#""str""#,
    r#"12 "#,
    r#"-1.5e3 "#,
    r#"null "#,
    r#"true false "#,
    r#"{"execute":"query-version","foo":1}"#,
    r#"{"execute":"nosuch","control":{}}"#,
    r#"{"execute":"query-version","arguments":[]}"#,
    r#"{"execute":"query-version","arguments":null}"#,
    r#"{"execute":"query-version","arguments":{"x":1}}"#,
    r#"{"execute":"query-version","exec-oob":"query-version"}"#,
    r#"{"exec-oob":"query-version","id":1}"#,
    "{\"execute\":\n\"query-version\"\n}",
    r#"{"execute":"query-version"}{"execute":"query-version","id":2}"#,
    r#"}{"execute":"query-version"}"#,
    r#"]"#,
    r#"{]"#,
    r#"[}"#,
    r#"{"execute":"query-version",}"#,
    r#"{execute:1}"#,
    r#"{"a" 1}"#,
    r#"{"a":}"#,
    r#"{"a":1 "b":2}"#,
    r#"{1:2}"#,
    r#"[1 2]"#,
    r#"[1,]"#,
    r#"[,1]"#,
    r#":"#,
    r#","#,
    r#"{'execute':'query-version'}"#,
    r#"{"a":"\x"}"#,
    r#"{"a":"\u12"}"#,
    r#"{"a":"\u0000"}"#,
    r#"{"a":tru}"#,
    r#"TRUE"#,
    r#"{"execute":"query-version"} garbage "#,
    r#"garbage "#,
    r#"% {"execute":"query-version"}"#,
    r#"%d "#,
    r#"{"execute":"query-version","id":"\ud800"}"#,
    r#"{"execute":"query-version","id":"\udc00"}"#,
    r#"{"execute":"query-version","id":"é\u00e9\ud83d\ude00"}"#,
    r#"{"execute":"query-version","id":1,"id":2}"#,
    r#"{"execute":"query-version","id":01}"#,
    r#"{"execute":"query-version","id":-0}"#,
    r#"{"execute":"query-version","id":-x}"#,
    r#"{"execute":"query-version","id":1.}"#,
    r#"{"execute":"query-version","id":18446744073709551615}"#,
    "\"a\nb\"",
    r#"{"execute":"block_resize"}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":"n0"}}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":"n0","size":"1"}}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":"n0","size":1.0}}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":"n0","size":-1}}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":"n0","size":99999999999999999999}}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":null,"size":1}}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":"zz","size":1}}"#,
    r#"{"execute":"block_resize","arguments":{"device":"zz","size":1}}"#,
    r#"{"execute":"block_resize","arguments":{"size":1}}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":"n0","size":1,"zz":1}}"#,
    r#"{"execute":"block_resize","arguments":{"node-name":"n0","zz":1}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"n0","name":"b","granularity":5}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"n0","name":"b","granularity":4294967296}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"n0","name":"b","persistent":"yes"}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"n0","name":""}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"nx","name":"b"}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"n0","name":"b"}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"n0","name":"b"}}"#,
    r#"{"execute":"block-dirty-bitmap-clear","arguments":{"node":"n0","name":"zz"}}"#,
    r#"{"execute":"block-dirty-bitmap-clear","arguments":{"node":"zz","name":"zz"}}"#,
    r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"n0","target":"b","bitmaps":["zz"]}}"#,
    r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"n0","target":"b","bitmaps":[{"node":"n0"}]}}"#,
];

const SAME_IN_TRANSACTIONS: [&str; 14] = [
    r#"{"actions":5}"#,
    r#"{"actions":[5]}"#,
    r#"{"actions":[{"data":{}}]}"#,
    r#"{"actions":[{"type":"abort"}]}"#,
    r#"{"actions":[{"type":"nosuch","data":{}}]}"#,
    r#"{"actions":[{"type":"abort","data":{"x":1}}]}"#,
    r#"{"actions":[{"type":"abort","data":{},"x":1}]}"#,
    r#"{"actions":[{"type":"abort","data":{}}]}"#,
    r#"{"actions":[{"type":"block-dirty-bitmap-add","data":{"node":"n0"}}]}"#,
    r#"{"actions":[{"type":"block-dirty-bitmap-clear","data":{"node":"n0","name":"b"}}]}"#,
    r#"{"actions":[],"properties":{"completion-mode":"zz"}}"#,
    r#"{"actions":[],"properties":{"completion-mode":"grouped"}}"#,
    r#"{"actions":[],"properties":{"zz":"grouped"}}"#,
    r#"{}"#,
];

/// Nodes, in turn: what fails leaves nothing.
const SAME_OF_NODES: [(&str, &str); 62] = [
    ("blockdev-add", r#"{}"#),
    ("blockdev-add", r#"{"driver":"zz"}"#),
    ("blockdev-add", r#"{"driver":5}"#),
    ("blockdev-add", r#"{"driver":"null-co"}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"n0"}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"0x"}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"a b"}"#),
    ("blockdev-add", r##"{"driver":"null-co","node-name":"#a"}"##),
    ("blockdev-add", r#"{"driver":"null-co","node-name":""}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"n1","size":"x"}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"n1","zz":1}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"n1","read-only":"x"}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"n1","cache":5}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"n1","cache":{"direct":5}}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"n1","cache":{"x":5}}"#),
    ("blockdev-add", r#"{"driver":"null-co","node-name":"n1","discard":"x"}"#),
    ("blockdev-add", r#"{"driver":"file","node-name":"f"}"#),
    ("blockdev-add", r#"{"driver":"file","node-name":"f","filename":"/nonexistent/x"}"#),
    ("blockdev-add", r#"{"driver":"file","node-name":"f","filename":"/tmp"}"#),
    ("blockdev-add", r#"{"driver":"raw","node-name":"r"}"#),
    ("blockdev-add", r#"{"driver":"raw","node-name":"r","file":"zz"}"#),
    ("blockdev-add", r#"{"driver":"raw","node-name":"r","file":5}"#),
    ("blockdev-add", r#"{"driver":"raw","node-name":"r","file":null}"#),
    ("blockdev-add", r#"{"driver":"raw","node-name":"r","file":{"driver":"zz"}}"#),
    ("blockdev-add", r#"{"driver":"raw","node-name":"r","file":{"driver":"null-co","zz":1}}"#),
    (
        "blockdev-add",
        r#"{"driver":"raw","node-name":"r","file":{"driver":"null-co","node-name":"n0"}}"#,
    ),
    (
        "blockdev-add",
        r#"{"driver":"raw","node-name":"r","file":{"driver":"null-co","node-name":"r"}}"#,
    ),
    ("blockdev-add", r#"{"driver":"raw","node-name":"r","file":"n0"}"#),
    (
        "blockdev-add",
        r#"{"driver":"raw","node-name":"r2","file":{"driver":"null-co","node-name":"r2f","size":1048576}}"#,
    ),
    ("blockdev-add", r#"{"driver":"copy-on-read","node-name":"t","file":"n0","bottom":"zz"}"#),
    ("blockdev-add", r#"{"driver":"copy-before-write","node-name":"t","file":"n0"}"#),
    ("blockdev-del", r#"{}"#),
    ("blockdev-del", r#"{"node-name":"zz"}"#),
    ("blockdev-del", r#"{"node-name":""}"#),
    ("blockdev-del", r#"{"node-name":5}"#),
    ("blockdev-del", r#"{"node-name":"r2"}"#),
    ("blockdev-del", r#"{"node-name":"r2"}"#),
    ("blockdev-reopen", r#"{}"#),
    ("blockdev-reopen", r#"{"options":[{"driver":"raw"}]}"#),
    ("blockdev-reopen", r#"{"options":[{"driver":"raw","node-name":"r"}]}"#),
    ("blockdev-reopen", r#"{"options":[{"driver":"raw","file":"n0"}]}"#),
    ("blockdev-reopen", r#"{"options":[{"driver":"raw","node-name":"zz","file":"n0"}]}"#),
    ("blockdev-reopen", r#"{"options":[{"driver":"raw","node-name":"r","file":"zz"}]}"#),
    ("blockdev-reopen", r#"{"options":[{"driver":"raw","node-name":"r","file":"n0"}]}"#),
    ("blockdev-reopen", r#"{"options":[5]}"#),
    ("blockdev-reopen", r#"{"options":{}}"#),
    ("nbd-server-stop", r#"{}"#),
    ("nbd-server-start", r#"{}"#),
    ("nbd-server-start", r#"{"addr":5}"#),
    ("nbd-server-start", r#"{"addr":{}}"#),
    ("nbd-server-start", r#"{"addr":{"type":"unix"}}"#),
    ("nbd-server-start", r#"{"addr":{"type":"unix","path":"/x"}}"#),
    ("nbd-server-start", r#"{"addr":{"type":"unix","data":{}}}"#),
    ("nbd-server-start", r#"{"addr":{"type":"zz","data":{"path":"/nonexistent/s"}}}"#),
    ("nbd-server-start", r#"{"addr":{"type":"inet","data":{"host":"localhost","port":5}}}"#),
    ("nbd-server-start", r#"{"addr":{"type":"inet","data":{"host":"localhost"}}}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e0","node-name":"n0"}"#),
    ("blockdev-snapshot", r#"{}"#),
    ("blockdev-snapshot", r#"{"node":"zz","overlay":"n0"}"#),
    ("blockdev-snapshot", r#"{"node":"n0","overlay":"zz"}"#),
    ("blockdev-snapshot", r#"{"node":"n0","overlay":"n0"}"#),
    ("blockdev-snapshot", r#"{"node":"n0","overlay":"r"}"#),
];

/// The same of exports, once the server has been started.
const SAME_OF_EXPORTS: [(&str, &str); 24] = [
    ("block-export-add", r#"{}"#),
    ("block-export-add", r#"{"type":"nbd"}"#),
    ("block-export-add", r#"{"type":"zz"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e0"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e0","node-name":"zz"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e 0","node-name":"n0"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"","node-name":"n0"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e0","node-name":"n0","zz":1}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e0","node-name":"n0","bitmaps":["zz"]}"#),
    (
        "block-export-add",
        r#"{"type":"nbd","id":"e0","node-name":"n0","bitmaps":[{"node":"zz","name":"a"}]}"#,
    ),
    (
        "block-export-add",
        r#"{"type":"nbd","id":"e0","node-name":"n0","bitmaps":[{"node":"n0","name":"a"}]}"#,
    ),
    ("block-export-add", r#"{"type":"nbd","id":"e0","node-name":"n0","iothread":"zz"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e0","node-name":"n0","writethrough":5}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e0","node-name":"n0"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e0","node-name":"n0"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e1","node-name":"n0","name":"n0"}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e1","node-name":"n0","name":""}"#),
    ("block-export-add", r#"{"type":"nbd","id":"e2","node-name":"n0","name":"w","writable":true}"#),
    ("block-export-del", r#"{"id":"zz"}"#),
    ("block-export-del", r#"{}"#),
    ("block-export-del", r#"{"id":"e0","mode":"zz"}"#),
    ("block-export-del", r#"{"id":"e0"}"#),
    ("block-export-del", r#"{"id":"e0"}"#),
    ("block-export-del", r#"{"id":"e1","mode":"hard"}"#),
];

#[test]
fn answers_are_qemus() {
    let Some((host, peer)) = both() else { return };
    let (mut ours, mut theirs) = (Qmp::connect(&host.socket), Qmp::connect_peer(&peer.socket));
    let mut check = |input: &[u8]| {
        let (ours, theirs) = (answers(&mut ours, input), answers(&mut theirs, input));
        assert_eq!(ours, theirs, "{}", input.escape_ascii());
    };
    BEFORE_NEGOTIATION.iter().for_each(|input| check(input.as_bytes()));
    check(br#"{"execute":"qmp_capabilities"}"#);
    SAME.iter().for_each(|input| check(input.as_bytes()));
    for arguments in SAME_IN_TRANSACTIONS {
        let input = format!("{{\"execute\":\"transaction\",\"arguments\":{arguments}}}");
        check(input.as_bytes());
    }
    check(b"\xff {\"execute\":\"query-version\"}");
    check(b"\0");
    check(b"{\"execute\":\"query-version\",\"id\":\"\xff\"}");
    check(b"\"\xc3\"");
    check(("[".repeat(500) + &"]".repeat(500)).as_bytes());
    host.finish();
}

#[test]
fn answers_about_nodes_and_exports_are_qemus() {
    let Some((host, peer)) = both() else { return };
    let (mut ours, mut theirs) = (host.client(), Qmp::open_peer(&peer.socket));
    let (our_socket, their_socket) = (host.scratch.path("a.nbd"), host.scratch.path("b.nbd"));
    let mut check = |command: &str, arguments: &str| {
        let input = |socket: &PathBuf| {
            let arguments = arguments.replace("SOCKET", &socket.display().to_string());
            format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}")
        };
        let our_answers = answers(&mut ours, input(&our_socket).as_bytes());
        let their_answers = answers(&mut theirs, input(&their_socket).as_bytes());
        assert_eq!(our_answers, their_answers, "{command} {arguments}");
    };
    SAME_OF_NODES.iter().for_each(|(command, arguments)| check(command, arguments));
    let listen = r#"{"addr":{"type":"unix","data":{"path":"SOCKET"}}}"#;
    check("nbd-server-start", listen);
    check("nbd-server-start", listen);
    SAME_OF_EXPORTS.iter().for_each(|(command, arguments)| check(command, arguments));
    // We say more of each; what they say is the same.
    let [ours, theirs] = [&mut ours, &mut theirs].map(|client| {
        let mut all = client.run("query-block-exports", json!({}));
        for export in all.as_array_mut().expect("a list") {
            let said = |key: &str| export[key].clone();
            let of = ["id", "type", "node-name", "shutting-down"].map(said);
            *export = json!(of);
        }
        all
    });
    assert_eq!(ours, theirs);
    host.finish();
}

/// Where we answer differently, and how.
#[test]
fn answers_that_differ() {
    let Some((host, peer)) = both() else { return };
    let (mut ours, mut theirs) = (host.client(), Qmp::open_peer(&peer.socket));
    let mut check = |input: &str, expect: [&str; 2]| {
        let all = [answers(&mut ours, input.as_bytes()), answers(&mut theirs, input.as_bytes())];
        let descs =
            all.map(|answers| answers[0]["error"]["desc"].as_str().unwrap_or("").to_owned());
        assert_eq!(descs, expect, "{input}");
    };
    // Its own visitor knows no path within lists.
    check(
        r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"n0","target":"b","bitmaps":[5]}}"#,
        [
            "Invalid parameter type for 'bitmaps[0]', expected: BlockDirtyBitmapOrStr",
            "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr",
        ],
    );
    // It takes deeper values; and says its limit again for each bracket that is left.
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    check(&deep(600), ["JSON nesting depth limit exceeded", "QMP input must be a JSON object"]);
    for (arguments, expect) in [
        (
            r#"{"driver":"throttle","node-name":"t","file":"n0","throttle-group":"zz"}"#,
            ["", "Throttle group 'zz' does not exist"],
        ),
        (
            r#"{"driver":"qcow2","node-name":"q","file":"n0","backing":null}"#,
            [
                "node `q`: not a qcow2 image: the magic number is missing",
                "Image is not in qcow2 format",
            ],
        ),
    ] {
        let input = format!("{{\"execute\":\"blockdev-add\",\"arguments\":{arguments}}}");
        check(&input, expect);
    }
    check(
        r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"n0","name":"p","persistent":true}}"#,
        [
            "node `n0` has no image that keeps bitmaps",
            "Can't store persistent bitmaps to n0: Operation not supported",
        ],
    );
    host.finish();
}

/// Documented commands on which it aborts: there the host goes on, with an answer.
#[test]
fn what_aborts_qemu_is_answered() {
    let Some((host, mut peer)) = both() else { return };
    let mut ours = host.client();
    let (_, desc) =
        ours.fail("blockdev-add", json!({"driver": "null-co", "node-name": "n1", "size": -5}));
    assert_eq!(desc, "Parameter 'size' expects uint64_t");
    ours.run("blockdev-reopen", json!({"options": []}));
    let mut theirs = Qmp::open_peer(&peer.socket);
    theirs.send("{\"execute\":\"blockdev-reopen\",\"arguments\":{\"options\":[]}}\n");
    assert_eq!(theirs.line(), None, "it answers by now: a case less");
    assert!(!peer.child.wait().expect("its end").success());
    host.finish();
}

struct Schemas {
    ours: BTreeMap<String, Value>,
    theirs: BTreeMap<String, Value>,
    seen: BTreeSet<(String, String)>,
}

impl Schemas {
    /// What a client may send to them it may send to us, and what it may count on from them it gets from us.
    fn check(&mut self, ours: &str, theirs: &str, at: &str, is_argument: bool) {
        if !self.seen.insert((ours.to_owned(), theirs.to_owned())) {
            return;
        }
        let (mine, peer) = (self.ours[ours].clone(), self.theirs[theirs].clone());
        // What may be anything says nothing; a union's branches are not all there.
        if mine["json-type"] == "value" || peer["json-type"] == "value" {
            return;
        }
        assert_eq!(mine["meta-type"], peer["meta-type"], "{at}");
        assert_eq!(mine["json-type"], peer["json-type"], "{at}");
        if let (Some(mine), Some(peer)) =
            (mine["element-type"].as_str(), peer["element-type"].as_str())
        {
            self.check(mine, peer, &format!("{at}[]"), is_argument);
        }
        if mine["meta-type"] == "object" {
            self.check_members(&mine, &peer, at, is_argument);
        }
    }

    fn check_members(&mut self, mine: &Value, peer: &Value, at: &str, is_argument: bool) {
        let members = |of: &Value| -> BTreeMap<String, Value> {
            let all = of["members"].as_array().expect("members").iter();
            all.map(|it| (it["name"].as_str().expect("a name").to_owned(), it.clone())).collect()
        };
        let (mine, peer) = (members(mine), members(peer));
        let is_optional = |member: &Value| member.get("default").is_some();
        for (name, member) in &peer {
            let at = format!("{at}.{name}");
            let Some(ours) = mine.get(name) else {
                assert!(!is_argument && is_optional(member), "{at} is missing");
                continue;
            };
            if is_argument {
                assert!(is_optional(ours) || !is_optional(member), "{at} must be given");
            } else {
                assert!(!is_optional(ours) || is_optional(member), "{at} may be missing");
            }
            let name = |member: &Value| member["type"].as_str().expect("a type").to_owned();
            self.check(&name(ours), &name(member), &at, is_argument);
        }
        for (name, ours) in mine.iter().filter(|(name, _)| !peer.contains_key(*name)) {
            assert!(!is_argument || is_optional(ours), "{at}.{name} must be given to us alone");
        }
    }
}

/// Each command that both have takes what theirs takes, and returns what theirs is sure to return.
#[test]
fn schemas_fit() {
    let Some((host, peer)) = both() else { return };
    let entries = |client: &mut Qmp| -> BTreeMap<String, Value> {
        let schema = client.run("query-qmp-schema", json!({}));
        let all = schema.as_array().expect("a list").iter();
        all.map(|it| (it["name"].as_str().expect("a name").to_owned(), it.clone())).collect()
    };
    let ours = entries(&mut host.client());
    let theirs = entries(&mut Qmp::open_peer(&peer.socket));
    let mut schemas = Schemas { ours, theirs, seen: BTreeSet::new() };
    let is_command = |entry: &Value| entry["meta-type"] == "command";
    let shared: Vec<String> = schemas
        .ours
        .iter()
        .filter(|(name, entry)| is_command(entry) && schemas.theirs.contains_key(*name))
        .map(|(name, _)| name.clone())
        .collect();
    assert!(shared.len() >= 24, "{shared:?}");
    for command in shared {
        for (key, is_argument) in [("arg-type", true), ("ret-type", false)] {
            let name = |entry: &Value| entry[key].as_str().expect("a type").to_owned();
            let (ours, theirs) = (name(&schemas.ours[&command]), name(&schemas.theirs[&command]));
            schemas.check(&ours, &theirs, &format!("{command} {key}"), is_argument);
        }
    }
    host.finish();
}
