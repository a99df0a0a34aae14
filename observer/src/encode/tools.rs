//! What compressing takes: a zstd context and the buffers for whole slices.
//!
//! A context costs about 1.5 MB and the buffers 2 MB, so each worker has its own, made when there is work
//! and dropped when there is none.

use std::sync::Arc;

use pitr_budget::{MemoryBudget, Reservation};
use pitr_format::frame::{FrameEncoder, Scratch};
use pitr_format::slice::{EncodedSlice, SliceBuildError, SliceBuilder};

/// The tools of one thread.
pub(crate) struct Tools {
    budget: Arc<MemoryBudget>,
    encoder: Option<(FrameEncoder, Option<Reservation>)>,
    scratch: Option<(Scratch, Reservation)>,
}

impl Tools {
    /// None yet.
    pub fn new(budget: Arc<MemoryBudget>) -> Self {
        Tools {
            budget,
            encoder: None,
            scratch: None,
        }
    }

    /// For one thread that nobody counts.
    pub fn unlimited() -> Self {
        Self::new(MemoryBudget::new(u64::MAX))
    }

    /// Compresses a slice: at once if there was plenty of memory for the buffers. The context is
    /// made also without room, because without it nothing would ever become smaller.
    pub fn encode(&mut self, slice: SliceBuilder) -> Result<EncodedSlice, SliceBuildError> {
        let limit = self.budget.limit();
        let plenty = Scratch::MEMORY as u64 <= limit / 16 && self.budget.used() <= limit / 2;
        if self.scratch.is_none() && plenty {
            self.scratch = self
                .room(Scratch::MEMORY)
                .map(|room| (Scratch::new(), room));
        }
        let room = match self.encoder {
            Some(_) => None,
            None => self.room(FrameEncoder::MEMORY),
        };
        let (encoder, _) = match &mut self.encoder {
            Some(made) => made,
            none => none.insert((FrameEncoder::new()?, room)),
        };
        let scratch = self.scratch.as_mut().map(|(scratch, _)| scratch);
        slice.encode(encoder, scratch)
    }

    /// Never more than there is, not even of an empty budget: tools are kept, and rows would wait
    /// behind them for ever.
    fn room(&self, bytes: usize) -> Option<Reservation> {
        let mut room = self.budget.nothing();
        room.try_grow(bytes as u64).then_some(room)
    }

    /// Drops everything.
    pub fn rest(&mut self) {
        self.encoder = None;
        self.scratch = None;
    }
}

#[cfg(test)]
mod tests {
    use pitr_format::slice::{SliceId, verify_slice};
    use pitr_format::{Cf, EncodedKey, OpKind, RecordBatch, Ts};

    use super::*;

    fn slice() -> SliceBuilder {
        let mut batch = RecordBatch::default();
        for ts in 1..500 {
            let key = EncodedKey::encode(b"k").at(Ts::new(ts)).into_bytes();
            let value = [ts as u8; 300];
            batch.push(Cf::Default, OpKind::Put, &key, &value).unwrap();
        }
        let mut slice = SliceBuilder::new(SliceId {
            table_id: 0,
            region_id: 1,
            cf: Cf::Default,
            op: OpKind::Put,
            is_meta: false,
        });
        for record in &batch {
            slice.append(record).unwrap();
        }
        slice
    }

    fn is_whole(encoded: &EncodedSlice) -> bool {
        verify_slice(&encoded.info, &encoded.pieces.concat(), 1 << 20).is_ok()
    }

    #[test]
    fn tools_are_paid_for_kept_while_there_is_work_and_given_back_at_rest() {
        let all = (FrameEncoder::MEMORY + Scratch::MEMORY) as u64;
        let budget = MemoryBudget::new(16 * all);
        let mut tools = Tools::new(Arc::clone(&budget));
        for _ in 0..3 {
            assert!(is_whole(&tools.encode(slice()).unwrap()));
            assert_eq!(budget.used(), all);
        }
        tools.rest();
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn when_memory_is_short_a_slice_is_compressed_all_the_same_without_the_buffers() {
        let budget = MemoryBudget::new(16 * Scratch::MEMORY as u64);
        let rows = budget.try_reserve(budget.limit() - 10).unwrap();
        let mut tools = Tools::new(Arc::clone(&budget));
        assert!(is_whole(&tools.encode(slice()).unwrap()));
        assert_eq!(budget.used(), rows.bytes(), "there was no room to pay from");
        drop(rows);
        assert!(is_whole(&tools.encode(slice()).unwrap()));
        assert_eq!(budget.used(), Scratch::MEMORY as u64);
    }

    #[test]
    fn a_small_budget_is_left_to_the_rows() {
        for limit in [0, 1000, FrameEncoder::MEMORY as u64] {
            let budget = MemoryBudget::new(limit);
            let mut tools = Tools::new(Arc::clone(&budget));
            assert!(is_whole(&tools.encode(slice()).unwrap()));
            assert!(budget.used() <= limit, "{} of {limit}", budget.used());
        }
    }
}
