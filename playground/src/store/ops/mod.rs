//! The transactional commands, one file per group: each takes a request message and gives the
//! answer message. They block (disk, write lock), except [`pessimistic`], which may wait.

mod answer;
mod commit;
mod one_pc;
pub(super) mod pessimistic;
mod prewrite;
mod prewrite_check;
mod range;
mod read;
mod resolve;
mod rollback;
mod scan;
mod status;
#[cfg(test)]
mod tests;
