//! Sizes and durations as people write them: `256MiB`, `3m`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A number of bytes, written with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

/// A length of time, written with units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": r"^[0-9]+\s*([KMGTkmgt][Ii]?)?[Bb]\s*$" })
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": r"^\s*(0|([0-9][0-9\s]*[A-Za-zµ]+\s*)+)$" })
    }
}

/// Largest unit first, so that printing picks the shortest exact form.
const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl ByteSize {
    /// So many KiB.
    pub const fn kib(n: u64) -> Self {
        ByteSize(n << 10)
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        ByteSize(n << 20)
    }

    /// Bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size: write for example `256MiB`");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.trim();
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| unit.eq_ignore_ascii_case(name) || short_unit(unit, name))
            .ok_or_else(wrong)?;
        number.checked_mul(*factor).map(ByteSize).ok_or_else(wrong)
    }
}

/// TiKV also accepts `MB` and means MiB.
fn short_unit(unit: &str, name: &str) -> bool {
    name.len() == 3 && unit.eq_ignore_ascii_case(&name.replace('i', ""))
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) = UNITS
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> String {
        size.to_string()
    }
}

impl Span {
    /// So many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Span(Duration::from_secs(secs))
    }

    /// The length.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        humantime::parse_duration(&text).map(Span).map_err(|error| {
            format!("`{text}` is not a duration ({error}): write for example `3m`")
        })
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_with_binary_units_and_print_back() {
        for (text, bytes) in [("256MiB", 256 << 20), ("1GiB", 1 << 30), ("17B", 17)] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.get(), bytes);
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("5MB".parse::<ByteSize>(), Ok(ByteSize::mib(5)));
        assert_eq!("5 kib".parse::<ByteSize>(), Ok(ByteSize::kib(5)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "MiB",
            "5",
            "5Mi",
            "-5MiB",
            "99999999999TiB",
            "5 parsecs",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_read_and_print_in_human_units() {
        let span = Span::try_from("1m 30s".to_owned()).unwrap();
        assert_eq!(span.get(), Duration::from_secs(90));
        assert_eq!(String::from(span), "1m 30s");
        assert!(Span::try_from("fast".to_owned()).is_err());
    }
}
