//! Transactions that fail after an image has got an entry of a bitmap that was to come to it.

use super::*;

/// With `own` and `other` in the lower image, whose names may be taken in the upper one, the drive's.
fn stacked(base: &Image, top: &Image) -> Host {
    let host = Host::builder().node("disk", base.node(), vec![]);
    let host = host.node("top", top.overlay(), vec![ChildDecl::backing("disk")]);
    host.drive("vda", "top", true).start().expect("a host")
}

fn images() -> (Image, Image) {
    let base = Image::default().with("own", true, false, &[1]).with("other", true, false, &[2]);
    (base, Image::default())
}

/// Both bitmaps are to go to the upper node.
fn move_both(host: &Host) -> Result<()> {
    let moved = ["own", "other"].map(|bitmap| {
        let bitmap = host.bitmap(&of_node("disk"), bitmap).expect("loaded");
        BitmapAction::MoveTo(of_node("top")).of(&bitmap)
    });
    transact(host, moved.into())
}

fn generation(image: &Image, name: &str) -> u64 {
    let identity = image.entry(name).and_then(|entry| entry.identity);
    identity.expect("an identity").generation
}

/// What the lower image has of `own` is believed.
fn check_own(base: &Image, top: &Image) {
    let host = stacked(base, top);
    let own = host.bitmap(&of_node("disk"), "own").expect("it has stayed");
    assert_eq!((own.state(), dirty(&own)), (BitmapState::Recording, vec![0]));
    host.shutdown().expect("an end in order");
}

#[test]
fn an_entry_goes_with_the_transaction_that_made_it() {
    let (base, top) = images();
    let host = stacked(&base, &top);
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    // Without an identity, it is no form of this one.
    let taken = Entry { identity: None, ..base.entry("other").expect("it") };
    top.lock().entries.push(taken);
    assert_eq!(move_both(&host).expect_err("taken").kind(), ErrorKind::Exists);
    assert_eq!(own.kept_in().as_deref(), Some("disk"));
    assert_eq!(top.listed(), ["other:ru"]);
    top.lock().entries.clear();
    host.shutdown().expect("an end in order");
    check_own(&base, &top);
}

#[test]
fn an_entry_that_cannot_be_taken_back_does_not_count() {
    let (base, top) = images();
    let host = stacked(&base, &top);
    top.lock().room = Some(1);
    assert_eq!(move_both(&host).expect_err("full").kind(), ErrorKind::NoSpace);
    assert_eq!(top.listed(), ["own:ru"]);
    host.shutdown().expect("an end in order");
    assert!(generation(&base, "own") > generation(&top, "own"));

    // The upper one takes over what was left there.
    let (base, top) = images();
    let host = stacked(&base, &top);
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    top.lock().room = Some(1);
    move_both(&host).expect_err("full");
    let left = generation(&top, "own");
    top.lock().room = None;
    move_both(&host).expect("there is room");
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    host.shutdown().expect("an end in order");
    assert!(generation(&top, "own") > left);
    assert_eq!((top.listed(), base.listed()), (vec!["own:r".into(), "other:r".into()], vec![]));
}

/// However many entries are to go again, they have one time for that.
#[test]
fn entries_are_taken_back_within_one_time() {
    let (base, top) = images();
    let base = base.with("more", true, false, &[4]);
    let host = stacked(&base, &top);
    top.lock().answers = Some(2);
    let mut moves = Transaction::new().within(std::time::Duration::from_millis(50));
    for bitmap in ["own", "other", "more"] {
        let bitmap = host.bitmap(&of_node("disk"), bitmap).expect("loaded");
        moves = moves.with(BitmapAction::MoveTo(of_node("top")).of(&bitmap));
    }
    let error = block_on(host.transact(moves)).expect_err("it does not answer");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(top.lock().unanswered, ["store more", "remove other"]);
    assert_eq!(top.listed(), ["own:ru", "other:ru"]);
    top.lock().answers = None;
    host.shutdown().expect("an end in order");
    for name in ["own", "other"] {
        assert!(generation(&base, name) > generation(&top, name), "{name}");
    }
}

/// One that gets another name on its way has an entry by that before the graph changes, like any other.
#[test]
fn a_bitmap_that_is_moved_and_renamed_needs_room_first() {
    let (base, top) = images();
    let host = stacked(&base, &top);
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    // Its former name is somebody else's there.
    top.lock().entries.push(Entry { identity: None, ..base.entry("own").expect("it") });
    let goes = || {
        let rename = BitmapAction::Rename(name("mine")).of(&own);
        transact(&host, vec![rename, BitmapAction::MoveTo(of_node("top")).of(&own)])
    };
    top.lock().room = Some(0);
    assert_eq!(goes().expect_err("full").kind(), ErrorKind::NoSpace);
    assert_eq!((own.kept_in().as_deref(), own.name().as_str()), (Some("disk"), "own"));
    top.lock().room = None;
    let log = Arc::clone(&base.lock().log);
    top.lock().log = Arc::clone(&log);
    log.lock().expect("no panic").clear();
    goes().expect("there is room");
    assert_eq!(*log.lock().expect("no panic"), ["top: store mine, in use", "disk: remove own"]);
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    host.shutdown().expect("an end in order");
    assert_eq!(top.listed(), ["own:ru", "mine:r"]);
}

/// A bitmap without an image has left an entry, which stays what it was: not to be trusted, and there.
#[test]
fn an_entry_that_was_there_before_stays() {
    let (base, image) = (Image::default().with("other", true, false, &[2]), Image::default());
    let host = Host::builder().node("base", base.node(), vec![]);
    let host = host.node("disk", image.overlay(), vec![ChildDecl::backing("base")]);
    let host = host.drive("vda", "disk", true);
    let host = host.kept_bitmap(of_drive(), name("daily"), granularity(), Keep::Root);
    let host = host.start().expect("a host");
    let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
    transact(&host, vec![Action::EjectMedium { drive: "vda".into() }]).expect("ejected");
    assert_eq!((daily.kept_in(), image.listed()), (None, vec!["daily:ru".to_owned()]));
    let other = host.bitmap(&of_node("base"), "other").expect("loaded");
    image.lock().room = Some(1);
    let moved = [&daily, &other].map(|it| BitmapAction::MoveTo(of_node("disk")).of(it));
    assert_eq!(transact(&host, moved.into()).expect_err("full").kind(), ErrorKind::NoSpace);
    assert_eq!((daily.kept_in(), image.listed()), (None, vec!["daily:ru".to_owned()]));
    image.lock().room = None;
    host.shutdown().expect("an end in order");
}
