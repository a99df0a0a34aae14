//! Points in time as people write them, and how we show them.
//!
//! A flag that names a point takes a TSO, RFC 3339 with offset, BR's `2006-01-02 15:04:05+0800`,
//! `-10m` (before now) or `latest`. Pure: "now" and "latest" are given by the caller.

use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use pitr_format::Ts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A point as it was written; [`Point::resolve`] makes a ts of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// A timestamp of the oracle, taken as it is.
    Tso(Ts),
    /// A wall clock instant, unix milliseconds: everything committed up to that millisecond's begin.
    Instant(u64),
    /// That long before now.
    Ago(Duration),
    /// The newest point that the archive can restore.
    Latest,
}

/// Why a text is not a point in time, or cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// None of the forms.
    #[error(
        "`{0}` is not a point in time: give a TSO, `2026-11-22T09:10:28+08:00`, \
         `2026-11-22 09:10:28+0800`, `-10m` or `latest`"
    )]
    Unknown(String),
    /// A wall clock time without an offset would mean something else on each machine.
    #[error("`{0}` has no offset from UTC: add one, for example `+0800` or `Z`")]
    NoOffset(String),
    /// `latest` without any checkpoint.
    #[error("`latest` means the archive's largest checkpoint, and it has none")]
    NoLatest,
}

impl Point {
    /// Reads one of the five forms.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        let text = text.trim();
        if text == "latest" {
            return Ok(Point::Latest);
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let raw = text.parse().map_err(|_| unknown(text))?;
            return Ok(Point::Tso(Ts::new(raw)));
        }
        if let Some(span) = text.strip_prefix('-') {
            let span = humantime::parse_duration(span).map_err(|_| unknown(text))?;
            return Ok(Point::Ago(span));
        }
        if let Some(at) = parse_instant(text) {
            let ms = u64::try_from(at.as_millisecond()).map_err(|_| unknown(text))?;
            return Ok(Point::Instant(ms));
        }
        if text.parse::<jiff::civil::DateTime>().is_ok() {
            return Err(TimeError::NoOffset(text.to_owned()));
        }
        Err(unknown(text))
    }

    /// The ts it means, given the present and the archive's largest checkpoint.
    pub fn resolve(&self, now: Ts, latest: Option<Ts>) -> Result<Ts, TimeError> {
        Ok(match self {
            Point::Tso(ts) => *ts,
            Point::Instant(ms) => Ts::compose(*ms, 0),
            Point::Ago(span) => {
                let back = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
                Ts::compose(now.physical_ms().saturating_sub(back), 0)
            }
            Point::Latest => latest.ok_or(TimeError::NoLatest)?,
        })
    }
}

/// RFC 3339, or BR's form with a blank and an offset without colon.
fn parse_instant(text: &str) -> Option<Timestamp> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    ["%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%dT%H:%M:%S%.f%z"]
        .iter()
        .find_map(|format| Timestamp::strptime(format, text).ok())
}

fn unknown(text: &str) -> TimeError {
    TimeError::Unknown(text.to_owned())
}

/// The local clock as a ts, for when PD cannot be asked.
pub fn local_now() -> Ts {
    let ms = Timestamp::now().as_millisecond();
    Ts::compose(u64::try_from(ms).unwrap_or(0), 0)
}

/// One point in all the forms that we print.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shown {
    /// The TSO.
    pub tso: u64,
    /// Local wall clock with offset.
    pub local: String,
    /// UTC.
    pub utc: String,
}

/// Shows a ts in the machine's time zone.
pub fn show(ts: Ts) -> Shown {
    show_in(ts, TimeZone::system())
}

fn show_in(ts: Ts, zone: TimeZone) -> Shown {
    let ms = i64::try_from(ts.physical_ms()).unwrap_or(i64::MAX);
    match Timestamp::from_millisecond(ms) {
        Ok(at) => Shown {
            tso: ts.get(),
            local: Zoned::new(at, zone)
                .strftime("%Y-%m-%d %H:%M:%S%.3f%:z")
                .to_string(),
            utc: at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        },
        Err(_) => Shown {
            tso: ts.get(),
            local: "beyond the calendar".to_owned(),
            utc: "beyond the calendar".to_owned(),
        },
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}; {})", self.tso, self.local, self.utc)
    }
}

