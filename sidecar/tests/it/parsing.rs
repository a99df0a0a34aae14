//! Properties of everything that a user writes: sizes, durations, configurations, URLs, times. What is
//! accepted is what was written; what is not is refused with a reason; and no secret survives
//! being shown.

use std::time::Duration;

use pitr_sidecar::config::effective::{self, Source};
use pitr_sidecar::config::{ByteSize, Config, ConfigError, KEYS, Span, schema};
use pitr_storage::redact::redact_url;
use proptest::prelude::*;

const SMALLEST: &str = "pd-endpoints = [\"127.0.0.1:2379\"]\nstore-id = 1\n";

/// The text of a TOML string with these characters.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn with_line(line: &str) -> Result<Config, ConfigError> {
    let (table, line) = match line.split_once('.') {
        Some(("log-backup", rest)) => ("[log-backup]\n", rest),
        _ => ("", line),
    };
    Config::parse(&format!("{SMALLEST}{table}{line}\n"))
}

/// Whether an editor that knows the published schema finds nothing wrong.
fn editor_accepts(line: &str) -> bool {
    let text = match line.split_once('.') {
        Some(("log-backup", rest)) => format!("{SMALLEST}[log-backup]\n{rest}\n"),
        _ => format!("{SMALLEST}{line}\n"),
    };
    let table: toml::Table = text.parse().unwrap();
    jsonschema::is_valid(&schema(), &serde_json::to_value(table).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_size_means_its_number_times_its_unit(
        number in 0..1u64 << 40,
        unit in 0..5usize,
        spelling in 0..4usize,
        blank in any::<bool>(),
    ) {
        let name = ["B", "KiB", "MiB", "GiB", "TiB"][unit];
        let name = match spelling {
            0 => name.to_owned(),
            1 => name.to_lowercase(),
            2 => name.to_uppercase(),
            _ => name.replace('i', ""),
        };
        let text = format!("{number}{}{name}", if blank { " " } else { "" });
        let expected = number.checked_mul(1u64 << (10 * unit));
        let read = text.parse::<ByteSize>().ok().map(ByteSize::get);
        prop_assert_eq!(read, expected, "{}", text);
    }

    #[test]
    fn a_size_that_was_printed_reads_back_and_any_text_is_answered(
        bytes in any::<u64>(),
        text in "\\PC{0,12}",
    ) {
        let size: ByteSize = format!("{bytes}B").parse().unwrap();
        prop_assert_eq!(size.to_string().parse(), Ok(size));
        if let Ok(size) = text.parse::<ByteSize>() {
            prop_assert!(text.starts_with(|c: char| c.is_ascii_digit()), "{:?} is {}", text, size);
            prop_assert!(text.trim_end().ends_with(['b', 'B']), "{:?} is {}", text, size);
        }
    }

    #[test]
    fn a_duration_that_was_printed_reads_back(millis in 0..u64::from(u32::MAX) * 1000) {
        let text = humantime::format_duration(Duration::from_millis(millis)).to_string();
        let span = Span::try_from(text.clone()).unwrap();
        prop_assert_eq!(span.get(), Duration::from_millis(millis));
        prop_assert_eq!(String::from(span), text);
    }

    /// An editor and the program must agree, or one of them sends the user astray.
    #[test]
    fn the_schema_for_editors_accepts_what_the_parser_accepts(
        number in "[0-9]{1,4}",
        gap in "[ ]{0,3}",
        unit in "[KMGTkmgtiIbBshdmyM]{0,3}",
    ) {
        let value = quoted(&format!("{number}{gap}{unit}"));
        for (line, key) in [
            (format!("temp-file-quota = {value}"), "temp-file-quota"),
            (format!("lag-limit = {value}"), "lag-limit"),
        ] {
            let parsed = with_line(&line).is_ok();
            let editor = editor_accepts(&line);
            prop_assert!(
                editor || !parsed,
                "{} is read, and the schema of {} refuses it", line, key
            );
            if key == "temp-file-quota" {
                prop_assert_eq!(editor, parsed, "{}", line);
            }
        }
    }

    #[test]
    fn a_configuration_that_was_written_reads_back(
        hosts in prop::collection::vec("[a-z0-9.-]{1,12}:[0-9]{1,5}", 1..4),
        store in prop_oneof![(1..u64::MAX >> 1).prop_map(Ok), "[a-z0-9]{1,9}:[0-9]{1,4}".prop_map(Err)],
        seconds in 1..1_000_000u64,
        kib in 64..1u64 << 30,
        mib in 32..1u64 << 20,
        threads in 1..65usize,
        temp in prop::option::of("/[a-z0-9 \"\\\\/ü]{0,20}"),
    ) {
        let store = match &store {
            Ok(id) => format!("store-id = {id}"),
            Err(address) => format!("store-address = {}", quoted(address)),
        };
        let temp = temp.map(|path| format!("temp-path = {}\n", quoted(&path))).unwrap_or_default();
        let text = format!(
            "pd-endpoints = {hosts:?}\n{store}\nmemory-budget = \"{mib}MiB\"\n{temp}\
             lag-limit = \"{seconds}s\"\n[log-backup]\nmax-flush-interval = \"{seconds}s\"\n\
             file-size-limit = \"{kib}KiB\"\nnum-threads = {threads}\n"
        );
        let config = Config::parse(&text).unwrap();
        prop_assert_eq!(config.memory_budget.get(), mib << 20);
        prop_assert_eq!(config.log_backup.file_size_limit.get(), kib << 10);
        prop_assert_eq!(config.log_backup.max_flush_interval.get(), Duration::from_secs(seconds));
        prop_assert_eq!(config.log_backup.num_threads, threads);
        let written = toml::to_string(&config).unwrap();
        prop_assert_eq!(Config::parse(&written).unwrap(), config);
        let settings = effective::of_file(&text).unwrap();
        prop_assert_eq!(settings.len(), KEYS.len());
        for setting in settings {
            if let Some(line) = setting.line {
                let key = setting.key.rsplit('.').next().unwrap();
                let found = text.lines().nth(line - 1).unwrap();
                prop_assert!(found.starts_with(key), "{} in line {}: {}", key, line, found);
                prop_assert_eq!(setting.source, Source::File);
            }
        }
    }

    /// One slip of the finger in any key: refused, and the key that was meant is named.
    #[test]
    fn a_key_with_one_wrong_letter_is_refused_and_the_right_one_is_named(
        which in 0..KEYS.len(),
        at in any::<prop::sample::Index>(),
        letter in prop::char::range('a', 'z'),
        how in 0..3usize,
    ) {
        let key = KEYS[which].key;
        let name = key.split_once('.').map_or(key, |(_, name)| name);
        let mut letters: Vec<char> = name.chars().collect();
        let at = at.index(letters.len());
        match how {
            0 => letters[at] = letter,
            1 => letters.insert(at, letter),
            _ => drop(letters.remove(at)),
        }
        let wrong: String = letters.into_iter().collect();
        let wrong = key.replace(name, &wrong);
        prop_assume!(!KEYS.iter().any(|doc| doc.key == wrong));
        prop_assume!(!wrong.ends_with('.') && !wrong.ends_with('-') && !wrong.starts_with('-'));
        match with_line(&format!("{wrong} = \"x\"")) {
            Err(ConfigError::UnknownKey { key: told, nearest }) => {
                prop_assert_eq!(told, wrong);
                prop_assert_eq!(nearest.as_deref(), Some(key));
            }
            other => prop_assert!(false, "{}: {:?}", wrong, other),
        }
    }

    #[test]
    fn any_text_as_a_configuration_is_answered_and_never_read_as_a_good_one(
        text in "\\PC{0,60}",
        line in "[a-z.-]{1,20} = [\"0-9a-z\\[\\]{}.-]{0,12}",
    ) {
        prop_assert!(Config::parse(&text).is_err());
        // Whatever a single line does, it does not make a needed key needless.
        prop_assert!(Config::parse(&line).is_err());
        let _ = Config::parse(&format!("{SMALLEST}{line}"));
    }

    /// Letters, digits and everything that URLs and passwords are made of.
    #[test]
    fn a_password_of_pd_is_never_shown(secret in "[!-~]{5,20}") {
        prop_assume!(!secret.contains(['"', '\\']));
        let without = "pd-endpoints = [\"https://***@pd:2379/\"]\nstore-id = 1\n";
        let without = format!("{:?}", effective::of_file(without).unwrap());
        prop_assume!(!without.contains(&secret));
        for url in [
            format!("http://root:{secret}@pd:2379"),
            format!("http://{secret}@pd:2379"),
            format!("https://{secret}:x@pd:2379/"),
        ] {
            let text = format!("pd-endpoints = [{}]\nstore-id = 1\n", quoted(&url));
            let shown = format!("{:?}", effective::of_file(&text).unwrap());
            prop_assert!(!shown.contains(&secret), "{} in {}", secret, shown);
        }
    }

    #[test]
    fn no_part_of_a_url_that_may_be_secret_survives_being_shown(
        secret in "[0-9A-Za-z+/=._~!*'()-]{6,40}",
        key in prop_oneof![
            Just("access-key"), Just("secret-access-key"), Just("session-token"),
            Just("secret_access_key"), Just("SECRET-ACCESS-KEY"), Just("account-key"),
            Just("sas-token"), Just("sig"), Just("X-Amz-Signature"), Just("anything"),
        ],
        scheme in prop_oneof![Just("s3"), Just("gcs"), Just("azure"), Just("http"), Just("odd")],
    ) {
        for url in [
            format!("{scheme}://bucket/prefix?{key}={secret}"),
            format!("{scheme}://bucket/prefix?region=r&{key}={secret}&endpoint=http://h:1"),
            format!("{scheme}://{}@bucket/prefix", secret.replace('/', "_")),
            format!("{scheme}://user:{}@bucket/prefix", secret.replace('/', "_")),
            format!("{scheme}://bucket/prefix#{secret}"),
            format!("{scheme}://bucket?endpoint=http://u:{secret}@host&region=r"),
            format!("{scheme}://bucket?endpoint=http://host/?k={secret}"),
        ] {
            let shown = redact_url(&url);
            for spelling in [secret.clone(), secret.replace('/', "_")] {
                prop_assert!(!shown.contains(&spelling), "{} becomes {}", url, shown);
            }
        }
    }

    #[test]
    fn what_is_no_secret_stays_readable(bucket in "[a-z][a-z0-9-]{2,20}", prefix in "[a-z0-9/]{0,20}") {
        let url = format!("s3://{bucket}/{prefix}?region=eu-1&storage-class=GLACIER");
        let shown = redact_url(&url);
        for part in [bucket.as_str(), &prefix, "region=eu-1", "storage-class=GLACIER"] {
            prop_assert!(shown.contains(part), "{} lacks {}", shown, part);
        }
        prop_assert_eq!(redact_url(&shown), shown.clone(), "showing twice changes nothing");
    }
}

/// Each rule at its border: the last good value and the first bad one.
#[test]
fn every_limit_holds_exactly_at_its_border() {
    for (good, bad, key) in [
        (
            "memory-budget = \"32MiB\"",
            "memory-budget = \"32767KiB\"",
            "memory-budget",
        ),
        (
            "log-backup.max-flush-interval = \"1s\"",
            "log-backup.max-flush-interval = \"999ms\"",
            "log-backup.max-flush-interval",
        ),
        (
            "log-backup.file-size-limit = \"64KiB\"",
            "log-backup.file-size-limit = \"65535B\"",
            "log-backup.file-size-limit",
        ),
        (
            "log-backup.num-threads = 1",
            "log-backup.num-threads = 0",
            "log-backup.num-threads",
        ),
        (
            "log-backup.num-threads = 64",
            "log-backup.num-threads = 65",
            "log-backup.num-threads",
        ),
    ] {
        with_line(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        match with_line(bad) {
            Err(ConfigError::Value { key: told, .. }) => assert_eq!(told, key),
            other => panic!("{bad}: {other:?}"),
        }
    }
}

/// Values of another type, of every key, name the key or its line.
#[test]
fn a_value_of_the_wrong_type_is_refused_for_every_key() {
    for doc in KEYS {
        for value in ["true", "1.5", "{ a = 1 }", "[[1]]", "1979-05-27T07:32:00Z"] {
            if doc.unit == "boolean" && value == "true" {
                continue;
            }
            let name = doc.key.strip_prefix("log-backup.").unwrap_or(doc.key);
            let text = match doc.key {
                "pd-endpoints" => format!("store-id = 1\n{name} = {value}\n"),
                "store-id" | "store-address" => {
                    format!("pd-endpoints = [\"a:1\"]\n{name} = {value}\n")
                }
                key if key.starts_with("log-backup.") => {
                    format!("{SMALLEST}[log-backup]\n{name} = {value}\n")
                }
                _ => format!("{SMALLEST}{name} = {value}\n"),
            };
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(name), "{text}: {error}");
        }
    }
}
