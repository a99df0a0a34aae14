//! The target's regions as the driver knows them: a sorted cover of the ranges it writes to.

use pitr_env::Clock;
use pitr_format::{Class, EncodedRange};

use crate::fetch::back_off;
use crate::target::{Target, TargetError, TargetRegion};

/// Regions in key order, without overlap.
#[derive(Clone, Debug, Default)]
pub struct RegionTable {
    regions: Vec<TargetRegion>,
}

impl RegionTable {
    /// Asks the target for the regions of all `ranges`, see [`load`].
    pub async fn load(
        target: &dyn Target,
        clock: &dyn Clock,
        ranges: &[EncodedRange],
        attempts: u32,
    ) -> Result<Self, TargetError> {
        let mut table = RegionTable::default();
        for range in ranges {
            table.replace(range, load(target, clock, range, attempts).await?)?;
        }
        Ok(table)
    }

    /// Replaces what is known of `range` by `fresh`; a hole is an error that a reload may heal.
    pub fn replace(
        &mut self,
        range: &EncodedRange,
        fresh: Vec<TargetRegion>,
    ) -> Result<(), TargetError> {
        // How far the regions reach without a hole; `None` = to the end of all keys.
        let mut covered = Some(range.start.clone());
        for region in &fresh {
            match &covered {
                Some(end) if region.range.start <= *end => {
                    let end = region.range.end.clone();
                    covered = (!end.is_empty()).then_some(end);
                }
                _ => break,
            }
        }
        if let Some(covered) = covered
            && (range.end.is_empty() || covered < range.end)
        {
            let message = format!(
                "the regions of {range:?} are not known completely (up to {})",
                hex::encode_upper(&covered)
            );
            return Err(TargetError::new(Class::Refresh, message));
        }
        let known = std::mem::take(&mut self.regions);
        self.regions = known.iter().flat_map(|old| rests(old, &fresh)).collect();
        self.regions.extend(fresh);
        self.regions
            .sort_by(|a, b| a.range.start.cmp(&b.range.start));
        Ok(())
    }

    /// The region of an encoded key.
    pub fn find(&self, key: &[u8]) -> Option<&TargetRegion> {
        let behind = self.regions.partition_point(|r| r.range.begins_by(key));
        let region = self.regions.get(behind.checked_sub(1)?)?;
        region.range.contains(key).then_some(region)
    }
}

/// What of a known region no fresh one covers. It keeps the old handle: the target answers that it
/// is stale, and then that part is asked for as well.
fn rests(old: &TargetRegion, fresh: &[TargetRegion]) -> Vec<TargetRegion> {
    let part = |range| TargetRegion {
        range,
        handle: old.handle.clone(),
    };
    let mut out = Vec::new();
    let mut rest = old.range.clone();
    for new in fresh {
        let Some(shared) = new.range.intersect(&rest) else {
            continue;
        };
        if rest.start < shared.start {
            out.push(part(EncodedRange::new(rest.start, shared.start)));
        }
        if shared.end == rest.end {
            return out;
        }
        rest.start = shared.end;
    }
    out.push(part(rest));
    out
}

