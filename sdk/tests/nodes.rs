//! An instance that serves several nodes.

use std::cell::RefCell;

use blockloom_sdk::testing::Harness;
use blockloom_sdk::{BitmapIndex, ConfigError, Description, Filter, Kinds, Node, bitmap_own};

/// Notes the bitmap that it is lent for each node.
struct Reads(RefCell<Vec<BitmapIndex>>);

impl Filter for Reads {
    const KINDS: Kinds = Kinds::NONE;

    fn describe() -> Description {
        Description::new("reads", "1").bitmap("changes", true)
    }

    fn configure(_: &str) -> Result<Self, ConfigError> {
        Ok(Self(RefCell::default()))
    }

    fn add_node(&self, node: Node) -> Result<(), String> {
        let (index, bitmap) = node.bitmap("changes").ok_or("it needs `changes`")?;
        assert!(!bitmap.owned && bitmap.granularity_bytes == 65536);
        self.0.borrow_mut().push(index);
        bitmap_own(node.index, "todo", 4096).map(drop)
    }
}

#[test]
fn each_node_has_bitmaps_of_its_own() {
    let mut host = Harness::<Reads>::new("{}").expect("a harness");
    host.add_node("none", 1 << 20).expect_err("nothing is lent to it");
    let lent = ["a", "b"].map(|name| {
        let lent = host.lend_bitmap("changes", 65536);
        host.add_node(name, 1 << 20).expect("a node");
        lent
    });
    assert_ne!(lent[0], lent[1]);
    assert_eq!(*host.filter().0.borrow(), lent);
}
