//! What a `DownloadRequest` asks for, checked before anything is read.

use pitr_format::Cf;
use pitr_proto::import_sstpb::{DownloadRequest, DownloadRequestType, Range, SstMeta};
use prost::Message;
use sha2::{Digest, Sha256};

use super::super::cipher::CipherKey;
use super::super::error::ImportError;
use super::keys::KeyRule;

/// Which call it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum Form {
    /// `Download`: `name` and `sst`.
    Single,
    /// `BatchDownload`: several objects into one file.
    Batch,
}

/// Objects merged by one request at most.
const MAX_SOURCES: usize = 1024;

/// One object of a request.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) name: String,
    /// Bytes of the object; 0 is not checked.
    pub(super) length: u64,
    /// Entries of the object; 0 is not checked.
    pub(super) entries: u64,
    pub(super) iv: Vec<u8>,
}

/// A checked request.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) output: SstMeta,
    pub(super) sources: Vec<Source>,
    pub(super) rule: KeyRule,
    pub(super) cipher: Option<CipherKey>,
    /// Digest of everything that decides the result.
    pub(super) identity: [u8; 32],
}

impl Job {
    pub(super) fn of(request: &DownloadRequest, form: Form) -> Result<Job, ImportError> {
        let bad = |what: &str| Err(ImportError::BadFormat(format!("request: {what}")));
        let mut output = request.sst.clone().unwrap_or_default();
        let mut metas: Vec<(String, SstMeta)> = match form {
            Form::Single if !request.ssts.is_empty() => {
                return bad("`ssts` belongs to BatchDownload");
            }
            Form::Single => vec![(request.name.clone(), output.clone())],
            Form::Batch if request.ssts.is_empty() => return bad("`ssts` is empty"),
            Form::Batch if request.ssts.len() > MAX_SOURCES => return bad("too many `ssts`"),
            Form::Batch => request.ssts.clone().into_iter().collect(),
        };
        metas.sort_by(|a, b| a.0.cmp(&b.0));
        if metas.iter().any(|(name, _)| name.is_empty()) {
            return bad("an object without a name");
        }
        if form == Form::Batch {
            output.range = Some(agreed(&output, &metas)?);
        }
        if Cf::parse(&output.cf_name).is_none() {
            return bad(&format!("unknown column family {:?}", output.cf_name));
        }
        let Ok(kind) = DownloadRequestType::try_from(request.request_type) else {
            return bad(&format!("unknown request type {}", request.request_type));
        };
        let cipher = CipherKey::of(request.cipher_info.as_ref())?;
        Ok(Job {
            rule: KeyRule::new(request.rewrite_rule.as_ref(), &output, kind)?,
            identity: identity(request, &output, &metas, cipher.as_ref()),
            sources: metas.into_iter().map(Source::from).collect(),
            output,
            cipher,
        })
    }
}

impl From<(String, SstMeta)> for Source {
    fn from((name, meta): (String, SstMeta)) -> Self {
        Source {
            name,
            length: meta.length,
            entries: meta.total_kvs,
            iv: meta.cipher_iv.to_vec(),
        }
    }
}

/// The range over all metas, which must agree in everything else that names the result.
fn agreed(output: &SstMeta, metas: &[(String, SstMeta)]) -> Result<Range, ImportError> {
    let mut ranges = Vec::with_capacity(metas.len());
    for (name, meta) in metas {
        let same = meta.region_id == output.region_id
            && meta.region_epoch == output.region_epoch
            && meta.cf_name == output.cf_name
            && meta.end_key_exclusive == output.end_key_exclusive;
        if !same {
            let what = format!(
                "request: {name} and `sst` differ in region, epoch, column family or kind of end"
            );
            return Err(ImportError::BadFormat(what));
        }
        ranges.push(meta.range.clone().unwrap_or_default());
    }
    let start = ranges.iter().map(|r| r.start.clone()).min();
    let unbounded = ranges.iter().any(|r| r.end.is_empty());
    let end = ranges.into_iter().map(|r| r.end).max();
    Ok(Range {
        start: start.unwrap_or_default(),
        end: end.filter(|_| !unbounded).unwrap_or_default(),
    })
}

