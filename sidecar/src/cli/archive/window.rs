//! `--from` and `--to` of the `archive` verbs: a span of timestamps, both ends included.

use pitr_format::Ts;
use pitr_storage::SharedStorage;

use crate::archive;
use crate::codes::Code;
use crate::failure::Failure;
use crate::time::{self, Point};

/// The flags.
#[derive(Debug, clap::Args)]
pub(super) struct WindowArgs {
    /// Leave out what is older: TSO, RFC 3339, `-10m` (before now), `latest` (largest checkpoint).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Leave out what is newer, in the same forms.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
}

/// Timestamps from `from` to `to`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Smallest.
    pub from: Ts,
    /// Largest.
    pub to: Ts,
}

impl WindowArgs {
    /// The window; the archive is asked for its checkpoint only if `latest` needs it.
    pub async fn resolve(&self, storage: &SharedStorage) -> Result<Window, Failure> {
        let from = parse(self.from.as_deref())?;
        let to = parse(self.to.as_deref())?;
        let latest = match from == Some(Point::Latest) || to == Some(Point::Latest) {
            true => archive::info(storage.as_ref()).await?.log_max,
            false => None,
        };
        window(from, to, time::local_now(), latest)
    }
}

fn parse(text: Option<&str>) -> Result<Option<Point>, Failure> {
    let point = text.map(Point::parse).transpose();
    point.map_err(|error| Failure::from_error(Code::BadTime, &error))
}

fn window(
    from: Option<Point>,
    to: Option<Point>,
    now: Ts,
    latest: Option<Ts>,
) -> Result<Window, Failure> {
    let resolve = |point: Option<Point>, without: Ts| match point {
        None => Ok(without),
        Some(point) => point
            .resolve(now, latest)
            .map_err(|error| Failure::from_error(Code::BadTime, &error)),
    };
    let window = Window {
        from: resolve(from, Ts::ZERO)?,
        to: resolve(to, Ts::MAX)?,
    };
    if window.from > window.to {
        let what = "the window of time is empty: `--from` is after `--to`";
        return Err(Failure::new(Code::BadTime, what));
    }
    Ok(window)
}

impl Window {
    /// Whether something that spans these timestamps may hold one of the window.
    pub fn meets(self, earliest: Ts, latest: Ts) -> bool {
        earliest <= self.to && latest >= self.from
    }

    /// Whether the window holds this timestamp.
    pub fn holds(self, ts: Ts) -> bool {
        self.meets(ts, ts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Ts = Ts::compose(1_000_000, 0);

    fn of(from: Option<&str>, to: Option<&str>) -> Result<Window, Failure> {
        window(parse(from)?, parse(to)?, NOW, Some(Ts::new(77)))
    }

    #[test]
    fn without_flags_everything_is_inside() {
        let all = of(None, None).unwrap();
        assert!(all.holds(Ts::ZERO) && all.holds(Ts::MAX));
    }

    #[test]
    fn both_ends_are_included() {
        let window = of(Some("5"), Some("9")).unwrap();
        assert!(window.holds(Ts::new(5)) && window.holds(Ts::new(9)));
        assert!(!window.holds(Ts::new(4)) && !window.holds(Ts::new(10)));
        assert!(window.meets(Ts::new(1), Ts::new(5)) && window.meets(Ts::new(9), Ts::MAX));
        assert!(!window.meets(Ts::new(1), Ts::new(4)));
    }

    #[test]
    fn spans_before_now_and_the_checkpoint_are_understood_and_a_window_of_nothing_is_refused() {
        let window = of(Some("latest"), Some("-10s")).unwrap();
        assert_eq!(window.from, Ts::new(77));
        assert_eq!(window.to, Ts::compose(990_000, 0));
        for (from, to) in [("9", "5"), ("-1s", "-2s"), ("noon", "5")] {
            let refused = of(Some(from), Some(to)).unwrap_err();
            assert_eq!(refused.code, Code::BadTime);
        }
    }
}
