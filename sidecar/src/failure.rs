//! How a verb ends badly: one exit code and the four things a reader wants to know (what failed,
//! where, what it means for the data, what to do). Built by every verb, printed by `cli` alone.

use std::fmt;

use pitr_format::Class;

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

/// Why a verb did not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Code of the process.
    pub exit: Exit,
    /// What failed, in one line, with the cause.
    pub what: String,
    /// On which object, address or file; may be empty.
    pub place: String,
    /// What that means for the data; may be empty.
    pub effect: String,
    /// What the reader can do; may be empty.
    pub action: String,
}

impl Failure {
    /// A failure with its code and what failed.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Failure {
            exit,
            what: what.into(),
            place: String::new(),
            effect: String::new(),
            action: String::new(),
        }
    }

    /// A failure from an error and all its causes, each said once.
    pub fn from_error(exit: Exit, error: &dyn std::error::Error) -> Self {
        Failure::new(exit, chain(error))
    }

    /// Adds where.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = place.into();
        self
    }

    /// Adds the effect on the data.
    #[must_use]
    pub fn effect(mut self, effect: impl Into<String>) -> Self {
        self.effect = effect.into();
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = action.into();
        self
    }
}

impl Failure {
    /// The same in one line, for logs and status pages.
    pub fn one_line(&self) -> String {
        let mut line = self.what.clone();
        if !self.place.is_empty() {
            line.push_str(&format!(" ({})", self.place));
        }
        for part in [&self.effect, &self.action] {
            if !part.is_empty() {
                line.push_str("; ");
                line.push_str(part);
            }
        }
        line
    }
}

/// The exit code that a class of error means when nothing more special is known.
pub fn exit_of(class: Class) -> Exit {
    match class {
        Class::Retry | Class::Refresh => Exit::TryAgain,
        Class::Permanent => Exit::Internal,
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
        write!(f, "error: {}", self.what)?;
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
        let failure = Failure::new(Exit::Damage, "slice is damaged")
            .at("v1/a.log")
            .effect("nothing was restored")
            .action("take another copy");
        assert_eq!(
            failure.to_string(),
            "error: slice is damaged\n  where: v1/a.log\n  effect: nothing was restored\n  do: take another copy"
        );
        assert_eq!(
            failure.one_line(),
            "slice is damaged (v1/a.log); nothing was restored; take another copy"
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
        }
    }
}
