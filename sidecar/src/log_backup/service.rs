//! The gRPC side of log backup.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use pitr_coordinator::REGISTRATION;
use pitr_proto::logbackup::log_backup_server::{LogBackup, LogBackupServer};
use pitr_proto::logbackup::{
    FlushNowRequest, FlushNowResponse, FlushResult, GetLastFlushTsOfRegionRequest,
    GetLastFlushTsOfRegionResponse, SubscribeFlushEventRequest, SubscribeFlushEventResponse,
};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::{FlushOrders, FlushTables};

/// Serves the tables.
pub struct LogBackupService {
    tables: Arc<FlushTables>,
    orders: Arc<FlushOrders>,
}

impl LogBackupService {
    /// The service over these tables, which passes orders on.
    pub fn routes(tables: Arc<FlushTables>, orders: Arc<FlushOrders>) -> Routes {
        Routes::new(LogBackupServer::new(LogBackupService { tables, orders }))
    }
}

/// The registration that a request is about, if it names one.
fn registration<T>(request: &Request<T>) -> Result<Option<i64>, Status> {
    let Some(value) = request.metadata().get(REGISTRATION) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    let refused = || Status::invalid_argument(format!("{REGISTRATION} is no revision"));
    parsed.map(Some).ok_or_else(refused)
}

#[tonic::async_trait]
impl LogBackup for LogBackupService {
    async fn get_last_flush_ts_of_region(
        &self,
        request: Request<GetLastFlushTsOfRegionRequest>,
    ) -> Result<Response<GetLastFlushTsOfRegionResponse>, Status> {
        let registered = registration(&request)?;
        let checkpoints = self
            .tables
            .last_flush(request.into_inner().regions, registered);
        Ok(Response::new(GetLastFlushTsOfRegionResponse {
            checkpoints,
        }))
    }

    type SubscribeFlushEventStream =
        Pin<Box<dyn Stream<Item = Result<SubscribeFlushEventResponse, Status>> + Send>>;

    async fn subscribe_flush_event(
        &self,
        request: Request<SubscribeFlushEventRequest>,
    ) -> Result<Response<Self::SubscribeFlushEventStream>, Status> {
        let registered = registration(&request)?;
        let client = request.into_inner().client_id;
        tracing::debug!(client, "somebody listens to flush events");
        let told = futures::stream::unfold(
            self.tables.subscribe(registered),
            |mut subscription| async move { Some((Ok(subscription.next().await), subscription)) },
        );
        Ok(Response::new(Box::pin(told)))
    }

    async fn flush_now(
        &self,
        _request: Request<FlushNowRequest>,
    ) -> Result<Response<FlushNowResponse>, Status> {
        let flushed = self.orders.flush_all().await.into_iter();
        let results = flushed.map(|(task_name, result)| FlushResult {
            task_name,
            success: result.is_ok(),
            error_message: result.err().unwrap_or_default(),
        });
        Ok(Response::new(FlushNowResponse {
            results: results.collect(),
        }))
    }
}
