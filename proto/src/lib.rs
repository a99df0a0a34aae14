//! The wire: the part of kvproto that log backup, its restore and the playground use, and the
//! etcd v3 calls that PD's port answers. Same packages, messages, fields, enums and numbers as
//! pingcap/kvproto; `tests/wire_table.rs` compares each with a copy of the wire table.
#![allow(missing_docs, clippy::all, clippy::too_many_lines)]

macro_rules! package {
    ($module:ident, $name:literal) => {
        pub mod $module {
            tonic::include_proto!($name);
        }
    };
}

package!(backup, "backup");
package!(cdcpb, "cdcpb");
package!(deadlock, "deadlock");
package!(encryptionpb, "encryptionpb");
package!(errorpb, "errorpb");
package!(etcdserverpb, "etcdserverpb");
package!(import_sstpb, "import_sstpb");
package!(kvrpcpb, "kvrpcpb");
package!(logbackup, "logbackup");
package!(metapb, "metapb");
package!(mvccpb, "mvccpb");
package!(pdpb, "pdpb");
package!(tikvpb, "tikvpb");

/// The compiled `FileDescriptorSet` of all of the above, for tests that parse text-format
/// messages and for the comparison with the wire table.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
