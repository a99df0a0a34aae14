//! `BatchCommands`: each sub-request runs on its own and is answered when it is done, in any
//! order; the id pairs them. A command that this store does not know is answered with `Empty`.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use pitr_proto::tikvpb::batch_commands_request::request::Cmd as Asked;
use pitr_proto::tikvpb::batch_commands_response::Response as Answer;
use pitr_proto::tikvpb::batch_commands_response::response::Cmd as Done;
use pitr_proto::tikvpb::{
    BatchCommandsEmptyRequest, BatchCommandsEmptyResponse, BatchCommandsRequest,
    BatchCommandsResponse,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::TikvService;
use crate::store::kernel::Store;

/// Commands of one stream at work. Those that wait for a lock count too, so this has to leave
/// room for the ones that release it.
const AT_WORK: usize = 1024;
/// Answers that wait to be sent.
const UNSENT: usize = 256;
/// Longest delay that the `Empty` command may ask for.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

type Answers = mpsc::Sender<Result<BatchCommandsResponse, Status>>;

/// Serves one stream until the client ends it.
pub(super) fn serve(
    service: TikvService,
    requests: Streaming<BatchCommandsRequest>,
) -> impl Stream<Item = Result<BatchCommandsResponse, Status>> {
    let (answers, sent) = mpsc::channel(UNSENT);
    tokio::spawn(dispatch(service, requests, answers));
    ReceiverStream::new(sent)
}

async fn dispatch(
    service: TikvService,
    mut requests: Streaming<BatchCommandsRequest>,
    answers: Answers,
) {
    let room = Arc::new(Semaphore::new(AT_WORK));
    while let Some(Ok(batch)) = requests.next().await {
        for (id, request) in batch.request_ids.into_iter().zip(batch.requests) {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let (service, answers) = (service.clone(), answers.clone());
            tokio::spawn(async move {
                let answer = run(&service, request.cmd).await.map(|cmd| single(id, cmd));
                drop(permit);
                // A failed send means that the client is gone; so is its interest.
                let _ = answers.send(answer).await;
            });
        }
    }
}

fn single(id: u64, cmd: Done) -> BatchCommandsResponse {
    BatchCommandsResponse {
        responses: vec![Answer { cmd: Some(cmd) }],
        request_ids: vec![id],
        ..Default::default()
    }
}

async fn run(service: &TikvService, asked: Option<Asked>) -> Result<Done, Status> {
    Ok(match asked {
        None => Done::Empty(BatchCommandsEmptyResponse::default()),
        Some(Asked::Empty(q)) => Done::Empty(empty(q).await),
        Some(Asked::PessimisticLock(q)) => Done::PessimisticLock(service.lock(q).await),
        Some(Asked::Get(q)) => Done::Get(service.run("kv_get", q, Store::get).await?),
        Some(Asked::Scan(q)) => Done::Scan(service.run("kv_scan", q, Store::scan).await?),
        Some(Asked::Prewrite(q)) => {
            Done::Prewrite(service.run("kv_prewrite", q, Store::prewrite).await?)
        }
        Some(Asked::Commit(q)) => Done::Commit(service.run("kv_commit", q, Store::commit).await?),
        Some(Asked::Cleanup(q)) => {
            Done::Cleanup(service.run("kv_cleanup", q, Store::cleanup).await?)
        }
        Some(Asked::BatchGet(q)) => {
            Done::BatchGet(service.run("kv_batch_get", q, Store::batch_get).await?)
        }
        Some(Asked::BatchRollback(q)) => Done::BatchRollback(
            service
                .run("kv_batch_rollback", q, Store::batch_rollback)
                .await?,
        ),
        Some(Asked::ScanLock(q)) => {
            Done::ScanLock(service.run("kv_scan_lock", q, Store::scan_lock).await?)
        }
        Some(Asked::ResolveLock(q)) => Done::ResolveLock(
            service
                .run("kv_resolve_lock", q, Store::resolve_lock)
                .await?,
        ),
        Some(Asked::DeleteRange(q)) => Done::DeleteRange(
            service
                .run("kv_delete_range", q, Store::delete_range)
                .await?,
        ),
        Some(Asked::PessimisticRollback(q)) => Done::PessimisticRollback(
            service
                .run("kv_pessimistic_rollback", q, Store::pessimistic_rollback)
                .await?,
        ),
        Some(Asked::CheckTxnStatus(q)) => Done::CheckTxnStatus(
            service
                .run("kv_check_txn_status", q, Store::check_txn_status)
                .await?,
        ),
        Some(Asked::TxnHeartBeat(q)) => Done::TxnHeartBeat(
            service
                .run("kv_txn_heart_beat", q, Store::txn_heart_beat)
                .await?,
        ),
        Some(Asked::CheckSecondaryLocks(q)) => Done::CheckSecondaryLocks(
            service
                .run("kv_check_secondary_locks", q, Store::check_secondary_locks)
                .await?,
        ),
    })
}

async fn empty(request: BatchCommandsEmptyRequest) -> BatchCommandsEmptyResponse {
    if request.delay_time > 0 {
        tokio::time::sleep(Duration::from_millis(request.delay_time).min(LONGEST_DELAY)).await;
    }
    BatchCommandsEmptyResponse {
        test_id: request.test_id,
    }
}
