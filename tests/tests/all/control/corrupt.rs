//! Images whose metadata contradict themselves, while they are served.

use std::process::Command;

use blockloom_tests::Scratch;
use blockloom_tests::nbd::Client;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools::{self, succeed};
use serde_json::{Value, json};

use super::Controlled;
use super::differential::Peer;

const EIO: u32 = 5;
/// A bit of an offset at which no cluster can be.
const CROOKED: u8 = 0x02;

/// An image of 1 MiB with some data, whose first cluster cannot be where its L2 entry says.
fn crooked(scratch: &Scratch) -> String {
    let image = scratch.image("disk.qcow2").display().to_string();
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", &image, "1M"]);
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 7 0 64k", &image]);
    let offset_at = |at: u64| {
        let field = scratch.peek("disk.qcow2", at, 8).try_into().expect("eight bytes");
        // Without the flags.
        u64::from_be_bytes(field) & 0x00ff_ffff_ffff_fe00
    };
    let l2 = offset_at(offset_at(40));
    scratch.poke("disk.qcow2", l2 + 6, &[CROOKED]);
    image
}

fn serve(is_writable: bool) -> Controlled {
    let scratch = crate::scratch();
    let image = crooked(&scratch);
    let text = format!(
        "[node.disk]\ndriver = \"qcow2\"\nread-only = {}\n\
         file = {{ driver = \"file\", path = \"{image}\" }}\n\
         [drive.vda]\nroot = \"disk\"\nwritable = {is_writable}\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = {is_writable}\n",
        !is_writable
    );
    Controlled::start_in(scratch, &text, &[])
}

/// Reads what cannot be found, twice; gives what is told of it, without what depends on who tells.
fn told(control: &mut Qmp, uri: &str) -> Value {
    let mut client = Client::open(uri);
    assert_eq!(client.read(0, 4096), Err(EIO));
    assert!(client.read(4096, 4096).is_err());
    let mut event = control.event("BLOCK_IMAGE_CORRUPTED");
    let data = event["data"].as_object_mut().expect("its data");
    let message = data.remove("msg").expect("what is wrong");
    assert!(message.as_str().is_some_and(|it| it.contains("luster")), "{message}");
    // Where: no image is so large that a program would act by that.
    data.remove("offset");
    data.remove("size");
    event["data"].take()
}

#[test]
fn who_finds_an_image_corrupt_says_so_once_and_marks_it() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for is_writable in [true, false] {
        let host = serve(is_writable);
        let mut control = host.client();
        let told = told(&mut control, host.daemon.uri("vda"));
        assert_eq!(told, json!({"device": "vda", "node-name": "disk", "fatal": is_writable}));
        let write = Client::open(host.daemon.uri("vda")).write(0, 512 << 10, &[1; 4096]);
        assert_ne!(write, 0, "nothing is written to it any more");
        let features = host.scratch.peek("disk.qcow2", 79, 1)[0];
        assert_eq!(features & 2 != 0, is_writable, "marked for others, if it may be changed");
        let ended = host.daemon.terminate();
        assert_eq!(
            ended.status.code(),
            Some(i32::from(is_writable)),
            "what was written may be lost"
        );
        let marked = ended.log.matches("is now marked as corrupt").count();
        assert_eq!(marked, usize::from(is_writable), "{}", ended.log);
    }
}

#[test]
fn qemu_tells_the_same() {
    if !tools::have(&["qemu-img", "qemu-io", "qemu-storage-daemon"]) {
        return;
    }
    let scratch = crate::scratch();
    let image = crooked(&scratch);
    let (monitor, server) = (scratch.path("peer.sock"), scratch.path("peer-nbd.sock"));
    let mut command = Command::new("qemu-storage-daemon");
    let node = format!("qcow2,node-name=disk,file.driver=file,file.filename={image}");
    let addr = format!("addr.type=unix,addr.path={}", server.display());
    let export = "type=nbd,id=vda,node-name=disk,name=vda,writable=on";
    command.args(["--blockdev", &node, "--nbd-server", &addr, "--export", export]);
    let peer = Peer::start(command, monitor);
    let mut control = Qmp::open_peer(&peer.socket);
    let uri = format!("nbd+unix:///vda?socket={}", server.display());
    let told = told(&mut control, &uri);
    assert_eq!(told, json!({"device": "", "node-name": "disk", "fatal": true}));
}
