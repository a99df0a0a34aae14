//! Every error code of the binary, in one table: what happened, why, what it means for the data,
//! what to do. `tikv-pitr explain CODE` and `docs/errors.md` are made from it; a failure takes
//! from here what it does not say itself. Numbers are a promise: never reused, never renumbered.
//!
//! 10xx command line and configuration, 11xx cluster, 12xx storage, 13xx task, 14xx archive,
//! 15xx restore, 16xx running sidecar, 19xx the rest. Exit codes: `failure`.

use std::fmt;

/// What a reader wants to know about one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// What happened, in a few words.
    pub title: &'static str,
    /// Why it happens.
    pub cause: &'static str,
    /// What it means for the data.
    pub effect: &'static str,
    /// What to do.
    pub action: &'static str,
}

macro_rules! codes {
    ($($name:ident = $number:literal { title: $title:literal, cause: $cause:literal,
        effect: $effect:literal, action: $action:literal })*) => {
        /// An error code; shown as `PITRnnnn`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Code { $(#[doc = $title] $name = $number,)* }

        /// All codes, ascending.
        pub const ALL: &[Code] = &[$(Code::$name,)*];

        impl Code {
            /// Its page.
            pub fn page(self) -> Page {
                match self {
                    $(Code::$name => Page {
                        title: $title, cause: $cause, effect: $effect, action: $action,
                    },)*
                }
            }
        }
    };
}

