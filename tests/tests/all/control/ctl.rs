//! `blockloom ctl`, and `blockloom graph --control`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use blockloom_tests::{Killed, eventually, tools};
use serde_json::{Value, json};

use super::Controlled;
use crate::{MIB, memory_disk};

fn ctl(host: &Controlled, arguments: &[&str]) -> Output {
    let mut command = Command::new(crate::program());
    command.arg("ctl").arg("--control").arg(&host.socket).args(arguments).stdin(Stdio::null());
    command.output().expect("run ctl")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn good(host: &Controlled, arguments: &[&str]) -> String {
    let output = ctl(host, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn bad(host: &Controlled, arguments: &[&str], code: i32) -> String {
    let output = ctl(host, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

#[test]
fn commands_by_words() {
    let host = Controlled::memory();
    let mut watch = Command::new(crate::program());
    watch.arg("ctl").arg("--control").arg(&host.socket).arg("watch");
    let mut watch = Killed::from(watch.stdout(Stdio::piped()).spawn().expect("run ctl"));
    let mut events = BufReader::new(watch.stdout.take().expect("stdout is piped")).lines();

    // The watcher may come late: events go on until it has seen one.
    let add = ["block-dirty-bitmap-add", "node=vda", "name=5", "granularity=4KiB"];
    assert_eq!(good(&host, &add), "");
    let error = bad(&host, &add, 1);
    assert_eq!(error, "error: Bitmap already exists: 5\n");
    let seen = std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let mut lines = events.by_ref().map(|line| line.expect("a line"));
            lines.find(|line| line.contains("BLOCK_DIRTY_BITMAP_CHANGED")).expect("an event")
        });
        while !first.is_finished() {
            good(&host, &["block-dirty-bitmap-clear", "node=vda", "name=5"]);
        }
        first.join().expect("a watcher")
    });
    let event: Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!(
        (&event["event"], &event["data"]["name"]),
        (&json!("BLOCK_DIRTY_BITMAP_CHANGED"), &json!("5"))
    );

    let shown = good(&host, &["block-dirty-bitmap-query", "{\"node\": \"vda\", \"name\": \"5\"}"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["granularity"], 4096);
    let error = bad(&host, &["query-blok"], 2);
    assert_eq!(error, "error: the host has no command `query-blok`: did you mean `query-block`?\n");
    let error = bad(&host, &["block_resize", "size"], 2);
    assert!(error.contains("`size` is neither `key=value` nor a JSON object"), "{error}");
    let error = bad(&host, &["block_resize", "device=none", "size=1MiB"], 1);
    assert_eq!(error, "error: Cannot find device='none' nor node-name=''\n");

    let complete = |words: &[&str]| {
        let words: Vec<&str> = ["complete"].iter().chain(words).copied().collect();
        good(&host, &words).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["query-blocks"]), ["query-blockstats"]);
    assert_eq!(complete(&["block_resize", "node-name="]), ["node-name=disk"]);
    assert_eq!(complete(&["block_resize", "device="]), ["device=vda"]);
    assert_eq!(complete(&["drive-set-writable", "id="]), ["id=vda"]);
    assert_eq!(complete(&["job-cancel", "id="]), [""; 0]);
    assert_eq!(complete(&["block-dirty-bitmap-clear", "node=vda", "name="]), ["name=5"]);
    assert_eq!(complete(&["blockdev-replace", "on-unproven=r"]), ["on-unproven=refuse"]);
    let add = ["block-export-add", "type=nbd", "id=e5", "node-name=vda", "name=7", "listen=unix:c"];
    assert_eq!(good(&host, &add), "");
    assert_eq!(complete(&["block-export-del", "id="]), ["id=e5", "id=vda"]);
    assert_eq!(complete(&["block-export-add", "type=nbd", "wr"]), ["writable=", "writethrough="]);
    assert_eq!(complete(&["blockdev-add", "driver=null-"]), ["driver=null-aio", "driver=null-co"]);
    assert_eq!(complete(&["blockdev-insert-filter", "above=v"]), ["above=vda"]);
    assert_eq!(good(&host, &["block-export-del", "id=e5", "mode=hard"]), "");

    good(&host, &["quit"]);
    let ended = host.daemon.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    while events.next().is_some() {}
    assert_eq!(watch.wait().expect("its end").code(), Some(0));
}

#[test]
fn jobs_are_followed() {
    if !super::jobs::scene::can_start() {
        return;
    }
    let broken = "[node.bad]\ndriver = \"plugin\"\nplugin = \"error\"\nchild.file = \"tgt\"\n\
        config = { kinds = [\"write\", \"zero\"] }\n";
    let host = super::jobs::scene::host(broken);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(crate::program());
        command.arg("ctl").arg("--control").arg(&host.socket).args(arguments);
        let output = command.stdin(Stdio::null()).output().expect("run ctl");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    // Without `--wait` it says how far the job is and goes; the job may not have got a turn by then.
    let slow = ["block-stream", "device=vda", "job-id=slow", "speed=1"];
    let said = good(&host, &slow);
    let expect = ["created: 0 B of 0 B", "running: 0 B of 16 MiB"];
    assert!(expect.iter().any(|it| said == format!("stream job `slow` is {it}\n")), "{said}");
    let mut client = host.client();
    client.run("job-cancel", json!({"id": "slow"}));
    while client.run("query-jobs", json!({})) != json!([]) {
        client.event("JOB_STATUS_CHANGE");
    }
    let failed = run(&["--wait", "block-stream", "device=tgt"]);
    assert_eq!((failed.0, &*failed.1, &*failed.2), (Some(1), "", "error: Invalid job ID ''\n"));
    let waiting = ["--wait", "blockdev-mirror", "device=vda", "target=tgt", "sync=full"];
    let mirrored = run(&waiting);
    let expect = (Some(0), "mirror job `vda` is ready: 16 MiB of 16 MiB\n", "");
    assert_eq!((mirrored.0, &*mirrored.1, &*mirrored.2), expect);
    client.run("job-cancel", json!({"id": "vda"}));
    while client.run("query-jobs", json!({})) != json!([]) {
        client.event("JOB_STATUS_CHANGE");
    }
    let streamed = run(&["--wait", "block-stream", "device=vda"]);
    let expect = (Some(0), "stream job `vda` has ended: 16 MiB\n", "");
    assert_eq!((streamed.0, &*streamed.1, &*streamed.2), expect);
    // One that has ended may be seen there before its event comes.
    let backup = ["--wait", "blockdev-backup", "device=vda", "target=bad", "auto-dismiss=false"];
    for _ in 0..20 {
        let failed = run(&[&backup[..], &["sync=full"]].concat());
        let expect =
            "error: backup job `vda` failed: node `bad`: plugin `error` failed the request (EIO)\n";
        assert_eq!((failed.0, &*failed.1, &*failed.2), (Some(1), "", expect));
        client.run("job-dismiss", json!({"id": "vda"}));
    }
    host.finish();
}

/// On a terminal a bar is drawn, and what is left of it in the end is how the job has ended.
#[test]
fn a_terminal_shows_bars() {
    if !super::jobs::scene::can_start() || !tools::have(&["script"]) {
        return;
    }
    let host = super::jobs::scene::host("");
    let socket = host.socket.display();
    let command = format!(
        "{} ctl --control {socket} block-stream device=vda speed=33554432",
        crate::program().display()
    );
    let shown = tools::succeed("script", ["-qec", &command, "/dev/null"]);
    assert!(shown.contains("stream   vda              ["), "{shown:?}");
    assert!(shown.contains("%  running"), "{shown:?}");
    assert!(shown.ends_with("\u{1b}[Jstream job `vda` has ended: 16 MiB\r\n"), "{shown:?}");
    host.finish();
}

/// Who watches has had enough: that is its end. So it is when nobody reads any more.
#[test]
fn a_watch_ends() {
    let host = Controlled::memory();
    let (mut client, mut bitmaps) = (host.client(), 0);
    let mut make_event = || {
        bitmaps += 1;
        let bitmap = json!({"node": "disk", "name": format!("b{bitmaps}")});
        client.run("block-dirty-bitmap-add", bitmap);
    };
    let watch = || {
        let mut command = Command::new(crate::program());
        command.arg("ctl").arg("--control").arg(&host.socket).arg("watch");
        Killed::from(command.stdout(Stdio::piped()).spawn().expect("run ctl"))
    };
    // What it prints, once it has printed something.
    let watched = |child: &mut Child, make_event: &mut dyn FnMut()| {
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let reader = std::thread::spawn(move || (lines.next(), lines));
        eventually("an event is printed", || {
            make_event();
            reader.is_finished().then_some(())
        });
        reader.join().expect("the reader").1
    };
    for signal in ["-INT", "-TERM"] {
        let mut child = watch();
        let _lines = watched(&mut child, &mut make_event);
        tools::succeed("kill", [signal, &child.id().to_string()]);
        assert_eq!(child.wait().expect("its end").code(), Some(0), "{signal}");
    }
    let mut child = watch();
    drop(watched(&mut child, &mut make_event));
    let status = eventually("it ends", || {
        make_event();
        child.try_wait().expect("wait")
    });
    assert_eq!(status.code(), Some(0));
    host.finish();
}

/// What cannot be said has not been done: stdout is on a full disk.
#[test]
fn a_stdout_that_takes_nothing_is_a_failure() {
    let host = Controlled::memory();
    let path = host.scratch.sparse_image("disk.img", MIB).display().to_string();
    let graph = host.scratch.graph("other.toml", &memory_disk(MIB).replace("nbd.sock", "o.sock"));
    let (socket, graph) = (host.socket.display().to_string(), graph.display().to_string());
    let check = |arguments: &[&str]| {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let mut command = Command::new(crate::program());
        let output = command.args(arguments).stdout(full).output().expect("run it");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(
            stderr.contains("cannot write to stdout: No space left"),
            "{arguments:?}: {stderr}"
        );
    };
    check(&["check", &graph]);
    check(&["graph", &graph]);
    check(&["--help"]);
    check(&["serve", &graph]);
    check(&["image", "info", "--format", "raw", "--output", "json", &path]);
    check(&["image", "map", "--format", "raw", &path]);
    check(&["plugin", "inspect", "pass"]);
    check(&["ctl", "--control", &socket, "query-block"]);
    check(&["graph", "--control", &socket]);
    // A reader that has gone is none.
    let line =
        format!("{} ctl --control {socket} query-qmp-schema | head -1", crate::program().display());
    let output = Command::new("sh").args(["-c", &line]).output().expect("a shell");
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("[\n", ""));
    host.finish();
}

#[test]
fn a_live_graph_is_drawn() {
    let host = Controlled::memory();
    good(&host, &["block-dirty-bitmap-add", "node=vda", "name=daily"]);
    let draw = |format: &str| {
        let mut command = Command::new(crate::program());
        command.arg("graph").arg("--control").arg(&host.socket).args(["--format", format]);
        let output = command.output().expect("run graph");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let listen = host.scratch.path("nbd.sock");
    let expect = format!(
        "drive vda\n\
         ├── export vda: nbd on unix:{}, writable\n\
         ├── bitmap daily: granularity 64KiB, 0 dirty\n\
         └── root: disk (memory 1MiB) [root, uses cr+w, shares cr+wu]\n",
        listen.display()
    );
    assert_eq!(draw("tree"), expect);
    assert!(draw("dot").starts_with("digraph blockloom {"));
    let picture = draw("svg");
    assert!(picture.starts_with("<svg ") && picture.contains("disk (memory 1MiB)"), "{picture}");
    let socket = host.socket.clone();
    host.finish();
    let mut command = Command::new(crate::program());
    let output = command.arg("graph").arg("--control").arg(&socket).output().expect("run graph");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot connect"), "{}", text(&output.stderr));
}
