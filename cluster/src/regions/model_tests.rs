//! The tracker's core against a made-up cluster: regions split, merge and move, PD's view is old,
//! streams break, GC jumps ahead. Whatever happens, a user who believes the tracker's events must
//! never hold a frontier above data that was not delivered (rules H1 to H5, H9 and H12), and once
//! the cluster is quiet the frontier must reach its end, whatever dead clients have locked and
//! whatever locks stores only believe in.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;

use bytes::Bytes;
use pitr_format::{Cf, EncodedKey, KvRecord, OpKind, RecordBatch};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::kv::{HeldLock, LockReport};

const OWN: u64 = 1;
const OTHER: u64 = 2;
/// Keys of the cluster; a range is a pair of positions.
const CELLS: usize = 12;
const WINDOW: usize = 3;
/// Regions whose resolved ts the store tells together.
const GROUP: usize = 4;

/// Ranges of the task: not all of the cluster, and in two parts.
const WANTED: [(usize, usize); 2] = [(1, 5), (6, CELLS)];

fn bound(cell: usize) -> Bytes {
    match cell {
        0 | CELLS => Bytes::new(),
        _ => EncodedKey::encode(&[b'a' + cell as u8]).into_bytes(),
    }
}

fn range(from: usize, to: usize) -> EncodedRange {
    EncodedRange::new(bound(from), bound(to))
}

/// The keys in a range of encoded bounds.
fn cells(range: &EncodedRange) -> impl Iterator<Item = usize> {
    let inside =
        |cell: &usize| range.contains(EncodedKey::encode(&[b'a' + *cell as u8]).as_bytes());
    let found: Vec<_> = (0..CELLS).filter(inside).collect();
    found.into_iter()
}

fn is_wanted(cell: usize) -> bool {
    WANTED.iter().any(|(from, to)| (*from..*to).contains(&cell))
}

#[derive(Clone, Debug)]
struct Place {
    id: u64,
    version: u64,
    from: usize,
    to: usize,
    leader: Option<u64>,
}

impl Place {
    fn meta(&self) -> metapb::Region {
        let peer = |store_id| metapb::Peer {
            id: self.id * 10 + store_id,
            store_id,
            ..Default::default()
        };
        metapb::Region {
            id: self.id,
            start_key: bound(self.from),
            end_key: bound(self.to),
            region_epoch: Some(metapb::RegionEpoch {
                conf_ver: 1,
                version: self.version,
            }),
            peers: vec![peer(OWN), peer(OTHER)],
            ..Default::default()
        }
    }

    fn known(&self) -> Region {
        let leader = self.leader.map(|store_id| metapb::Peer {
            id: self.id * 10 + store_id,
            store_id,
            ..Default::default()
        });
        Region::new(self.meta(), leader)
    }
}

/// What the store still has to send of one subscription.
#[derive(Debug)]
struct Stream {
    place: Place,
    queue: VecDeque<Sent>,
    dead: bool,
    /// The store believes in a lock there that does not exist.
    stuck: Option<u64>,
    alone: bool,
}

#[derive(Debug)]
enum Sent {
    Row(usize, u64),
    Initialized,
    Resolved(u64),
    Error(EndReason),
}

/// What a user has of a subscription.
#[derive(Debug)]
struct Claim {
    range: EncodedRange,
    base: u64,
    initialized: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize),
    Split(Index, Index),
    Merge(Index),
    Lead(Index, u8),
    PdLooks,
    PdAnswers { fails: bool },
    SafePoint { fails: bool },
    Send(Index),
    Resolve,
    Publish,
    Lock { cell: usize, alive: bool },
    Phantom(Index),
    Look { fails: bool },
    Wait(u64),
    Break,
    Fail(Index, u8),
    CollectTo { publish_first: bool },
}

