//! Bitmaps that go from image to image.

use super::*;

#[test]
fn a_snapshot_takes_the_bitmap_along() {
    let (base, top) = (Image::default(), Image::default());
    let log = Arc::clone(&base.lock().log);
    top.lock().log = Arc::clone(&log);
    let host = host_with_daily(&base).expect("a host");
    let daily = host.bitmap(&of_drive(), "daily").expect("a bitmap");
    write(&host, 1);
    // Memory keeps nothing: it stays where it is.
    let memory = MemoryNode::overlay(SIZE, 512).expect("a size");
    transact(&host, vec![snapshot("memory", memory, "disk")]).expect("a snapshot");
    assert_eq!(daily.kept_in().as_deref(), Some("disk"));
    write(&host, 2);
    log.lock().expect("no panic").clear();
    // It cannot go where its name is taken, and then neither does the drive.
    let taken = Image::default().with("daily", true, false, &[]);
    let error = transact(&host, vec![snapshot("taken", taken.overlay(), "memory")]);
    assert_eq!(error.expect_err("taken").kind(), ErrorKind::Exists);
    assert_eq!(taken.listed(), ["daily:r"]);
    assert!(host.graph().find_node("taken").is_none());
    let full = Image::default();
    full.lock().fails = Some(ErrorKind::NoSpace);
    let error = transact(&host, vec![snapshot("full", full.overlay(), "memory")]);
    assert_eq!(error.expect_err("full").kind(), ErrorKind::NoSpace);
    write(&host, 3);
    assert!(log.lock().expect("no panic").is_empty());

    transact(&host, vec![snapshot("top", top.overlay(), "memory")]).expect("a snapshot");
    assert_eq!(*log.lock().expect("no panic"), ["top: store daily, in use", "disk: remove daily"]);
    assert_eq!(daily.kept_in().as_deref(), Some("top"));
    assert!(host.bitmap(&of_node("top"), "daily").is_err(), "it is the drive's");
    write(&host, 4);
    assert_eq!(dirty(&daily), [1, 2, 3, 4]);
    host.shutdown().expect("an end in order");
    assert_eq!((top.listed(), base.listed()), (vec!["daily:r".to_owned()], vec![]));
    assert_eq!(top.entry("daily").expect("stored").words[0], 0b11110);
}

/// A node's own goes to another node, and so to another image: the later form is there before the former one goes.
#[test]
fn a_bitmap_that_is_moved_goes_to_its_new_image() {
    let (base, top) = (Image::default().with("own", true, false, &[1]), Image::default());
    let log = Arc::clone(&base.lock().log);
    top.lock().log = Arc::clone(&log);
    let host = host_with_daily(&base).expect("a host");
    transact(&host, vec![snapshot("top", top.overlay(), "disk")]).expect("a snapshot");
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    let move_to = |scope| BitmapAction::MoveTo(scope).of(&own);
    log.lock().expect("no panic").clear();
    // It cannot go where its name is taken, and stays what and where it is.
    top.lock().entries.push(Entry { known: false, ..base.entry("own").expect("stored") });
    let error = transact(&host, vec![move_to(of_node("top"))]).expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!((own.kept_in().as_deref(), own.scope()), (Some("disk"), of_node("disk")));
    top.lock().entries.retain(|entry| entry.name != "own");
    assert!(log.lock().expect("no panic").is_empty());

    transact(&host, vec![move_to(of_node("top"))]).expect("both show the same");
    assert_eq!(*log.lock().expect("no panic"), ["top: store own, in use", "disk: remove own"]);
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    assert!(top.entry("own").is_some_and(|entry| entry.identity.is_some()));
    write(&host, 4);
    // It is the node's still when what is below it changes.
    let filter = node("filter", PassNode, ChildDecl::filtered("top"));
    let insert = Action::InsertAbove { node: "top".into(), filter, users: Which::All };
    transact(&host, vec![insert]).expect("a filter");
    assert_eq!((own.kept_in().as_deref(), dirty(&own)), (Some("top"), vec![0, 4]));
    host.shutdown().expect("an end in order");
    assert_eq!(base.listed(), Vec::<String>::new());
    assert_eq!(top.listed(), ["daily:r", "own:r"]);
    assert_eq!(top.entry("own").expect("stored").words[0], 0b10001);
}