fn identity(
    request: &DownloadRequest,
    output: &SstMeta,
    metas: &[(String, SstMeta)],
    cipher: Option<&CipherKey>,
) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut part = |bytes: Vec<u8>| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(
        request
            .storage_backend
            .clone()
            .unwrap_or_default()
            .encode_to_vec(),
    );
    part(output.encode_to_vec());
    part(
        request
            .rewrite_rule
            .clone()
            .unwrap_or_default()
            .encode_to_vec(),
    );
    part(request.request_type.to_le_bytes().to_vec());
    for (name, meta) in metas {
        part(name.clone().into_bytes());
        part(meta.encode_to_vec());
        part(
            cipher
                .map(|c| c.fingerprint(&meta.cipher_iv).to_vec())
                .unwrap_or_default(),
        );
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use pitr_proto::metapb::RegionEpoch;

    use super::*;

    fn meta(start: &str, end: &str) -> SstMeta {
        SstMeta {
            uuid: vec![1; 16].into(),
            range: Some(Range {
                start: start.to_owned().into(),
                end: end.to_owned().into(),
            }),
            cf_name: "write".to_owned(),
            region_id: 4,
            ..SstMeta::default()
        }
    }

    fn single() -> DownloadRequest {
        DownloadRequest {
            sst: Some(meta("a", "c")),
            name: "1/a.sst".to_owned(),
            ..DownloadRequest::default()
        }
    }

    fn refusal(request: &DownloadRequest, form: Form) -> String {
        Job::of(request, form).unwrap_err().to_string()
    }

    #[test]
    fn each_call_takes_its_own_form_only() {
        assert!(Job::of(&single(), Form::Single).is_ok());
        assert!(refusal(&single(), Form::Batch).contains("`ssts` is empty"));
        let mut batch = single();
        batch.ssts.insert("1/b.sst".to_owned(), meta("b", "d"));
        assert!(refusal(&batch, Form::Single).contains("BatchDownload"));
        assert!(Job::of(&batch, Form::Batch).is_ok());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        type Edit = fn(&mut DownloadRequest);
        let edits: [(Edit, &str); 5] = [
            (|r| r.name.clear(), "without a name"),
            (|r| r.request_type = 7, "unknown request type 7"),
            (
                |r| r.sst.as_mut().unwrap().cf_name = "lock".to_owned(),
                "unknown column family",
            ),
            (|r| r.sst = None, "unknown column family"),
            (
                |r| {
                    r.cipher_info = Some(pitr_proto::backup::CipherInfo {
                        cipher_type: 5,
                        cipher_key: vec![0; 16].into(),
                    });
                },
                "SM4",
            ),
        ];
        for (edit, words) in edits {
            let mut request = single();
            edit(&mut request);
            assert!(refusal(&request, Form::Single).contains(words), "{words}");
        }
    }

    #[test]
    fn a_batch_covers_the_ranges_of_all_and_agrees_in_the_rest() {
        let mut batch = single();
        batch.ssts.insert("x".to_owned(), meta("b", "d"));
        batch.ssts.insert("y".to_owned(), meta("a", "c"));
        let range =
            |batch: &DownloadRequest| Job::of(batch, Form::Batch).unwrap().output.range.unwrap();
        assert_eq!(
            (&range(&batch).start[..], &range(&batch).end[..]),
            (&b"a"[..], &b"d"[..])
        );
        batch.ssts.insert("z".to_owned(), meta("b", ""));
        assert!(range(&batch).end.is_empty());
        let other_epoch = SstMeta {
            region_epoch: Some(RegionEpoch::default()),
            ..meta("a", "c")
        };
        for other in [
            SstMeta {
                region_id: 5,
                ..meta("a", "c")
            },
            SstMeta {
                cf_name: "default".to_owned(),
                ..meta("a", "c")
            },
            SstMeta {
                end_key_exclusive: true,
                ..meta("a", "c")
            },
            other_epoch,
        ] {
            let mut batch = batch.clone();
            batch.ssts.insert("w".to_owned(), other);
            assert!(refusal(&batch, Form::Batch).contains("differ"));
        }
    }

    #[test]
    fn two_requests_have_one_identity_only_if_their_result_is_the_same() {
        let identity = |edit: &dyn Fn(&mut DownloadRequest)| {
            let mut request = single();
            edit(&mut request);
            Job::of(&request, Form::Single).unwrap().identity
        };
        let base = identity(&|_| {});
        assert_eq!(base, identity(&|r| r.storage_cache_id = "x".to_owned()));
        assert_ne!(base, identity(&|r| r.name = "other".to_owned()));
        assert_ne!(base, identity(&|r| r.request_type = 1));
        assert_ne!(base, identity(&|r| r.sst = Some(meta("a", "d"))));
        let backend = pitr_proto::backup::StorageBackend::default();
        assert_eq!(
            base,
            identity(&|r| r.storage_backend = Some(backend.clone()))
        );
    }
}
