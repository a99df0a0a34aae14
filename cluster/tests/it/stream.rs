//! The change stream's client when the store is slow, moves, or is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pitr_cluster::cdc::{
    Address, CdcClient, CdcError, CdcEvent, CdcEvents, CdcOptions, SubId, Subscription,
};
use pitr_format::{Class, EncodedRange, Ts};
use pitr_proto::{cdcpb, metapb};

use crate::store::{RESOLVED, ScriptedStore, is_deregister};

fn subscription(id: u64, region_id: u64) -> Subscription {
    Subscription {
        id: SubId(id),
        region: metapb::Region {
            id: region_id,
            ..Default::default()
        },
        checkpoint_ts: Ts::new(200),
        wanted: [EncodedRange::ALL].into(),
        alone: false,
    }
}

async fn next(events: &mut CdcEvents) -> String {
    let event = tokio::time::timeout(Duration::from_secs(10), events.next());
    match event.await.expect("an event").expect("a living stream") {
        CdcEvent::Records { sub, records } => format!("{} rows {}", sub.0, records.len()),
        CdcEvent::Initialized { sub } => format!("{} init", sub.0),
        CdcEvent::Resolved { subs, ts } => format!("{} resolved {ts}", subs[0].0),
        CdcEvent::Ended { sub, reason } => format!("{} {:?}", sub.0, reason.kind),
        CdcEvent::Disconnected { subs, reason } => format!("gone {subs:?} {:?}", reason.kind),
    }
}

/// The three events of a scan that succeeds.
async fn expect_scan(events: &mut CdcEvents, sub: u64) {
    let resolved = format!("resolved {RESOLVED}");
    for expected in ["rows 1", "init", &resolved] {
        assert_eq!(next(events).await, format!("{sub} {expected}"));
    }
}

async fn nothing_for(events: &mut CdcEvents, millis: u64) {
    let event = tokio::time::timeout(Duration::from_millis(millis), events.next());
    assert!(event.await.is_err());
}

#[tokio::test]
async fn a_first_region_that_takes_long_holds_up_no_other() {
    let (store, url) = ScriptedStore::start().await;
    store.silent.lock().insert(4);
    let (client, mut events) = CdcClient::start(42, &url[..], CdcOptions::default());
    client.subscribe(subscription(1, 4)).unwrap();
    store.wait_for_requests(1).await;
    nothing_for(&mut events, 100).await;
    client.subscribe(subscription(2, 6)).unwrap();
    expect_scan(&mut events, 2).await;
    // It can still be given back, and come later.
    client.unsubscribe(SubId(1)).unwrap();
    store.wait_for_requests(3).await;
    store.silent.lock().clear();
    client.subscribe(subscription(3, 4)).unwrap();
    expect_scan(&mut events, 3).await;
}

#[tokio::test]
async fn a_store_that_says_nothing_at_all_is_given_up_and_tried_again() {
    let (store, url) = ScriptedStore::start().await;
    store.silent.lock().extend([4, 6]);
    let options = CdcOptions {
        first_answer: Duration::from_millis(300),
        ..CdcOptions::default()
    };
    let (client, mut events) = CdcClient::start(42, &url[..], options);
    client.subscribe(subscription(1, 4)).unwrap();
    client.subscribe(subscription(2, 6)).unwrap();
    assert_eq!(next(&mut events).await, "gone [SubId(1), SubId(2)] Stream");
    assert_eq!(client.stats().subscriptions, 0);
    store.silent.lock().clear();
    client.subscribe(subscription(3, 4)).unwrap();
    expect_scan(&mut events, 3).await;
}

#[tokio::test]
async fn once_it_has_answered_a_silent_store_is_not_given_up() {
    let (store, url) = ScriptedStore::start().await;
    let options = CdcOptions {
        first_answer: Duration::from_millis(200),
        ..CdcOptions::default()
    };
    let (client, mut events) = CdcClient::start(42, &url[..], options);
    client.subscribe(subscription(1, 4)).unwrap();
    expect_scan(&mut events, 1).await;
    nothing_for(&mut events, 500).await;
    store.resolve(&[4], 300).await;
    assert_eq!(next(&mut events).await, "1 resolved 300");
}

