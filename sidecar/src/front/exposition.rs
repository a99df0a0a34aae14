//! Two pages of metrics as one, in Prometheus' text format, which allows each family once.

use std::collections::BTreeSet;

/// Families of log backup, under both of TiKV's prefixes, and our own. Others, such as those of the
/// process, belong to the store whose page it is.
const OURS: [&str; 3] = ["tikv_log_backup_", "tikv_stream_", "tikv_pitr_"];
/// What is put behind a family's name in samples of histograms and summaries.
const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// `theirs` without the families that `ours` has, then our families of log backup.
pub(super) fn joined(theirs: &str, ours: &str) -> String {
    let is_ours = |name: &str| OURS.iter().any(|prefix| name.starts_with(prefix));
    let families: BTreeSet<&str> = ours
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|rest| rest.split(' ').next())
        .filter(|name| is_ours(name))
        .collect();
    let mut text = String::with_capacity(theirs.len() + ours.len());
    let mut take = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    let of_ours = |line: &&str| family_in(line, &families);
    theirs
        .lines()
        .filter(|line| !of_ours(line))
        .for_each(&mut take);
    ours.lines().filter(of_ours).for_each(&mut take);
    text
}

/// Whether a line speaks of one of the families.
fn family_in(line: &str, families: &BTreeSet<&str>) -> bool {
    let described = ["# HELP ", "# TYPE "]
        .into_iter()
        .find_map(|word| line.strip_prefix(word));
    let name = match described {
        Some(rest) => rest.split(' ').next(),
        None => line.split(['{', ' ']).next(),
    };
    let Some(name) = name else { return false };
    let bare = || SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
    families.contains(name) || bare().is_some_and(|name| families.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = "# HELP tikv_engine_size_bytes Size.\n\
        # TYPE tikv_engine_size_bytes gauge\n\
        tikv_engine_size_bytes{db=\"kv\"} 7\n\
        # HELP tikv_log_backup_enabled Theirs.\n\
        # TYPE tikv_log_backup_enabled counter\n\
        tikv_log_backup_enabled 0\n\
        # TYPE tikv_log_backup_handle_kv_batch histogram\n\
        tikv_log_backup_handle_kv_batch_bucket{le=\"+Inf\"} 1\n\
        tikv_log_backup_handle_kv_batch_sum 1\n\
        tikv_log_backup_handle_kv_batch_count 1\n\
        tikv_log_backup_store_of_theirs 4\n\
        process_cpu_seconds_total 100\n";
    const OWN: &str = "# HELP tikv_log_backup_enabled Ours.\n\
        # TYPE tikv_log_backup_enabled counter\n\
        tikv_log_backup_enabled 1\n\
        # TYPE tikv_log_backup_handle_kv_batch histogram\n\
        tikv_log_backup_handle_kv_batch_bucket{le=\"+Inf\"} 9\n\
        tikv_log_backup_handle_kv_batch_sum 9\n\
        tikv_log_backup_handle_kv_batch_count 9\n\
        # TYPE process_cpu_seconds_total counter\n\
        process_cpu_seconds_total 1\n";

    #[test]
    fn each_family_stands_once_and_log_backup_is_ours() {
        let page = joined(THEIRS, OWN);
        let lines: Vec<_> = page.lines().collect();
        let count = |wanted: &str| lines.iter().filter(|line| **line == wanted).count();
        assert_eq!(count("tikv_log_backup_enabled 1"), 1, "{page}");
        assert_eq!(count("tikv_log_backup_enabled 0"), 0, "{page}");
        assert_eq!(count("# TYPE tikv_log_backup_enabled counter"), 1, "{page}");
        assert_eq!(count("tikv_log_backup_handle_kv_batch_sum 9"), 1, "{page}");
        assert_eq!(count("tikv_log_backup_handle_kv_batch_sum 1"), 0, "{page}");
        assert_eq!(
            count("tikv_log_backup_handle_kv_batch_bucket{le=\"+Inf\"} 1"),
            0
        );
    }

    #[test]
    fn what_is_not_log_backup_stays_the_stores() {
        let page = joined(THEIRS, OWN);
        assert!(page.contains("tikv_engine_size_bytes{db=\"kv\"} 7\n"));
        assert!(page.contains("process_cpu_seconds_total 100\n"));
        assert!(!page.contains("process_cpu_seconds_total 1\n"));
        // A family of theirs that only begins like one of ours.
        assert!(page.contains("tikv_log_backup_store_of_theirs 4\n"));
    }
}
