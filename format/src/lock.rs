//! The content of `backup.lock`: its presence marks the storage as used, its text is for people.
//! Source: pingcap/tidb `br/pkg/metautil/metafile.go`. Written by `log start`; nobody parses it.

/// A do-not-delete notice and its reason, joined by one line feed, without a final one.
pub const TEXT: &str = "DO NOT DELETE\n\
    This storage holds a log backup of a TiKV cluster; no other backup may use it.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_two_lines_says_what_not_to_do() {
        let lines: Vec<&str> = TEXT.split('\n').collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "DO NOT DELETE");
    }
}
