//! The choice of slices, meta by meta; what it keeps of them is [`Packing`].

use pitr_format::{Cf, EncodedRange, Ts};
use pitr_proto::backup::{DataFileInfo, FileType};

use super::packed::{Full, Packing};
use super::{Amount, Plan, PlanError, ReadLimits, Skipped, Slice, Window};
use crate::archive::{Archive, MetaContent};

/// Slices of `write` are known to be wanted when they are seen; of `default`, those that begin
/// before the end of the window are kept until the shift ts is known.
pub(super) struct Choice {
    uri: String,
    start: Ts,
    restored: Ts,
    ranges: Vec<EncodedRange>,
    /// Smallest begin of a transaction in the write slices of the window.
    shift: Option<Ts>,
    packing: Packing,
    most: u64,
    limit: u64,
    skipped: Skipped,
}

impl Choice {
    pub(super) fn new(archive: &Archive, window: &Window, start: Ts) -> Self {
        let budget = &archive.env().budget;
        let most = budget.limit() / 4;
        Choice {
            uri: archive.info.uri.clone(),
            start,
            restored: window.restored,
            ranges: window.ranges.clone(),
            shift: None,
            packing: Packing::new(budget.nothing(), most),
            most,
            limit: budget.limit(),
            skipped: Skipped::default(),
        }
    }

    pub(super) fn add(&mut self, content: &MetaContent) -> Result<(), PlanError> {
        content
            .slices
            .iter()
            .try_for_each(|slice| self.weigh(slice))
    }

    fn weigh(&mut self, slice: &Slice) -> Result<(), PlanError> {
        let info = &slice.info;
        let write = slice.cf == Cf::Write;
        let before = write && info.max_ts <= self.start.get();
        if info.r#type == FileType::Delete as i32 {
            self.skipped.deletes.add(info);
            return Ok(());
        }
        if before || info.min_ts > self.restored.get() {
            self.skipped.by_window.add(info);
            return Ok(());
        }
        if write {
            let begin = Ts::new(info.min_begin_ts_in_default_cf);
            self.shift = Some(self.shift.map_or(begin, |shift| shift.min(begin)));
        }
        if !overlaps(info, &self.ranges) {
            self.skipped.by_range.add(info);
            return Ok(());
        }
        self.packing
            .push(slice)
            .map_err(|Full| PlanError::TooLittleMemory {
                slices: self.packing.len(),
                most: self.most,
                limit: self.limit,
            })
    }

    pub(super) fn finish(self) -> Result<Plan, PlanError> {
        let (mut packing, mut skipped) = (self.packing, self.skipped);
        let shift = self.shift.unwrap_or(self.start);
        packing.forget(Cf::Default, shift.get(), |slice| {
            skipped.by_window.add(slice)
        });
        if let Some(object) = packing.encrypted() {
            return Err(PlanError::Unsupported {
                object: object.to_owned(),
                what: "encrypted log files cannot be read",
            });
        }
        let (mut write, mut default) = (Amount::default(), Amount::default());
        packing.each(|cf, slice| match cf {
            Cf::Write => write.add(slice),
            Cf::Default => default.add(slice),
        });
        Ok(Plan {
            uri: self.uri,
            start: self.start,
            shift,
            restored: self.restored,
            ranges: self.ranges,
            reads: packing.finish(&ReadLimits::default())?,
            write,
            default,
            skipped,
        })
    }
}

fn overlaps(info: &DataFileInfo, ranges: &[EncodedRange]) -> bool {
    let unknown = info.start_key.is_empty() && info.end_key.is_empty();
    let overlaps =
        |r: &EncodedRange| info.end_key >= r.start && (r.end.is_empty() || info.start_key < r.end);
    unknown || ranges.is_empty() || ranges.iter().any(overlaps)
}