/// With a snapshot, and where nothing keeps it.
#[test]
fn a_bitmap_that_is_moved_with_a_change_of_the_graph() {
    let (base, top) = (Image::default().with("own", true, false, &[1]), Image::default());
    let host = host_with_daily(&base).expect("a host");
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    let move_to = |scope| BitmapAction::MoveTo(scope).of(&own);
    let actions = vec![snapshot("top", top.overlay(), "disk"), move_to(of_node("top"))];
    transact(&host, actions).expect("a snapshot");
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    assert_eq!((top.listed(), base.listed()), (vec!["daily:ru".into(), "own:ru".into()], vec![]));
    // Memory keeps nothing, and what is below it is not its own.
    let memory = MemoryNode::overlay(SIZE, 512).expect("a size");
    let actions = vec![snapshot("memory", memory, "top"), move_to(of_node("memory"))];
    let mut events = host.events();
    transact(&host, actions).expect("a snapshot");
    let mut told = std::iter::from_fn(|| events.try_next());
    let is_it = |event: &Event| matches!(event, Event::BitmapNotKept { .. });
    assert!(told.any(|notice| is_it(&notice.event)));
    assert_eq!((own.kept_in(), top.listed()), (None, vec!["daily:ru".into(), "own:ru".into()]));
    transact(&host, vec![Action::AddNode(bare_node("other"))]).expect("a node");
    assert_eq!(own.kept_in(), None, "another change is no matter");
    // A drive keeps it in its first image.
    transact(&host, vec![move_to(of_drive())]).expect("the drive's");
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    host.shutdown().expect("an end in order");
    assert_eq!(top.listed(), ["daily:r", "own:r"]);
}

/// A transaction that goes on from where it has moved a bitmap to leaves nothing of it there.
#[test]
fn a_bitmap_that_is_moved_on_is_kept_where_it_ends() {
    let (base, top) = (Image::default().with("own", true, false, &[1]), Image::default());
    let host = host_with_daily(&base).expect("a host");
    let own = host.bitmap(&of_node("disk"), "own").expect("loaded");
    let move_to = |scope| BitmapAction::MoveTo(scope).of(&own);
    let actions = vec![move_to(of_drive()), snapshot("top", top.overlay(), "disk")];
    transact(&host, actions).expect("a snapshot");
    assert_eq!(own.kept_in().as_deref(), Some("top"));
    assert_eq!((top.listed(), base.listed()), (vec!["daily:ru".into(), "own:ru".into()], vec![]));
    let removed = vec![move_to(of_node("top")), BitmapAction::Remove.of(&own)];
    transact(&host, removed).expect("moved, and removed");
    host.shutdown().expect("an end in order");
    assert_eq!((top.listed(), base.listed()), (vec!["daily:r".into()], vec![]));
}

#[test]
fn a_bitmap_gains_nothing_as_its_image_is_closed() {
    let image = Image::default().with("own", true, false, &[1]);
    let host = host_with_daily(&image).expect("a host");
    let (own, daily) = (host.bitmap(&of_node("disk"), "own"), host.bitmap(&of_drive(), "daily"));
    let merge = BitmapAction::Merge(vec![(&daily.expect("a bitmap")).into()]);
    let merge = || merge.clone().of(own.as_ref().expect("loaded"));
    write(&host, 5);
    let eject = || Action::EjectMedium { drive: "vda".into() };
    let remove = || Action::RemoveNode { node: "disk".into() };
    let error = transact(&host, vec![merge(), eject(), remove()]).expect_err("not stored");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("do so in two transactions"), "{error}");
    // What goes by itself goes no less; and what is not to go as long as it is used, stays.
    let unused = || Action::RemoveUnused { nodes: vec!["disk".into()] };
    transact(&host, vec![merge(), unused()]).expect("it is used");
    assert_eq!(host.graph().nodes().len(), 1);
    transact(&host, vec![eject(), remove()]).expect("removed");
    assert_eq!(image.entry("own").expect("stored").words[0], 0x21);
}

/// A bitmap that its drive takes along gains what it is to gain, whatever becomes of the image that it leaves.
#[test]
fn a_bitmap_gains_where_it_goes_on() {
    let (base, top) = (Image::default().with("own", true, false, &[1]), Image::default());
    let host = host_with_daily(&base).expect("a host");
    transact(&host, vec![snapshot("top", top.overlay(), "disk")]).expect("a snapshot");
    let (own, daily) = (host.bitmap(&of_node("disk"), "own"), host.bitmap(&of_drive(), "daily"));
    let (own, daily) = (own.expect("loaded"), daily.expect("a bitmap"));
    assert_eq!(daily.kept_in().as_deref(), Some("top"));
    let merge = BitmapAction::Merge(vec![(&own).into()]).of(&daily);
    let back = Action::SetRoot { drive: "vda".into(), node: "disk".into() };
    let gone = Action::RemoveNode { node: "top".into() };
    transact(&host, vec![merge, back, gone]).expect("moved to the base");
    assert_eq!(daily.kept_in().as_deref(), Some("disk"));
    host.shutdown().expect("an end in order");
    assert_eq!(base.entry("daily").expect("stored").words[0], 0x1);
}