fn any_op() -> impl Strategy<Value = Op> {
    let index = any::<Index>;
    prop_oneof![
        12 => (0..CELLS).prop_map(Op::Write),
        3 => (index(), index()).prop_map(|(at, part)| Op::Split(at, part)),
        2 => index().prop_map(Op::Merge),
        3 => (index(), 0..3u8).prop_map(|(at, store)| Op::Lead(at, store)),
        5 => Just(Op::PdLooks),
        10 => prop::bool::weighted(0.1).prop_map(|fails| Op::PdAnswers { fails }),
        10 => prop::bool::weighted(0.1).prop_map(|fails| Op::SafePoint { fails }),
        40 => index().prop_map(Op::Send),
        8 => Just(Op::Resolve),
        6 => Just(Op::Publish),
        1 => (0..CELLS, any::<bool>()).prop_map(|(cell, alive)| Op::Lock { cell, alive }),
        1 => index().prop_map(Op::Phantom),
        4 => prop::bool::weighted(0.1).prop_map(|fails| Op::Look { fails }),
        12 => (0..4000u64).prop_map(Op::Wait),
        1 => Just(Op::Break),
        3 => (index(), 0..6u8).prop_map(|(at, kind)| Op::Fail(at, kind)),
        1 => prop::bool::weighted(0.9).prop_map(|publish_first| Op::CollectTo { publish_first }),
    ]
}

struct World {
    core: Core,
    now: Instant,
    ts: u64,
    next_region: u64,
    places: Vec<Place>,
    seen_by_pd: Vec<Place>,
    commits: Vec<Vec<u64>>,
    safe_point: u64,
    loads: VecDeque<EncodedRange>,
    reads: usize,
    looks: VecDeque<(SubId, EncodedRange, Ts)>,
    /// Cell → start ts of the transaction that has locked it, and whether its client lives.
    locks: BTreeMap<usize, (u64, bool)>,
    streams: BTreeMap<SubId, Stream>,

    claims: BTreeMap<SubId, Claim>,
    last_started: u64,
    delivered: HashSet<(usize, u64)>,
    frontier: [u64; CELLS],
    published: Arc<Mutex<[u64; CELLS]>>,
    lost: BTreeSet<usize>,
}

impl World {
    fn new() -> Self {
        let published = Arc::new(Mutex::new([1; CELLS]));
        let durable = published.clone();
        let frontier: FrontierFn = Arc::new(move |range| {
            let durable = durable.lock().unwrap();
            Ts::new(cells(range).map(|cell| durable[cell]).min().unwrap_or(1))
        });
        let wanted = WANTED.iter().map(|(from, to)| range(*from, *to));
        let mut options = TrackerOptions::new(OWN, "s", wanted.collect(), frontier);
        options.scan_window = WINDOW;
        options.audit_per_region = options.audit_interval;
        let now = Instant::now();
        let whole = Place {
            id: 1,
            version: 1,
            from: 0,
            to: CELLS,
            leader: Some(OWN),
        };
        World {
            core: Core::new(&options, now),
            now,
            ts: 10,
            next_region: 2,
            places: vec![whole.clone()],
            seen_by_pd: vec![whole],
            commits: vec![Vec::new(); CELLS],
            safe_point: 0,
            loads: VecDeque::new(),
            reads: 0,
            looks: VecDeque::new(),
            locks: BTreeMap::new(),
            streams: BTreeMap::new(),
            claims: BTreeMap::new(),
            last_started: 0,
            delivered: HashSet::new(),
            frontier: [1; CELLS],
            published,
            lost: BTreeSet::new(),
        }
    }

