//! Randomness of a process.

use uuid::Uuid;

/// Where names that must not repeat come from.
pub trait Random: Send + Sync {
    /// A name that nobody has drawn before: part of object names, so two processes that write into
    /// one archive must never draw the same.
    fn uuid(&self) -> Uuid;
}

/// Random names (version 4) from the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    fn uuid(&self) -> Uuid {
        Uuid::new_v4()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_of_the_system_differ() {
        assert_ne!(SystemRandom.uuid(), SystemRandom.uuid());
    }
}
