//! JuiceFS: whether one of its volumes is probably among the keys of a task, and what its way of
//! running GC means for the log. Asked by `log start` (a note) and before a session (a refusal).
//!
//! Keys of a volume are the path of its metadata URL, `0xFD`, and a record; without a path `0xFD` is
//! the first byte. Where PD has no GC states, clients of JuiceFS move the GC safepoint to now less
//! their `gc-interval`, whatever holds it (up to 1.4.1; later ones do not run GC there at all), so
//! that only that setting keeps history. Source: juicedata/juicefs `pkg/meta/tkv_tikv.go`.

use std::time::Duration;

use pitr_cluster::kv::KvClient;
use pitr_format::{EncodedKey, Ts};

use crate::cluster::Cluster;
use crate::codes::Code;
use crate::failure::Failure;
use crate::ranges::{self, RawRange};
use crate::time;

/// Between the path of a volume and a record of it.
const SEPARATOR: u8 = 0xFD;
/// The record that every volume has, as a key of its own.
const SETTING: &[u8] = b"setting";
/// Ranges of a task that are looked into.
const RANGES: usize = 16;
/// First keys of each of them.
const KEYS: u32 = 16;
/// And regions of each whose bounds are looked at.
const REGIONS: usize = 256;
/// The history that GC leaves must be this many flush intervals at least.
const INTERVALS: u32 = 4;

/// What whoever starts a log of these ranges should know of GC.
pub async fn notes(
    cluster: &Cluster,
    ranges: &[RawRange],
    now: Ts,
) -> Result<Vec<String>, Failure> {
    let unguarded = unguarded_volume(cluster, ranges, now).await?;
    let note = |volume| {
        format!(
            "the keys look like those of a JuiceFS volume ({volume:?}) and PD has no GC states: clients \
             of JuiceFS move GC past what holds it. Set `gc-interval` of every mount to at least \
             2 x (duration of a snapshot + longest pause that is allowed), 24h or more is \
             recommended; or to 0 with `gc-driver` on"
        )
    };
    Ok(unguarded.map(note).into_iter().collect())
}

/// Refuses to tail a volume whose history may be gone before it is flushed.
pub async fn refuse_rare_flushes(
    cluster: &Cluster,
    ranges: &[RawRange],
    now: Ts,
    interval: Duration,
) -> Result<(), Failure> {
    let safe_point = cluster.pd.gc_safe_point().await?;
    let history = time::lag(now, safe_point);
    if safe_point.is_zero() || often_enough(interval, history) {
        return Ok(());
    }
    let Some(volume) = unguarded_volume(cluster, ranges, now).await? else {
        return Ok(());
    };
    let shown = |span: Duration| humantime::format_duration(Duration::from_secs(span.as_secs()));
    let what = format!(
        "`log-backup.max-flush-interval` is {}, and GC leaves {} of history: at most a quarter of it \
         is safe",
        shown(interval),
        shown(history)
    );
    Err(Failure::new(Code::FlushesTooRare, what).at(format!("JuiceFS volume {volume:?}")))
}

/// Whether several flushes happen before what one of them needs is gone.
fn often_enough(interval: Duration, history: Duration) -> bool {
    interval.saturating_mul(INTERVALS) <= history
}

/// The path of a volume that is probably in the ranges and that nothing but its own settings saves
/// from GC.
async fn unguarded_volume(
    cluster: &Cluster,
    ranges: &[RawRange],
    now: Ts,
) -> Result<Option<String>, Failure> {
    if cluster.pd.gc_state().await?.is_some() {
        return Ok(None);
    }
    let client = KvClient::new(cluster.pd.clone());
    for (start, end) in ranges.iter().take(RANGES) {
        let mut keys = client
            .first_keys(start.clone(), end.clone(), now, KEYS)
            .await?;
        let range = ranges::encode(&(start.clone(), end.clone()));
        let regions = cluster.pd.scan_regions(&range.start, &range.end, REGIONS);
        for region in regions.await? {
            let bound = region.meta.start_key;
            if range.contains(&bound) {
                keys.extend(EncodedKey::from_encoded(bound).decode().map(Into::into));
            }
        }
        if let Some(volume) = keys.iter().find_map(|key| volume_of(key)) {
            return Ok(Some(volume.to_owned()));
        }
    }
    Ok(None)
}

/// The path of the volume whose key this probably is.
fn volume_of(key: &[u8]) -> Option<&str> {
    if key == SETTING {
        return Some("");
    }
    let at = key.iter().position(|byte| *byte == SEPARATOR)?;
    let path = str::from_utf8(&key[..at]).ok()?;
    (!path.contains(char::is_control)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_behind_a_printable_path_is_one_of_a_volume() {
        assert_eq!(volume_of(b"jfs-1\xFDA\0\0\0\0\0\0\0\x01I"), Some("jfs-1"));
        assert_eq!(volume_of(b"a/b c\xFDsetting"), Some("a/b c"));
        assert_eq!(volume_of(b"\xC3\xBC\xFDC"), Some("ü"));
        assert_eq!(volume_of(b"\xFDCnextInode"), Some(""));
        assert_eq!(volume_of(b"setting"), Some(""));
        // The first one separates, whatever the record holds.
        assert_eq!(volume_of(b"v\xFDL\xFD\xFD"), Some("v"));
    }

    #[test]
    fn keys_of_other_users_are_not_of_a_volume() {
        let table = b"t\x80\0\0\0\0\0\0\x2D_r\x80\0\0\0\0\0\0\xFD";
        for key in [
            &b""[..],
            b"demo/001",
            b"settings",
            b"my-setting",
            b"a\0\xFD",
            b"a\xFF\xFD",
            table,
        ] {
            assert_eq!(volume_of(key), None, "{key:?}");
        }
    }

    #[test]
    fn four_flushes_must_fit_into_the_history_that_gc_leaves() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert!(often_enough(minutes(3), minutes(12)));
        assert!(!often_enough(
            minutes(3),
            minutes(12) - Duration::from_millis(1)
        ));
        assert!(!often_enough(minutes(3), Duration::ZERO));
        assert!(!often_enough(Duration::MAX, minutes(12)));
    }
}
