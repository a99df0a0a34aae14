//! What TLS is for each part. A client needs a certificate everywhere; its common name is looked at by
//! stores alone, which take the connection and refuse each call. PD's setting of that name is for the
//! connections between its members, of which there is one here.
//! Source: tikv/tikv `components/security`, tikv/pd `server/config/config.go` (`GenEmbedEtcdConfig`).

use std::collections::BTreeSet;
use std::sync::Arc;

use pitr_cluster::tls::{ClientName, Security, TlsConfig, TlsError};
use tonic::{Request, Status};

use crate::node::PlaygroundConfig;

/// How connections are taken and made.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// Of everything that listens; also how stores dial a real PD.
    pub(crate) security: Security,
    allowed: Arc<BTreeSet<String>>,
}

impl Tls {
    pub(crate) fn open(config: &PlaygroundConfig) -> Result<Self, TlsError> {
        let Some(config) = config.tls.clone() else {
            return Ok(Tls::default());
        };
        let allowed = config.cert_allowed_cn.iter().cloned().collect();
        let for_all = TlsConfig {
            cert_allowed_cn: Vec::new(),
            ..config
        };
        Ok(Tls {
            allowed: Arc::new(allowed),
            security: Security::load(for_all)?,
        })
    }

    /// What a store makes of a client's common name, for every call.
    pub(crate) fn name_check(
        &self,
    ) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + use<> {
        let allowed = self.allowed.clone();
        move |request| {
            if allowed.is_empty() {
                return Ok(request);
            }
            let name = request.extensions().get::<ClientName>();
            let reason = match name.and_then(|name| name.0.as_ref()) {
                Some(name) if allowed.contains(name) => return Ok(request),
                Some(name) => format!("x509_common_name from peer is {name}"),
                None => "x509_common_name doesn't exist".to_owned(),
            };
            let text =
                format!("Common name check fail, reason: {reason}, cert_allowed_cn: {allowed:?}");
            Err(Status::unauthenticated(text))
        }
    }
}
