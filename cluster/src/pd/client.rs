//! The connection to PD's leader: discovery, re-discovery and deadlines of every call.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_proto::pdpb::{self, pd_client::PdClient as Stub};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::error::{Attempt, PdError, Verdict, judge_header, judge_status};
use super::persist::Persistence;
use crate::net::{describe, normalize, pd_channel};
use crate::tls::Security;

/// A page of 1024 regions with many peers passes tonic's 4 MiB default.
const MAX_MESSAGE: usize = 64 << 20;
/// Who calls, for PD's metrics.
const COMPONENT: &str = "tikv-pitr";

/// Time bounds of the client, and how it connects.
#[derive(Clone, Debug)]
pub struct PdOptions {
    /// One attempt of one call.
    pub call_timeout: Duration,
    /// All attempts of one call. PD may have no leader for 5–10 s during a fail-over.
    pub deadline: Duration,
    /// All attempts of the first connection.
    pub connect_deadline: Duration,
    /// Certificates, if PD has TLS.
    pub security: Security,
}

impl Default for PdOptions {
    fn default() -> Self {
        PdOptions {
            call_timeout: Duration::from_secs(3),
            deadline: Duration::from_secs(15),
            connect_deadline: Duration::from_secs(8),
            security: Security::default(),
        }
    }
}

/// Client of one cluster's PD; cheap to share.
pub struct PdClient {
    cluster_id: u64,
    options: PdOptions,
    state: Mutex<State>,
}

#[derive(Clone)]
struct Leader {
    url: String,
    channel: Channel,
}

struct State {
    /// Given end points first, then those that members reported.
    urls: Vec<String>,
    leader: Option<Leader>,
}

/// What `GetMembers` told.
struct Found {
    cluster_id: u64,
    leader: Leader,
    urls: Vec<String>,
}

impl PdClient {
    /// Connects in plaintext with the default time bounds: finds the leader and the cluster id.
    pub async fn connect(endpoints: &[String]) -> Result<Arc<PdClient>, PdError> {
        PdClient::connect_with(endpoints, PdOptions::default()).await
    }

    /// Connects with own time bounds.
    pub async fn connect_with(
        endpoints: &[String],
        options: PdOptions,
    ) -> Result<Arc<PdClient>, PdError> {
        let urls = endpoints
            .iter()
            .map(|e| normalize(&options.security, e))
            .collect::<Result<Vec<_>, _>>()?;
        let persistence = Persistence {
            call: "GetMembers",
            limit: options.connect_deadline,
            seed: 1,
            endpoints: || urls.clone(),
        };
        let found = persistence.run(|| discover(&urls, 0, &options)).await?;
        Ok(Arc::new(PdClient {
            cluster_id: found.cluster_id,
            options,
            state: Mutex::new(State {
                urls: merge_urls(urls, found.urls),
                leader: Some(found.leader),
            }),
        }))
    }

    /// The id of the cluster, fixed for the life of the client.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// How it connects, for clients of the same cluster's etcd and stores.
    pub fn security(&self) -> &Security {
        &self.options.security
    }

    /// The end points given and those that members reported, as URLs.
    pub fn urls(&self) -> Vec<String> {
        self.state.lock().urls.clone()
    }

    /// The leader's channel, for a stream that the caller keeps: when it fails, the caller forgets
    /// the leader and asks again. Looks for the leader once, without waiting for an election.
    pub async fn leader_channel(&self) -> Result<Channel, PdError> {
        match self.leader().await {
            Ok(leader) => Ok(leader.channel),
            Err(Verdict::Fail(error)) => Err(error),
            Err(Verdict::Wait(last) | Verdict::Rediscover(last)) => Err(PdError::Unreachable {
                endpoints: self.urls(),
                call: "GetMembers",
                seconds: self.options.call_timeout.as_secs(),
                last,
            }),
        }
    }

    /// The next call looks for the leader again.
    pub fn forget_leader(&self) {
        self.state.lock().leader = None;
    }

