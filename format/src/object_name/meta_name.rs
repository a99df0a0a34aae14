//! The name of a `.meta` object: it sorts by flush and lets readers skip the object unread.
//!
//! | generation | name below `v1/backupmeta/`, without `.meta` |
//! |---|---|
//! | G0 | `{min resolved ts:012}-{uuid}` |
//! | G1 | `{min resolved ts}-{uuid}` |
//! | G2 | `{flush:X16}-{begin:X16}-{min:X16}-{max:X16}`, maybe `-SYNTHETIC{hex}` |
//! | G3 | `{flush:X16}{store:X16}-d{begin:X16}l{min:X16}u{max:X16}` |
//! | G4 | G3 and `p{flags:X16}`; the one we write |
//!
//! Tags may stand in any order and unknown ones are ignored; readers of the tagged form refuse
//! repeated and missing tags, and so do we.

use pitr_proto::backup::Metadata;
use uuid::Uuid;

use super::META_DIR;
use crate::{Class, Ts};

/// Suffix of the objects in [`META_DIR`].
pub const META_SUFFIX: &str = ".meta";
/// Flag of [`MetaName::flags`]: no schema (`m…`) slice is referenced.
pub const FLAG_NO_META_KV: u64 = 1;
/// Flag of [`MetaName::flags`]: no slice at all is referenced.
pub const FLAG_EMPTY: u64 = 2;

/// Why a path is not the name of a metadata object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is not the name of a log backup metadata object: {reason}")]
pub struct ObjectNameError {
    /// The path.
    pub path: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ObjectNameError {
    /// A name does not change.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// The five forms of the name, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    /// Releases 6.1 and 6.2. Only padding tells it from [`Generation::G1`]: a real ts is longer
    /// than the padding and reads as G1; the content says which metadata version it is.
    G0,
    /// 6.3 to 8.5.2.
    G1,
    /// 8.5.3 and 9.0.
    G2,
    /// Early 2026.
    G3,
    /// Since June 2026.
    G4,
}

/// The facts in the name of a `.meta` object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaName {
    /// Ts of the flush, rising per store. G0 and G1 carry the smallest resolved ts instead.
    pub flush_ts: Ts,
    /// The store; G3 and later.
    pub store_id: Option<u64>,
    /// Smallest `min_begin_ts_in_default_cf` of the slices; 0 = unknown or empty.
    pub min_begin_ts: Ts,
    /// Smallest ts of the slices; 0 = unknown or empty.
    pub min_ts: Ts,
    /// Largest ts of the slices; 0 = unknown or empty.
    pub max_ts: Ts,
    /// [`FLAG_NO_META_KV`] and [`FLAG_EMPTY`]; G4.
    pub flags: Option<u64>,
    /// Which form the name has.
    pub generation: Generation,
}

impl MetaName {
    /// The name of the metadata of a flush.
    pub fn of_flush(flush_ts: Ts, metadata: &Metadata) -> Self {
        let infos = || metadata.file_groups.iter().flat_map(|g| &g.data_files_info);
        let begin_ts = infos().map(|info| info.min_begin_ts_in_default_cf).min();
        let mut flags = 0;
        if !infos().any(|info| info.is_meta) {
            flags |= FLAG_NO_META_KV;
        }
        if begin_ts.is_none() {
            flags |= FLAG_EMPTY;
        }
        MetaName {
            flush_ts,
            store_id: Some(metadata.store_id as u64),
            min_begin_ts: Ts::new(begin_ts.unwrap_or_default()),
            min_ts: Ts::new(metadata.min_ts),
            max_ts: Ts::new(metadata.max_ts),
            flags: Some(flags),
            generation: Generation::G4,
        }
    }

    /// The full path in the current form (G4), whatever form the name was read from.
    pub fn write(&self) -> String {
        let MetaName {
            flush_ts,
            min_begin_ts,
            min_ts,
            max_ts,
            ..
        } = self;
        format!(
            "{META_DIR}{:016X}{:016X}-d{:016X}l{:016X}u{:016X}p{:016X}{META_SUFFIX}",
            flush_ts.get(),
            self.store_id.unwrap_or_default(),
            min_begin_ts.get(),
            min_ts.get(),
            max_ts.get(),
            self.flags.unwrap_or_default(),
        )
    }

    /// Reads a full path of any generation.
    pub fn parse(path: &str) -> Result<Self, ObjectNameError> {
        let refuse = |reason| ObjectNameError {
            path: path.to_owned(),
            reason,
        };
        let stem = path
            .strip_prefix(META_DIR)
            .ok_or_else(|| refuse("not in the folder of metadata objects"))?
            .strip_suffix(META_SUFFIX)
            .ok_or_else(|| refuse("does not end in .meta"))?;
        let Some((head, tail)) = stem.split_once('-') else {
            return Err(refuse("has no dash"));
        };
        let name = match head.len() {
            32 => tagged(head, tail),
            16 => dashed(head, tail).ok_or("not four numbers of 16 hex digits"),
            _ => decimal(head, tail).ok_or("neither hex fields nor a decimal ts and a UUID"),
        };
        name.map_err(refuse)
    }

