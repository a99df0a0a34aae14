//! The target's regions as the driver knows them: a sorted cover of the ranges it writes to.

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
        ranges: &[EncodedRange],
        attempts: u32,
    ) -> Result<Self, TargetError> {
        let mut table = RegionTable::default();
        for range in ranges {
            table.replace(range, load(target, range, attempts).await?)?;
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
        let behind = self.regions.partition_point(|r| &r.range.start[..] <= key);
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
                back_off(attempt).await;
                attempt += 1;
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
}
