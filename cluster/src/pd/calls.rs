//! The calls of PD that we use, one method each.

use bytes::Bytes;
use pitr_format::{EncodedRange, Ts};
use pitr_proto::{metapb, pdpb};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::client::{PdClient, has_header};
use super::{PdError, Region, contiguous_prefix};

/// Regions asked for at once.
const PAGE: i32 = 1024;

has_header!(
    GetAllStoresResponse,
    GetRegionResponse,
    ScanRegionsResponse,
    TsoResponse,
);

impl PdClient {
    /// A fresh timestamp, larger than every one handed out before.
    pub async fn tso(&self) -> Result<Ts, PdError> {
        let answer = self
            .call("Tso", |mut stub| async move {
                // The sender lives until the answer is here: a half-closed stream may be ended
                // before the answer.
                let (requests, stream) = tokio::sync::mpsc::channel(1);
                let request = pdpb::TsoRequest {
                    header: self.header(),
                    count: 1,
                    dc_location: String::new(),
                };
                if requests.send(request).await.is_err() {
                    return Err(Status::cancelled("request stream is closed"));
                }
                let mut answers = stub.tso(ReceiverStream::new(stream)).await?.into_inner();
                let answer = answers.message().await?;
                drop(requests);
                answer
                    .map(Response::new)
                    .ok_or_else(|| Status::unavailable("the TSO stream ended without an answer"))
            })
            .await?;
        // The logical part is the largest of the batch, and the batch is one.
        match answer.timestamp {
            Some(ts) if ts.physical > 0 && ts.logical >= 0 => {
                Ok(Ts::compose(ts.physical as u64, ts.logical as u64))
            }
            _ => Err(PdError::Malformed {
                call: "Tso",
                what: "no timestamp",
            }),
        }
    }

    /// Regions that overlap `[start, end)` (encoded keys, empty end = no bound), ascending, at
    /// most `limit` (0 = all). May have holes while splits are being reported, see
    /// [`contiguous_prefix`].
    pub async fn scan_regions(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Region>, PdError> {
        let (start, end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let answer = self
            .call("ScanRegions", |mut stub| {
                let request = pdpb::ScanRegionsRequest {
                    header: self.header(),
                    start_key: start.clone(),
                    limit,
                    end_key: end.clone(),
                };
                async move { stub.scan_regions(request).await }
            })
            .await?;
        if answer.regions.is_empty() {
            // Old servers fill only the two parallel lists.
            let leaders = answer.leaders.into_iter().map(Some);
            let leaders = leaders.chain(std::iter::repeat(None));
            let metas = answer.region_metas.into_iter();
            return Ok(metas.zip(leaders).map(|(m, l)| Region::new(m, l)).collect());
        }
        let entries = answer.regions.into_iter();
        Ok(entries
            .filter_map(|entry| Some(Region::new(entry.region?, entry.leader)))
            .collect())
    }

    /// All regions that overlap `range`, page by page. The list has no hole; where PD has one at
    /// the moment it ends there, and the second value is the part that is still unknown.
    pub async fn regions_in(
        &self,
        range: &EncodedRange,
    ) -> Result<(Vec<Region>, Option<EncodedRange>), PdError> {
        let mut all = Vec::new();
        let mut from = range.start.clone();
        loop {
            let page = self.scan_regions(&from, &range.end, PAGE as usize).await?;
            let page = contiguous_prefix(page, &from);
            let Some(last) = page.last() else {
                return Ok((all, Some(EncodedRange::new(from, range.end.clone()))));
            };
            let reached = last.meta.end_key.clone();
            all.extend(page);
            if reached.is_empty() || (!range.end.is_empty() && reached >= range.end) {
                return Ok((all, None));
            }
            if reached <= from {
                let rest = EncodedRange::new(from, range.end.clone());
                return Ok((all, Some(rest)));
            }
            from = reached;
        }
    }

    /// The region that holds an encoded key.
    pub async fn region_of(&self, key: &[u8]) -> Result<Region, PdError> {
        let key = Bytes::copy_from_slice(key);
        let answer = self
            .call("GetRegion", |mut stub| {
                let request = pdpb::GetRegionRequest {
                    header: self.header(),
                    region_key: key.clone(),
                    need_buckets: false,
                };
                async move { stub.get_region(request).await }
            })
            .await?;
        // The leader answers an unknown region with an empty message and no error.
        match answer.region {
            Some(meta) if meta.id != 0 => Ok(Region::new(meta, answer.leader)),
            _ => Err(PdError::RegionNotFound {
                what: format!("encoded key {}", hex_of(&key)),
            }),
        }
    }

    /// All stores that are not tombstones.
    pub async fn stores(&self) -> Result<Vec<metapb::Store>, PdError> {
        let answer = self
            .call("GetAllStores", |mut stub| {
                let request = pdpb::GetAllStoresRequest {
                    header: self.header(),
                    exclude_tombstone_stores: true,
                };
                async move { stub.get_all_stores(request).await }
            })
            .await?;
        Ok(answer.stores)
    }
}

fn hex_of(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02X}");
        out
    })
}