codes! {
    BadArguments = 1001 {
        title: "The command line is wrong",
        cause: "A verb or flag does not exist, a value has the wrong form, or a needed flag is missing.",
        effect: "Nothing was done.",
        action: "Read `tikv-pitr VERB --help`."
    }
    BadTime = 1002 {
        title: "A point in time is wrong",
        cause: "The text is none of the accepted forms, has no offset from UTC, or lies in the future of the cluster.",
        effect: "Nothing was done.",
        action: "Give a TSO, RFC 3339 with an offset, `-10m` or `latest`."
    }
    BadRange = 1003 {
        title: "Key ranges are wrong",
        cause: "A range is not START_HEX:END_HEX, holds no key, or overlaps another.",
        effect: "Nothing was done.",
        action: "Give ranges in hex that do not overlap, or prefixes."
    }
    BadConfig = 1004 {
        title: "The configuration is wrong",
        cause: "The file cannot be read, is not TOML, or a key is unknown, missing or out of its limits.",
        effect: "Nothing was started.",
        action: "Correct the file; `tikv-pitr config check` names the place, `tikv-pitr serve --help` lists the keys."
    }
    BadAddress = 1005 {
        title: "An address is not usable",
        cause: "The text is not `host:port`, with or without `http://`; or it begins with `https://` and no certificates are given.",
        effect: "Nothing was done.",
        action: "Give the client URLs of PD as `host:port`, separated by commas."
    }
    BadStorageUrl = 1006 {
        title: "The URL of a storage is not usable",
        cause: "Unknown scheme, missing part, or a parameter that the storage does not have.",
        effect: "Nothing was read or written.",
        action: "Give a URL such as `local:///backup/log`; cloud storages take the parameters of BR."
    }
    UnknownCode = 1007 {
        title: "No such error code",
        cause: "`explain` was asked for a code that this version does not have.",
        effect: "None.",
        action: "`tikv-pitr explain` without a code lists all."
    }
    Interrupted = 1008 {
        title: "Interrupted",
        cause: "The process was told to end by a signal before it was done.",
        effect: "What was written so far stays; nothing is reported as done.",
        action: "Run the verb again."
    }
    CannotWriteFile = 1009 {
        title: "A file on this machine cannot be written",
        cause: "The directory does not exist, is not writable, or the disk is full.",
        effect: "None on any data of the cluster or the archive.",
        action: "Give another directory."
    }
    BadCertificates = 1010 {
        title: "The certificates are not usable",
        cause: "A file cannot be read, is not PEM, holds no certificate or an encrypted key, or the key belongs to another certificate.",
        effect: "Nothing was done; nothing was spoken in the clear.",
        action: "Give the CA, the certificate and its key together, all PEM; the key not encrypted and readable for this user."
    }
    ClusterUnreachable = 1101 {
        title: "The cluster cannot be reached",
        cause: "PD, its etcd or a store does not answer, or has no leader at the moment.",
        effect: "A running sidecar keeps its checkpoint and reads on from it later; a verb did not do its work.",
        action: "Check the address and the network, and the certificates if the cluster has TLS (`--ca --cert --key`, `[security]`); try again when the cluster is up."
    }
    WrongCluster = 1102 {
        title: "PD belongs to another cluster",
        cause: "The address leads to a PD with another cluster id than before.",
        effect: "Nothing is written; two clusters in one log could not be told apart.",
        action: "Correct the addresses of PD."
    }
    ClusterRefused = 1103 {
        title: "PD refused a call",
        cause: "PD answered with an error that this version does not expect, or does not have the call.",
        effect: "The verb did not do its work.",
        action: "Compare the versions; report the message if the version is supported."
    }
    KeyLocked = 1104 {
        title: "A key is locked by a transaction",
        cause: "A client holds a lock, or died and left one behind, so that nobody may read the key at that time.",
        effect: "Nothing is wrong with the data; the read has no answer yet.",
        action: "Let a client read the key (that resolves a dead lock) and try again."
    }
    StoreNotFound = 1105 {
        title: "PD does not know the store",
        cause: "`store-id` or `store-address` names a store that is not among PD's.",
        effect: "Nothing is tailed.",
        action: "Set `store-address` to the address as PD has it, or `store-id`."
    }
    UnsafeTikvVersion = 1107 {
        title: "A TiKV that can abort under a change stream",
        cause: "TiKV 8.5.0 to 8.5.3 has an assertion that an overlapped rollback can break while changes are tailed.",
        effect: "Nothing was changed; tailing could end the TiKV process.",
        action: "Upgrade TiKV to 8.5.4 or later; `--allow-unsafe-version` starts all the same."
    }
    ClockBehind = 1108 {
        title: "PD's clock is behind the checkpoint",
        cause: "PD lost time, for example by a restore of its data; commits made now would lie below what counts as durable.",
        effect: "Nothing is published; changes made now would not count as new.",
        action: "Raise PD's TSO above the checkpoint, or take a new base and a new archive."
    }
    SidecarSilent = 1109 {
        title: "The sidecar does not answer",
        cause: "No process listens at the admin address, it hangs, or something else answers there.",
        effect: "While no sidecar runs, the checkpoint stands still and the loss window grows; nothing that was reported is lost.",
        action: "Start `tikv-pitr serve`, or give the right `--sidecar` address."
    }
    TikvTooOld = 1110 {
        title: "A TiKV that is too old",
        cause: "A store runs a TiKV before 7.5.0, or with `--source builtin` before 6.5.0.",
        effect: "Nothing was changed; nothing is tailed.",
        action: "Upgrade TiKV; from 6.5.0 on its own log backup can be used (`log start --source builtin`)."
    }
    TwoObservers = 1111 {
        title: "TiKV backs up the same task itself",
        cause: "`log-backup.enable` is true in the store's configuration, so the TiKV writes the log of every task of its cluster.",
        effect: "Nothing is tailed on this store: two writers for one store would write everything twice.",
        action: "Set `log-backup.enable = false` in TiKV's configuration and restart it, or run no sidecar for this store."
    }
    NoOwnLogBackup = 1112 {
        title: "TiKV's own log backup is off",
        cause: "`log start --source builtin` relies on TiKV's own log backup, and `log-backup.enable` is not true at a store.",
        effect: "Nothing was changed; the changes of that store would be in no log.",
        action: "Set `log-backup.enable = true` in TiKV's configuration and restart it, or run sidecars and leave `--source` out."
    }
    StorageUnreachable = 1201 {
        title: "The storage cannot be reached",
        cause: "The network, the service or the file system failed in a way that may pass.",
        effect: "A running sidecar keeps what it read and its checkpoint; a verb did not do its work.",
        action: "Check the storage; try again."
    }
    StorageDenied = 1202 {
        title: "The storage refuses us",
        cause: "Credentials are missing or wrong, or lack a permission.",
        effect: "Nothing was written there.",
        action: "Give the process the permission to read, write and list below the prefix."
    }
    ObjectNotFound = 1203 {
        title: "The storage or an object in it does not exist",
        cause: "The path is wrong, not mounted, or the object was removed.",
        effect: "Nothing was read or written.",
        action: "Check the URL; mount the storage."
    }
    ObjectExists = 1204 {
        title: "An object exists already",
        cause: "Another process has written the same name.",
        effect: "Nothing was overwritten.",
        action: "Make sure that only one process writes to the archive."
    }
    StorageFull = 1205 {
        title: "The storage is full",
        cause: "No space or no quota is left.",
        effect: "The checkpoint stays until there is room; nothing that was reported is lost.",
        action: "Make room; a running sidecar goes on by itself."
    }
    TaskExists = 1301 {
        title: "A task is already registered",
        cause: "A task has that name, logs keys of the same ranges, or writes into the same storage.",
        effect: "Nothing was changed.",
        action: "Use the task that is there (`tikv-pitr log list`), stop it first, or give this one other ranges and a storage of its own."
    }
    TaskNotFound = 1302 {
        title: "No such task",
        cause: "The name is wrong, or the task was stopped.",
        effect: "Nothing was changed.",
        action: "`tikv-pitr log list` shows what is registered."
    }
    BadTaskName = 1303 {
        title: "The name of the task is not usable",
        cause: "A name must not be empty and not contain `/` or NUL: it is part of a key in PD.",
        effect: "Nothing was changed.",
        action: "Give another name."
    }
    RegistryDamaged = 1304 {
        title: "A value in PD is not what it must be",
        cause: "Something else wrote to the keys of the task, or they are damaged.",
        effect: "The archive is not touched.",
        action: "Stop the task and start it again with the same storage."
    }
    RegistryContended = 1305 {
        title: "Others change the task at the same time",
        cause: "The keys of the task changed between each read and write.",
        effect: "Nothing was changed.",
        action: "Try again."
    }
    AlreadyPaused = 1306 {
        title: "The task is paused already",
        cause: "The pause key exists: somebody paused the task, or it was paused after an error.",
        effect: "Nothing was changed.",
        action: "`tikv-pitr log status` shows who paused it; `tikv-pitr log resume` lets it go on."
    }
    NotPaused = 1307 {
        title: "The task is not paused",
        cause: "There is no pause key.",
        effect: "Nothing was changed.",
        action: "`tikv-pitr log status` shows how the task stands."
    }
    ImportRunning = 1308 {
        title: "An import or a restore is running",
        cause: "A tool has registered itself below `/tidb/brie/import`; what it ingests is in no log.",
        effect: "Nothing was changed.",
        action: "Wait for its end."
    }
    OtherRanges = 1309 {
        title: "The archive was begun with other key ranges",
        cause: "A log that is continued must cover what it covered from its begin on.",
        effect: "Nothing was changed.",
        action: "Give the same ranges, or another storage."
    }
    HistoryGone = 1310 {
        title: "GC removed history that the log needs",
        cause: "The GC safepoint passed the checkpoint: the sidecar was away for longer than its safepoints live, or a client moves GC past all of them.",
        effect: "The archive can be restored up to its checkpoint and no further; a log from there on would have a hole.",
        action: "Take a new full copy and start a new task into a new archive."
    }
    LagOverLimit = 1311 {
        title: "The lag is over the limit",
        cause: "The archive is further behind the cluster than was allowed; `tikv-pitr status` names what holds it.",
        effect: "What was committed after the checkpoint would be lost with the cluster.",
        action: "Mend what `tikv-pitr status` names."
    }
    TaskWithoutRanges = 1312 {
        title: "The task has no key ranges",
        cause: "The range keys in PD are missing, so that nothing to wait for would look like everything being done.",
        effect: "Nothing is tailed; the checkpoint stays.",
        action: "Stop the task and start it again."
    }
    EncryptionUnsupported = 1313 {
        title: "The task asks for an encrypted log",
        cause: "This version cannot encrypt.",
        effect: "Nothing is written: it would be readable; the checkpoint stays.",
        action: "Start the task without encryption."
    }
    TaskReplaced = 1314 {
        title: "The task was stopped or registered anew meanwhile",
        cause: "Somebody changed the registration while the sidecar was loading it.",
        effect: "Nothing is written; the task list is read again.",
        action: "None: it mends itself."
    }
    KeysNotCaptured = 1315 {
        title: "The ranges hold keys that a change stream loses",
        cause: "There are keys that begin with `r`. TiKV takes such keys for RawKV and leaves their transactions out of change streams.",
        effect: "Nothing was changed; changes of those keys would be missing from the log.",
        action: "Leave them out with `--range` or `--prefix`, or start with `--allow-r`: status then names the range as not proven."
    }
    FlushesTooRare = 1316 {
        title: "Flushes are too rare for the history that GC leaves",
        cause: "The keys look like those of a JuiceFS volume and PD has no GC states, so that clients of JuiceFS move GC past what holds it; `log-backup.max-flush-interval` is more than a quarter of the history that GC has left.",
        effect: "Nothing is tailed; a task that runs keeps its checkpoint, and one that `log start` was asked for is not registered.",
        action: "Lower `log-backup.max-flush-interval`, or raise `gc-interval` of every JuiceFS mount; a sidecar tries again by itself, `log start --source builtin` does not."
    }
    NoBackupMeta = 1401 {
        title: "The archive has no `backupmeta`",
        cause: "The storage is not mounted, the URL is wrong, or the task was not begun by `log start`.",
        effect: "Nothing is written there.",
        action: "Mount the storage or correct the URL; `tikv-pitr verify data` can still check what is there."
    }
    NoCheckpoint = 1402 {
        title: "The archive has no checkpoint yet",
        cause: "No flush was published since the log began.",
        effect: "Nothing can be restored from it yet.",
        action: "Let the sidecar flush once."
    }
    NotALog = 1403 {
        title: "The storage does not hold a log backup",
        cause: "Its `backupmeta` is that of a snapshot backup, or larger than one of a log can be.",
        effect: "Nothing was written.",
        action: "Give the storage of the log."
    }
    UnknownLog = 1404 {
        title: "The storage holds log files of an unknown task",
        cause: "`backupmeta` is missing, so that nothing tells whose files these are.",
        effect: "Nothing was changed.",
        action: "Give an empty storage, or bring `backupmeta` back from a copy."
    }
    OtherClustersArchive = 1405 {
        title: "The archive belongs to another cluster",
        cause: "The cluster id in `backupmeta` differs from PD's.",
        effect: "Nothing was written.",
        action: "Give each cluster a storage of its own."
    }
    ArchiveClaimed = 1406 {
        title: "Another task has just claimed the storage",
        cause: "Two starts ran at the same time.",
        effect: "Nothing was changed.",
        action: "Give another storage."
    }
    ArchiveDamaged = 1407 {
        title: "The archive is damaged",
        cause: "The bytes of an object differ from what its metadata says, or it is missing.",
        effect: "A restore that needs the object stops before it writes.",
        action: "Bring the object back from a copy, or restore to a time before it was written; `tikv-pitr verify data` lists all damage."
    }
    UnsupportedArchive = 1408 {
        title: "The archive holds what this version cannot read",
        cause: "Encryption, or migrations that another tool left (compaction, truncation).",
        effect: "Nothing was written.",
        action: "Restore with the tool that wrote them."
    }
    KeyNotInLog = 1409 {
        title: "The log has no record of the key",
        cause: "The key was not changed in the time that was asked for, lies outside of the ranges of the task, or is written in another form than the one that was given.",
        effect: "None: nothing is missing from the archive because of this.",
        action: "Check the form of the key (raw text, `hex:`, `encoded:`) and the times; a value older than the log is in the base snapshot."
    }
    UnreferencedLog = 1410 {
        title: "No meta refers to the log object",
        cause: "A flush ended before it wrote its meta, and its records were written again under another name.",
        effect: "None: a restore does not read the object, and no checkpoint counts on it.",
        action: "Leave it; `tikv-pitr verify data` lists all such objects."
    }
    OpaqueObject = 1411 {
        title: "The object has no form that can be shown",
        cause: "It is none of the objects of a log archive: another tool or a person put it there.",
        effect: "None: nothing reads it.",
        action: "`tikv-pitr archive ls` lists what is in the archive."
    }
    OutsideWindow = 1501 {
        title: "The time lies outside of what the archive covers",
        cause: "It is before the begin of the log or after its checkpoint.",
        effect: "Nothing was written.",
        action: "Choose a time inside of the window that `tikv-pitr log metadata` shows."
    }
    NotProvenEmpty = 1502 {
        title: "The log alone may not be everything",
        cause: "Nothing proves that the ranges were empty when the log began.",
        effect: "Nothing was written.",
        action: "Restore a base snapshot first, or give `--log-only` to restore the changes alone."
    }
    TargetIsSource = 1503 {
        title: "The target is the cluster that the archive was taken from",
        cause: "The cluster ids are equal.",
        effect: "Nothing was written.",
        action: "Restore into a new cluster."
    }
    TargetClockBehind = 1504 {
        title: "The target's clock is behind the restored time",
        cause: "Records from the future of a cluster are hidden from its readers and can abort TiKV.",
        effect: "Nothing was written.",
        action: "Correct the clock of the target's PD, or raise its TSO."
    }
    TargetNotEmpty = 1505 {
        title: "The target is not empty",
        cause: "Keys are visible in the ranges to restore.",
        effect: "Nothing was written.",
        action: "Restore into a new, empty cluster."
    }
    RestoredInPart = 1506 {
        title: "The restore ended in the middle",
        cause: "The target, the network or the storage failed after the first write.",
        effect: "The target may hold a part of the data: do not use it.",
        action: "Restore again into a new, empty cluster."
    }
    TargetDiffers = 1507 {
        title: "The target does not show what the archive holds",
        cause: "Somebody writes to it, it held newer records before, or something is broken.",
        effect: "Do not use the target.",
        action: "Restore again into a new, empty cluster; make sure that nobody writes to it."
    }
    ProofNotMade = 1508 {
        title: "Restored, but not proven",
        cause: "The target could not be read after the last write.",
        effect: "The record digests agree; what a reader sees was not compared.",
        action: "Run `tikv-pitr verify scan` on the target and on the source and compare."
    }
    BadTempDir = 1509 {
        title: "The directory for temporary files is not usable",
        cause: "It does not exist, is not writable, or is full.",
        effect: "Nothing was written to the target.",
        action: "Give another `--temp-dir`."
    }
    TooLittleMemory = 1510 {
        title: "The memory is too little for the restore",
        cause: "`--memory` is below what one sort run and one request need, or a quarter of it is below the list of all slices that are to be read (some 300 bytes each).",
        effect: "Nothing was written to the target.",
        action: "Give more with `--memory`, or restore to an earlier time."
    }
    AdminAddressTaken = 1601 {
        title: "The admin address is in use",
        cause: "Another process, perhaps another sidecar, listens there.",
        effect: "Nothing was started.",
        action: "Choose another `status-addr`, or end the sidecar that already runs here."
    }
    AdminAddressDenied = 1602 {
        title: "The admin address may not be used",
        cause: "The system does not let this user listen there.",
        effect: "Nothing was started.",
        action: "Choose a port above 1023, or give the permission."
    }
    AdminAddressUnusable = 1603 {
        title: "The admin address cannot be listened on",
        cause: "The address does not belong to this machine.",
        effect: "Nothing was started.",
        action: "Correct `status-addr`."
    }
    LastFlushFailed = 1604 {
        title: "Stopped, but the last flush did not become durable",
        cause: "The storage or PD failed while the sidecar was leaving.",
        effect: "Nothing is lost: the next start reads on from the checkpoint.",
        action: "See the log for the reason; start again once the storage works."
    }
    ChangeStreamEnded = 1605 {
        title: "The change stream ended",
        cause: "The store closed it, went away, or the reader could not go on.",
        effect: "The checkpoint stays; the changes are read again from it.",
        action: "None if it passes: a new session begins by itself. Otherwise see the message."
    }
    RowRefused = 1606 {
        title: "A row of the change stream was refused",
        cause: "It is not what the protocol allows.",
        effect: "The checkpoint stays; the region is read again from it.",
        action: "None if it passes. If it repeats, report it with the message."
    }
    ReadTooLate = 1607 {
        title: "A range was read from too late",
        cause: "A subscription began above the durable frontier.",
        effect: "Its checkpoint stays; everything is read again from it.",
        action: "None if it passes. If it repeats, report it with the message."
    }
    StoreTaken = 1608 {
        title: "Another sidecar serves the store",
        cause: "Two sidecars run with one store id, or this one was stopped for longer than its lease in PD's etcd and another one took over.",
        effect: "None: the other one captures the store; this one published nothing since.",
        action: "Run one sidecar for each store. The message names the other's address; end one of the two."
    }
    Internal = 1900 {
        title: "A fault of ours",
        cause: "Something happened that must not happen.",
        effect: "The verb did not do its work; nothing was reported as done.",
        action: "Report it with the message and the log."
    }
    NotReady = 1901 {
        title: "Something is not ready",
        cause: "A part that the work needs failed in a way that may pass.",
        effect: "Nothing was reported as done; a running sidecar keeps its checkpoint.",
        action: "Try again."
    }
}

