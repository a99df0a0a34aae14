//! What stock tools see in a store's place: they ask a store's status address whether log backup is
//! on, and dial its `peer_address` for `logbackup.LogBackup`. Where TiKV's own log backup is off, or
//! an engine fork has none, these two stand before the store: [`status::StatusFront`] before its
//! status address, [`grpc::GrpcFront`] before its gRPC address. Everything that is not ours goes to
//! the store as it came.

pub mod exposition;
pub mod grpc;
pub mod status;
