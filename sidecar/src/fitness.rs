//! Whether a cluster is one that this release can tail: of a version that a change stream does not
//! abort. Pure; asked by `log start` and `serve`.

use pitr_proto::metapb::Store;

use crate::codes::Code;
use crate::failure::Failure;

/// Refuses stores of TiKV 8.5.0 to 8.5.3, whose lock tracker has an assertion that changes can
/// break while they are tailed (tikv/tikv issues 18498 and 19083).
pub fn safe_version(stores: &[Store]) -> Result<(), Failure> {
    let unsafe_ones: Vec<Store> = stores
        .iter()
        .filter(|store| aborts(&store.version))
        .cloned()
        .collect();
    if unsafe_ones.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::UnsafeTikvVersion,
        "TiKV 8.5.0 to 8.5.3 can abort under a change stream",
    )
    .at(list(&unsafe_ones)))
}

/// `v8.5.1`, `8.5.1-alpha`: whether it is one of the versions with the fault.
fn aborts(version: &str) -> bool {
    let digits = |part: &str| -> Option<u64> {
        let end = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part[..end].parse().ok()
    };
    let mut parts = version.trim_start_matches('v').splitn(3, '.').map(digits);
    let mut next = || parts.next().flatten();
    matches!((next(), next(), next()), (Some(8), Some(5), Some(0..=3)))
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
}
