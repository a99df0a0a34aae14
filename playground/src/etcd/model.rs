//! Keys with revisions, and the events of the newest revisions.
//!
//! A change is one revision with one or more events. Changes are made on the spot and collected;
//! [`Model::commit`] gives them their revision, [`Model::undo`] takes them back, so a change that
//! cannot be made durable leaves no trace. The history is bounded: what falls out moves
//! `compacted` up, and readers of older revisions are told so.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use pitr_proto::mvccpb::{Event, KeyValue, event::EventType};

use super::error::EtcdError;

/// etcd's key range: one key, `[key, end)`, or everything from `key` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpan {
    start: Bytes,
    end: Bound<Bytes>,
}

impl KeySpan {
    /// From the two fields of a request: an empty `range_end` names one key, a zero byte is "to
    /// the end".
    pub fn new(key: &Bytes, range_end: &Bytes) -> Result<Self, EtcdError> {
        if key.is_empty() {
            return Err(EtcdError::EmptyKey);
        }
        let end = match &range_end[..] {
            [] => Bound::Included(key.clone()),
            [0] => Bound::Unbounded,
            _ => Bound::Excluded(range_end.clone()),
        };
        let start = key.clone();
        Ok(KeySpan { start, end })
    }

    /// Whether `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..]
            && match &self.end {
                Bound::Included(end) => key <= &end[..],
                Bound::Excluded(end) => key < &end[..],
                Bound::Unbounded => true,
            }
    }

    /// True when no key can lie inside; `BTreeMap::range` panics on such bounds.
    fn is_empty(&self) -> bool {
        matches!(&self.end, Bound::Excluded(end) if *end <= self.start)
    }
}

/// The key space.
#[derive(Debug)]
pub struct Model {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Bytes, KeyValue>,
    history: VecDeque<Event>,
    history_limit: usize,
    pending: Vec<Event>,
}

impl Model {
    /// An empty key space at revision 1, as etcd starts; keeps about `history_limit` events.
    pub fn new(history_limit: usize) -> Self {
        Model {
            revision: 1,
            compacted: 1,
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            history_limit,
            pending: Vec::new(),
        }
    }

    /// A key space without history, as a snapshot has it.
    pub fn restored(revision: i64, keys: Vec<KeyValue>, history_limit: usize) -> Self {
        Model {
            revision,
            compacted: revision + 1,
            keys: keys.into_iter().map(|kv| (kv.key.clone(), kv)).collect(),
            ..Model::new(history_limit)
        }
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The oldest revision whose events are known.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// The newest state of a key.
    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// All keys in order.
    pub fn all(&self) -> impl Iterator<Item = &KeyValue> {
        self.keys.values()
    }

    /// The keys of `span` in order, as of `revision` (0 = now, uncommitted changes included).
    pub fn range(&self, span: &KeySpan, revision: i64) -> Result<Vec<KeyValue>, EtcdError> {
        if revision > self.revision {
            return Err(EtcdError::FutureRevision);
        }
        if revision > 0 && revision < self.compacted && revision < self.revision {
            return Err(EtcdError::Compacted);
        }
        if span.is_empty() {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(span.start.clone()), span.end.clone());
        let now = self.keys.range(bounds);
        if revision <= 0 || revision == self.revision {
            return Ok(now.map(|(_, kv)| kv.clone()).collect());
        }
        // Walk back: each event knows what was there before it.
        let mut then: BTreeMap<Bytes, KeyValue> =
            now.map(|(k, kv)| (k.clone(), kv.clone())).collect();
        for event in self.history.iter().rev() {
            let Some(kv) = &event.kv else { continue };
            if kv.mod_revision <= revision {
                break;
            }
            if !span.contains(&kv.key) {
                continue;
            }
            match &event.prev_kv {
                Some(before) => then.insert(kv.key.clone(), before.clone()),
                None => then.remove(&kv.key),
            };
        }
        Ok(then.into_values().collect())
    }

    /// Sets a key; returns what was there.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64) -> Option<KeyValue> {
        let revision = self.revision + 1;
        let before = self.keys.get(&key).cloned();
        let kv = KeyValue {
            key: key.clone(),
            create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(0, |kv| kv.version) + 1,
            value,
            lease,
        };
        self.keys.insert(key, kv.clone());
        self.pending.push(Event {
            r#type: EventType::Put.into(),
            kv: Some(kv),
            prev_kv: before.clone(),
        });
        before
    }

    /// Removes a key; returns what was there.
    pub fn delete(&mut self, key: &[u8]) -> Option<KeyValue> {
        let before = self.keys.remove(key)?;
        self.pending.push(Event {
            r#type: EventType::Delete.into(),
            kv: Some(KeyValue {
                key: before.key.clone(),
                mod_revision: self.revision + 1,
                ..Default::default()
            }),
            prev_kv: Some(before.clone()),
        });
        Some(before)
    }

    /// The changes since the last commit.
    pub fn pending(&self) -> &[Event] {
        &self.pending
    }

