//! The configuration as it is in effect: every key with its value and where that comes from.
//! Shown by `config show` and by `/config`; never a secret.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use toml::de::{DeTable, DeValue};

use super::{Config, ConfigError, KEYS, keys};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It stands in the file.
    File,
    /// It is the default.
    Default,
    /// The key has neither value nor default.
    Unset,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Setting {
    /// Path of the key, tables joined with dots.
    pub key: String,
    /// Value as TOML, without secrets; null when there is none.
    pub value: Option<String>,
    /// Type and unit.
    pub unit: String,
    /// Where the value comes from.
    pub source: Source,
    /// Line in the file, if it stands there and the file is known.
    pub line: Option<usize>,
}

/// Every key of a file that was checked.
pub fn of_file(text: &str) -> Result<Vec<Setting>, ConfigError> {
    let config = Config::parse(text)?;
    let lines = lines(text);
    Ok(settings(&config, |key, _| {
        lines.get(key).copied().map(Some)
    }))
}

/// Every key of a configuration whose file is not known any more: what differs from the default
/// must have stood there.
pub fn of_config(config: &Config) -> Vec<Setting> {
    settings(config, |key, value| {
        let default = KEYS.iter().find(|doc| doc.key == key)?.default;
        (default != Some(value)).then_some(None)
    })
}

/// `stands` tells whether a key stood in the file, and in which line.
fn settings(config: &Config, stands: impl Fn(&str, &str) -> Option<Option<usize>>) -> Vec<Setting> {
    let mut values = BTreeMap::new();
    // A struct of texts, numbers and lists always has a TOML form.
    let table = toml::Table::try_from(config).unwrap_or_default();
    keys::walk(&table, "", &mut |key, value| {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        values.insert(key.to_owned(), text);
    });
    let setting = |doc: &super::KeyDoc| {
        let value = values.get(doc.key);
        let stands = value.and_then(|value| stands(doc.key, value));
        Setting {
            key: doc.key.to_owned(),
            value: value.map(|value| redact(value)),
            unit: doc.unit.to_owned(),
            source: match (value, stands) {
                (None, _) => Source::Unset,
                (Some(_), Some(_)) => Source::File,
                (Some(_), None) => Source::Default,
            },
            line: stands.flatten(),
        }
    };
    KEYS.iter().map(setting).collect()
}

/// The line of every key that stands in a file.
fn lines(text: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    if let Ok(table) = DeTable::parse(text) {
        note_lines(table.get_ref(), "", text, &mut found);
    }
    found
}

fn note_lines(table: &DeTable, prefix: &str, text: &str, found: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = format!("{prefix}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => note_lines(inner, &format!("{path}."), text, found),
            _ => {
                let before = text.get(..key.span().start).unwrap_or_default();
                found.insert(path, before.matches('\n').count() + 1);
            }
        }
    }
}

/// Hides what stands before the host in every URL of a text: names and passwords. A password may
/// hold anything but a quote, so everything up to the last `@` of a string is taken for one.
fn redact(text: &str) -> String {
    let hide = |string: &str| match (string.find("://"), string.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}***{}", &string[..scheme + 3], &string[at..])
        }
        _ => string.to_owned(),
    };
    text.split('"').map(hide).collect::<Vec<_>>().join("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# where PD is\npd-endpoints = [\"http://root:hunter2@pd:2379\"]\n\
                        store-id = 1\n\n[log-backup]\nmax-flush-interval = \"30s\"\n";

    fn find<'a>(settings: &'a [Setting], key: &str) -> &'a Setting {
        settings.iter().find(|setting| setting.key == key).unwrap()
    }

    #[test]
    fn every_key_is_shown_with_its_source_and_line() {
        let settings = of_file(FILE).unwrap();
        assert_eq!(settings.len(), KEYS.len());
        let interval = find(&settings, "log-backup.max-flush-interval");
        assert_eq!(interval.value.as_deref(), Some("30s"));
        assert_eq!((interval.source, interval.line), (Source::File, Some(6)));
        let threads = find(&settings, "log-backup.num-threads");
        assert_eq!(threads.value.as_deref(), Some("2"));
        assert_eq!((threads.source, threads.line), (Source::Default, None));
        let address = find(&settings, "store-address");
        assert_eq!((address.source, &address.value), (Source::Unset, &None));
    }

    #[test]
    fn a_password_in_a_url_is_never_shown() {
        let shown = format!("{:?}", of_file(FILE).unwrap());
        assert!(
            shown.contains("http://***@pd:2379") && !shown.contains("hunter2"),
            "{shown}"
        );
        assert_eq!(
            redact("[\"http://a@b:1/x@y\", \"c://d:e@f\"]"),
            "[\"http://***@y\", \"c://***@f\"]"
        );
        assert_eq!(redact("plain:2379"), "plain:2379");
    }

    #[test]
    fn without_the_file_what_differs_from_the_default_counts_as_set() {
        let settings = of_config(&Config::parse(FILE).unwrap());
        let source = |key| find(&settings, key).source;
        assert_eq!(source("log-backup.max-flush-interval"), Source::File);
        assert_eq!(source("log-backup.num-threads"), Source::Default);
        assert_eq!(source("store-address"), Source::Unset);
    }
}
