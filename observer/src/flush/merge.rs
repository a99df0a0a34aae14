//! Which slices share a merged object.
//!
//! Source: tikv/tikv `components/backup-stream/src/router.rs`: non-meta before meta, never in one
//! object; a batch is closed before the next slice is added once its plaintext reached the limit.

use std::ops::Range;

/// Size and kind of a slice, as far as merging asks.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Plaintext bytes.
    pub plain_len: u64,
    /// Whether it goes into a meta object.
    pub is_meta: bool,
}

/// Cuts `pieces` (non-meta first) into runs of one kind. A run is closed when its plaintext is at
/// or above `limit`, so it exceeds the limit by less than its last piece.
pub fn merge(pieces: &[Piece], limit: u64) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut plain = 0u64;
    for (index, piece) in pieces.iter().enumerate() {
        let other_kind = index > start && pieces[start].is_meta != piece.is_meta;
        if index > start && (plain >= limit || other_kind) {
            runs.push(start..index);
            (start, plain) = (index, 0);
        }
        plain = plain.saturating_add(piece.plain_len);
    }
    if start < pieces.len() {
        runs.push(start..pieces.len());
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_batch_is_closed_once_it_reached_the_limit_and_kinds_never_mix() {
        let piece = |plain_len, is_meta| Piece { plain_len, is_meta };
        let pieces = [
            piece(60, false),
            piece(39, false),
            piece(500, false),
            piece(1, false),
            piece(1, true),
            piece(1, true),
        ];
        assert_eq!(merge(&pieces, 100), [0..3, 3..4, 4..6]);
        assert_eq!(merge(&pieces, 1), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
        assert!(merge(&[], 100).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn runs_cover_all_pieces_once_and_keep_the_limit(
            data in prop::collection::vec(0u64..50, 0..40),
            meta in prop::collection::vec(0u64..50, 0..10),
            limit in 1u64..200,
        ) {
            let pieces: Vec<_> = data.iter().map(|l| Piece { plain_len: *l, is_meta: false })
                .chain(meta.iter().map(|l| Piece { plain_len: *l, is_meta: true }))
                .collect();
            let runs = merge(&pieces, limit);
            let covered: Vec<usize> = runs.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..pieces.len()).collect::<Vec<_>>());
            for run in &runs {
                let members = &pieces[run.clone()];
                prop_assert!(members.iter().all(|m| m.is_meta == members[0].is_meta));
                let but_last: u64 = members[..members.len() - 1].iter().map(|m| m.plain_len).sum();
                prop_assert!(members.len() == 1 || but_last < limit);
            }
            for pair in runs.windows(2) {
                let plain: u64 = pieces[pair[0].clone()].iter().map(|m| m.plain_len).sum();
                let kinds = pieces[pair[0].start].is_meta != pieces[pair[1].start].is_meta;
                prop_assert!(plain >= limit || kinds);
            }
        }
    }
}
