//! Tests of the playground through its ports only, written from the specification of TiKV and PD
//! and from transcripts of real servers, not from the playground's code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod it {
    mod archive_data;
    mod bank;
    mod batch_commands;
    mod change_data_transcript;
    mod cluster;
    mod etcd_rules;
    mod feed;
    mod gc_recording;
    mod gc_states;
    mod import_refusals;
    mod import_transcript;
    mod kv_transcript;
    mod merges;
    mod pd_rules;
    #[path = "../../../interop/pd_servers.rs"]
    mod pd_servers;
    mod phantom_locks;
    mod raw;
    mod real_pd;
    mod register_rules;
    mod resolved_ts;
    mod stores;
    mod subscriber;
    mod surfaces;
    mod system;
    mod tls;
    mod transcript;
    mod txn;
    mod txn_rules;
}
