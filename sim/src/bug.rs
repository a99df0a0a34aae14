//! Mistakes that a test can plant. They live in the doubles around the product's code, never in
//! that code: each makes the world behave as if the product had the mistake.

/// A planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The checkpoint of a generation is published when it is sealed.
    PublishBeforeUpload,
    /// After a flush, what is resolved now is published, not what the generation proves.
    ProgressFromNow,
    /// Only a flush that is repeated publishes what is resolved now (the reference's open bug).
    RetryWithFreshProgress,
    /// The minimum leaves out one region.
    RegionIgnored,
    /// `<store>.ts` is written before the global checkpoint.
    ObjectBeforeGlobal,
    /// A subscription starts at what was resolved, though not durable, and nobody minds the gap.
    ScanFromResolved,
    /// The meta is written before the log objects.
    MetaBeforeLogs,
    /// An error before the effect is taken for success when a log object is written.
    LogErrorIgnored,
    /// The same for a meta.
    MetaErrorIgnored,
    /// Long values are not recorded.
    DefaultDropped,
    /// Deletes are not recorded.
    DeleteDropped,
    /// What does not fit is left out, and the subscription goes on.
    DroppedWhenFull,
    /// Rows of a broken subscription are lost, its resolved ts are not.
    EndedRowsLost,
    /// The resolved ts passes open transactions.
    LocksIgnored,
    /// A subscription is resolved before its scan has come.
    ResolvedBeforeScan,
    /// A subscription does not scan what it missed.
    NoScan,
    /// The coordinator takes the minimum over what it was told last, not over the whole task.
    HoleIgnored,
    /// A store's answer counts for a region in whatever version it is now.
    VersionIgnored,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 18] = [
        Bug::PublishBeforeUpload,
        Bug::ProgressFromNow,
        Bug::RetryWithFreshProgress,
        Bug::RegionIgnored,
        Bug::ObjectBeforeGlobal,
        Bug::ScanFromResolved,
        Bug::MetaBeforeLogs,
        Bug::LogErrorIgnored,
        Bug::MetaErrorIgnored,
        Bug::DefaultDropped,
        Bug::DeleteDropped,
        Bug::DroppedWhenFull,
        Bug::EndedRowsLost,
        Bug::LocksIgnored,
        Bug::ResolvedBeforeScan,
        Bug::NoScan,
        Bug::HoleIgnored,
        Bug::VersionIgnored,
    ];
}
