//! Steps that do something to a bitmap.

use super::random::Random;
use super::run::{Run, Verdict};
use super::world::{Action, BitmapAction, BitmapId, Unproven};
use crate::bitmap::Change;

impl Run {
    /// A change of some bitmap, for both worlds.
    pub(super) fn any_bitmap_change(
        &self,
        random: &mut Random,
    ) -> Option<(BitmapId, Change, Action)> {
        let ids: Vec<BitmapId> = self.world.bitmaps().map(|(id, _)| id).collect();
        let id = random.pick(&ids)?;
        let bitmap = self.world.bitmap(id).expect("a bitmap of the world");
        let is_frozen = bitmap.frozen.is_some();
        let (change, action) = match (is_frozen, bitmap.enabled, random.below(8)) {
            (true, _, 0..=3) => (Change::MergeBack, BitmapAction::MergeBack(id)),
            (true, _, 4..=6) => (Change::Abdicate, BitmapAction::Abdicate(id)),
            (false, _, 0 | 1) => (Change::Freeze, BitmapAction::Freeze(id)),
            (false, true, 2) => (Change::Disable, BitmapAction::Disable(id)),
            (false, false, 2..=5) => (Change::Enable, BitmapAction::Enable(id)),
            _ => (Change::Clear, BitmapAction::Clear(id)),
        };
        Some((id, change, Action::Bitmap(action)))
    }

    pub(super) async fn bitmap_change(&mut self, random: &mut Random) -> Verdict {
        let Some(chosen) = self.any_bitmap_change(random) else { return Ok(()) };
        let (id, change, action) = chosen;
        self.step = format!("{change:?} of {id}");
        let real = self.bitmap(id);
        let result = self.graph.cell().change_bitmap(&real, &[change]).await;
        let expect = self.world.transact(&[action], Unproven::Refuse);
        match (&result, &expect) {
            (Ok(()), Ok(_)) | (Err(_), Err(_)) => Ok(()),
            _ => Err(format!("a bitmap's change ended with {result:?}, not {expect:?}")),
        }
    }
}
