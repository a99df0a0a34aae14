//! The timestamp oracle's value (TSO): `physical_ms << 18 | logical`.

use std::fmt;

const LOGICAL_BITS: u32 = 18;

/// A TSO of PD: a start ts, commit ts, resolved ts, checkpoint ts or safepoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ts(u64);

impl Ts {
    /// No timestamp.
    pub const ZERO: Ts = Ts(0);
    /// The largest value: "read the newest", never a real commit ts.
    pub const MAX: Ts = Ts(u64::MAX);

    /// Wraps the integer form.
    pub const fn new(raw: u64) -> Self {
        Ts(raw)
    }

    /// Builds a ts from unix milliseconds and the logical counter (18 bits are kept).
    pub const fn compose(physical_ms: u64, logical: u64) -> Self {
        Ts((physical_ms << LOGICAL_BITS) | (logical & ((1 << LOGICAL_BITS) - 1)))
    }

    /// The integer form, as it stands in files and messages.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Unix milliseconds.
    pub const fn physical_ms(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The counter inside the millisecond.
    pub const fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }

    /// True for the value 0.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The next larger value; stays at the maximum.
    pub const fn next(self) -> Self {
        Ts(self.0.saturating_add(1))
    }

    /// The next smaller value; stays at zero.
    pub const fn prev(self) -> Self {
        Ts(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Ts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for Ts {
    fn from(raw: u64) -> Self {
        Ts(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ts_splits_into_the_parts_it_was_composed_of() {
        let ts = Ts::compose(1_795_313_719_643, 7);
        assert_eq!((ts.physical_ms(), ts.logical()), (1_795_313_719_643, 7));
        assert_eq!(ts.get(), (1_795_313_719_643 << 18) + 7);
        assert_eq!(Ts::compose(1, 1 << 18).logical(), 0);
    }
}