    /// Makes the collected changes the next revision, if there are any.
    pub fn commit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.revision += 1;
        self.history.extend(self.pending.drain(..));
        while self.history.len() > self.history_limit {
            let oldest = self.history.front().map_or(0, revision_of);
            // The newest revision stays whole, however large it is.
            if oldest == self.revision {
                break;
            }
            while self
                .history
                .front()
                .is_some_and(|e| revision_of(e) == oldest)
            {
                self.history.pop_front();
            }
            self.compacted = oldest + 1;
        }
    }

    /// Takes the collected changes back.
    pub fn undo(&mut self) {
        while let Some(event) = self.pending.pop() {
            let Some(kv) = event.kv else { continue };
            match event.prev_kv {
                Some(before) => self.keys.insert(kv.key, before),
                None => self.keys.remove(&kv.key),
            };
        }
    }

    /// Events of `span` from revision `from` on, oldest first: whole revisions until about
    /// `limit` events are found. `Err(Compacted)` when some of them are gone.
    pub fn events_since(
        &self,
        span: &KeySpan,
        from: i64,
        limit: usize,
    ) -> Result<Vec<Event>, EtcdError> {
        if from < self.compacted {
            return Err(EtcdError::Compacted);
        }
        let start = self.history.partition_point(|e| revision_of(e) < from);
        let mut found: Vec<Event> = Vec::new();
        for event in self.history.iter().skip(start) {
            let full = found.len() >= limit
                && found
                    .last()
                    .is_some_and(|last| revision_of(last) != revision_of(event));
            if full {
                break;
            }
            if event.kv.as_ref().is_some_and(|kv| span.contains(&kv.key)) {
                found.push(event.clone());
            }
        }
        Ok(found)
    }
}

/// The revision that an event belongs to.
pub fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(key: &'static str, end: &'static [u8]) -> KeySpan {
        KeySpan::new(&Bytes::from(key), &Bytes::from_static(end)).unwrap()
    }

    fn put(model: &mut Model, key: &'static str, value: &'static str) {
        model.put(key.into(), value.into(), 0);
        model.commit();
    }

    fn pairs(found: Vec<KeyValue>) -> Vec<(String, String)> {
        let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
        found
            .iter()
            .map(|kv| (text(&kv.key), text(&kv.value)))
            .collect()
    }

    #[test]
    fn an_old_revision_shows_the_keys_of_that_time() {
        let mut model = Model::new(100);
        put(&mut model, "a", "1");
        put(&mut model, "b", "1");
        put(&mut model, "a", "2");
        model.delete(b"b");
        model.commit();
        let all = span("a", &[0]);
        let at = |revision| pairs(model.range(&all, revision).unwrap());
        assert_eq!(at(2), [("a".into(), "1".into())]);
        assert_eq!(at(4), [("a".into(), "2".into()), ("b".into(), "1".into())]);
        assert_eq!(at(0), [("a".into(), "2".into())]);
        assert!(matches!(
            model.range(&all, 6),
            Err(EtcdError::FutureRevision)
        ));
    }

    #[test]
    fn versions_count_from_the_last_creation() {
        let mut model = Model::new(100);
        put(&mut model, "a", "1");
        put(&mut model, "a", "2");
        let kv = model.get(b"a").unwrap();
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
        model.delete(b"a");
        model.commit();
        put(&mut model, "a", "3");
        let kv = model.get(b"a").unwrap();
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
    }

    #[test]
    fn history_is_bounded_and_says_what_it_lost() {
        let mut model = Model::new(4);
        for _ in 0..10 {
            put(&mut model, "a", "x");
        }
        let all = span("a", &[0]);
        assert_eq!((model.revision(), model.compacted()), (11, 8));
        assert!(matches!(
            model.events_since(&all, 7, 10),
            Err(EtcdError::Compacted)
        ));
        let events = model.events_since(&all, 8, 10).unwrap();
        assert_eq!(
            events.iter().map(revision_of).collect::<Vec<_>>(),
            [8, 9, 10, 11]
        );
        assert!(matches!(model.range(&all, 7), Err(EtcdError::Compacted)));
        assert!(model.range(&all, 8).is_ok());
    }

    #[test]
    fn undo_leaves_no_trace() {
        let mut model = Model::new(10);
        put(&mut model, "a", "1");
        model.put("a".into(), "2".into(), 0);
        model.put("b".into(), "2".into(), 0);
        model.delete(b"a");
        model.undo();
        let all = span("a", &[0]);
        assert_eq!(
            pairs(model.range(&all, 0).unwrap()),
            [("a".into(), "1".into())]
        );
        assert_eq!(model.revision(), 2);
        assert!(model.events_since(&all, 3, 10).unwrap().is_empty());
    }

    #[test]
    fn a_page_of_events_never_cuts_a_revision() {
        let mut model = Model::new(100);
        for key in ["a", "b", "c"] {
            model.put(key.into(), "1".into(), 0);
        }
        model.commit();
        put(&mut model, "d", "1");
        let page = model.events_since(&span("a", &[0]), 2, 1).unwrap();
        assert_eq!(page.len(), 3);
    }

    #[test]
    fn a_reversed_range_is_empty() {
        let model = Model::new(10);
        assert!(model.range(&span("b", b"a"), 0).unwrap().is_empty());
    }
}
