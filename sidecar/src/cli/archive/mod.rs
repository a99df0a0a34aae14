//! `archive ls`, `stat`, `cat`, `find`: what is in an archive, without a cluster. All of them read
//! only. Metas are looked at one after the other and slices one by one, so that the size of the
//! archive does not matter to memory; damage never stops them: it is told on stderr, everything
//! that is whole is printed, and the verb ends with code 20.

pub(super) mod cat;
mod find;
mod key;
mod lines;
pub(super) mod ls;
mod name;
pub(super) mod record;
mod slices;
pub(super) mod stat;
mod window;

use std::num::NonZeroUsize;
use std::sync::Arc;

use clap::Subcommand;
use pitr_env::SystemClock;
use pitr_restore_worker::Damage;
use pitr_restore_worker::archive::MetaWalk;
use pitr_storage::SharedStorage;

use super::{Outcome, output};
use crate::codes::Code;
use crate::failure::{Exit, Failure};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the objects: metas, log files, checkpoints, and what they span.
    Ls(ls::Args),
    /// Totals by store, region, table and column family; what can be restored; what is damaged.
    Stat(stat::Args),
    /// Show what an object holds: metas, the records of a log file, checkpoints, `backupmeta`.
    Cat(cat::Args),
    /// All records of a key, in the order in which they were written to the archive.
    Find(find::Args),
}

/// Runs one of them.
pub(super) async fn run(verb: Verb) -> Outcome {
    match verb {
        Verb::Ls(args) => ls::run(args).await,
        Verb::Stat(args) => stat::run(args).await,
        Verb::Cat(args) => cat::run(args).await,
        Verb::Find(args) => find::run(args).await,
    }
}

/// Walks over these metas.
fn walk(storage: &SharedStorage, paths: Vec<String>) -> MetaWalk {
    MetaWalk::over(storage.clone(), Arc::new(SystemClock::new()), paths)
}

/// Damage that was met on the way: told at once, judged at the end.
#[derive(Debug, Default)]
struct Damages {
    first: Option<Damage>,
    count: usize,
}

impl Damages {
    /// Tells it on stderr.
    fn meet(&mut self, damage: Damage) {
        output::say(&format!("damaged: {}: {}", damage.object, damage.what));
        self.count += 1;
        self.first.get_or_insert(damage);
    }

    /// Whether there was any.
    fn any(&self) -> bool {
        self.count > 0
    }

    /// The end of the verb: code 20 if there was any.
    fn judge(self, uri: &str) -> Outcome {
        let Some(first) = self.first else {
            return Ok(Exit::Ok);
        };
        let others = match NonZeroUsize::new(self.count - 1) {
            None => String::new(),
            Some(n) => format!(" (and {n} more)"),
        };
        Err(Failure::new(
            Code::ArchiveDamaged,
            format!("the archive is damaged: {}{others}", first.what),
        )
        .at(format!("{} in {uri}", first.object)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_damage_is_named_and_the_others_are_counted() {
        assert_eq!(Damages::default().judge("memory:///"), Ok(Exit::Ok));
        let mut damages = Damages::default();
        for object in ["a", "b", "c"] {
            damages.meet(Damage::new(object, "cut"));
        }
        assert!(damages.any());
        let failure = damages.judge("memory:///").unwrap_err();
        assert_eq!(failure.exit(), Exit::Damage);
        assert_eq!(failure.place, "a in memory:///");
        assert!(failure.what.contains("and 2 more"), "{failure}");
    }
}