impl Code {
    /// The code that a text such as `PITR1302`, `pitr1302` or `1302` names.
    pub fn parse(text: &str) -> Option<Code> {
        let digits = text
            .get(..4)
            .filter(|head| head.eq_ignore_ascii_case("PITR"))
            .map_or(text, |_| &text[4..]);
        let number: u16 = digits.parse().ok()?;
        ALL.iter().copied().find(|code| *code as u16 == number)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PITR{:04}", *self as u16)
    }
}

/// The reference of all codes as Markdown, for `docs/errors.md`.
pub fn reference() -> String {
    let mut out = String::from(
        "# Error codes\n\n\
         Made from `sidecar/src/codes.rs`; a test keeps both equal. `tikv-pitr explain CODE` prints\n\
         the same page.\n",
    );
    for code in ALL {
        let page = code.page();
        let exit = code.exit() as u8;
        out.push_str(&format!(
            "\n## {code}: {}\n\n- Cause: {}\n- Effect on the data: {}\n- What to do: {}\n- Exit code: {exit}\n",
            page.title, page.cause, page.effect, page.action
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn numbers_ascend_and_every_page_says_everything() {
        assert!(
            ALL.windows(2)
                .all(|pair| (pair[0] as u16) < (pair[1] as u16))
        );
        for code in ALL {
            let Page {
                title,
                cause,
                effect,
                action,
            } = code.page();
            for text in [title, cause, effect, action] {
                assert!(text.len() > 4 && text.trim() == text, "{code}: {text:?}");
            }
            for sentence in [cause, effect, action] {
                assert!(sentence.ends_with('.'), "{code}: {sentence:?}");
            }
            assert!(!title.ends_with('.'), "{code}: a title is no sentence");
        }
    }

    #[test]
    fn a_code_is_read_in_each_form_that_people_type() {
        for text in ["PITR1302", "pitr1302", "1302"] {
            assert_eq!(Code::parse(text), Some(Code::TaskNotFound));
        }
        for text in ["", "PITR", "PITR9999", "13020", "é302", "PITRé", "-1302"] {
            assert_eq!(Code::parse(text), None, "{text}");
        }
    }

    /// The code of this crate without its tests.
    fn sources(dir: &Path, found: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if !path.ends_with("codes.rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push_str(text.split("#[cfg(test)]\nmod tests").next().unwrap());
            }
        }
    }

    #[test]
    fn every_code_of_the_table_is_used_by_some_failure() {
        let mut text = String::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut text,
        );
        let used = |code: &Code| {
            let name = format!("Code::{code:?}");
            text.match_indices(&name).any(|(at, _)| {
                let next = text[at + name.len()..].chars().next();
                !next.is_some_and(char::is_alphanumeric)
            })
        };
        let unused: Vec<_> = ALL.iter().filter(|code| !used(code)).collect();
        assert!(unused.is_empty(), "never used: {unused:?}");
    }
}
