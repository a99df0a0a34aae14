//! One memory budget and one disk quota for everything a process holds.
//!
//! * [`MemoryBudget`]: a reservation is taken when rows enter
//!   (`pitr_observer::ObserverHandle::try_send`), travels with them through queues, slices and
//!   generations, shrinks when they are compressed, and is given back when they are durable. So
//!   the sum is bounded however slow the storage is; what does not fit is refused at the door.
//! * [`spill::SpillDir`]: where bytes wait that must leave the memory before they are durable.
//!
//! Reserving is voluntary: whoever allocates for data from outside reserves first.

mod memory;
pub mod spill;

pub use memory::{MemoryBudget, Reservation};