    /// The header that every request carries.
    pub fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader {
            cluster_id: self.cluster_id,
            caller_component: COMPONENT.to_owned(),
            ..Default::default()
        })
    }

    /// Runs one call against the leader until it succeeds, fails for good or the deadline passes.
    /// For callers whose calls are not among the methods of this client; `run` may run repeatedly.
    pub async fn call<T, F, Fut>(&self, call: &'static str, run: F) -> Result<T, PdError>
    where
        T: HasHeader,
        F: Fn(Stub<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let persistence = Persistence {
            call,
            limit: self.options.deadline,
            seed: self.cluster_id,
            endpoints: || self.urls(),
        };
        let attempt = || async {
            let ended = self.attempt(call, &run).await;
            if let Err(Verdict::Rediscover(reason)) = &ended {
                tracing::debug!(call, %reason, "looking for PD's leader again");
                self.forget_leader();
            }
            ended
        };
        persistence.run(attempt).await
    }

    async fn attempt<T, F, Fut>(&self, call: &'static str, run: &F) -> Result<T, Verdict>
    where
        T: HasHeader,
        F: Fn(Stub<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let leader = self.leader().await?;
        let attempt = Attempt {
            call,
            endpoint: &leader.url,
            cluster_id: self.cluster_id,
        };
        let stub = Stub::new(leader.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let answer = match timeout(self.options.call_timeout, run(stub)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(judge_status(&attempt, &status)),
            Err(_) => {
                let text = format!("{} did not answer in time", leader.url);
                return Err(Verdict::Rediscover(text));
            }
        };
        match judge_header(&attempt, answer.header()) {
            None => Ok(answer),
            Some(verdict) => Err(verdict),
        }
    }

    async fn leader(&self) -> Result<Leader, Verdict> {
        let urls = {
            let state = self.state.lock();
            if let Some(leader) = &state.leader {
                return Ok(leader.clone());
            }
            state.urls.clone()
        };
        let found = discover(&urls, self.cluster_id, &self.options).await?;
        let mut state = self.state.lock();
        state.urls = merge_urls(std::mem::take(&mut state.urls), found.urls);
        state.leader = Some(found.leader.clone());
        Ok(found.leader)
    }
}

/// Responses of PD that carry its header.
pub trait HasHeader {
    /// The header, where errors are that the status does not show.
    fn header(&self) -> Option<&pdpb::ResponseHeader>;
}

/// Names the responses of which the client looks at the header.
macro_rules! has_header {
    ($($response:ident),* $(,)?) => {$(
        impl $crate::pd::HasHeader for pdpb::$response {
            fn header(&self) -> Option<&pdpb::ResponseHeader> {
                self.header.as_ref()
            }
        }
    )*};
}
pub(super) use has_header;

/// Keeps the order of `known` and appends what is new, bounded: a cluster has a handful of members.
fn merge_urls(mut known: Vec<String>, reported: Vec<String>) -> Vec<String> {
    const MAX_URLS: usize = 64;
    for url in reported {
        if known.len() < MAX_URLS && !known.contains(&url) {
            known.push(url);
        }
    }
    known
}

/// Asks the members in turn who leads. `expected` 0 accepts any cluster.
async fn discover(urls: &[String], expected: u64, options: &PdOptions) -> Result<Found, Verdict> {
    let mut last = Verdict::Rediscover("no end point given".to_owned());
    for url in urls {
        match ask_member(url, expected, options).await {
            Ok(found) => return Ok(found),
            Err(fail @ Verdict::Fail(PdError::WrongCluster { .. })) => return Err(fail),
            Err(verdict) => last = verdict,
        }
    }
    Err(last)
}

async fn ask_member(url: &str, expected: u64, options: &PdOptions) -> Result<Found, Verdict> {
    let security = &options.security;
    let limit = options.call_timeout;
    let channel = pd_channel(security, url).map_err(|e| Verdict::Fail(e.into()))?;
    let mut stub = Stub::new(channel.clone());
    let attempt = Attempt {
        call: "GetMembers",
        endpoint: url,
        cluster_id: expected,
    };
    let answer = match timeout(limit, stub.get_members(pdpb::GetMembersRequest::default())).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => {
            return Err(Verdict::Rediscover(format!("{url}: {}", describe(&status))));
        }
        Err(_) => return Err(Verdict::Rediscover(format!("{url} did not answer in time"))),
    };
    if let Some(verdict) = judge_header(&attempt, answer.header.as_ref()) {
        return Err(verdict);
    }
    let cluster_id = answer.header.as_ref().map_or(0, |h| h.cluster_id);
    if cluster_id == 0 {
        return Err(Verdict::Rediscover(format!("{url} gave no cluster id")));
    }
    let reported: Vec<String> = answer
        .members
        .iter()
        .flat_map(|member| &member.client_urls)
        .filter_map(|u| normalize(security, u).ok())
        .collect();
    let leader_url = answer
        .leader
        .as_ref()
        .and_then(|leader| {
            leader
                .client_urls
                .iter()
                .find_map(|u| normalize(security, u).ok())
        })
        .ok_or_else(|| Verdict::Rediscover(format!("{url}: PD has no leader now")))?;
    let channel = match leader_url == url {
        true => channel,
        false => pd_channel(security, &leader_url).map_err(|e| Verdict::Fail(e.into()))?,
    };
    Ok(Found {
        cluster_id,
        leader: Leader {
            url: leader_url,
            channel,
        },
        urls: reported,
    })
}