#[tokio::test]
async fn a_store_that_comes_back_elsewhere_is_found_there() {
    let (old, old_url) = ScriptedStore::start().await;
    let (new, new_url) = ScriptedStore::start().await;
    let current = Arc::new(Mutex::new(old_url));
    let asked = Arc::new(AtomicUsize::new(0));
    let (told, count) = (current.clone(), asked.clone());
    let address = Address::asked(move || {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(told.lock().clone())
    });
    let (client, mut events) = CdcClient::start(42, address, CdcOptions::default());
    client.subscribe(subscription(1, 4)).unwrap();
    expect_scan(&mut events, 1).await;
    // As long as the stream lives nobody has to be asked.
    client.subscribe(subscription(2, 6)).unwrap();
    expect_scan(&mut events, 2).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    *current.lock() = new_url;
    old.end_streams();
    assert_eq!(next(&mut events).await, "gone [SubId(1), SubId(2)] Stream");
    client.subscribe(subscription(3, 4)).unwrap();
    expect_scan(&mut events, 3).await;
    assert_eq!((old.registered(), new.registered()), (vec![4, 6], vec![4]));
}

#[tokio::test]
async fn a_new_stream_begins_with_fresh_request_ids_and_the_same_version() {
    let (store, url) = ScriptedStore::start().await;
    let (client, mut events) = CdcClient::start(42, &url[..], CdcOptions::default());
    for sub in 1..=2 {
        client.subscribe(subscription(sub, 4)).unwrap();
        expect_scan(&mut events, sub).await;
        client.unsubscribe(SubId(sub)).unwrap();
    }
    store.wait_for_requests(4).await;
    store.end_streams();
    assert_eq!(next(&mut events).await, "gone [] Stream");
    client.subscribe(subscription(3, 4)).unwrap();
    expect_scan(&mut events, 3).await;
    let requests = store.requests.lock().clone();
    let shown: Vec<_> = requests
        .iter()
        .map(|r| (is_deregister(r), r.request_id))
        .collect();
    let expected = [(false, 1), (true, 1), (false, 2), (true, 2), (false, 1)];
    assert_eq!(shown, expected);
    for request in &requests {
        let header = request.header.as_ref().unwrap();
        assert_eq!(
            (header.cluster_id, &header.ticdc_version[..]),
            (42, "8.5.0")
        );
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_dialled_ends_what_was_subscribed_and_no_more() {
    for address in ["https://127.0.0.1:1", "local:///tmp", "127.0.0.1:1"] {
        let (client, mut events) = CdcClient::start(42, address, CdcOptions::default());
        client.subscribe(subscription(1, 4)).unwrap();
        assert_eq!(
            next(&mut events).await,
            "gone [SubId(1)] Stream",
            "{address}"
        );
        drop(client);
        assert!(events.next().await.is_none());
    }
}

#[tokio::test]
async fn more_commands_than_can_wait_are_refused_and_a_dropped_client_takes_none() {
    let (client, _events) = CdcClient::start(42, "127.0.0.1:1", CdcOptions::default());
    // The stream's task has not run yet: this test has not waited for anything.
    let mut taken = 0;
    let error = loop {
        match client.subscribe(subscription(taken + 1, 4)) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100_000, "commands wait without a bound");
    };
    assert!(matches!(error, CdcError::Busy), "{error}");
    assert_eq!(error.class(), Class::Retry);
    assert!(taken >= 1_000, "a store has thousands of regions");
}

#[tokio::test]
async fn an_error_of_one_region_leaves_the_others_of_its_stream_alone() {
    let (store, url) = ScriptedStore::start().await;
    let refused = cdcpb::Error {
        region_not_found: Some(Default::default()),
        ..Default::default()
    };
    store.errors.lock().insert(6, refused);
    let (client, mut events) = CdcClient::start(42, &url[..], CdcOptions::default());
    client.subscribe(subscription(1, 4)).unwrap();
    expect_scan(&mut events, 1).await;
    client.subscribe(subscription(2, 6)).unwrap();
    assert_eq!(next(&mut events).await, "2 RegionNotFound");
    store.resolve(&[4, 6], 400).await;
    assert_eq!(next(&mut events).await, "1 resolved 400");
    client.subscribe(subscription(3, 6)).unwrap();
    expect_scan(&mut events, 3).await;
    let requests = store.requests.lock().clone();
    assert!(
        !requests.iter().any(is_deregister),
        "the store ended it itself"
    );
}

#[tokio::test]
async fn a_second_subscription_under_a_living_name_is_ignored() {
    let (store, url) = ScriptedStore::start().await;
    let (client, mut events) = CdcClient::start(42, &url[..], CdcOptions::default());
    client.subscribe(subscription(1, 4)).unwrap();
    client.subscribe(subscription(1, 6)).unwrap();
    expect_scan(&mut events, 1).await;
    nothing_for(&mut events, 100).await;
    assert_eq!(store.registered(), [4]);
    client.unsubscribe(SubId(1)).unwrap();
    client.unsubscribe(SubId(1)).unwrap();
    store.wait_for_requests(2).await;
    client.subscribe(subscription(2, 6)).unwrap();
    expect_scan(&mut events, 2).await;
    assert_eq!(store.requests.lock().len(), 3, "given back once");
}
