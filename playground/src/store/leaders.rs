//! Who leads which region: transfers, stores that leave and come back.
//!
//! Everything happens under the write lock, so a command or a subscription sees one leader from its
//! check to its end. Called by the process assembly, by PD and by tests.

use std::sync::Arc;

use pitr_format::Class;
use pitr_proto::metapb::{Peer, Region};
use pitr_restore_worker::engine::EngineError;

use super::change::RegionChange;
use super::kernel::{Store, WriteGuard};
use super::region::peer_on;

/// Why a region keeps its leader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// No such region.
    #[error("region {0} does not exist; look the regions up again")]
    Region(u64),
    /// No such store.
    #[error("store {0} does not exist")]
    Store(u64),
    /// The store does not run.
    #[error("store {0} is down; start it first")]
    Down(u64),
}

impl TransferError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            TransferError::Region(_) | TransferError::Down(_) => Class::Refresh,
            TransferError::Store(_) => Class::Permanent,
        }
    }
}

impl Store {
    /// Makes another store the leader of a region; its epoch stays.
    pub fn transfer_leader(&self, region_id: u64, to: u64) -> Result<(), TransferError> {
        let mut guard = self.lock_writes();
        let regions = guard.regions();
        let member = self.group.member(to).ok_or(TransferError::Store(to))?;
        let region = regions.get(region_id);
        region.ok_or(TransferError::Region(region_id))?;
        if !member.is_up() {
            return Err(TransferError::Down(to));
        }
        guard.set_leaders(&[(region_id, Some(to))]);
        Ok(())
    }

    /// Whether the store takes part in writes.
    pub fn is_up(&self) -> bool {
        self.member.is_up()
    }

    /// Whether this store leads a region; if not, who does.
    pub fn leads(&self, region_id: u64) -> Result<(), Option<Peer>> {
        match self.regions().leader(region_id) {
            Some(leader) if leader.store_id == self.store_id() => Ok(()),
            other => Err(other.cloned()),
        }
    }

    /// The store that leads a region now; this one if nobody does.
    pub(crate) fn leading(&self, region_id: u64) -> Store {
        let regions = self.regions();
        let leader = regions.leader(region_id);
        let member = leader.and_then(|peer| self.group.member(peer.store_id));
        Store {
            group: self.group.clone(),
            member: member.unwrap_or(&self.member).clone(),
        }
    }

    /// From now on nothing is written to this store, and its regions have no leader until
    /// [`Store::elect`].
    pub(crate) fn leave(&self) {
        let mut guard = self.lock_writes();
        self.member.set_up(false);
        let led = guard.regions().led_by(Some(self.store_id()));
        let orphans: Vec<_> = led.iter().map(|region| (region.id, None)).collect();
        guard.set_leaders(&orphans);
    }

    /// Gives every region without a leader one of the running stores.
    pub(crate) fn elect(&self) {
        let mut guard = self.lock_writes();
        let chosen = self.group.candidates();
        guard.set_leaders(&chosen);
    }

    /// Brings the store up to date and makes it take part again; how many pairs it had missed.
    pub(crate) fn rejoin(&self) -> Result<u64, EngineError> {
        let _guard = self.lock_writes();
        if self.member.is_up() {
            return Ok(0);
        }
        // Normally a running store; if all are down, whoever went last.
        let mut ahead = (self.member.applied()?, &self.member);
        for member in &self.group.members {
            let applied = member.applied()?;
            if applied > ahead.0 {
                ahead = (applied, member);
            }
        }
        let missed = match Arc::ptr_eq(ahead.1, &self.member) {
            true => 0,
            false => self.member.catch_up(ahead.1)?,
        };
        self.member.set_up(true);
        Ok(missed)
    }
}

impl WriteGuard<'_> {
    /// Changes leaders and tells everybody.
    fn set_leaders(&mut self, changes: &[(u64, Option<u64>)]) {
        let group = &self.store.group;
        let before = self.regions();
        let leader_of = |id| before.leader(id).map(|peer| peer.store_id);
        let changes = changes.iter().filter(|(id, to)| leader_of(*id) != *to);
        let changes: Vec<_> = changes.copied().collect();
        self.publish(|regions| regions.with_leaders(changes.iter().copied()));
        for (id, to) in &changes {
            let Some(region) = before.get(*id) else {
                continue;
            };
            self.tell(&RegionChange::Leader {
                region: Region::clone(region),
                leader: to.and_then(|store| peer_on(region, store)).cloned(),
            });
        }
        if !changes.is_empty() {
            // Who waits at a store that leads no more has to be told so.
            group.waiters.wake_all();
        }
    }
}
