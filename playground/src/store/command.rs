//! The frame of every command: check the context, look, decide, apply at once.
//!
//! A write command holds the store's write lock from the context check to the end, so its
//! snapshot is the truth and nobody can come in between. It sees what was there before itself,
//! and either all of its changes are applied or (on an error) none. A read holds the lock only
//! until it has its snapshot. Used by everything in `ops`.

use bytes::Bytes;
use pitr_format::write_cf::WriteRecord;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::Context;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{EngineCf, EngineError};
use rocksdb::WriteBatch;

use super::change::Modify;
use super::error::KvError;
use super::kernel::{Store, WriteGuard};
use super::lock::LockRecord;
use super::view::View;

impl Store {
    /// Checks the context, raises `max_ts` to the ts of the read, and takes a view.
    pub(super) fn read_view(&self, context: Option<&Context>, ts: Ts) -> Result<View<'_>, KvError> {
        let mut guard = self.lock_writes();
        let region = self.check_context(context)?;
        guard.raise_max_ts(ts);
        let snapshot = guard.snapshot();
        Ok(View { region, snapshot })
    }

    /// Runs one write command and applies what it has collected, unless it fails.
    pub(super) fn write_command<T>(
        &self,
        context: Option<&Context>,
        work: impl FnOnce(&mut Command<'_>) -> Result<T, KvError>,
    ) -> Result<T, KvError> {
        let guard = self.lock_writes();
        let region = self.check_context(context)?;
        let snapshot = guard.snapshot();
        let mut command = Command {
            guard,
            view: View { region, snapshot },
            mods: Vec::new(),
            one_pc: false,
        };
        let out = work(&mut command)?;
        let Command {
            mut guard,
            view,
            mods,
            one_pc,
        } = command;
        if !mods.is_empty() {
            guard.apply(view.region.id, &mods, one_pc)?;
        }
        Ok(out)
    }
}

/// A write command at work.
pub(super) struct Command<'s> {
    guard: WriteGuard<'s>,
    pub view: View<'s>,
    mods: Vec<Modify>,
    one_pc: bool,
}

impl Command<'_> {
    pub fn max_ts(&self) -> Ts {
        self.guard.max_ts()
    }

    pub fn raise_max_ts(&mut self, ts: Ts) {
        self.guard.raise_max_ts(ts);
    }

    /// Writes at once what observers are not told.
    pub fn write_everywhere(
        &mut self,
        fill: impl Fn(&RocksEngine, &mut WriteBatch) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.guard.write_everywhere(fill)
    }

    /// Forgets all changes so far.
    pub fn discard(&mut self) {
        self.mods.clear();
    }

    /// Tells observers that these changes are a one-phase commit.
    pub fn mark_one_pc(&mut self) {
        self.one_pc = true;
    }

    pub fn put_lock(&mut self, key: &EncodedKey, lock: &LockRecord) {
        self.mods.push(Modify::Put {
            cf: EngineCf::Lock,
            key: key.clone().into_bytes(),
            value: lock.to_bytes(),
        });
    }

    pub fn unlock(&mut self, key: &EncodedKey) {
        self.mods.push(Modify::Delete {
            cf: EngineCf::Lock,
            key: key.clone().into_bytes(),
        });
    }

    pub fn put_write(&mut self, key: &EncodedKey, commit_ts: Ts, write: &WriteRecord) {
        self.mods.push(Modify::Put {
            cf: EngineCf::Write,
            key: key.at(commit_ts).into_bytes(),
            value: write.to_bytes(),
        });
    }

    pub fn delete_write(&mut self, key: &EncodedKey, commit_ts: Ts) {
        self.mods.push(Modify::Delete {
            cf: EngineCf::Write,
            key: key.at(commit_ts).into_bytes(),
        });
    }

    pub fn put_value(&mut self, key: &EncodedKey, start_ts: Ts, value: Bytes) {
        self.mods.push(Modify::Put {
            cf: EngineCf::Default,
            key: key.at(start_ts).into_bytes(),
            value,
        });
    }

    pub fn delete_value(&mut self, key: &EncodedKey, start_ts: Ts) {
        self.mods.push(Modify::Delete {
            cf: EngineCf::Default,
            key: key.at(start_ts).into_bytes(),
        });
    }
}
