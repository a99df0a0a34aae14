//! The placement driver of the playground: one member that is always the leader of one store.
//!
//! Timestamps, ids, the cluster id and the GC safe points are kept in one small file
//! ([`state::StateFile`]), the latter by the rules of [`safepoint`] or of [`gc_states`]; regions and the store come from [`topology::Topology`]. The service
//! itself is [`service::PdService`]; `etcd` answers on the same port.

pub mod clock;
pub mod gc_states;
pub mod safepoint;
pub mod service;
pub mod state;
pub mod topology;
pub mod tso;
