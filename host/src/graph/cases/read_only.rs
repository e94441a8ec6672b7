//! Nodes that refuse changes though their drivers hold nothing open: against an oracle, in every order.

use super::stage::*;
use crate::error::ErrorKind;
use crate::graph::{Action, Transaction};
use crate::node::{NullNode, Reopened};

const CHAIN: [&str; 3] = ["disk", "mid", "top"];

/// Which of the chain are read-only by themselves, from below, and by which of the drives it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    own: [bool; 3],
    writer: Option<usize>,
}

impl State {
    fn all() -> impl Iterator<Item = Self> {
        (0..8_usize).flat_map(|own| {
            let own = [own & 1 != 0, own & 2 != 0, own & 4 != 0];
            [None, Some(0), Some(1), Some(2)].into_iter().map(move |writer| Self { own, writer })
        })
    }

    /// Who is read-only, by itself or by what it shows.
    fn read_only(self) -> [bool; 3] {
        [self.own[0], self.own[0] || self.own[1], self.own.contains(&true)]
    }

    fn can_be(self) -> bool {
        self.writer.is_none_or(|writer| !self.read_only()[writer])
    }

    /// The node that is to be named: the first read-only one from the writer's down.
    fn refuser(self) -> Option<&'static str> {
        let writer = self.writer?;
        let at = (0..=writer).rev().find(|at| self.own[*at])?;
        Some(CHAIN[at])
    }

    fn actions(self) -> Vec<Action> {
        let modes = CHAIN.iter().zip(self.own).map(|(node, own)| reopen(node, own));
        let drives = (0..3).map(|at| Action::SetWritable {
            drive: format!("of-{}", CHAIN[at]),
            writable: self.writer == Some(at),
        });
        modes.chain(drives).collect()
    }
}

fn reopen(node: &str, read_only: bool) -> Action {
    let to = if read_only { Reopened::READ_ONLY } else { Reopened::WRITABLE };
    Action::Reopen { node: node.into(), to }
}

fn chain() -> Scene {
    let chain = Scene::default().disk("disk").pass("mid", "disk").pass("top", "mid");
    CHAIN.iter().fold(chain, |scene, node| scene.showing(&format!("of-{node}"), node))
}

async fn turn_into(stage: &Stage, state: State) -> crate::Result<()> {
    let transaction = state.actions().into_iter().fold(Transaction::new(), Transaction::with);
    stage.cell.transact(transaction).await.map(drop)
}

fn is(stage: &Stage) -> [bool; 3] {
    let graph = stage.cell.load();
    CHAIN.map(|node| graph.nodes()[graph.find_node(node).expect("a node")].info().read_only)
}

/// From every state that can be to every state: it comes to be if nobody writes what is read-only, at one instant,
/// or all is as it was.
#[test]
fn every_change_of_a_chain_is_as_it_should_be() {
    chain().run(|stage| async move {
        let mut refused = 0;
        for from in State::all().filter(|state| state.can_be()) {
            for to in State::all() {
                turn_into(&stage, from).await.expect("a state that can be");
                let turned = turn_into(&stage, to).await;
                let now = if to.can_be() { to } else { from };
                assert_eq!(is(&stage), now.read_only(), "{from:?} {to:?}");
                match turned {
                    Ok(()) => assert!(to.can_be(), "{from:?} {to:?}"),
                    Err(error) => {
                        assert!(!to.can_be(), "{from:?} {to:?}: {error}");
                        let refuser = to.refuser().expect("a node that refuses");
                        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
                        let text = error.to_string();
                        assert!(
                            text.contains(&format!("node `{refuser}`: it is read-only")),
                            "{text}"
                        );
                        refused += 1;
                    }
                }
                if let Some(writer) = now.writer {
                    stage.write(&format!("of-{}", CHAIN[writer]), 1, 7).await;
                }
            }
        }
        // Fifteen of the 32 can be, and each of the others is refused from each of them.
        assert_eq!(refused, 15 * 17);
    });
}

#[test]
fn who_is_refused_is_told_why() {
    chain().run(|stage| async move {
        let check = async |state: State, expect: &str| {
            let error = turn_into(&stage, state).await.expect_err("refused").to_string();
            assert!(error.ends_with(expect), "{error}");
        };
        check(
            State { own: [true, false, false], writer: Some(2) },
            "node `disk`: it is read-only, and drive `of-top` (edge `root`) changes node `top`, which stands \
             on it: make that one read-only too, or let it use a node that can be written, or reopen it \
             with `read-only` false",
        )
        .await;
        check(
            State { own: [true, false, true], writer: Some(2) },
            "node `top`: it is read-only, and drive `of-top` (edge `root`) changes it: make that one \
             read-only too, or let it use a node that can be written, or reopen it with `read-only` false",
        )
        .await;
    });
}

/// What only reads it does not mind: an overlay takes the changes. What keeps its bytes in it does.
#[test]
fn overlays_and_containers() {
    let scene = Scene::default().disk("disk").overlay("over", "disk").disk("other");
    scene.stored("part", "other").drive("vda", "over").run(|stage| async move {
        stage.act(reopen("disk", true)).await.expect("nobody writes it");
        stage.write("vda", 1, 7).await;
        assert_eq!(stage.byte("vda", 1).await, 7);
        let error = stage.act(reopen("over", true)).await.expect_err("it is written");
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");

        stage.act(reopen("other", true)).await.expect("nobody writes it");
        let drive = |writable| {
            let drive = Scene::default().drive_that("vdb", "part", writable, false);
            Action::AddDrive(drive.0.drives.into_iter().next().expect("a drive"))
        };
        let error = stage.act(drive(true)).await.expect_err("its bytes are in what is read-only");
        assert!(error.to_string().contains("node `other`: it is read-only"), "{error}");
        stage.act(drive(false)).await.expect("a drive that reads");
        assert_eq!(stage.byte("vdb", 1).await, 0);
    });
}

/// A node's size is a part of what it shows.
#[test]
fn what_is_read_only_keeps_its_size() {
    Scene::default().disk("disk").showing("vda", "disk").run(|stage| async move {
        stage.act(reopen("disk", true)).await.expect("nobody writes it");
        let resize = || Action::Resize { node: "disk".into(), size_bytes: 2 * SIZE };
        let error = stage.act(resize()).await.expect_err("it is read-only");
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        // Both at once: in the end it can be changed.
        let both = Transaction::new().with(reopen("disk", false)).with(resize());
        stage.cell.transact(both).await.expect("it can be written then");
    });
}

/// It refuses changes from the instant on at which it comes.
#[test]
fn a_node_that_comes_read_only() {
    Scene::default().disk("disk").run(|stage| async move {
        let null = std::sync::Arc::new(NullNode::new(SIZE, true, std::time::Duration::ZERO));
        let decl = crate::graph::NodeDecl { name: "null".into(), driver: null, children: vec![] };
        let add = || Transaction::new().with(Action::AddNode(decl.clone()));
        let drive = Scene::default().drive_that("vda", "null", true, false);
        let drive = Action::AddDrive(drive.0.drives.into_iter().next().expect("a drive"));
        let closed = add().with(reopen("null", true));
        let error = stage.cell.transact(closed.with(drive.clone())).await.expect_err("a writer");
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        assert!(stage.cell.load().find_node("null").is_none());
        stage.cell.transact(add().with(reopen("null", true))).await.expect("a node");
        let error = stage.act(drive.clone()).await.expect_err("a writer");
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        let both = Transaction::new().with(reopen("null", false)).with(drive);
        stage.cell.transact(both).await.expect("a node that can be written");
        stage.write("vda", 0, 1).await;
    });
}
