//! The value of a pause key: who paused a task, when and why. Written as BR 9 does, byte for byte;
//! read from BR, TiKV and the advancer (pingcap/tidb `br/pkg/streamhelper/client.go`, tikv/tikv
//! `components/backup-stream/src/metadata/client.rs`).
//!
//! The presence of the key is the pause. A value that cannot be read is therefore shown, and never
//! keeps a task from being resumed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Zoned;
use pitr_proto::backup::StreamBackupError;
use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Severity of a pause that a person asked for.
const MANUAL: &str = "MANUAL";
/// Severity of a pause after an error.
const ERROR: &str = "ERROR";
const TEXT: &str = "text/plain;charset=UTF-8";
const PROTOBUF_ERROR: &str = "brpb.StreamBackupError";

/// Error codes of TiKV (`components/error_code/src/backup_stream.rs`) behind which the outside
/// world stands, not the data.
const TRANSIENT: [&str; 8] = [
    "KV:LogBackup:Io",
    "KV:LogBackup:Pd",
    "KV:LogBackup:gRPC",
    "KV:LogBackup:RaftReq",
    "KV:LogBackup:RaftStore",
    "KV:LogBackup:Txn",
    "KV:LogBackup:Scheduler",
    "KV:LogBackup:ObserveCancel",
];

/// What the key says, in BR's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pause {
    /// `MANUAL`, or `ERROR` when a store or the advancer gave up.
    pub severity: String,
    /// Machine of the one who paused.
    pub operation_hostname: String,
    /// Process of the one who paused.
    pub operation_pid: u64,
    /// When, RFC 3339; empty when unknown.
    pub operation_time: String,
    /// Why, if that was told.
    pub message: Option<String>,
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Wire {
    severity: String,
    operation_hostname: String,
    operation_pid: u64,
    operation_time: String,
    payload_type: String,
    /// Base64.
    payload: Option<String>,
}

impl Default for Wire {
    fn default() -> Self {
        Wire {
            severity: MANUAL.to_owned(),
            operation_hostname: String::new(),
            operation_pid: 0,
            operation_time: String::new(),
            payload_type: String::new(),
            payload: None,
        }
    }
}

impl Pause {
    /// A pause by this process, now.
    pub fn by_us(message: Option<&str>) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Pause {
            severity: MANUAL.to_owned(),
            operation_hostname: match host.trim() {
                "" => "unknown".to_owned(),
                host => host.to_owned(),
            },
            operation_pid: u64::from(std::process::id()),
            operation_time: rfc3339(&Zoned::now()),
            message: message.map(str::to_owned),
        }
    }

    /// A pause by this process because something is wrong.
    pub fn by_failure(message: &str) -> Self {
        Pause {
            severity: ERROR.to_owned(),
            ..Pause::by_us(Some(message))
        }
    }

    /// The value of the key.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let message = self.message.as_deref();
        serde_json::to_vec(&Wire {
            severity: self.severity.clone(),
            operation_hostname: self.operation_hostname.clone(),
            operation_pid: self.operation_pid,
            operation_time: self.operation_time.clone(),
            payload_type: message.map(|_| TEXT.to_owned()).unwrap_or_default(),
            payload: message.map(|text| STANDARD.encode(text)),
        })
    }

    /// Reads a value; the first form of the key is empty.
    pub fn decode(value: &[u8]) -> Self {
        let unreadable = |why: String| Pause {
            message: Some(format!("the value of the pause key cannot be read: {why}")),
            ..Pause::from(Wire::default())
        };
        if value.is_empty() {
            return Pause::from(Wire::default());
        }
        // A list would be taken for the members in their order.
        let object = serde_json::from_slice::<Map<String, Value>>(value);
        match object.and_then(|object| serde_json::from_value::<Wire>(object.into())) {
            Ok(wire) => Pause::from(wire),
            Err(error) => unreadable(error.to_string()),
        }
    }

    /// Whether the task was paused because something failed.
    pub fn is_error(&self) -> bool {
        self.severity == ERROR
    }

    /// Whether a store gave up for a reason that may have passed by itself: PD, other stores or the
    /// storage could not be reached. Never a pause by hand, nor one because of lag or of lost history.
    pub fn is_transient(&self) -> bool {
        let message = self.message.as_deref().unwrap_or_default();
        let code = message.split(' ').next().unwrap_or_default();
        self.is_error() && TRANSIENT.contains(&code)
    }

    /// In one line: who, when and why.
    pub fn one_line(&self) -> String {
        let who = match self.operation_hostname.is_empty() {
            true => "unknown".to_owned(),
            false => format!(
                "{} (process {})",
                self.operation_hostname, self.operation_pid
            ),
        };
        let mut line = format!("by {who}");
        for (word, text) in [
            ("at", Some(&self.operation_time).filter(|t| !t.is_empty())),
            ("because:", self.message.as_ref()),
        ] {
            if let Some(text) = text {
                line.push_str(&format!(" {word} {text}"));
            }
        }
        line
    }
}

impl From<Wire> for Pause {
    fn from(wire: Wire) -> Self {
        Pause {
            message: message(&wire),
            severity: wire.severity,
            operation_hostname: wire.operation_hostname,
            operation_pid: wire.operation_pid,
            operation_time: wire.operation_time,
        }
    }
}

