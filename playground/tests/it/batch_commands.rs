//! `BatchCommands`, the stream that client-go sends nearly everything through.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use pitr_proto::kvrpcpb::{
    CommitRequest, Context, GetRequest, GetResponse, Mutation, PrewriteRequest,
};
use pitr_proto::tikvpb::batch_commands_request::Request;
use pitr_proto::tikvpb::batch_commands_request::request::Cmd;
use pitr_proto::tikvpb::batch_commands_response::response::Cmd as Answer;
use pitr_proto::tikvpb::{BatchCommandsEmptyRequest, BatchCommandsRequest, BatchCommandsResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::system::{SELDOM, System, context};

const KEY: &str = "b/a";

/// The open stream; the first batch is sent with the call.
struct Batches {
    requests: mpsc::UnboundedSender<BatchCommandsRequest>,
    answers: Streaming<BatchCommandsResponse>,
}

fn batch(commands: Vec<(u64, Cmd)>) -> BatchCommandsRequest {
    let request = |(id, cmd)| (id, Request { cmd: Some(cmd) });
    let (request_ids, requests) = commands.into_iter().map(request).unzip();
    BatchCommandsRequest {
        requests,
        request_ids,
        ..BatchCommandsRequest::default()
    }
}

impl Batches {
    async fn open(system: &System, first: Vec<(u64, Cmd)>) -> Batches {
        let (requests, receiver) = mpsc::unbounded_channel();
        requests.send(batch(first)).unwrap();
        let receiver = UnboundedReceiverStream::new(receiver);
        let answers = system.kv.clone().batch_commands(receiver).await.unwrap();
        Batches {
            requests,
            answers: answers.into_inner(),
        }
    }

    /// Sends one batch and waits for its answers.
    async fn exchange(&mut self, commands: Vec<(u64, Cmd)>) -> BTreeMap<u64, Answer> {
        let count = commands.len();
        self.requests.send(batch(commands)).unwrap();
        self.next(count).await
    }

    async fn next(&mut self, count: usize) -> BTreeMap<u64, Answer> {
        let mut found = BTreeMap::new();
        while found.len() < count {
            let answer = tokio::time::timeout(Duration::from_secs(10), self.answers.next());
            let batch = answer.await.unwrap().unwrap().unwrap();
            assert_eq!(batch.request_ids.len(), batch.responses.len());
            for (id, answer) in batch.request_ids.iter().zip(batch.responses) {
                assert!(found.insert(*id, answer.cmd.unwrap()).is_none());
            }
        }
        found
    }
}

fn get(context: Context, version: u64) -> Cmd {
    Cmd::Get(GetRequest {
        context: Some(context),
        key: KEY.into(),
        version,
        ..GetRequest::default()
    })
}

fn prewrite(context: Context, start_version: u64) -> Cmd {
    Cmd::Prewrite(PrewriteRequest {
        context: Some(context),
        mutations: vec![Mutation {
            key: KEY.into(),
            value: "1".into(),
            ..Mutation::default()
        }],
        primary_lock: KEY.into(),
        start_version,
        lock_ttl: 3000,
        txn_size: 1,
        ..PrewriteRequest::default()
    })
}

fn got(answer: &Answer) -> &GetResponse {
    match answer {
        Answer::Get(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_a_batch_is_answered_under_its_id() {
    let system = System::start(SELDOM).await;
    let region = system.regions().await.remove(0);
    let start = system.now().await;
    let empty = Cmd::Empty(BatchCommandsEmptyRequest {
        test_id: 5,
        delay_time: 0,
    });
    let first = vec![(70, prewrite(context(&region), start)), (9, empty)];
    let mut batches = Batches::open(&system, first).await;
    let found = batches.next(2).await;
    assert!(matches!(&found[&9], Answer::Empty(empty) if empty.test_id == 5));
    let Answer::Prewrite(prewritten) = &found[&70] else {
        panic!("{:?}", found[&70])
    };
    assert!(prewritten.errors.is_empty() && prewritten.region_error.is_none());

    let commit = system.now().await;
    let request = Cmd::Commit(CommitRequest {
        context: Some(context(&region)),
        start_version: start,
        keys: vec![KEY.into()],
        commit_version: commit,
        ..CommitRequest::default()
    });
    let found = batches.exchange(vec![(71, request)]).await;
    assert!(matches!(&found[&71], Answer::Commit(c) if c.commit_version == commit));

    let mut wrong = context(&region);
    wrong.region_id += 1_000_000;
    let reads = vec![
        (1, get(context(&region), commit)),
        (2, get(context(&region), commit - 1)),
        (3, get(wrong, commit)),
    ];
    let found = batches.exchange(reads).await;
    assert_eq!(got(&found[&1]).value, "1");
    assert!(got(&found[&2]).not_found);
    let error = got(&found[&3]).region_error.as_ref().unwrap();
    assert!(error.region_not_found.is_some(), "{error:?}");
    system.stop().await;
}
