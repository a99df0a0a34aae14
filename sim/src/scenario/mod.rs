//! What is played in the world.

pub mod failed_flush;
pub mod random;
