//! What is owed to copies: what they hold when their job has ended well.

use super::attend::Ended;
use super::plan::CopyKind;
use super::world::{World, lag_name};
use crate::job::{BitmapMode, JobEnd};

impl World {
    /// What a copy left, and what bitmap `j` of its drive counts from then on.
    pub(super) async fn check_copy(
        &self,
        ended: Ended,
        may_be_damaged: bool,
    ) -> Result<(), String> {
        let Ended { copy, populated, began, end, kind } = ended;
        if let Some(owed) = populated.filter(|_| matches!(end, JobEnd::Completed)) {
            return self.check_populated(&owed).await;
        }
        let Some(copy) = copy else { return Ok(()) };
        let is_done = matches!(end, JobEnd::Completed);
        if copy.kind == CopyKind::Fleecing {
            return Ok(());
        }
        let disk = &self.disks[copy.disk];
        if copy.kind == CopyKind::Mirror && self.chain(disk).contains(&copy.store) {
            self.past.count(|counts| counts.pivots += 1);
            if copy.mode.is_some_and(|mode| mode != BitmapMode::Never) {
                // When the one took the other's place is not known here.
                self.go_on_from(&disk.id, Vec::new(), began);
            }
            return Ok(());
        }
        let words = self.look(&[lag_name(&copy.store)]).await?.pop().unwrap_or_default();
        let instant = match copy.kind {
            CopyKind::Mirror => began.start..self.past.tick(),
            _ => began.clone(),
        };
        if is_done {
            let ledger = disk.ledger.borrow();
            let checked = ledger.check((0, &words), &instant, may_be_damaged);
            checked.map_err(|wrong| format!("what a {kind} made of {}: {wrong}", disk.id))?;
            drop(ledger);
            self.past.keep_backup(&copy.store, &words);
        }
        match copy.mode {
            Some(BitmapMode::Always) if !is_done => {
                // What was copied is clean, where it was copied.
                let mut either = vec![words];
                if may_be_damaged || copy.kind == CopyKind::BackupOfTop {
                    either.extend(self.references(&disk.id, "j"));
                }
                let since = self.since(&disk.id).start..began.end;
                self.go_on_from(&disk.id, either, since);
                self.expect_all_of(&disk.id);
            }
            Some(BitmapMode::OnSuccess | BitmapMode::Always) if is_done => {
                self.go_on_from(&disk.id, vec![words], began);
            }
            _ => {}
        }
        Ok(())
    }
}
