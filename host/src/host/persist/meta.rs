//! Metadata alone at the top of a graph that changes below it, while a host runs and while none does.

use std::sync::Arc;

use super::Keep;
use super::crash::{GRANULE, Machine, SIZE, file, image, of_image, opened};
use crate::graph::{Action, ChildDecl, NodeDecl, Role, Transaction};
use crate::io::sim::Simulation;
use crate::io::{Buf, File, OpenOptions};
use crate::node::Qcow2Options;

use blockloom_qcow2::create::{CreateOptions, DataFile};

fn meta_over(below: &str) -> (Vec<ChildDecl>, Qcow2Options) {
    let data =
        ChildDecl { name: "data-file".into(), role: Role::Data, ..ChildDecl::storage(below) };
    let options = Qcow2Options { data_file: Some(1), ..of_image("base").1 };
    (vec![ChildDecl::storage("meta.file"), data], options)
}

/// With metadata over image `below`.
async fn start(below: &str) -> Machine {
    let images = if below == "top" { &["base", "top"][..] } else { &["base"] };
    let mut parts: Vec<_> = images.iter().map(|name| (*name, of_image(name))).collect();
    parts.push(("meta", meta_over(below)));
    Machine::of(parts, "meta", Keep::Meta, None).await
}

fn simulation(seed: u64) -> Simulation {
    let simulation = Simulation::new(seed);
    simulation.add_file("base", image(CreateOptions::new(SIZE)));
    simulation.add_file("top", super::crash::overlay());
    let data_file = Some(DataFile { name: None, raw: true });
    simulation.add_file("meta", image(CreateOptions { data_file, ..CreateOptions::new(SIZE) }));
    simulation
}

/// A write that no host makes.
async fn change(name: &str) {
    let options = OpenOptions { write: true, ..OpenOptions::default() };
    let file = Arc::new(File::open(name.as_ref(), &options).expect("a file"));
    // The end of the header's cluster is not used: what tells is the file's time alone.
    let buf = Buf::copy_of(&[0; 512]);
    file.write_at(GRANULE - 512, buf).await.expect("a write");
}

fn all() -> Vec<u64> {
    (0..SIZE / GRANULE).collect()
}

#[test]
fn a_snapshot_below_metadata_leaves_the_bitmap() {
    let simulation = simulation(7);
    let ran = simulation.run(async {
        let machine = start("base").await;
        machine.write(1).await;
        let overlay = NodeDecl {
            name: "top".into(),
            driver: Arc::new(opened("top").await),
            children: of_image("top").0,
        };
        let (node, edge, child) = ("meta".into(), "data-file".into(), Some("top".into()));
        let actions = [
            Action::AddNode(file("top")),
            Action::AddNode(overlay),
            Action::SetChild { node, edge, child },
        ];
        machine.transact(actions.into_iter().fold(Transaction::new(), Transaction::with)).await;
        machine.write(2).await;
        assert_eq!(machine.kept_in().as_deref(), Some("meta"));
        let dirty = machine.dirty();
        machine.end().await;
        dirty
    });
    assert_eq!(ran, Ok(vec![1, 2]));
    let again = |below: &'static str| {
        let ran = simulation.run(async move {
            let machine = start(below).await;
            let dirty = machine.dirty();
            machine.end().await;
            dirty
        });
        ran.expect("an end")
    };
    assert_eq!(again("top"), [1, 2]);
    assert_eq!(again("top"), [1, 2]);
    // Without the snapshot it is another disk.
    assert_eq!(again("base"), all());
}

/// File times tick: what comes right after the end has to have a later one.
#[test]
fn a_change_right_after_the_end_is_seen() {
    for (seed, name) in (0..12).flat_map(|seed| [(seed, "base"), (seed, "top")]) {
        let simulation = simulation(seed);
        let ran = simulation.run(async move {
            let machine = start("top").await;
            machine.write(3).await;
            machine.end().await;
            let dirty = {
                let machine = start("top").await;
                let dirty = machine.dirty();
                machine.write(4).await;
                machine.end().await;
                dirty
            };
            change(name).await;
            let machine = start("top").await;
            let dirty = (dirty, machine.dirty());
            machine.end().await;
            dirty
        });
        assert_eq!(ran, Ok((vec![3], all())), "{name}, seed {seed}");
    }
}