    /// Whether a reader of records with `left <= ts <= right` may leave the object unread: BR's
    /// rule, and objects that say that they reference nothing. `left` has to be the *shifted*
    /// start for readers that need long values too.
    pub fn can_skip(&self, left: Ts, right: Ts) -> bool {
        if self.flags.is_some_and(|flags| flags & FLAG_EMPTY != 0) {
            return true;
        }
        let known = !self.min_begin_ts.is_zero() && self.min_begin_ts <= self.min_ts;
        known && (right < self.min_begin_ts || self.max_ts < left)
    }
}

/// Exactly 16 hex digits of either case.
fn hex16(text: &[u8]) -> Option<u64> {
    if text.len() != 16 {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

/// G3 and G4.
fn tagged(head: &str, tail: &str) -> Result<MetaName, &'static str> {
    const HEAD: &str = "does not begin with 32 hex digits";
    let (flush_ts, store_id) = head.as_bytes().split_at(16);
    let flush_ts = hex16(flush_ts).ok_or(HEAD)?;
    let store_id = hex16(store_id).ok_or(HEAD)?;
    let mut seen = 0u128;
    let (mut begin_ts, mut min_ts, mut max_ts, mut flags) = (None, None, None, None);
    for segment in tail.as_bytes().chunks(17) {
        let (tag, number) = segment.split_first().ok_or("has an empty tag")?;
        let number = hex16(number).ok_or("has a tag without 16 hex digits")?;
        if !tag.is_ascii_alphanumeric() {
            return Err("has a tag that is neither letter nor digit");
        }
        let bit = 1u128 << tag;
        if seen & bit != 0 {
            return Err("has a tag twice");
        }
        seen |= bit;
        match tag {
            b'd' => begin_ts = Some(number),
            b'l' => min_ts = Some(number),
            b'u' => max_ts = Some(number),
            b'p' => flags = Some(number),
            _ => {}
        }
    }
    const MISSING: &str = "lacks one of the tags d, l and u";
    Ok(MetaName {
        flush_ts: Ts::new(flush_ts),
        store_id: Some(store_id),
        min_begin_ts: Ts::new(begin_ts.ok_or(MISSING)?),
        min_ts: Ts::new(min_ts.ok_or(MISSING)?),
        max_ts: Ts::new(max_ts.ok_or(MISSING)?),
        flags,
        generation: match flags {
            Some(_) => Generation::G4,
            None => Generation::G3,
        },
    })
}

/// G2.
fn dashed(head: &str, tail: &str) -> Option<MetaName> {
    let mut parts = tail.split('-');
    let mut number = || parts.next().and_then(|part| hex16(part.as_bytes()));
    let (begin_ts, min_ts, max_ts) = (number()?, number()?, number()?);
    // Written when PD was not reachable; the digits are a UUID that keeps the name unique.
    if let Some(part) = parts.next() {
        let digits = part.strip_prefix("SYNTHETIC")?.as_bytes();
        if !(1..=32).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
    }
    if parts.next().is_some() {
        return None;
    }
    Some(MetaName {
        flush_ts: Ts::new(hex16(head.as_bytes())?),
        store_id: None,
        min_begin_ts: Ts::new(begin_ts),
        min_ts: Ts::new(min_ts),
        max_ts: Ts::new(max_ts),
        flags: None,
        generation: Generation::G2,
    })
}

/// G0 and G1.
fn decimal(head: &str, tail: &str) -> Option<MetaName> {
    if !head.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let resolved_ts = head.parse().ok()?;
    // The hyphenated form only; `try_parse` alone would accept others.
    if tail.len() != 36 {
        return None;
    }
    Uuid::try_parse(tail).ok()?;
    Some(MetaName {
        flush_ts: Ts::new(resolved_ts),
        store_id: None,
        min_begin_ts: Ts::ZERO,
        min_ts: Ts::ZERO,
        max_ts: Ts::ZERO,
        flags: None,
        generation: match head.starts_with('0') && head.len() == 12 {
            true => Generation::G0,
            false => Generation::G1,
        },
    })
}

#[cfg(test)]
mod tests {
    use pitr_proto::backup::{DataFileGroup, DataFileInfo};
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "0528b512-2165-4435-8f76-f5a241f979e9";

    fn parse(name: &str) -> Result<MetaName, &'static str> {
        MetaName::parse(&format!("{META_DIR}{name}{META_SUFFIX}")).map_err(|e| e.reason)
    }

    fn generation(name: &str) -> Generation {
        parse(name).unwrap().generation
    }

    fn tagged_name(tags: &str) -> String {
        format!("{:016X}{:016X}-{tags}", 5, 1)
    }

    fn tag(tag: char, number: u64) -> String {
        format!("{tag}{number:016X}")
    }

    #[test]
    fn the_written_form_has_padded_upper_case_fields_in_a_fixed_order() {
        let name = MetaName {
            flush_ts: Ts::new(0x0688_0421_9354_0001),
            store_id: Some(1),
            min_begin_ts: Ts::new(0x0688_0421_31A8_0001),
            min_ts: Ts::new(0x0688_0421_31A8_0002),
            max_ts: Ts::new(0x0688_0421_7734_001D),
            flags: Some(0),
            generation: Generation::G4,
        };
        let path = "v1/backupmeta/06880421935400010000000000000001\
            -d0688042131A80001l0688042131A80002u068804217734001Dp0000000000000000.meta";
        assert_eq!(name.write(), path);
        assert_eq!(MetaName::parse(path).unwrap(), name);
    }

    #[test]
    fn every_generation_is_recognised_with_the_facts_it_has() {
        let g0 = parse(&format!("000000000042-{UUID}")).unwrap();
        assert_eq!((g0.generation, g0.flush_ts), (Generation::G0, Ts::new(42)));
        let g1 = parse(&format!("446850000000000001-{UUID}")).unwrap();
        assert_eq!(g1.generation, Generation::G1);
        assert_eq!(g1.flush_ts, Ts::new(446_850_000_000_000_001));
        assert_eq!((g1.store_id, g1.min_ts, g1.flags), (None, Ts::ZERO, None));
        let g2 = parse("000000000000000A-0000000000000001-0000000000000002-00000000000000ff");
        let g2 = g2.unwrap();
        assert_eq!((g2.generation, g2.store_id), (Generation::G2, None));
        assert_eq!(
            (g2.flush_ts, g2.min_begin_ts, g2.min_ts, g2.max_ts),
            (Ts::new(10), Ts::new(1), Ts::new(2), Ts::new(255))
        );
        let dlu = [tag('d', 1), tag('l', 2), tag('u', 3)].concat();
        let g3 = parse(&tagged_name(&dlu)).unwrap();
        assert_eq!((g3.generation, g3.flags), (Generation::G3, None));
        assert_eq!((g3.flush_ts, g3.store_id), (Ts::new(5), Some(1)));
        let g4 = parse(&tagged_name(&(tag('p', 3) + &dlu))).unwrap();
        assert_eq!((g4.generation, g4.flags), (Generation::G4, Some(3)));
        assert_eq!((g4.min_begin_ts, g4.max_ts), (Ts::new(1), Ts::new(3)));
    }

    #[test]
    fn the_synthetic_suffix_of_the_second_generation_is_accepted_and_nothing_else() {
        let base = "00000000000000FF-0000000000000001-0000000000000002-0000000000000003";
        let max = format!("{base}-SYNTHETIC{:X}", u128::MAX);
        assert_eq!(generation(&max), Generation::G2);
        assert_eq!(generation(&format!("{base}-SYNTHETICA")), Generation::G2);
        for bad in [
            "-SYNTHETIC",
            "-SYNTHETICxyz",
            "-synthetic1",
            "-",
            "-SYNTHETIC1-2",
        ] {
            assert!(parse(&format!("{base}{bad}")).is_err(), "{bad}");
        }
        assert!(parse(&format!("{max}0")).is_err());
    }

    #[test]
    fn tags_come_in_any_order_and_case_and_unknown_ones_are_ignored() {
        let [d, l, u] = [tag('d', 0xAB), tag('l', 0xCD), tag('u', 0xEF)];
        let expected = parse(&tagged_name(&[&d[..], &l, &u].concat())).unwrap();
        for tags in [
            [&u[..], &l, &d].concat(),
            [&l[..], &tag('z', 9), &d, &u, &tag('7', 1)].concat(),
            [d.to_lowercase(), l.to_lowercase(), u.clone()].concat(),
        ] {
            assert_eq!(parse(&tagged_name(&tags)).unwrap(), expected, "{tags}");
        }
    }

    #[test]
    fn repeated_short_missing_and_misplaced_tags_are_refused() {
        let [d, l, u] = [tag('d', 1), tag('l', 2), tag('u', 3)];
        let refused = |tags: &[&str]| parse(&tagged_name(&tags.concat())).unwrap_err();
        assert_eq!(refused(&[&d, &l, &u, &d]), "has a tag twice");
        assert_eq!(
            refused(&[&d, &l, &u, "z1", "z"]),
            "has a tag without 16 hex digits"
        );
        assert_eq!(
            refused(&[&d, &l, &u[..16]]),
            "has a tag without 16 hex digits"
        );
        assert_eq!(
            refused(&[&d, &l, "u+000000000000001"]),
            "has a tag without 16 hex digits"
        );
        assert_eq!(refused(&[&d, &l]), "lacks one of the tags d, l and u");
        assert_eq!(refused(&[]), "lacks one of the tags d, l and u");
        assert_eq!(
            refused(&[&d, &l, &u, &tag('_', 1)]),
            "has a tag that is neither letter nor digit"
        );
        assert_eq!(
            parse(&format!("{}-{d}{l}{u}", "G".repeat(32))).unwrap_err(),
            "does not begin with 32 hex digits"
        );
        for name in ["", "x", "1-2", "-", "12-x", "00000000000000FF-1-2-3", "é-è"] {
            assert!(parse(name).is_err(), "{name}");
        }
        assert!(MetaName::parse("v1/backupmeta/x").is_err());
        assert!(MetaName::parse(&format!("v1/other/1-{UUID}.meta")).is_err());
    }

    #[test]
    fn a_reader_skips_only_what_the_name_proves_to_be_outside_its_window() {
        let name = |d, l, u, p| MetaName {
            flush_ts: Ts::new(100),
            store_id: Some(1),
            min_begin_ts: Ts::new(d),
            min_ts: Ts::new(l),
            max_ts: Ts::new(u),
            flags: p,
            generation: Generation::G4,
        };
        let skips = |n: MetaName| n.can_skip(Ts::new(20), Ts::new(30));
        assert!(skips(name(5, 10, 19, None)));
        assert!(!skips(name(5, 10, 20, None)));
        assert!(skips(name(31, 40, 50, None)));
        assert!(
            !skips(name(30, 40, 50, None)),
            "a long value inside the window"
        );
        assert!(!skips(name(0, 10, 19, None)), "unknown begin ts");
        assert!(
            !skips(name(11, 10, 19, None)),
            "bounds that contradict each other"
        );
        assert!(!skips(name(0, 0, 0, Some(FLAG_NO_META_KV))));
        assert!(skips(name(0, 0, 0, Some(FLAG_NO_META_KV | FLAG_EMPTY))));
    }

    #[test]
    fn the_name_of_a_flush_summarises_its_metadata() {
        let info = |begin, is_meta| DataFileInfo {
            min_begin_ts_in_default_cf: begin,
            is_meta,
            ..DataFileInfo::default()
        };
        let group = |infos: Vec<DataFileInfo>| DataFileGroup {
            data_files_info: infos,
            ..DataFileGroup::default()
        };
        let mut metadata = Metadata {
            store_id: 9,
            min_ts: 6,
            max_ts: 8,
            file_groups: vec![group(vec![info(7, false)]), group(vec![info(5, false)])],
            ..Metadata::default()
        };
        let name = MetaName::of_flush(Ts::new(50), &metadata);
        assert_eq!((name.flush_ts, name.store_id), (Ts::new(50), Some(9)));
        assert_eq!(name.min_begin_ts, Ts::new(5));
        assert_eq!((name.min_ts, name.max_ts), (Ts::new(6), Ts::new(8)));
        assert_eq!(name.flags, Some(FLAG_NO_META_KV));
        metadata.file_groups.push(group(vec![info(6, true)]));
        assert_eq!(MetaName::of_flush(Ts::new(50), &metadata).flags, Some(0));
        let empty = Metadata {
            store_id: 9,
            ..Metadata::default()
        };
        let name = MetaName::of_flush(Ts::new(1), &empty);
        assert_eq!((name.flags, name.min_begin_ts), (Some(3), Ts::ZERO));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_written_name_reads_back_and_sorts_by_flush_and_store(
            a in any::<[u64; 6]>(), b in any::<[u64; 6]>(),
        ) {
            let name = |[flush, store, d, l, u, p]: [u64; 6]| MetaName {
                flush_ts: Ts::new(flush),
                store_id: Some(store),
                min_begin_ts: Ts::new(d),
                min_ts: Ts::new(l),
                max_ts: Ts::new(u),
                flags: Some(p),
                generation: Generation::G4,
            };
            let (name_a, name_b) = (name(a), name(b));
            prop_assert_eq!(MetaName::parse(&name_a.write()).unwrap(), name_a.clone());
            prop_assert_eq!(name_a.write().cmp(&name_b.write()), a.cmp(&b));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*", near in "[0-9a-fA-Fdlup-]{30,70}") {
            let _ = MetaName::parse(&text);
            let _ = parse(&text);
            let _ = parse(&near);
        }
    }
}
