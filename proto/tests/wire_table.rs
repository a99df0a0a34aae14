//! Every message, field, enum value and RPC of our `.proto` files stands in the wire table of
//! pingcap/kvproto with the same number, label and type.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

/// Packages that are etcd's and so not in the table.
const NOT_KVPROTO: [&str; 2] = ["etcdserverpb", "mvccpb"];

type Row = (String, String, String);

/// (kind, owner, name) → (number, label, type)
fn table() -> BTreeMap<Row, Row> {
    let text = include_str!("data/kvproto.tsv");
    let row = |line: &str| {
        let mut c = line.split('\t').map(str::to_owned);
        let _file = c.next().unwrap();
        let mut next = || c.next().unwrap_or_default();
        ((next(), next(), next()), (next(), next(), next()))
    };
    text.lines().skip(1).map(row).collect()
}

fn pool() -> DescriptorPool {
    DescriptorPool::decode(pitr_proto::FILE_DESCRIPTOR_SET).unwrap()
}

fn kind_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(m) => format!("message {}", m.full_name()),
        Kind::Enum(e) => format!("enum {}", e.full_name()),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn label(field: &FieldDescriptor) -> String {
    let base = match field.cardinality() {
        Cardinality::Repeated => "repeated",
        _ => "singular",
    };
    match field.containing_oneof() {
        Some(oneof) => format!("{base} oneof={}", oneof.name()),
        None => base.to_owned(),
    }
}

fn check_message(message: &MessageDescriptor, table: &BTreeMap<Row, Row>, wrong: &mut Vec<String>) {
    for field in message.fields() {
        let key = (
            "field".into(),
            message.full_name().to_owned(),
            field.name().to_owned(),
        );
        let ours = (
            field.number().to_string(),
            label(&field),
            kind_name(&field.kind()),
        );
        match table.get(&key) {
            Some(theirs) if *theirs == ours => {}
            other => wrong.push(format!("{key:?}: ours {ours:?}, table {other:?}")),
        }
    }
}

#[test]
fn every_field_and_enum_value_has_the_number_label_and_type_of_the_table() {
    let (table, pool) = (table(), pool());
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for message in pool.all_messages() {
        if NOT_KVPROTO.contains(&message.package_name()) {
            continue;
        }
        seen += 1;
        check_message(&message, &table, &mut wrong);
    }
    for set in pool
        .all_enums()
        .filter(|e| !NOT_KVPROTO.contains(&e.package_name()))
    {
        for value in set.values() {
            let key = (
                "enum".into(),
                set.full_name().to_owned(),
                value.name().to_owned(),
            );
            if table.get(&key).map(|t| t.0.clone()) != Some(value.number().to_string()) {
                wrong.push(format!(
                    "{key:?} = {}: table {:?}",
                    value.number(),
                    table.get(&key)
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(seen > 150, "only {seen} messages were compared");
}

#[test]
fn every_rpc_has_the_types_and_streams_of_the_table() {
    let (table, pool) = (table(), pool());
    let mut seen = BTreeSet::new();
    for service in pool
        .services()
        .filter(|s| !s.full_name().starts_with("etcdserverpb."))
    {
        for method in service.methods() {
            let stream = |yes: bool| if yes { "stream" } else { "" };
            let label = format!(
                "{} -> {}",
                stream(method.is_client_streaming()),
                stream(method.is_server_streaming())
            );
            let types = format!(
                "{} -> {}",
                method.input().full_name(),
                method.output().full_name()
            );
            let key = (
                "rpc".into(),
                service.full_name().to_owned(),
                method.name().to_owned(),
            );
            let (_, their_label, their_types) = table
                .get(&key)
                .unwrap_or_else(|| panic!("{key:?} is not in the table"));
            assert_eq!(
                (label.trim(), &types),
                (their_label.trim(), their_types),
                "{key:?}"
            );
            seen.insert(service.full_name().to_owned());
        }
    }
    let expected = [
        "cdcpb.ChangeData",
        "import_sstpb.ImportSST",
        "logbackup.LogBackup",
        "pdpb.PD",
        "tikvpb.Tikv",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn the_comparison_finds_a_changed_number_and_a_changed_type() {
    let mut table = table();
    let key: Row = (
        "field".into(),
        "backup.DataFileInfo".into(),
        "crc64xor".into(),
    );
    table.get_mut(&key).unwrap().0 = "99".into();
    let key: Row = (
        "field".into(),
        "backup.DataFileInfo".into(),
        "sha256".into(),
    );
    table.get_mut(&key).unwrap().2 = "string".into();
    let mut wrong = Vec::new();
    let message = pool().get_message_by_name("backup.DataFileInfo").unwrap();
    check_message(&message, &table, &mut wrong);
    assert_eq!(wrong.len(), 2, "{wrong:?}");
}
