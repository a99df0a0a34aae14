//! Splitting a region at given keys, on request (`SplitRegion`) or from inside the process.

use std::sync::Arc;

use bytes::Bytes;
use pitr_format::Class;
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::Region;
use pitr_restore_worker::engine::{Engine, EngineCf, EngineError};

use super::context::{RegionError, key_not_in_region, message_only, region_not_found};
use super::kernel::Store;
use super::region::{cut, data_range, range_of};

/// Why a region was not split.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The request does not fit the region; the text and fields are for the client.
    #[error("split refused: {}", .0.message)]
    Refused(RegionError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl SplitError {
    /// A refused request has to be made again from fresh regions.
    pub fn class(&self) -> Class {
        match self {
            SplitError::Refused(_) => Class::Refresh,
            SplitError::Engine(e) => e.class(),
        }
    }
}

impl Store {
    /// Splits the region of a context at encoded keys (any order, duplicates count once), each
    /// strictly inside of it. Gives the parts in key order; the last one keeps the id.
    pub fn split(
        &self,
        context: Option<&Context>,
        keys: impl IntoIterator<Item = Bytes>,
    ) -> Result<Vec<Region>, SplitError> {
        let mut keys: Vec<Bytes> = keys.into_iter().collect();
        keys.sort();
        keys.dedup();
        let region = self.splittable(context, &keys)?;
        // PD may need seconds for the ids: writes go on meanwhile, and the region may change.
        let ids = self.ids().alloc(&region, keys.len()).map_err(refused)?;
        let mut guard = self.lock_writes();
        let region = self.splittable(context, &keys)?;
        let parts = cut(&region, &keys, &ids);
        guard.apply_split(region, parts.clone())?;
        Ok(parts)
    }

    /// The region of a context, if it can be split at these sorted keys.
    fn splittable(
        &self,
        context: Option<&Context>,
        keys: &[Bytes],
    ) -> Result<Arc<Region>, SplitError> {
        let region = self.check_context(context).map_err(SplitError::Refused)?;
        if keys.is_empty() {
            return Err(refused("no split key is specified".into()));
        }
        for key in keys {
            if !range_of(&region).contains(key) {
                return Err(SplitError::Refused(key_not_in_region(key, &region)));
            }
            if *key == region.start_key {
                let text = format!("split key is the start of region {} already", region.id);
                return Err(refused(text));
            }
        }
        Ok(region)
    }

    /// The key in the middle of a region, counted in versions, at which it can be split; none if the region
    /// holds less than two keys. Reads the region once and a half.
    pub(crate) fn middle_of(&self, region: &Region) -> Result<Option<Bytes>, EngineError> {
        let (start, end) = data_range(region);
        let versions = || self.engine().scan(EngineCf::Write, &start, &end);
        let half = versions().count() / 2;
        let mut first = None;
        for (at, pair) in versions().enumerate() {
            let (key, _) = pair?;
            // Without the prefix and the timestamp.
            let key = key.get(1..key.len().saturating_sub(8)).unwrap_or_default();
            let first = first.get_or_insert_with(|| key.to_vec());
            if at >= half && *first != key {
                return Ok(Some(Bytes::copy_from_slice(key)));
            }
        }
        Ok(None)
    }

    /// Splits a region at a user key inside of it, whoever leads it.
    pub fn split_region_at(&self, region_id: u64, key: &[u8]) -> Result<Vec<Region>, SplitError> {
        let encoded = pitr_format::EncodedKey::encode(key).into_bytes();
        let regions = self.regions();
        let region = regions
            .get(region_id)
            .ok_or_else(|| SplitError::Refused(region_not_found(region_id)))?;
        let context = regions.context(region);
        self.leading(region_id).split(Some(&context), [encoded])
    }

    /// Splits whatever regions hold the given user keys, one key at a time; a key at which a
    /// region starts already is passed over. For tests and demos, which know no contexts.
    pub fn split_at_user_keys(&self, keys: &[&[u8]]) -> Result<(), SplitError> {
        for key in keys {
            let encoded = pitr_format::EncodedKey::encode(key).into_bytes();
            let Some(region) = self.regions().find(&encoded).map(Arc::clone) else {
                continue;
            };
            if region.start_key != encoded {
                let context = self.regions().context(&region);
                self.leading(region.id).split(Some(&context), [encoded])?;
            }
        }
        Ok(())
    }
}

fn refused(text: String) -> SplitError {
    SplitError::Refused(message_only(text))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use pitr_format::EncodedKey;

    use super::*;
    use crate::store::change::{ApplyObserver, Modify, RegionChange};
    use crate::store::fixture::{Fixture, open_store};

    #[derive(Default)]
    struct Seen(Mutex<Vec<(u64, Vec<u64>)>>);

    impl ApplyObserver for Seen {
        fn on_apply(&self, _: u64, _: &[Modify], _: bool) {}
        fn on_region_change(&self, change: &RegionChange) {
            let RegionChange::Split { old, new } = change else {
                return;
            };
            let version = old.region_epoch.unwrap().version;
            self.0
                .lock()
                .push((version, new.iter().map(|r| r.id).collect()));
        }
    }

    fn encoded(key: &str) -> Bytes {
        EncodedKey::encode(key.as_bytes()).into_bytes()
    }

    #[test]
    fn a_split_is_told_and_survives_a_restart() {
        let fixture = Fixture::new();
        let seen = Arc::new(Seen::default());
        fixture.store.observe(seen.clone());
        let region = fixture.store.regions().find(b"").unwrap().clone();
        let parts = fixture
            .store
            .split(
                Some(&fixture.store.regions().context(&region)),
                [encoded("m"), encoded("d"), encoded("m")],
            )
            .unwrap();
        assert_eq!(
            parts.iter().map(|r| r.id).collect::<Vec<_>>(),
            [100, 102, 2]
        );
        assert_eq!(*seen.0.lock(), [(1, vec![100, 102, 2])]);
        let dir = fixture.close();
        let store = open_store(dir.path());
        let again: Vec<Region> = store.regions().iter().map(|r| Region::clone(r)).collect();
        assert_eq!(again, parts);
        let stale = store
            .check_context(Some(&store.regions().context(&region)))
            .unwrap_err();
        assert!(stale.epoch_not_match.is_some());
    }

    #[test]
    fn a_split_key_outside_of_the_region_or_at_its_start_is_refused() {
        let fixture = Fixture::new();
        fixture.store.split_at_user_keys(&[b"d", b"m"]).unwrap();
        let region = fixture.store.regions().find(&encoded("e")).unwrap().clone();
        let split = |keys: &[&str]| {
            let keys: Vec<Bytes> = keys.iter().map(|k| encoded(k)).collect();
            match fixture
                .store
                .split(Some(&fixture.store.regions().context(&region)), keys)
            {
                Err(SplitError::Refused(error)) => *error,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            split(&["z"]).key_not_in_region.unwrap().region_id,
            region.id
        );
        assert!(split(&["d"]).message.contains("already"));
        assert!(split(&[]).message.contains("no split key"));
        assert_eq!(fixture.store.regions().iter().count(), 3);
    }
    #[test]
    fn the_middle_is_a_key_with_half_of_the_versions_before_it_and_a_lone_key_has_none() {
        let fixture = Fixture::new();
        let region = || fixture.store.regions().find(b"").unwrap().clone();
        let write = |key: &str, versions: u64| {
            let versioned = |ts| EncodedKey::encode(key.as_bytes()).at(pitr_format::Ts::new(ts));
            let puts = (1..=versions).map(|ts| Modify::Put {
                cf: EngineCf::Write,
                key: versioned(ts).into_bytes(),
                value: Bytes::from_static(b"record"),
            });
            let puts: Vec<_> = puts.collect();
            let mut guard = fixture.store.lock_writes();
            guard.apply(region().id, &puts, false).unwrap();
        };
        let middle = || fixture.store.middle_of(&region()).unwrap();
        assert_eq!(middle(), None);
        write("b", 10);
        assert_eq!(middle(), None);
        write("c", 1);
        assert_eq!(middle(), Some(encoded("c")), "never the first key");
        for key in ["d", "e", "f"] {
            write(key, 20);
        }
        assert_eq!(middle(), Some(encoded("e")));
        // Only what the region holds counts.
        fixture.store.split_at_user_keys(&[b"e"]).unwrap();
        assert_eq!(middle(), Some(encoded("d")));
    }
}
