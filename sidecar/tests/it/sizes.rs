//! Values of every size that a store takes come back as they were: around the limit between inside and
//! beside the write record, and as large as one command of raft may be.

use crate::system::{Client, Cluster, Sidecar, Storage};
use crate::troubles::assert_restores;

/// `raftstore.raft-entry-max-size`: no command of a store is larger.
const LARGEST: usize = 8 << 20;

fn write(client: &Client, how: &str) {
    for len in [1, 254, 255, 256, 32 << 10, 6 << 20, LARGEST - 1024] {
        let value = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        client.write(&[(format!("{how}/{len:08}"), Some(value))]);
    }
}

#[test]
fn values_from_one_byte_to_the_largest_command_come_back_whole() {
    let (source, archive) = (Cluster::start(), Storage::new());
    source.log_start(&archive.url()).json();
    let client = Client::of(&source);
    // What was there before the sidecar comes by its scan, in other messages than live changes.
    write(&client, "scanned");
    let sidecar = Sidecar::start(&source);
    source.wait_checkpoint(client.now());
    write(&client, "live");
    source.wait_checkpoint(client.now());
    assert_restores(&source, &archive, &Cluster::start());
    sidecar.stop();
}