    fn next_ts(&mut self) -> u64 {
        self.ts += 1;
        self.ts
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write(cell) => self.write(cell),
            Op::Split(at, part) => self.split(at.index(self.places.len()), part),
            Op::Merge(at) => self.merge(at.index(self.places.len())),
            Op::Lead(at, store) => {
                let at = at.index(self.places.len());
                self.places[at].leader = [Some(OWN), Some(OTHER), None][store as usize];
                self.end_streams(self.places[at].id, EndKind::NotLeader, false);
            }
            Op::PdLooks => self.seen_by_pd = self.places.clone(),
            Op::PdAnswers { fails } => self.answer_load(fails),
            Op::SafePoint { fails } => self.answer_read(fails),
            Op::Send(at) => self.send(at),
            Op::Resolve => self.resolve(),
            Op::Publish => self.publish(),
            Op::Lock { cell, alive } => self.lock(cell, alive),
            Op::Phantom(at) => self.believe_in_a_lock(at.index(self.places.len())),
            Op::Look { fails } => self.answer_look(fails),
            Op::Wait(millis) => self.now += Duration::from_millis(millis),
            Op::Break => self.break_stream(),
            Op::Fail(at, kind) => {
                let kinds = [
                    EndKind::ServerIsBusy,
                    EndKind::Congested,
                    EndKind::RegionNotFound,
                    EndKind::Overrun,
                    EndKind::Mismatch,
                    EndKind::Unknown,
                ];
                let id = self.places[at.index(self.places.len())].id;
                self.end_streams(id, kinds[kind as usize], false);
            }
            Op::CollectTo { publish_first } => {
                // A guarded GC stays behind what is published; an unguarded one does not.
                let published = *self.published.lock().unwrap();
                let guarded = published.into_iter().min().unwrap_or(0);
                let to = if publish_first { guarded } else { self.ts };
                self.safe_point = self.safe_point.max(to);
            }
        }
        self.settle();
    }

    fn write(&mut self, cell: usize) {
        let ts = self.next_ts();
        self.commits[cell].push(ts);
        for stream in self.streams.values_mut().filter(|stream| !stream.dead) {
            if (stream.place.from..stream.place.to).contains(&cell) {
                stream.queue.push_back(Sent::Row(cell, ts));
            }
        }
    }

    fn lock(&mut self, cell: usize, alive: bool) {
        if !is_wanted(cell) {
            return;
        }
        let start_ts = self.next_ts();
        self.locks.entry(cell).or_insert((start_ts, alive));
    }

    fn believe_in_a_lock(&mut self, at: usize) {
        let (ts, id) = (self.next_ts(), self.places[at].id);
        let streams = self.streams.values_mut();
        for stream in streams.filter(|stream| stream.place.id == id) {
            stream.stuck.get_or_insert(ts);
        }
    }

    /// The locks of a range are looked at: dead ones go.
    fn answer_look(&mut self, fails: bool) {
        let Some((sub, range, asked)) = self.looks.pop_front() else {
            return;
        };
        let found: Vec<_> = cells(&range)
            .filter_map(|cell| Some((cell, *self.locks.get(&cell)?)))
            .collect();
        let mut report = LockReport {
            found: found.len() as u64,
            ..LockReport::default()
        };
        for (cell, (start_ts, alive)) in found {
            if alive {
                report.alive += 1;
                report.oldest = Some(HeldLock {
                    key: Bytes::new(),
                    primary: Bytes::new(),
                    start_ts: Ts::new(start_ts),
                    age: Duration::ZERO,
                });
            } else {
                report.resolved += 1;
                self.locks.remove(&cell);
            }
        }
        let looked = match fails {
            true => Looked::Failed(String::new()),
            false => Looked::Locks(report, Ts::new(self.ts)),
        };
        self.core.on_looked(sub, asked, looked, self.now);
        self.settle();
    }

    fn split(&mut self, at: usize, part: Index) {
        let old = self.places[at].clone();
        if old.to - old.from < 2 {
            return;
        }
        let middle = old.from + 1 + part.index(old.to - old.from - 1);
        let version = old.version + 1;
        let left = Place {
            id: self.next_region,
            version,
            to: middle,
            ..old.clone()
        };
        self.next_region += 1;
        let right = Place {
            version,
            from: middle,
            ..old.clone()
        };
        self.places.splice(at..=at, [left, right]);
        self.end_streams(old.id, EndKind::EpochNotMatch, true);
    }

    /// Region `at` takes in its right neighbour.
    fn merge(&mut self, at: usize) {
        if at + 1 >= self.places.len() {
            return;
        }
        let source = self.places.remove(at + 1);
        let target = &mut self.places[at];
        target.to = source.to;
        target.version = target.version.max(source.version) + 1;
        let target = target.id;
        self.end_streams(source.id, EndKind::RegionNotFound, false);
        self.end_streams(target, EndKind::EpochNotMatch, false);
    }

    /// The store ends what is subscribed of a region; with the regions that are there now.
    fn end_streams(&mut self, region: u64, kind: EndKind, named: bool) {
        let places = self.places.clone();
        for stream in self.streams.values_mut() {
            if stream.place.id != region || stream.dead {
                continue;
            }
            let old = range(stream.place.from, stream.place.to);
            let there = |place: &&Place| range(place.from, place.to).intersect(&old).is_some();
            let regions = places.iter().filter(there).map(Place::meta);
            let reason = EndReason {
                regions: if named { regions.collect() } else { Vec::new() },
                ..EndReason::new(kind, "")
            };
            stream.dead = true;
            stream.queue.push_back(Sent::Error(reason));
        }
    }

    fn answer_load(&mut self, fails: bool) {
        let Some(asked) = self.loads.pop_front() else {
            return;
        };
        let answer = match fails {
            true => Err(LoadFailed {
                permanent: false,
                text: String::new(),
            }),
            false => {
                let inside =
                    |place: &&Place| range(place.from, place.to).intersect(&asked).is_some();
                Ok(Loaded {
                    regions: self
                        .seen_by_pd
                        .iter()
                        .filter(inside)
                        .map(Place::known)
                        .collect(),
                    rest: None,
                    safe_point: Ts::new(self.safe_point),
                })
            }
        };
        self.core.on_loaded(asked, answer, self.now);
    }

    fn answer_read(&mut self, fails: bool) {
        if self.reads == 0 {
            return;
        }
        self.reads -= 1;
        let answer = match fails {
            true => Err(LoadFailed {
                permanent: false,
                text: String::new(),
            }),
            false => Ok(Ts::new(self.safe_point)),
        };
        self.core.on_safe_point(answer, self.now);
    }

    fn send(&mut self, at: Index) {
        if self.streams.is_empty() {
            return;
        }
        let at = at.index(self.streams.len());
        let id = self.streams.keys().nth(at).copied();
        self.send_next(id.unwrap());
    }

    /// A stream's next event reaches the core; false if there is none.
    fn send_next(&mut self, id: SubId) -> bool {
        let stream = self.streams.get_mut(&id);
        let Some(sent) = stream.and_then(|stream| stream.queue.pop_front()) else {
            return false;
        };
        let event = match sent {
            Sent::Row(cell, ts) => CdcEvent::Records {
                sub: id,
                records: RecordBatch::of([&KvRecord {
                    cf: Cf::Write,
                    op: OpKind::Put,
                    key: vec![cell as u8].into(),
                    value: ts.to_be_bytes().to_vec().into(),
                }])
                .unwrap(),
            },
            Sent::Initialized => CdcEvent::Initialized { sub: id },
            Sent::Resolved(ts) => CdcEvent::Resolved {
                subs: vec![id],
                ts: Ts::new(ts),
            },
            Sent::Error(reason) => {
                self.streams.remove(&id);
                CdcEvent::Ended { sub: id, reason }
            }
        };
        if let CdcEvent::Initialized { sub } = &event
            && let Some(claim) = self.claims.get_mut(sub)
        {
            claim.initialized = true;
        }
        self.core.on_cdc(event, self.now);
        true
    }

    fn resolve(&mut self) {
        let ts = self.next_ts();
        let locks = &self.locks;
        let alive = self.streams.values_mut().filter(|stream| !stream.dead);
        let mut slowest_first: Vec<_> = alive
            .map(|stream| {
                let locks = locks.range(stream.place.from..stream.place.to);
                let oldest = locks.map(|(_, (start_ts, _))| start_ts - 1).min();
                let held = oldest.into_iter().chain(stream.stuck).min();
                (held.map_or(ts, |held| held.min(ts)), stream)
            })
            .collect();
        slowest_first.sort_by_key(|(ts, _)| *ts);
        let (alone, grouped): (Vec<_>, Vec<_>) = slowest_first
            .into_iter()
            .partition(|(_, stream)| stream.alone);
        for (ts, stream) in alone {
            stream.queue.push_back(Sent::Resolved(ts));
        }
        // The others are told together, at the ts of the slowest of each group.
        let mut least = ts;
        for (at, (own, stream)) in grouped.into_iter().enumerate() {
            if at % GROUP == 0 {
                least = own;
            }
            stream.queue.push_back(Sent::Resolved(least));
        }
    }

    /// A flush: what the user holds becomes durable.
    fn publish(&mut self) {
        *self.published.lock().unwrap() = self.frontier;
        for cell in 0..CELLS {
            let upto = self.frontier[cell];
            let missing = self.commits[cell]
                .iter()
                .find(|ts| **ts <= upto && !self.delivered.contains(&(cell, **ts)));
            assert_eq!(missing, None, "cell {cell} is published up to {upto}");
        }
    }

    fn break_stream(&mut self) {
        let subs = std::mem::take(&mut self.streams).into_keys().collect();
        let reason = EndReason::new(EndKind::Stream, "");
        self.core
            .on_cdc(CdcEvent::Disconnected { subs, reason }, self.now);
    }

    /// Ticks the core and does what it asks for, until it has nothing to say.
    fn settle(&mut self) {
        loop {
            self.core.tick(self.now);
            if self.core.actions.is_empty() && self.core.events.is_empty() {
                return;
            }
            while let Some(event) = self.core.events.pop_front() {
                self.told(event);
            }
            while let Some(action) = self.core.actions.pop_front() {
                match action {
                    Action::Load(range) => self.loads.push_back(range),
                    Action::ReadSafePoint => self.reads += 1,
                    Action::Unsubscribe(sub) => {
                        assert!(!self.claims.contains_key(&sub), "given up without an end");
                        self.streams.remove(&sub);
                    }
                    Action::LookAtLocks {
                        sub,
                        range,
                        resolved,
                    } => self.looks.push_back((sub, range, resolved)),
                    Action::Subscribe(subscription) => self.subscribe(subscription),
                }
            }
        }
    }

    /// The store takes a register, or answers with why it does not.
    fn subscribe(&mut self, subscription: Subscription) {
        let epoch = subscription.region.region_epoch.unwrap();
        let place = self.places.iter().find(|p| p.id == subscription.region.id);
        let mut stream = Stream {
            place: Place {
                id: subscription.region.id,
                version: epoch.version,
                from: 0,
                to: 0,
                leader: None,
            },
            queue: VecDeque::new(),
            dead: false,
            stuck: None,
            alone: subscription.alone,
        };
        let refused = match place {
            None => Some(EndKind::RegionNotFound),
            Some(place) if place.leader != Some(OWN) => Some(EndKind::NotLeader),
            Some(place) if place.version != epoch.version => Some(EndKind::EpochNotMatch),
            Some(_) => None,
        };
        if let Some(kind) = refused {
            stream.dead = true;
            let reason = EndReason::new(kind, "");
            stream.queue.push_back(Sent::Error(reason));
        } else if let Some(place) = place {
            stream.place = place.clone();
            let base = subscription.checkpoint_ts.get();
            for cell in place.from..place.to {
                // GC leaves the newest version at the safe point and everything above it.
                let commits = &self.commits[cell];
                let newest = commits.iter().filter(|ts| **ts <= self.safe_point).max();
                let kept = |ts: &&u64| **ts > self.safe_point || Some(*ts) == newest;
                let scanned = commits.iter().filter(kept).filter(|ts| **ts > base);
                stream.queue.extend(scanned.map(|ts| Sent::Row(cell, *ts)));
            }
            stream.queue.push_back(Sent::Initialized);
        }
        self.streams.insert(subscription.id, stream);
    }

    /// The user hears an event.
    fn told(&mut self, event: TrackerEvent) {
        match event {
            TrackerEvent::Started {
                sub,
                region,
                checkpoint_ts,
            } => self.started(sub, &region, checkpoint_ts.get()),
            TrackerEvent::Records { sub, records } => {
                assert!(
                    self.claims.contains_key(&sub),
                    "rows of a dead subscription"
                );
                for record in &records {
                    let ts = u64::from_be_bytes(record.value[..].try_into().unwrap());
                    self.delivered.insert((record.key[0] as usize, ts));
                }
            }
            TrackerEvent::Resolved { subs, ts } => {
                for sub in subs {
                    let claim = self.claims.get(&sub).expect("resolved after its end");
                    assert!(claim.initialized, "resolved before the scan was complete");
                    for cell in cells(&claim.range).filter(|cell| is_wanted(*cell)) {
                        if self.frontier[cell] >= claim.base {
                            self.frontier[cell] = self.frontier[cell].max(ts.get());
                        }
                    }
                }
            }
            TrackerEvent::Ended { sub, .. } => {
                assert!(self.claims.remove(&sub).is_some(), "ended twice");
            }
            TrackerEvent::Gap {
                range,
                checkpoint_ts,
                safe_point,
            } => {
                assert!(safe_point > checkpoint_ts);
                assert_eq!(safe_point.get(), self.safe_point.min(safe_point.get()));
                self.lost.extend(cells(&range));
            }
            TrackerEvent::Failed { text } => panic!("nothing here is final: {text}"),
        }
    }

    fn started(&mut self, sub: SubId, region: &metapb::Region, base: u64) {
        assert!(
            sub.0 > self.last_started,
            "a name is used once and they rise"
        );
        self.last_started = sub.0;
        let range = EncodedRange::new(region.start_key.clone(), region.end_key.clone());
        let durable = *self.published.lock().unwrap();
        let wanted = cells(&range).filter(|cell| is_wanted(*cell));
        let least = wanted.map(|cell| durable[cell]).min();
        assert_eq!(
            Some(base),
            least,
            "the scan begins where the range is durable"
        );
        for claim in self.claims.values() {
            assert_eq!(claim.range.intersect(&range), None, "two owners of a key");
        }
        let claim = Claim {
            range,
            base,
            initialized: false,
        };
        self.claims.insert(sub, claim);
        let scanning = self.claims.values().filter(|claim| !claim.initialized);
        assert!(
            scanning.count() <= WINDOW,
            "more scans than the window allows"
        );
    }

    /// The cluster is quiet, all is led here, PD knows it and answers.
    fn calm_down(&mut self) {
        for place in &mut self.places {
            place.leader = Some(OWN);
        }
        self.break_stream();
        self.settle();
        for cell in 0..CELLS {
            self.write(cell);
        }
        // Every region may be registered anew once more, and clients that live come to an end.
        self.now += Duration::from_secs(3601);
        self.locks.retain(|_, (_, alive)| !*alive);
        for round in 0..150 {
            if round == 30 {
                self.lock(2, false);
                self.believe_in_a_lock(self.places.len() - 1);
                for cell in 0..CELLS {
                    self.write(cell);
                }
            }
            self.now += Duration::from_secs(2);
            self.seen_by_pd = self.places.clone();
            self.resolve();
            self.settle();
            while self.something_to_do() {
                self.answer_load(false);
                self.answer_read(false);
                for id in self.streams.keys().copied().collect::<Vec<_>>() {
                    while self.send_next(id) {}
                }
                self.answer_look(false);
                self.settle();
            }
            self.publish();
        }
    }

    fn something_to_do(&self) -> bool {
        let asked = !self.loads.is_empty() || self.reads > 0 || !self.looks.is_empty();
        let mut streams = self.streams.values();
        asked || streams.any(|stream| !stream.queue.is_empty())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_frontier_passes_data_and_a_quiet_cluster_is_followed_to_its_end(
        ops in proptest::collection::vec(any_op(), 50..300),
    ) {
        let mut world = World::new();
        world.settle();
        for op in ops {
            world.apply(op);
        }
        world.calm_down();
        let end = world.commits.iter().flatten().max().copied().unwrap();
        // After a gap the task is stopped: nothing of it has to go on.
        for cell in (0..CELLS).filter(|cell| is_wanted(*cell) && world.lost.is_empty()) {
            let reached = world.frontier[cell];
            prop_assert!(reached >= end, "cell {} stands at {} of {}", cell, reached, end);
        }
        for cell in (0..CELLS).filter(|cell| !is_wanted(*cell)) {
            prop_assert_eq!(world.frontier[cell], 1, "nobody asked for cell {}", cell);
        }
    }
}
