//! Metas one after the other, for readers that look at each once and keep only what they came for:
//! memory is that of [`AHEAD`] metas, however many there are. Used by the check of an archive and by
//! the `archive` verbs; a plan reads more of them at once, in any order (see [`crate::plan`]).

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use pitr_env::Clock;
use pitr_format::object_name::{META_DIR, META_SUFFIX};
use pitr_storage::{ObjectInfo, SharedStorage, StorageError};

use super::metas::{MetaObject, read_one};

/// Metas that are read ahead of the one that is looked at.
const AHEAD: usize = 4;

/// Metas in the order of their names, which is that of the flushes.
pub struct MetaWalk {
    metas: BoxStream<'static, Result<MetaObject, StorageError>>,
}

impl MetaWalk {
    /// Walks over these objects.
    pub fn over(storage: SharedStorage, clock: Arc<dyn Clock>, paths: Vec<String>) -> Self {
        let metas = futures::stream::iter(paths)
            .map(move |path| {
                let (storage, clock) = (storage.clone(), Arc::clone(&clock));
                async move { read_one(storage.as_ref(), clock.as_ref(), path).await }
            })
            .buffered(AHEAD)
            .boxed();
        MetaWalk { metas }
    }

    /// The next one; damage is inside of it, not an error.
    pub async fn next(&mut self) -> Result<Option<MetaObject>, StorageError> {
        self.metas.try_next().await
    }
}

/// Names of all metas, sorted.
pub async fn meta_paths(storage: &SharedStorage) -> Result<Vec<String>, StorageError> {
    let listed = list(storage).await?;
    Ok(listed.into_iter().map(|object| object.path).collect())
}

/// All metas, by name.
pub(crate) async fn list(storage: &SharedStorage) -> Result<Vec<ObjectInfo>, StorageError> {
    let mut listed = storage.list(META_DIR).await?;
    listed.retain(|object| object.path.ends_with(META_SUFFIX));
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_env::SystemClock;

    use super::*;

    fn over(storage: SharedStorage, paths: Vec<String>) -> MetaWalk {
        MetaWalk::over(storage, Arc::new(SystemClock::new()), paths)
    }

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
        let mut walk = over(storage, paths);
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
        let mut walk = over(storage, vec![format!("{META_DIR}gone.meta")]);
        let meta = walk.next().await.unwrap().unwrap();
        assert!(meta.content.unwrap_err().what.contains("missing"));
    }
}
