//! Metas one after the other, for readers that look at each once and keep only what they came for:
//! memory is that of [`AHEAD`] metas, however many there are. Used by the `archive` verbs; a restore
//! and a check need all of them at once and take [`super::Archive`].

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use pitr_format::object_name::{META_DIR, META_SUFFIX};
use pitr_storage::{SharedStorage, StorageError};

use super::metas::{MetaObject, read_one};

/// Metas that are read ahead of the one that is looked at.
const AHEAD: usize = 4;

/// Metas in the order of their names, which is that of the flushes.
pub struct MetaWalk {
    metas: BoxStream<'static, Result<MetaObject, StorageError>>,
}

impl MetaWalk {
    /// Walks over these objects.
    pub fn over(storage: SharedStorage, paths: Vec<String>) -> Self {
        let metas = futures::stream::iter(paths)
            .map(move |path| {
                let storage = storage.clone();
                async move { read_one(storage.as_ref(), path).await }
            })
            .buffered(AHEAD)
            .boxed();
        MetaWalk { metas }
    }

    /// The next one; damage is inside of it, as in [`super::Archive::metas`].
    pub async fn next(&mut self) -> Result<Option<MetaObject>, StorageError> {
        self.metas.try_next().await
    }
}

/// Names of all metas, sorted.
pub async fn meta_paths(storage: &SharedStorage) -> Result<Vec<String>, StorageError> {
    let listed = storage.list(META_DIR).await?;
    let paths = listed.into_iter().map(|object| object.path);
    Ok(paths.filter(|path| path.ends_with(META_SUFFIX)).collect())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn every_meta_is_seen_once_in_the_order_of_names_and_a_damaged_one_does_not_end_the_walk()
    {
        let storage = pitr_storage::open_url("memory://").unwrap();
        let mut written = Vec::new();
        for number in 0..10 {
            let path = format!("{META_DIR}{number:02}.meta");
            let bytes = Bytes::from_static(b"no message");
            storage.put(&path, bytes.into()).await.unwrap();
            written.push(path);
        }
        let other = Bytes::from_static(b"x");
        storage
            .put("v1/backupmeta/note.txt", other.into())
            .await
            .unwrap();
        let paths = meta_paths(&storage).await.unwrap();
        assert_eq!(paths, written);
        let mut walk = MetaWalk::over(storage, paths);
        let mut seen = Vec::new();
        while let Some(meta) = walk.next().await.unwrap() {
            assert!(meta.content.is_err());
            seen.push(meta.path);
        }
        assert_eq!(seen, written);
    }

    #[tokio::test]
    async fn a_meta_that_is_gone_is_damage_and_no_failure() {
        let storage = pitr_storage::open_url("memory://").unwrap();
        let mut walk = MetaWalk::over(storage, vec![format!("{META_DIR}gone.meta")]);
        let meta = walk.next().await.unwrap().unwrap();
        assert!(meta.content.unwrap_err().what.contains("missing"));
    }
}
