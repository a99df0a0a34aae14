//! Which features a client gets, from the version it announces and the metadata of its call.
//! Source: tikv/tikv `components/cdc/src/service.rs`.

/// Metadata key of the feature list.
pub const FEATURES_HEADER: &str = "features";
const MULTIPLEXING: &str = "stream-multiplexing";

/// A semantic version as far as comparisons need it; the last part is false for a pre-release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u64, u64, u64, bool);

const BATCH_RESOLVED_TS: Version = Version(4, 0, 8, true);
const VALIDATE_CLUSTER_ID: Version = Version(5, 3, 0, true);

/// What one connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// A region may be subscribed under several request ids.
    pub multiplexing: bool,
    /// Resolved timestamps come for many regions at once.
    pub batch_resolved_ts: bool,
    /// The cluster id of each registration is compared.
    pub validate_cluster_id: bool,
}

impl Features {
    /// `version` is the `ticdc_version` of the connection's first request.
    pub fn of(version: &str, multiplexing: bool) -> Self {
        let version = parse(version).unwrap_or(Version(0, 0, 0, true));
        Features {
            multiplexing,
            batch_resolved_ts: version >= BATCH_RESOLVED_TS,
            validate_cluster_id: version >= VALIDATE_CLUSTER_ID,
        }
    }
}

/// Reads the value of the `features` metadata: whether the stream is multiplexed. Unknown names
/// are returned as the error, with the empty name of an empty value among them.
pub fn parse_features(list: &str) -> Result<bool, String> {
    let (known, unknown): (Vec<&str>, Vec<&str>) = list
        .split(',')
        .map(str::trim)
        .partition(|name| *name == MULTIPLEXING);
    match unknown.is_empty() {
        true => Ok(!known.is_empty()),
        false => Err(unknown.join(",")),
    }
}

fn parse(text: &str) -> Option<Version> {
    let (text, _build) = text.split_once('+').unwrap_or((text, ""));
    let (numbers, pre) = text.split_once('-').unwrap_or((text, ""));
    let mut parts = numbers.split('.').map(|part| part.parse::<u64>().ok());
    let version = Version(
        parts.next()??,
        parts.next()??,
        parts.next()??,
        pre.is_empty(),
    );
    parts.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_begin_with_their_versions() {
        let of = |version| Features::of(version, true);
        assert!(!of("4.0.7").batch_resolved_ts);
        assert!(!of("4.0.8-alpha").batch_resolved_ts);
        assert!(of("4.0.8").batch_resolved_ts);
        assert!(!of("5.2.9").validate_cluster_id);
        assert!(of("8.5.0").validate_cluster_id);
        // What does not parse counts as 0.0.0.
        for odd in ["", "v8.5.0", "8.5", "8.5.0.1", "x.y.z"] {
            assert!(!of(odd).batch_resolved_ts, "{odd}");
        }
    }

    #[test]
    fn unknown_features_are_named_and_an_empty_list_is_one() {
        assert_eq!(parse_features("stream-multiplexing"), Ok(true));
        assert_eq!(
            parse_features(" stream-multiplexing , stream-multiplexing"),
            Ok(true)
        );
        assert_eq!(parse_features("x-unknown"), Err("x-unknown".to_owned()));
        assert_eq!(
            parse_features("a, stream-multiplexing,b"),
            Err("a,b".to_owned())
        );
        assert_eq!(parse_features(""), Err(String::new()));
    }
}
