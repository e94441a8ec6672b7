//! Bitmaps that images keep.

use super::*;

/// In use while the image is writable, stored when it is not.
#[test]
fn bitmaps_follow_the_access_of_their_image() {
    let scene = Scene::new();
    scene.make(&["disk"]);
    let host = host();
    add(&host, scene.image("disk", json!({})));
    drive(&host, "vda", "disk", true);
    let bitmap = bitmap(&host, "disk");
    write(&host, "vda", 2, 1);
    assert_eq!(scene.kept("disk", "b").0, BitmapState::Inconsistent);
    block_on(host.set_writable("vda", false)).expect("a drive");
    reopen(&host, &[qcow2("disk", true)]);
    assert_eq!(scene.kept("disk", "b"), (BitmapState::Disabled, vec![2]));
    let error = block_on(bitmap.remove()).expect_err("its image is read-only").to_string();
    assert!(error.contains("which is read-only"), "{error}");
    reopen(&host, &[qcow2("disk", false)]);
    assert_eq!(scene.kept("disk", "b").0, BitmapState::Inconsistent);
    block_on(host.set_writable("vda", true)).expect("a drive");
    write(&host, "vda", 5, 1);
    assert_eq!((bitmap.state(), dirty(&bitmap)), (BitmapState::Recording, vec![2, 5]));
    host.shutdown().expect("an end in order");
    assert_eq!(scene.kept("disk", "b"), (BitmapState::Disabled, vec![2, 5]));

    // One that stood still, as its image was opened read-only, goes on where it was.
    let host = self::host();
    add(&host, scene.image("disk", json!({ "read-only": true })));
    let bitmap = known(&host, "disk");
    assert_eq!((bitmap.state(), dirty(&bitmap)), (BitmapState::Disabled, vec![2, 5]));
    reopen(&host, &[qcow2("disk", false)]);
    drive(&host, "vda", "disk", true);
    write(&host, "vda", 7, 1);
    assert_eq!((bitmap.state(), dirty(&bitmap)), (BitmapState::Recording, vec![2, 5, 7]));
    assert_eq!(scene.kept("disk", "b").0, BitmapState::Inconsistent);
    host.shutdown().expect("an end in order");
    assert_eq!(scene.kept("disk", "b"), (BitmapState::Disabled, vec![2, 5, 7]));
}

/// What came to a base while the overlay's bitmap stood still is in nothing that the overlay's image holds.
#[test]
fn a_bitmap_that_stood_still_does_not_miss_what_came_below() {
    let scene = Scene::new();
    let host = chain(&scene);
    host.shutdown().expect("an end in order");
    let host = self::host();
    let base = scene.image("base", json!({ "backing": null }));
    add(&host, scene.image("mid", json!({ "backing": base })));
    drive(&host, "vda", "mid", true);
    bitmap(&host, "mid");
    write(&host, "vda", 9, 1);
    host.shutdown().expect("an end in order");

    let host = self::host();
    let base = scene.image("base", json!({ "backing": null }));
    let mid = scene.image("mid", json!({ "backing": base }));
    add(&host, scene.image("top", json!({ "backing": mid })));
    let mid = known(&host, "mid");
    assert_eq!((mid.state(), dirty(&mid)), (BitmapState::Disabled, vec![9]));
    // As it is, and then with a base that was written.
    let mut events = host.events();
    reopen(&host, &[qcow2("mid", false)]);
    assert_eq!((mid.state(), dirty(&mid)), (BitmapState::Recording, vec![9]));
    reopen(&host, &[qcow2("mid", true)]);
    host.shutdown().expect("an end in order");
    let marked = |event: &Event| matches!(event, Event::BitmapMarkedWhole { .. });
    assert!(std::iter::from_fn(|| events.try_next()).all(|notice| !marked(&notice.event)));

    let host = self::host();
    let base = scene.image("base", json!({ "backing": null }));
    let mid = scene.image("mid", json!({ "backing": base }));
    add(&host, scene.image("top", json!({ "backing": mid })));
    reopen(&host, &[qcow2("base", false)]);
    drive(&host, "under", "base", false);
    block_on(host.remove_drive("under")).expect("a drive");
    let mid = known(&host, "mid");
    block_on(mid.remove()).expect_err("its image is read-only");
    reopen(&host, &[qcow2("base", true)]);
    reopen(&host, &[qcow2("mid", false)]);
    assert_eq!(mid.state(), BitmapState::Recording);
    host.shutdown().expect("an end in order");
}
