//! Backings, as images name them.

use std::fs;

use serde_json::json;

use super::Controlled;

/// base.qcow2 ← top.qcow2, which is open read-only, and one that stands alone.
fn start() -> Controlled {
    let image = |name: &str, more: &str| {
        format!(
            "[node.{name}]\ndriver = \"qcow2\"\ncreate = {{ size = \"4MiB\" }}\n{more}\n\
             file = {{ driver = \"file\", path = \"{name}.qcow2\" }}\n"
        )
    };
    let drive =
        |id: &str, root: &str| format!("[drive.{id}]\nroot = \"{root}\"\nwritable = true\n");
    let scratch = crate::scratch();
    let made = [
        image("base", "backing = false"),
        image("top", "backing = false"),
        image("lone", "backing = false"),
    ];
    let drives = [drive("a", "base"), drive("b", "top"), drive("c", "lone")];
    let first = Controlled::start_in(scratch, &[made.concat(), drives.concat()].concat(), &[]);
    let Controlled { daemon, scratch, .. } = first;
    daemon.finish();
    let text = "[node.base]\ndriver = \"qcow2\"\nbacking = false\n\
         file = { driver = \"file\", path = \"base.qcow2\" }\n\
         [node.top]\ndriver = \"qcow2\"\nbacking = \"base\"\n\
         file = { driver = \"file\", path = \"top.qcow2\" }\n\
         [node.lone]\ndriver = \"qcow2\"\nbacking = false\n\
         file = { driver = \"file\", path = \"lone.qcow2\" }\n\
         [drive.a]\nroot = \"top\"\n[drive.c]\nroot = \"lone\"\n";
    Controlled::start_in(scratch, text, &[])
}

/// QSD says the same, and opens an image for writing for as long as that takes, too.
#[test]
fn an_image_names_its_backing_in_another_way() {
    let host = start();
    let mut client = host.client();
    let arguments = |device: &str, image: &str| json!({ "device": device, "image-node-name": image, "backing-file": "./base.qcow2" });
    for (device, image, expect) in [
        ("none", "top", "Cannot find device='none' nor node-name='none'"),
        ("top", "none", "Cannot find device='' nor node-name='none'"),
        ("top", "base", "not allowing backing file change on an image without a backing file"),
        ("lone", "top", "'lone' and image file are not in the same chain"),
    ] {
        let (_, desc) = client.fail("change-backing-file", arguments(device, image));
        assert_eq!(desc, expect);
    }
    client.run("change-backing-file", arguments("a", "top"));
    let header = fs::read(host.scratch.path("top.qcow2")).expect("an image");
    let holds = |text: &[u8]| header.windows(text.len()).any(|bytes| bytes == text);
    assert!(holds(b"./base.qcow2") && holds(b"\xe2\x79\x2a\xca\0\0\0\x05qcow2"));
    host.finish();
}