/// The regions that cover `range`; asks again while there are holes or the target is busy.
pub async fn load(
    target: &dyn Target,
    clock: &dyn Clock,
    range: &EncodedRange,
    attempts: u32,
) -> Result<Vec<TargetRegion>, TargetError> {
    let mut attempt = 0;
    loop {
        let fresh = match target.regions(range).await {
            Ok(fresh) => RegionTable::default()
                .replace(range, fresh.clone())
                .map(|()| fresh),
            Err(e) => Err(e),
        };
        match fresh {
            Err(e) if e.class() != Class::Permanent && attempt + 1 < attempts => {
                tracing::info!(?range, attempt, error = %e, "regions are asked for again");
                back_off(clock, attempt).await;
                attempt += 1;
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn region(start: &'static str, end: &'static str) -> TargetRegion {
        TargetRegion {
            range: EncodedRange::new(start, end),
            handle: Arc::new(()),
        }
    }

    #[test]
    fn a_key_is_found_in_the_region_that_holds_it() {
        let mut table = RegionTable::default();
        let regions = vec![region("", "g"), region("g", "p"), region("p", "")];
        table.replace(&EncodedRange::ALL, regions).unwrap();
        for (key, start) in [("", ""), ("fz", ""), ("g", "g"), ("p", "p"), ("zz", "p")] {
            assert_eq!(table.find(key.as_bytes()).unwrap().range.start, start);
        }
    }

    #[test]
    fn a_split_replaces_just_the_region_that_was_split() {
        let mut table = RegionTable::default();
        table
            .replace(&EncodedRange::ALL, vec![region("", "g"), region("g", "")])
            .unwrap();
        let split = vec![region("g", "m"), region("m", "")];
        table
            .replace(&EncodedRange::new("h", "i"), vec![split[0].clone()])
            .unwrap();
        assert_eq!(table.find(b"h").unwrap().range.end, "m");
        let rest = &table.find(b"n").unwrap().range;
        assert_eq!(*rest, EncodedRange::new("m", ""), "of the old region");
        table.replace(&EncodedRange::new("g", ""), split).unwrap();
        assert_eq!(table.find(b"n").unwrap().range.start, "m");
        assert_eq!(table.find(b"a").unwrap().range.end, "g");
    }

    #[test]
    fn a_hole_is_refused_so_that_the_caller_reloads() {
        let mut table = RegionTable::default();
        for fresh in [
            vec![],
            vec![region("b", "")],
            vec![region("", "g"), region("h", "")],
            vec![region("", "g")],
        ] {
            let error = table.replace(&EncodedRange::ALL, fresh).unwrap_err();
            assert_eq!(error.class(), Class::Refresh);
        }
    }

    #[test]
    fn a_region_that_moved_its_bounds_leaves_no_hole_behind() {
        let mut table = RegionTable::default();
        let all = EncodedRange::ALL;
        let known = vec![region("", "b"), region("b", "d"), region("d", "")];
        table.replace(&all, known).unwrap();
        // `b..d` was merged into the first region, which was split again at `c`.
        let range = EncodedRange::new("", "b");
        table.replace(&range, vec![region("", "c")]).unwrap();
        for key in [&b"a"[..], b"b", b"c", b"cz", b"d", b"z"] {
            assert!(table.find(key).is_some(), "{key:?}");
        }
        assert_eq!(table.find(b"c").unwrap().range, EncodedRange::new("c", "d"));
    }

    /// Regions between the given bounds (single bytes), each with a number of its own.
    fn numbered(bounds: &[u8], first: usize) -> Vec<TargetRegion> {
        let ends = bounds.iter().skip(1);
        let pairs = bounds.iter().zip(ends).enumerate();
        pairs
            .map(|(i, (start, end))| TargetRegion {
                range: EncodedRange::new(vec![*start], vec![*end]),
                handle: Arc::new(first + i),
            })
            .collect()
    }

    fn number(region: &TargetRegion) -> usize {
        *region.handle.downcast_ref().unwrap()
    }

    proptest! {
        #[test]
        fn a_key_is_in_the_region_that_was_told_last_whatever_moved_before(
            rounds in prop::collection::vec(prop::collection::btree_set(0u8..=40, 2..8), 1..8),
        ) {
            let mut table = RegionTable::default();
            let whole = EncodedRange::new(vec![0], vec![41]);
            table.replace(&whole, numbered(&[0, 41], 0)).unwrap();
            let mut model = [0; 41];
            for (round, bounds) in rounds.iter().enumerate() {
                let bounds: Vec<u8> = bounds.iter().copied().collect();
                let fresh = numbered(&bounds, 100 * (round + 1));
                for region in &fresh {
                    let (start, end) = (region.range.start[0], region.range.end[0]);
                    model[usize::from(start)..usize::from(end)].fill(number(region));
                }
                let told = EncodedRange::new(vec![bounds[0]], vec![bounds[bounds.len() - 1]]);
                table.replace(&told, fresh).unwrap();
                for key in 0..41u8 {
                    let found = table.find(&[key]).map(number);
                    prop_assert_eq!(found, Some(model[usize::from(key)]), "key {}", key);
                    prop_assert!(table.find(&[key]).unwrap().range.contains(&[key]));
                }
            }
            prop_assert!(table.find(&[41]).is_none());
        }
    }

    /// Answers one list after the other.
    struct Answers(parking_lot::Mutex<Vec<Result<Vec<TargetRegion>, TargetError>>>);

    #[async_trait::async_trait]
    impl Target for Answers {
        async fn regions(&self, _: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError> {
            self.0.lock().pop().unwrap()
        }

        async fn ingest(
            &self,
            _: &TargetRegion,
            _: &[crate::sst::SstFile],
        ) -> Result<(), TargetError> {
            Err(TargetError::new(Class::Permanent, "nobody asked for this"))
        }
    }

    /// Time that passes while somebody waits, in milliseconds.
    #[derive(Default)]
    struct Waits(std::sync::atomic::AtomicU64);

    impl Clock for Waits {
        fn now(&self) -> std::time::Duration {
            std::time::Duration::from_millis(self.0.load(std::sync::atomic::Ordering::SeqCst))
        }

        fn wall(&self) -> std::time::SystemTime {
            std::time::SystemTime::UNIX_EPOCH
        }

        fn sleep(&self, time: std::time::Duration) -> pitr_env::Sleep {
            let ms = time.as_millis() as u64;
            self.0.fetch_add(ms, std::sync::atomic::Ordering::SeqCst);
            Box::pin(std::future::ready(()))
        }
    }

    #[tokio::test]
    async fn regions_are_asked_for_again_while_there_is_a_hole_or_the_target_is_busy() {
        let whole = vec![region("", "g"), region("g", "")];
        let busy = || Err(TargetError::new(Class::Retry, "busy"));
        // The last one is answered first.
        let answers = vec![Ok(whole), Ok(vec![region("g", "")]), busy(), Ok(vec![])];
        let (target, clock) = (Answers(parking_lot::Mutex::new(answers)), Waits::default());
        let found = load(&target, &clock, &EncodedRange::ALL, 5).await.unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(
            clock.now().as_millis(),
            100 + 200 + 400,
            "each wait is twice the last"
        );

        let answers = (0..3).map(|_| busy()).collect();
        let target = Answers(parking_lot::Mutex::new(answers));
        let error = load(&target, &clock, &EncodedRange::ALL, 3)
            .await
            .unwrap_err();
        assert_eq!(error.class(), Class::Retry, "the last answer is told");
        let refusal = vec![Err(TargetError::new(Class::Permanent, "no"))];
        let target = Answers(parking_lot::Mutex::new(refusal));
        let began = clock.now();
        assert!(load(&target, &clock, &EncodedRange::ALL, 9).await.is_err());
        assert_eq!(
            clock.now(),
            began,
            "what is permanent is not asked for twice"
        );
    }
}
