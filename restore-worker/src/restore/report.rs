//! What a restore did, in numbers, and the proof that they fit together.

use std::fmt;

use pitr_format::Ts;
use pitr_format::digest::{RecordDigest, ScanDigest};

use crate::filter::Filtered;
use crate::plan::Plan;

/// The outcome of a restore. `Display` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Commit timestamps above this one.
    pub start: Ts,
    /// Commit timestamps up to this one.
    pub restored: Ts,
    /// Records in the slices that were read.
    pub read: u64,
    /// Records left out, by class.
    pub filtered: Filtered,
    /// Records that were there more than once.
    pub duplicates: u64,
    /// Records that the target took.
    pub written: u64,
    /// Digest of the selected records, after the rewrite.
    pub digest_in: RecordDigest,
    /// Digest of the records in the files that the target took.
    pub digest_out: RecordDigest,
    /// Digest of what a reader of an empty target must see at the restored ts afterwards.
    pub expected_scan: ScanDigest,
    /// Range requests.
    pub requests: u64,
    /// Slices.
    pub slices: u64,
    /// Bytes read from the storage.
    pub stored_bytes: u64,
    /// Bytes after decompression.
    pub plain_bytes: u64,
    /// Files that the target took.
    pub ssts: u64,
    /// Their size.
    pub sst_bytes: u64,
    /// Bytes of keys and values in them.
    pub written_bytes: u64,
    /// Batches that were cut again because regions of the target changed.
    pub recuts: u64,
}

impl Report {
    pub(super) fn of(plan: &Plan) -> Self {
        Report {
            start: plan.start,
            restored: plan.restored,
            ..Report::default()
        }
    }

    /// In − filtered − duplicates = out, and the digests agree.
    pub(super) fn prove(&self) -> Result<(), String> {
        let left_out = self.filtered.total() + self.duplicates;
        if self.read.checked_sub(left_out) != Some(self.written) {
            return Err(format!(
                "{} records read, {} filtered, {} duplicates, but {} written",
                self.read,
                self.filtered.total(),
                self.duplicates,
                self.written
            ));
        }
        if self.digest_in != self.digest_out {
            let (selected, taken) = (self.digest_in, self.digest_out);
            return Err(format!(
                "digest of the selection {selected}, of what was taken {taken}"
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filtered = &self.filtered;
        writeln!(
            f,
            "window:      {} < commit ts <= {}",
            self.start, self.restored
        )?;
        writeln!(
            f,
            "read:        {} records in {} slices",
            self.read, self.slices
        )?;
        writeln!(
            f,
            "  requests:  {}, {} bytes",
            self.requests, self.stored_bytes
        )?;
        writeln!(f, "filtered:    {}", filtered.total())?;
        writeln!(f, "  out of window:      {}", filtered.out_of_window)?;
        writeln!(f, "  lock or rollback:   {}", filtered.lock_or_rollback)?;
        writeln!(f, "  out of range:       {}", filtered.out_of_range)?;
        writeln!(f, "  unreferenced value: {}", filtered.unreferenced_value)?;
        writeln!(f, "duplicates:  {}", self.duplicates)?;
        writeln!(
            f,
            "written:     {} records in {} files",
            self.written, self.ssts
        )?;
        writeln!(f, "digest in:   {}", self.digest_in)?;
        write!(f, "digest out:  {}", self.digest_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_or_an_extra_record_is_not_proven() {
        let filtered = Filtered {
            out_of_window: 2,
            lock_or_rollback: 1,
            ..Filtered::default()
        };
        let report = Report {
            read: 10,
            filtered,
            duplicates: 3,
            written: 4,
            ..Report::default()
        };
        assert_eq!(report.prove(), Ok(()));
        for wrong in [3, 5] {
            let report = Report {
                written: wrong,
                ..report.clone()
            };
            assert!(report.prove().is_err());
        }
        let more_left_out_than_read = Report {
            read: 5,
            written: 0,
            ..report.clone()
        };
        assert!(more_left_out_than_read.prove().is_err());
    }

    #[test]
    fn different_digests_are_not_proven() {
        let mut report = Report::default();
        report
            .digest_in
            .add(pitr_format::Cf::Write, b"key", b"value");
        assert!(report.prove().unwrap_err().contains("digest"));
    }
}
