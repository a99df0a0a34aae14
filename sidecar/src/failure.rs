//! How a verb ends badly: one exit code and the four things a reader wants to know (what failed,
//! where, what it means for the data, what to do). Built by every verb, printed by `cli` alone.

use std::fmt;

use pitr_format::Class;
use schemars::JsonSchema;
use serde::Serialize;

use crate::codes::Code;

/// Exit codes of the binary. The numbers are a promise to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// A fault of ours.
    Internal = 1,
    /// Wrong arguments, or a time outside of what the archive has.
    Usage = 2,
    /// The configuration is wrong.
    Config = 3,
    /// Task, object or store does not exist.
    NotFound = 10,
    /// Locked, or in conflict with what is there (another cluster, another task, data in the way).
    Conflict = 11,
    /// Permission or credentials.
    Auth = 12,
    /// Damaged bytes were found.
    Damage = 20,
    /// The lag is over the limit that was given.
    Lag = 21,
    /// A hole in time or key range was found.
    Gap = 22,
    /// Done, but the proof could not be made.
    Unverified = 23,
    /// Done in part.
    Partial = 30,
    /// The world is not ready (PD or storage unreachable): try again.
    TryAgain = 75,
    /// Ended by a signal.
    Interrupted = 130,
}

impl Code {
    /// The exit code of a verb that ends with this code.
    pub fn exit(self) -> Exit {
        use Code::*;
        match self {
            Internal | ClusterRefused => Exit::Internal,
            BadArguments | BadTime | BadRange | BadAddress | BadStorageUrl | CannotWriteFile
            | BadTaskName | OutsideWindow | NotProvenEmpty | BadTempDir | TooLittleMemory => {
                Exit::Usage
            }
            BadConfig | BadCertificates | AdminAddressUnusable => Exit::Config,
            UnknownCode | StoreNotFound | ObjectNotFound | TaskNotFound | NoBackupMeta
            | NoCheckpoint | KeyNotInLog | UnreferencedLog | OpaqueObject => Exit::NotFound,
            WrongCluster
            | KeyLocked
            | UnsafeTikvVersion
            | TikvTooOld
            | TwoObservers
            | NoOwnLogBackup
            | KeysNotCaptured
            | FlushesTooRare
            | ObjectExists
            | TaskExists
            | AlreadyPaused
            | NotPaused
            | ImportRunning
            | OtherRanges
            | TaskWithoutRanges
            | EncryptionUnsupported
            | NotALog
            | UnknownLog
            | OtherClustersArchive
            | ArchiveClaimed
            | UnsupportedArchive
            | TargetIsSource
            | TargetClockBehind
            | TargetNotEmpty
            | StoreTaken
            | AdminAddressTaken => Exit::Conflict,
            StorageDenied | AdminAddressDenied => Exit::Auth,
            RegistryDamaged | ArchiveDamaged | TargetDiffers => Exit::Damage,
            LagOverLimit => Exit::Lag,
            HistoryGone => Exit::Gap,
            ProofNotMade => Exit::Unverified,
            RestoredInPart | LastFlushFailed => Exit::Partial,
            ClusterUnreachable | ClockBehind | SidecarSilent | StorageUnreachable | StorageFull
            | RegistryContended | TaskReplaced | ChangeStreamEnded | RowRefused | ReadTooLate
            | NotReady => Exit::TryAgain,
            Interrupted => Exit::Interrupted,
        }
    }
}

/// Why a verb did not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure; the exit code follows from it.
    pub code: Code,
    /// What failed, in one line, with the cause.
    pub what: String,
    /// On which object, address or file; may be empty.
    pub place: String,
    /// What that means for the data.
    pub effect: String,
    /// What the reader can do.
    pub action: String,
}

impl Failure {
    /// A failure with its code and what failed; effect and action are those of the code's page.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        let page = code.page();
        Failure {
            code,
            what: what.into(),
            place: String::new(),
            effect: page.effect.to_owned(),
            action: page.action.to_owned(),
        }
    }

    /// A failure from an error and all its causes, each said once.
    pub fn from_error(code: Code, error: &dyn std::error::Error) -> Self {
        Failure::new(code, chain(error))
    }

    /// Code of the process.
    pub fn exit(&self) -> Exit {
        self.code.exit()
    }

    /// Adds where.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = place.into();
        self
    }

    /// Says the effect on the data more precisely than the code's page.
    #[must_use]
    pub fn effect(mut self, effect: impl Into<String>) -> Self {
        self.effect = effect.into();
        self
    }

    /// Says what to do more precisely than the code's page.
    #[must_use]
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = action.into();
        self
    }

    /// The same in one line, for logs and status pages.
    pub fn one_line(&self) -> String {
        let mut line = format!("{}: {}", self.code, self.what);
        if !self.place.is_empty() {
            line.push_str(&format!(" ({})", self.place));
        }
        for part in [&self.effect, &self.action] {
            line.push_str("; ");
            line.push_str(part.trim_end_matches('.'));
        }
        line
    }

    /// The same as a document, for `--json`.
    pub fn document(&self) -> FailureDocument {
        let exit = self.exit();
        FailureDocument {
            error: FailureBody {
                code: self.code.to_string(),
                title: self.code.page().title.to_owned(),
                message: self.what.clone(),
                place: self.place.clone(),
                effect: self.effect.clone(),
                hint: self.action.clone(),
                class: match exit {
                    Exit::TryAgain => FailureClass::Retry,
                    _ => FailureClass::Permanent,
                },
                exit_code: exit as u8,
            },
        }
    }
}