/// Seconds since 1970 as UTC (RFC 3339).
pub fn utc_second(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(at) => at.to_string(),
        Err(_) => "beyond the calendar".to_owned(),
    }
}

/// `TSO (local; UTC)`, the form of all text output.
pub fn line(ts: Ts) -> String {
    show(ts).to_string()
}

/// How far `ts` lies behind `now`; zero when it does not.
pub fn lag(now: Ts, ts: Ts) -> Duration {
    Duration::from_millis(now.physical_ms().saturating_sub(ts.physical_ms()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Ts = Ts::compose(1_795_313_719_643, 7);

    fn resolved(text: &str) -> Ts {
        Point::parse(text)
            .unwrap()
            .resolve(NOW, Some(Ts::new(42)))
            .unwrap()
    }

    #[test]
    fn an_integer_is_a_tso() {
        assert_eq!(
            resolved("470629699633807361"),
            Ts::new(470_629_699_633_807_361)
        );
        assert!(Point::parse("99999999999999999999999").is_err());
    }

    #[test]
    fn all_wall_clock_forms_mean_the_same_instant() {
        let expected = Ts::compose(1_795_309_828_000, 0);
        for text in [
            "2026-11-22T01:10:28Z",
            "2026-11-22T09:10:28+08:00",
            "2026-11-22 09:10:28+0800",
            "2026-11-22 01:10:28+0000",
            "2026-11-22T09:10:28+0800",
            "2026-11-22 09:10:28.000+0800",
        ] {
            assert_eq!(resolved(text), expected, "{text}");
        }
        assert_eq!(
            resolved("2026-11-22 09:10:28.315+0800").physical_ms(),
            1_795_309_828_315
        );
    }

    #[test]
    fn a_minus_counts_back_from_now() {
        let ten_minutes = resolved("-10m");
        assert_eq!(
            NOW.physical_ms() - ten_minutes.physical_ms(),
            10 * 60 * 1000
        );
        assert_eq!(ten_minutes.logical(), 0);
        assert_eq!(
            NOW.physical_ms() - resolved("-1h 30s").physical_ms(),
            3_630_000
        );
    }

    #[test]
    fn latest_is_the_archives_bound_and_fails_without_one() {
        assert_eq!(resolved("latest"), Ts::new(42));
        assert_eq!(Point::Latest.resolve(NOW, None), Err(TimeError::NoLatest));
    }

    #[test]
    fn a_time_without_offset_is_refused_with_the_reason() {
        for text in ["2026-11-22 09:10:28", "2026-11-22T09:10:28"] {
            assert_eq!(
                Point::parse(text),
                Err(TimeError::NoOffset(text.to_owned()))
            );
        }
        for text in ["", "yesterday", "-", "-10", "+10m", "12ab"] {
            assert_eq!(Point::parse(text), Err(TimeError::Unknown(text.to_owned())));
        }
    }

    #[test]
    fn a_ts_is_shown_as_tso_local_and_utc() {
        let zone = TimeZone::fixed(jiff::tz::offset(8));
        let shown = show_in(Ts::new(470_629_699_633_807_361), zone);
        assert_eq!(shown.tso, 470_629_699_633_807_361);
        assert_eq!(shown.local, "2026-11-22 09:10:28.315+08:00");
        assert_eq!(shown.utc, "2026-11-22T01:10:28.315Z");
        assert_eq!(show(Ts::MAX).tso, u64::MAX);
    }

    #[test]
    fn lag_is_the_distance_of_the_physical_parts() {
        assert_eq!(
            lag(Ts::compose(5_000, 0), Ts::compose(2_000, 9)),
            Duration::from_secs(3)
        );
        assert_eq!(lag(Ts::compose(1, 0), Ts::compose(2, 0)), Duration::ZERO);
    }
}
