//! Targets for what comes from a store, from PD and from a user.

use std::sync::Arc;

use bytes::Bytes;
use pitr_cluster::cdc::{CdcOptions, Feed, SubId, Subscription};
use pitr_cluster::tasks::keys;
use pitr_format::{EncodedRange, Ts};
use pitr_proto::metapb::{Region, RegionEpoch};
use pitr_storage::Location;

/// Messages of a change stream, each with its length (u16, little endian) in front. Three regions
/// are subscribed, as in the recorded streams.
pub fn change_data(data: &[u8]) {
    let mut feed = Feed::new(7, &CdcOptions::default());
    for id in 1..=3u64 {
        feed.subscribe(Subscription {
            id: SubId(id),
            region: Region {
                id: id * 2,
                region_epoch: Some(RegionEpoch {
                    conf_ver: 1,
                    version: 1,
                }),
                ..Region::default()
            },
            checkpoint_ts: Ts::new(1),
            wanted: Arc::from([EncodedRange::ALL]),
            alone: false,
        });
    }
    while feed.next_request().is_some() {}
    let mut events = Vec::new();
    let mut rest = data;
    while let Some((message, after)) = message(rest) {
        // What is no message ends the stream.
        if feed
            .on_message(&Bytes::copy_from_slice(message), &mut events)
            .is_err()
        {
            break;
        }
        events.clear();
        rest = after;
    }
    feed.disconnect();
    assert!(feed.is_empty());
}

fn message(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))
}

/// Keys of tasks in PD's etcd.
pub fn task_key(data: &[u8]) {
    if let Some((task, start)) = keys::split_range(data) {
        assert_eq!(&keys::range(task, start)[..], data);
    }
    if let Ok(name) = std::str::from_utf8(data)
        && keys::check_name(name).is_ok()
    {
        let key = keys::storage_checkpoint(name, 5);
        let prefix = keys::storage_checkpoints_of(name);
        assert_eq!(keys::store_behind(&prefix, key.as_bytes()), Some(5));
    }
}

/// Storage URLs of the command line and of tasks.
pub fn storage_url(data: &[u8]) {
    let Ok(url) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(location) = Location::parse(url) {
        assert!(!location.uri().is_empty());
        if let Ok(backend) = location.to_backend() {
            let again = Location::from_backend(&backend).map(|location| location.uri());
            assert_eq!(again.ok(), Some(location.uri()));
        }
    }
}
