//! `block-dirty-bitmap-populate`, as QEMU's developers proposed it, and by comparison.

use super::{BlockdevOnError, Common, bitmap_of, on_error};
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{qapi_enum, qapi_struct};
use crate::control::registry::Registry;
use crate::job::{JobKind, JobSpec, PopulateFrom, PopulateSpec};

qapi_enum! {
    /// What makes a bitmap dirty.
    pub(crate) enum BitmapPattern {
        /// What the topmost image has, or what lies above a base.
        AllocationTop = "allocation-top",
        /// What is not the same in another node: both are read.
        Difference = "difference",
    }
}

qapi_struct! {
    /// A bitmap is to be dirty, too, where what it records is so.
    pub(crate) struct BlockDirtyBitmapPopulate {
        job_id: String,
        /// The drive or node that it records, and that is looked at.
        node: String,
        name: String,
        pattern: BitmapPattern,
        /// With `allocation-top`: the node above which bytes lie that count; the topmost image's backing, unless
        /// said.
        base: Option<String>,
        /// With `difference`: the other node.
        other: Option<String>,
        speed: Option<i64>,
        on_error: Option<BlockdevOnError>,
        auto_finalize: Option<bool>,
        auto_dismiss: Option<bool>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("block-dirty-bitmap-populate", populate);
}

fn populate(plan: &mut Plan<'_>, populate: BlockDirtyBitmapPopulate) -> QmpResult<()> {
    let bitmap = bitmap_of(plan, &populate.node, &populate.name)?;
    let from = match (populate.pattern, populate.base, populate.other) {
        (BitmapPattern::AllocationTop, base, None) => PopulateFrom::Allocation { base },
        (BitmapPattern::Difference, None, Some(other)) => PopulateFrom::Difference { other },
        (BitmapPattern::Difference, None, None) => {
            return Err(QmpError::generic("pattern 'difference' needs 'other'"));
        }
        (BitmapPattern::AllocationTop, _, Some(_)) => {
            return Err(QmpError::generic("'other' is for pattern 'difference' alone"));
        }
        (BitmapPattern::Difference, Some(_), _) => {
            return Err(QmpError::generic("'base' is for pattern 'allocation-top' alone"));
        }
    };
    let what = PopulateSpec { bitmap, device: populate.node.clone(), from };
    let common = Common {
        job_id: Some(populate.job_id),
        speed: populate.speed,
        filter_node_name: None,
        auto_finalize: populate.auto_finalize,
        auto_dismiss: populate.auto_dismiss,
    };
    let job = common.job(plan, &populate.node, JobKind::Populate(what))?;
    let on_error = on_error(populate.on_error);
    plan.start(JobSpec { on_error, ..job })
}
