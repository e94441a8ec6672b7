//! What transactions decide about bitmaps, told to whoever listens.

use std::sync::Arc;

use crate::graph::{
    Action, BitmapAction, BitmapChange, BitmapRef, Event, Graph, GraphCell, Transaction,
};

/// What a transaction decides about a bitmap, and how that is found when it has been applied.
pub(super) struct Decided {
    bitmap: BitmapRef,
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
        let bitmap = known.map_or_else(|| bitmap.clone(), BitmapRef::This);
        Decided { bitmap, name, change }
    };
    let mut all = Vec::new();
    for action in transaction.actions() {
        match action {
            Action::AddBitmap(decl) => {
                let (scope, name) = (decl.scope.clone(), decl.name.to_string());
                let bitmap = BitmapRef::Named { scope, name: name.clone() };
                all.push(Decided { bitmap, name, change: BitmapChange::Added });
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
    for Decided { bitmap, name, change } in decided {
        let found = bitmap.find(&graph);
        let mut all = graph.bitmaps();
        let at = found.and_then(|found| all.find(|(_, other)| Arc::ptr_eq(other, &found)));
        let scope = match (at, bitmap) {
            (Some((scope, _)), _) => Some(scope.clone()),
            (None, BitmapRef::Named { scope, .. }) => Some(scope),
            (None, _) => None,
        };
        cell.tell(&graph, Event::BitmapChanged { scope, name, change });
    }
}
