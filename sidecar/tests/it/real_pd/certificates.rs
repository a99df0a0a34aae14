//! Certificates at a real PD, whose rules are not ours: who may talk to a store is the store's own matter.

use pitr_cluster::tls::TlsConfig;
use pitr_playground::certificates::{Authority, Subject};

use crate::pd_servers::PdServers;
use crate::system::{Client, Cluster, Storage, load, wait_until};
use crate::tls::{Site, page};

#[test]
fn a_sidecar_whose_common_name_a_store_does_not_allow_says_so_and_goes_on_with_another_certificate()
{
    let authority = Authority::new().unwrap();
    let site = Site::new(&authority);
    let Some(pd) = PdServers::with_tls(1, &site.config("cluster")) else {
        return;
    };
    let mut source = Cluster::start_with(|config| {
        config.real_pd = pd.urls();
        config.tls = Some(TlsConfig {
            cert_allowed_cn: vec!["person".to_owned()],
            ..site.config("cluster")
        });
    });
    source.tls = Some(site.config("person"));
    let archive = Storage::new();
    source.log_start(&archive.url()).json();
    let sidecar = site.sidecar(&mut source);
    let refused = "x509_common_name from peer is sidecar";
    wait_until("the store refuses, and the page says so", || {
        page(&source, &sidecar).to_string().contains(refused)
    });
    assert!(sidecar.said().contains(refused), "{}", sidecar.said());
    wait_until("`log status` says so", || {
        source.log_status().to_string().contains(refused)
    });

    site.issue("sidecar", &authority, &Subject::local("person"));
    let client = Client::of(&source);
    client.write(&load(0));
    source.wait_checkpoint(client.now());
    sidecar.stop();
}
