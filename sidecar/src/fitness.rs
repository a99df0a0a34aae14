//! Whether a cluster is one that this release can tail: what each version of TiKV can do, as far
//! as it matters to us. Pure; asked by `log start` and `serve`. Source: release tags of tikv/tikv.

use pitr_proto::metapb::Store;

use crate::codes::Code;
use crate::failure::Failure;

type Version = (u64, u64, u64);

/// What is wrong with a range of versions.
struct Fault {
    /// First version that has it.
    from: Version,
    /// First version that no longer has it.
    until: Version,
    code: Code,
    what: &'static str,
}

/// What a version lacks or does wrong. A version that is not listed, or that cannot be read, is
/// taken.
const FAULTS: [Fault; 2] = [
    // The multiplexed stream is there from 7.3.0 on; change streams are tested from 7.5.0 on.
    Fault {
        from: (0, 0, 0),
        until: (7, 5, 0),
        code: Code::TikvTooOld,
        what: "TiKV before 7.5.0 is not supported",
    },
    // Its lock tracker has an assertion that changes can break while they are tailed
    // (tikv/tikv issues 18498 and 19083).
    Fault {
        from: (8, 5, 0),
        until: (8, 5, 4),
        code: Code::UnsafeTikvVersion,
        what: "TiKV 8.5.0 to 8.5.3 can abort under a change stream",
    },
];

/// Refuses stores whose TiKV is too old.
pub fn new_enough(stores: &[Store]) -> Result<(), Failure> {
    without(stores, Code::TikvTooOld)
}

/// Refuses stores that a change stream can abort.
pub fn safe_version(stores: &[Store]) -> Result<(), Failure> {
    without(stores, Code::UnsafeTikvVersion)
}

fn without(stores: &[Store], code: Code) -> Result<(), Failure> {
    for fault in FAULTS.iter().filter(|fault| fault.code == code) {
        let has = |store: &&Store| {
            let version = parse(&store.version);
            version.is_some_and(|version| (fault.from..fault.until).contains(&version))
        };
        let faulty: Vec<Store> = stores.iter().filter(has).cloned().collect();
        if !faulty.is_empty() {
            return Err(Failure::new(code, fault.what).at(list(&faulty)));
        }
    }
    Ok(())
}

/// `v8.5.1`, `8.5.1-alpha`.
fn parse(version: &str) -> Option<Version> {
    let digits = |part: &str| -> Option<u64> {
        let end = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part[..end].parse().ok()
    };
    let mut parts = version.trim_start_matches('v').splitn(3, '.').map(digits);
    let mut next = || parts.next().flatten();
    Some((next()?, next()?, next()?))
}

fn list(stores: &[Store]) -> String {
    let one = |store: &Store| {
        format!(
            "store {} at {} ({})",
            store.id, store.address, store.version
        )
    };
    stores.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(id: u64, version: &str) -> Store {
        Store {
            id,
            address: format!("tikv-{id}:20160"),
            version: version.to_owned(),
            ..Store::default()
        }
    }

    #[test]
    fn only_the_versions_with_the_fault_are_refused() {
        for version in ["8.5.0", "8.5.3", "v8.5.1", "8.5.2-alpha", "8.5.3-20250101"] {
            let failure = safe_version(&[store(1, "8.5.6"), store(2, version)]).unwrap_err();
            assert_eq!(failure.code, Code::UnsafeTikvVersion);
            assert!(failure.place.contains("store 2") && !failure.place.contains("store 1"));
        }
        for version in [
            "8.5.4", "8.5.6", "8.4.0", "7.5.1", "9.0.0", "8.50.1", "8.5", "", "x.y.z",
        ] {
            assert_eq!(safe_version(&[store(1, version)]), Ok(()), "{version}");
        }
    }

    #[test]
    fn what_is_older_than_the_floor_is_refused_and_what_cannot_be_read_is_not() {
        for version in ["7.4.9", "6.5.3", "v5.0.0-rc"] {
            let failure = new_enough(&[store(1, "8.5.6"), store(2, version)]).unwrap_err();
            assert_eq!(failure.code, Code::TikvTooOld, "{version}");
            assert!(failure.place.contains("store 2") && !failure.place.contains("store 1"));
        }
        for version in [
            "7.5.0",
            "7.5.0-alpha",
            "8.5.1",
            "10.0.0",
            "",
            "7",
            "nightly",
        ] {
            assert_eq!(new_enough(&[store(1, version)]), Ok(()), "{version}");
        }
    }
}
