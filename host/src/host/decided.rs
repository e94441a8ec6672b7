//! What transactions decide about bitmaps, told to whoever listens.

use std::sync::Arc;

use crate::bitmap::Bitmap;
use crate::graph::{
    Action, BitmapAction, BitmapChange, BitmapRef, BitmapScope, Event, Graph, GraphCell,
    Transaction,
};

/// What a transaction decides about a bitmap, and how that is found when it has been applied.
pub(super) struct Decided {
    bitmap: BitmapRef,
    /// What it records before that, if it is there or named by it.
    scope: Option<BitmapScope>,
    name: String,
    change: BitmapChange,
}

/// What `transaction` decides about bitmaps of `graph`.
pub(super) fn decided(graph: &Graph, transaction: &Transaction) -> Vec<Decided> {
    let of = |bitmap: &BitmapRef, change: BitmapChange| {
        let known = bitmap.find(graph);
        let name = match (&known, bitmap) {
            (Some(known), _) => known.name().to_string(),
            (None, BitmapRef::Named { name, .. }) => name.clone(),
            (None, _) => String::new(),
        };
        let scope = match (&known, bitmap) {
            (Some(known), _) => scope_of(graph, known),
            (None, BitmapRef::Named { scope, .. }) => Some(scope.clone()),
            (None, _) => None,
        };
        let bitmap = known.map_or_else(|| bitmap.clone(), BitmapRef::This);
        Decided { bitmap, scope, name, change }
    };
    let mut all = Vec::new();
    for action in transaction.actions() {
        match action {
            Action::AddBitmap(decl) => {
                let (scope, name) = (decl.scope.clone(), decl.name.to_string());
                let bitmap = BitmapRef::Named { scope: scope.clone(), name: name.clone() };
                let (scope, change) = (Some(scope), BitmapChange::Added);
                all.push(Decided { bitmap, scope, name, change });
            }
            Action::Bitmap { bitmap, action } => {
                // A move is told with what else the transaction does.
                let Some(change) = change_of(action) else { continue };
                let mut one = of(bitmap, change);
                if let BitmapAction::Rename(to) = action {
                    let from = std::mem::replace(&mut one.name, to.to_string());
                    one.change = BitmapChange::Renamed { from };
                }
                all.push(one);
            }
            Action::Checkpoint { bitmaps } => {
                all.extend(bitmaps.iter().map(|bitmap| of(bitmap, BitmapChange::Frozen)));
            }
            _ => {}
        }
    }
    all
}

fn change_of(action: &BitmapAction) -> Option<BitmapChange> {
    Some(match action {
        BitmapAction::Clear => BitmapChange::Cleared,
        BitmapAction::Enable => BitmapChange::Enabled,
        BitmapAction::Disable => BitmapChange::Disabled,
        BitmapAction::Freeze => BitmapChange::Frozen,
        BitmapAction::MergeBack => BitmapChange::MergedBack,
        BitmapAction::Abdicate | BitmapAction::Leave(_) => BitmapChange::Abdicated,
        BitmapAction::Add(_) | BitmapAction::Merge(_) => BitmapChange::Merged,
        BitmapAction::CopyOf(_) => BitmapChange::Copied,
        BitmapAction::Rename(to) => BitmapChange::Renamed { from: to.to_string() },
        BitmapAction::Distrust => BitmapChange::Distrusted,
        BitmapAction::Repair => BitmapChange::Repaired,
        BitmapAction::Remove => BitmapChange::Removed,
        BitmapAction::MoveTo(_) => return None,
    })
}

/// Tells it, when that has been applied.
pub(super) fn tell(cell: &GraphCell, decided: Vec<Decided>) {
    let graph = cell.load();
    for Decided { bitmap, scope, name, change } in decided {
        let now = bitmap.find(&graph).and_then(|found| scope_of(&graph, &found));
        let scope = now.or(scope);
        cell.tell(&graph, Event::BitmapChanged { scope, name, change });
    }
}

fn scope_of(graph: &Graph, bitmap: &Arc<Bitmap>) -> Option<BitmapScope> {
    let mut all = graph.bitmaps();
    all.find(|(_, other)| Arc::ptr_eq(other, bitmap)).map(|(scope, _)| scope.clone())
}

#[cfg(test)]
mod tests {
    use crate::bitmap::{BitmapName, Granularity};
    use crate::graph::{Action, BitmapAction, BitmapChange, BitmapScope, Event, Transaction};
    use crate::node::MemoryNode;
    use crate::{Host, block_on};

    /// Who hears that a bitmap is gone, has to know which: what it was of may have gone with it.
    #[test]
    fn what_is_gone_is_told_with_what_it_recorded() {
        let scopes = [BitmapScope::Drive("vda".into()), BitmapScope::Node("disk".into())];
        let disk = MemoryNode::new(1 << 20, 512).expect("a size");
        let host = Host::builder().node("disk", disk, vec![]).drive("vda", "disk", true);
        let host = scopes.iter().fold(host, |host, scope| {
            host.bitmap(scope.clone(), BitmapName::new("b").expect("a name"), Granularity::DEFAULT)
        });
        let host = host.start().expect("a host");
        let mut events = host.events();
        let remove = |transaction: Transaction, scope: &BitmapScope| {
            let bitmap = host.bitmap(scope, "b").expect("a bitmap");
            transaction.with(BitmapAction::Remove.of(&bitmap))
        };
        let gone = scopes
            .iter()
            .fold(Transaction::new(), remove)
            .with(Action::RemoveDrive { drive: "vda".into() })
            .with(Action::RemoveNode { node: "disk".into() });
        block_on(host.transact(gone)).expect("all of it gone");
        let told =
            std::iter::from_fn(|| events.try_next()).filter_map(|notice| match notice.event {
                Event::BitmapChanged { scope, name, change } => Some((scope, name, change)),
                _ => None,
            });
        let expect = scopes.map(|scope| (Some(scope), "b".to_owned(), BitmapChange::Removed));
        assert_eq!(told.collect::<Vec<_>>(), expect);
        host.shutdown().expect("an end in order");
    }
}