/// What a verb with `--json` prints when it fails: one line, the last of stderr.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FailureDocument {
    /// The failure.
    pub error: FailureBody,
}

/// A failure in words and codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FailureBody {
    /// `PITRnnnn`; `tikv-pitr explain CODE` prints its page.
    pub code: String,
    /// Title of that page.
    pub title: String,
    /// What failed, with its causes.
    pub message: String,
    /// On which object, address or file; may be empty.
    pub place: String,
    /// What it means for the data.
    pub effect: String,
    /// What to do.
    pub hint: String,
    /// Whether another try makes sense.
    pub class: FailureClass,
    /// Exit code of the process.
    pub exit_code: u8,
}

/// Whether another try makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FailureClass {
    /// The same call may succeed later.
    Retry,
    /// Something must be changed first.
    Permanent,
}

/// The code that a class of error means when nothing more special is known.
pub fn code_of(class: Class) -> Code {
    match class {
        Class::Retry | Class::Refresh => Code::NotReady,
        Class::Permanent => Code::Internal,
    }
}

/// An error and its causes in one line; a cause that the text before already quotes is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.what)?;
        for (label, text) in [
            ("where", &self.place),
            ("effect", &self.effect),
            ("do", &self.action),
        ] {
            if !text.is_empty() {
                write!(f, "\n  {label}: {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer failed")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner reason")]
    struct Inner;

    #[test]
    fn a_failure_says_what_where_effect_and_action_in_that_order() {
        let failure = Failure::new(Code::ArchiveDamaged, "slice is damaged")
            .at("v1/a.log")
            .effect("nothing was restored")
            .action("take another copy");
        assert_eq!(
            failure.to_string(),
            "error[PITR1407]: slice is damaged\n  where: v1/a.log\n  effect: nothing was restored\n  do: take another copy"
        );
        assert_eq!(
            failure.one_line(),
            "PITR1407: slice is damaged (v1/a.log); nothing was restored; take another copy"
        );
    }

    #[test]
    fn what_a_failure_does_not_say_itself_comes_from_the_page_of_its_code() {
        let page = Code::StorageFull.page();
        let document = Failure::new(Code::StorageFull, "no space").document().error;
        assert_eq!(
            (document.effect.as_str(), document.hint.as_str()),
            (page.effect, page.action)
        );
        assert_eq!(document.code, "PITR1205");
        assert_eq!(document.class, FailureClass::Retry);
        assert_eq!(document.exit_code, 75);
        let other = Failure::new(Code::TaskNotFound, "no task").document().error;
        assert_eq!(
            (other.class, other.exit_code),
            (FailureClass::Permanent, 10)
        );
    }

    #[test]
    fn the_causes_of_an_error_are_said_once_each() {
        assert_eq!(chain(&Outer(Inner)), "outer failed: inner reason");
        assert_eq!(chain(&Inner), "inner reason");
    }

    #[test]
    fn the_exit_codes_are_the_promised_numbers() {
        let codes = [
            (Exit::Ok, 0),
            (Exit::Internal, 1),
            (Exit::Usage, 2),
            (Exit::Config, 3),
            (Exit::NotFound, 10),
            (Exit::Conflict, 11),
            (Exit::Auth, 12),
            (Exit::Damage, 20),
            (Exit::Lag, 21),
            (Exit::Gap, 22),
            (Exit::Unverified, 23),
            (Exit::Partial, 30),
            (Exit::TryAgain, 75),
            (Exit::Interrupted, 130),
        ];
        for (exit, number) in codes {
            assert_eq!(exit as u8, number);
            let chosen = crate::codes::ALL.iter().any(|code| code.exit() == exit);
            assert_eq!(
                chosen,
                exit != Exit::Ok,
                "{exit:?} is the end of some failure"
            );
            let row = format!("\n| {number} |");
            let readme = include_str!("../../README.md");
            assert!(readme.contains(&row), "{number} is not in the README");
        }
    }
}
