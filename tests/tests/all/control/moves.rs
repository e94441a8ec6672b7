//! Bitmaps that go to another node, or a drive.

use serde_json::json;

use super::Controlled;
use crate::MIB;

#[test]
fn a_bitmap_goes_to_who_shows_the_same_before_its_node_goes() {
    let other =
        "[node.other]\ndriver = \"memory\"\nsize = \"1MiB\"\n[drive.vdb]\nroot = \"other\"\n";
    let host = Controlled::start(&format!("{}{other}", crate::memory_disk(MIB)), &[]);
    let mut client = host.client();
    client.run("block-dirty-bitmap-add", json!({ "node": "disk", "name": "b" }));
    let query = |node: &str| json!({ "node": node, "name": "b" });
    let to = |to: &str, more: Option<&str>| {
        let mut arguments = json!({ "node": "disk", "name": "b", "to": to });
        arguments
            .as_object_mut()
            .expect("an object")
            .extend(more.map(|on_unproven| ("on-unproven".to_owned(), json!(on_unproven))));
        arguments
    };
    let (_, desc) = client.fail("block-dirty-bitmap-move", to("none", None));
    assert!(desc.contains("'none' not found"), "{desc}");
    let (_, desc) = client.fail("block-dirty-bitmap-move", to("vdb", None));
    assert!(desc.contains("nothing proves that they show the same"), "{desc}");
    client.run("block-dirty-bitmap-move", to("vda", None));
    client.fail("block-dirty-bitmap-query", query("disk"));
    assert_eq!(client.run("block-dirty-bitmap-query", query("vda"))["count"], 0);
    let away = json!({ "node": "vda", "name": "b", "to": "vdb", "on-unproven": "mark-whole" });
    client.run("block-dirty-bitmap-move", away);
    assert_eq!(client.run("block-dirty-bitmap-query", query("vdb"))["count"], MIB);
    host.finish();
}
