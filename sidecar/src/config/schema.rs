//! The JSON schema of the configuration, for editors: types from the struct, meanings from [`KEYS`].

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{Config, KEYS};

/// The schema (draft 2020-12).
pub fn schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Config>();
    let mut schema = schema.to_value();
    for doc in KEYS {
        let pointer = format!("/properties/{}", doc.key.replace('.', "/properties/"));
        if let Some(Value::Object(key)) = schema.pointer_mut(&pointer) {
            let text = format!("{} Unit: {}.", doc.doc, doc.unit);
            key.insert("description".to_owned(), text.into());
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_meaning_and_the_schema_accepts_what_the_parser_accepts() {
        let schema = schema();
        for doc in KEYS {
            let pointer = format!("/properties/{}", doc.key.replace('.', "/properties/"));
            let found = schema
                .pointer(&pointer)
                .unwrap_or_else(|| panic!("{}", doc.key));
            assert!(found["description"].as_str().unwrap().starts_with(doc.doc));
        }
        let accepts = |text: &str| {
            let table: toml::Table = text.parse().unwrap();
            jsonschema::is_valid(&schema, &serde_json::to_value(table).unwrap())
        };
        let good = "pd-endpoints = [\"a:1\"]\nstore-id = 1\n";
        assert!(accepts(good));
        assert!(accepts(&format!(
            "{good}[log-backup]\nfile-size-limit = \"1MiB\"\n"
        )));
        assert!(!accepts("store-id = 1\n"), "pd-endpoints is needed");
        assert!(!accepts(&format!(
            "{good}[log-backup]\nfile-size = \"1MiB\"\n"
        )));
        assert!(!accepts(&format!("{good}log-backup = 7\n")));
    }
}
