//! `tikv-pitr/start.json`: what `log start` found in the cluster at the start ts.
//!
//! The log holds changes only. Whether it can stand alone depends on what the ranges held before,
//! which no other object says: if they were empty, the log is complete; if not, a restore needs
//! a snapshot or the operator's consent. Ours alone: stock tools ignore the object. Written by
//! `log start`, read by restore.
//!
//! ```json
//! {"task":"pitr","start_ts":470630700887572481,"ranges":[{"start":"","end":"ff"}],"empty":true}
//! ```

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Class, Ts};

/// The object is not the expected JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("start probe is damaged: {0}")]
pub struct StartProbeError(String);

impl StartProbeError {
    /// Damaged bytes stay damaged.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// The state of the task's ranges when the log began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartProbe {
    /// Name of the task.
    pub task: String,
    /// Start ts of the log.
    pub start_ts: Ts,
    /// The task's ranges: user (raw) keys, `[start, end)`, an empty end is unbounded.
    pub ranges: Vec<(Bytes, Bytes)>,
    /// Whether no key was visible in any range at `start_ts`.
    pub empty: bool,
}

#[derive(Serialize, Deserialize)]
struct Json {
    task: String,
    start_ts: u64,
    ranges: Vec<JsonRange>,
    empty: bool,
}

/// Bounds as lower-case hex.
#[derive(Serialize, Deserialize)]
struct JsonRange {
    start: String,
    end: String,
}

/// The JSON text.
pub fn encode(probe: &StartProbe) -> Result<Bytes, StartProbeError> {
    let json = Json {
        task: probe.task.clone(),
        start_ts: probe.start_ts.get(),
        ranges: probe
            .ranges
            .iter()
            .map(|(start, end)| JsonRange {
                start: hex::encode(start),
                end: hex::encode(end),
            })
            .collect(),
        empty: probe.empty,
    };
    serde_json::to_vec(&json)
        .map(Bytes::from)
        .map_err(|e| StartProbeError(e.to_string()))
}

/// Reads the JSON text; members of later versions are ignored.
pub fn decode(bytes: &[u8]) -> Result<StartProbe, StartProbeError> {
    let json: Json = serde_json::from_slice(bytes).map_err(|e| StartProbeError(e.to_string()))?;
    let key = |text: &str| {
        hex::decode(text)
            .map(Bytes::from)
            .map_err(|e| StartProbeError(format!("range bound {text:?}: {e}")))
    };
    let ranges = json
        .ranges
        .iter()
        .map(|range| Ok((key(&range.start)?, key(&range.end)?)))
        .collect::<Result<_, StartProbeError>>()?;
    Ok(StartProbe {
        task: json.task,
        start_ts: Ts::new(json.start_ts),
        ranges,
        empty: json.empty,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_has_hex_bounds_and_the_whole_ts() {
        let probe = StartProbe {
            task: "t-1".to_owned(),
            start_ts: Ts::MAX,
            ranges: vec![(Bytes::new(), Bytes::from_static(b"\xff\x00"))],
            empty: false,
        };
        let text = encode(&probe).unwrap();
        assert_eq!(
            text,
            r#"{"task":"t-1","start_ts":18446744073709551615,"ranges":[{"start":"","end":"ff00"}],"empty":false}"#
        );
        assert_eq!(decode(&text).unwrap(), probe);
    }

    #[test]
    fn missing_members_and_bad_bounds_are_refused_and_unknown_members_ignored() {
        let base = r#"{"task":"t","start_ts":1,"ranges":[{"start":"zz","end":""}],"empty":true}"#;
        assert!(
            decode(base.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("zz")
        );
        let good = base.replace("zz", "AB");
        let later = good.replace("\"task\"", "\"new\":[1],\"task\"");
        assert_eq!(
            decode(later.as_bytes()).unwrap(),
            decode(good.as_bytes()).unwrap()
        );
        for member in ["task", "start_ts", "ranges", "empty"] {
            let without = good.replace(&format!("\"{member}\""), "\"other\"");
            assert!(decode(without.as_bytes()).is_err(), "{member}");
        }
        assert!(decode(&good.as_bytes()[..good.len() - 1]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_probe_survives_a_round_trip(
            task: String, start_ts: u64, empty: bool,
            ranges in proptest::collection::vec(any::<(Vec<u8>, Vec<u8>)>(), 0..4),
        ) {
            let ranges = ranges.into_iter().map(|(s, e)| (s.into(), e.into())).collect();
            let probe = StartProbe { task, start_ts: Ts::new(start_ts), ranges, empty };
            prop_assert_eq!(decode(&encode(&probe).unwrap()).unwrap(), probe);
        }
    }
}
