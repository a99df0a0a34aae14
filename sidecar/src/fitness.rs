//! Whether a cluster is one that this release can log: what each version of TiKV can do, as far
//! as it matters to us. Pure; asked by `log start` and `serve`. Source: release tags of tikv/tikv.

use pitr_proto::metapb::Store;

use crate::codes::Code;
use crate::failure::Failure;

type Version = (u64, u64, u64);

/// What is wrong with a range of versions. A version that cannot be read is taken.
struct Fault {
    /// First version that has it.
    from: Version,
    /// First version that no longer has it.
    until: Version,
    code: Code,
    what: &'static str,
}

/// The multiplexed stream is there from 7.3.0 on; change streams are tested from 7.5.0 on.
const NO_CHANGE_STREAM: Fault = Fault {
    from: (0, 0, 0),
    until: (7, 5, 0),
    code: Code::TikvTooOld,
    what: "TiKV before 7.5.0 is not supported by sidecars",
};
/// Its lock tracker has an assertion that changes can break while they are tailed (tikv/tikv issues
/// 18498 and 19083).
const ABORTS: Fault = Fault {
    from: (8, 5, 0),
    until: (8, 5, 4),
    code: Code::UnsafeTikvVersion,
    what: "TiKV 8.5.0 to 8.5.3 can abort under a change stream",
};
/// What the log backup of older versions writes and answers was not looked at.
const NO_LOG_BACKUP: Fault = Fault {
    from: (0, 0, 0),
    until: (6, 5, 0),
    code: Code::TikvTooOld,
    what: "TiKV's own log backup is supported from 6.5.0 on",
};

/// Refuses stores whose changes cannot be tailed.
pub fn new_enough(stores: &[Store]) -> Result<(), Failure> {
    without(stores, &NO_CHANGE_STREAM)
}

/// Refuses stores that a change stream can abort.
pub fn safe_version(stores: &[Store]) -> Result<(), Failure> {
    without(stores, &ABORTS)
}

/// Refuses stores whose own log backup is not ready for use.
pub fn backs_up_by_itself(stores: &[Store]) -> Result<(), Failure> {
    without(stores, &NO_LOG_BACKUP)
}

fn without(stores: &[Store], fault: &Fault) -> Result<(), Failure> {
    let has = |store: &&Store| {
        let version = parse(&store.version);
        version.is_some_and(|version| (fault.from..fault.until).contains(&version))
    };
    let faulty: Vec<Store> = stores.iter().filter(has).cloned().collect();
    match faulty.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(fault.code, fault.what).at(list(&faulty))),
    }
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

    #[test]
    fn a_log_backup_of_its_own_is_taken_from_older_versions_and_from_those_that_a_stream_aborts() {
        for version in ["6.5.0", "v6.5.11", "7.1.5", "8.5.1", "nightly"] {
            assert_eq!(
                backs_up_by_itself(&[store(1, version)]),
                Ok(()),
                "{version}"
            );
        }
        let failure = backs_up_by_itself(&[store(1, "6.5.0"), store(2, "6.4.0")]).unwrap_err();
        assert_eq!(failure.code, Code::TikvTooOld);
        assert!(failure.place.contains("store 2") && !failure.place.contains("store 1"));
    }
}