/// The payload as text, whatever its type.
fn message(wire: &Wire) -> Option<String> {
    let payload = wire.payload.as_deref().filter(|text| !text.is_empty())?;
    let Ok(bytes) = STANDARD.decode(payload) else {
        return Some("its payload is not base64".to_owned());
    };
    if wire.payload_type.contains(PROTOBUF_ERROR)
        && let Ok(error) = StreamBackupError::decode(&bytes[..])
    {
        return Some(format!("{} {}", error.error_code, error.error_message));
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// As Go prints it: no fraction, `Z` for UTC.
fn rfc3339(at: &Zoned) -> String {
    let text = at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    match text.strip_suffix("+00:00") {
        Some(utc) => format!("{utc}Z"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BR_KEYS: &str = include_str!("../../tests/golden/br-pd-keys.txt");

    fn recorded() -> Vec<Vec<u8>> {
        let lines = BR_KEYS.lines();
        let puts = lines.filter(|line| line.starts_with("PUT") && line.contains("/pause/"));
        puts.map(|line| hex::decode(line.rsplit(' ').next().unwrap()).unwrap())
            .collect()
    }

    #[test]
    fn the_values_that_br_wrote_are_read_and_written_again_byte_for_byte() {
        assert_eq!(recorded().len(), 2);
        for bytes in recorded() {
            let pause = Pause::decode(&bytes);
            assert_eq!(pause.operation_hostname, "vm");
            assert_eq!(pause.operation_time, "2026-11-22T01:10:30Z");
            assert_eq!(pause.message, None);
            assert!(!pause.is_error());
            assert_eq!(pause.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn a_message_survives_the_way_there_and_back() {
        let pause = Pause::by_us(Some("storage moves: \"s3\" é"));
        assert_eq!(Pause::decode(&pause.encode().unwrap()), pause);
        assert_eq!(pause.operation_pid, u64::from(std::process::id()));
        let text = String::from_utf8(pause.encode().unwrap()).unwrap();
        assert!(
            text.contains("\"payload_type\":\"text/plain;charset=UTF-8\""),
            "{text}"
        );
    }

    #[test]
    fn a_pause_because_of_a_failure_is_an_error_for_every_tool() {
        let pause = Pause::decode(&Pause::by_failure("lags by 48 h").encode().unwrap());
        assert!(pause.is_error());
        assert_eq!(pause.message.as_deref(), Some("lags by 48 h"));
        assert!(!Pause::by_us(None).is_error());
    }

    #[test]
    fn the_error_of_a_store_is_shown_as_text() {
        let error = StreamBackupError {
            error_code: "KV:LogBackup:Io".to_owned(),
            error_message: "[store = 1] disk".to_owned(),
            ..StreamBackupError::default()
        };
        let value = serde_json::json!({
            "severity": "ERROR",
            "operation_hostname": "tikv-0",
            "operation_pid": 7,
            "operation_time": "2026-11-22T01:10:30.123+08:00",
            "payload_type": "application/x-protobuf;messagetype=brpb.StreamBackupError",
            "payload": STANDARD.encode(error.encode_to_vec()),
        });
        let pause = Pause::decode(value.to_string().as_bytes());
        assert!(pause.is_error());
        assert_eq!(
            pause.message.as_deref(),
            Some("KV:LogBackup:Io [store = 1] disk")
        );
        assert!(pause.is_transient());
        let not = |change: fn(&mut Pause)| {
            let mut other = pause.clone();
            change(&mut other);
            !other.is_transient()
        };
        assert!(not(|pause| pause.severity = "MANUAL".to_owned()));
        assert!(not(
            |pause| pause.message = Some("PITR:Gap [store = 1] GC".to_owned())
        ));
        assert!(not(
            |pause| pause.message = Some("the lag limit is reached".to_owned())
        ));
        assert!(not(|pause| pause.message = None));
        assert!(
            pause
                .one_line()
                .contains("tikv-0 (process 7) at 2026-11-22")
        );
    }

    #[test]
    fn an_empty_value_is_a_pause_and_one_that_cannot_be_read_says_so() {
        assert_eq!(Pause::decode(b"").message, None);
        assert_eq!(Pause::decode(b"").one_line(), "by unknown");
        for wrong in [&b"{"[..], b"[]", b"\xFF\xFE", b"{\"severity\":7}", b"null"] {
            let message = Pause::decode(wrong).message.unwrap();
            assert!(message.contains("cannot be read"), "{message}");
        }
        let payload = Pause::decode(b"{\"payload\":\"???\"}").message.unwrap();
        assert!(payload.contains("not base64"), "{payload}");
    }

    #[test]
    fn the_time_is_written_as_go_does() {
        let at: Zoned = "2026-11-22T09:10:30+08:00[+08:00]".parse().unwrap();
        assert_eq!(rfc3339(&at), "2026-11-22T09:10:30+08:00");
        assert_eq!(
            rfc3339(&at.with_time_zone(jiff::tz::TimeZone::UTC)),
            "2026-11-22T01:10:30Z"
        );
    }
}
