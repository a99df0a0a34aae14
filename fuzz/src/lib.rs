//! One fuzz target per decoder of bytes from outside: object storage, PD's etcd, the change stream,
//! the command line.
//!
//! A target takes any bytes and must not panic, not loop and not allocate more than its input
//! justifies; what it accepts must survive its own round trip. Called by the libFuzzer binaries in
//! `libfuzzer/` (`make fuzz`), and by `tests/it.rs` with the committed corpus and mutations of it.

mod archive;
mod format;
mod outside;

/// A decoder under test: its name is that of its corpus folder and of its libFuzzer binary.
pub struct Target {
    /// Folder under `corpus/`.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "key",
        run: format::key,
    },
    Target {
        name: "write_record",
        run: format::write_record,
    },
    Target {
        name: "records",
        run: format::records,
    },
    Target {
        name: "zstd_frame",
        run: format::zstd_frame,
    },
    Target {
        name: "slice",
        run: format::slice,
    },
    Target {
        name: "metadata",
        run: format::metadata,
    },
    Target {
        name: "object_name",
        run: format::object_name,
    },
    Target {
        name: "small_objects",
        run: format::small_objects,
    },
    Target {
        name: "archive",
        run: archive::archive,
    },
    Target {
        name: "change_data",
        run: outside::change_data,
    },
    Target {
        name: "task_key",
        run: outside::task_key,
    },
    Target {
        name: "storage_url",
        run: outside::storage_url,
    },
];

/// Runs the target `name`; nothing happens if there is none, so that a binary with a misspelt name
/// is found by the test that compares binaries and targets.
pub fn run(name: &str, data: &[u8]) {
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        (target.run)(data);
    }
}
