//! `status` and the admin pages: what they say when all is well, and when it is not.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::command::{Ran, fits, tikv_pitr};
use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};

fn status(cluster: &Cluster, address: &str, more: &[&str]) -> Ran {
    let mut args = vec!["status", "--sidecar", address, "--json"];
    args.extend(more);
    cluster.run(&args)
}

#[test]
fn one_page_tells_the_whole_story() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&cluster);
    let client = Client::of(&cluster);
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    let address = sidecar.address();
    wait_until("a rate was measured", || {
        let page = status(&cluster, address, &["--max-lag", "1m"]).json();
        page["sidecar"]["page"]["tasks"][0]["memory_budget_bytes"] != 0
    });
    let page = status(&cluster, address, &[]).json();
    let here = &page["sidecar"]["page"]["tasks"][0];
    assert_eq!(here["state"], "running");
    assert!(here["events"].as_u64().unwrap() > 60, "{here}");
    assert!(here["last_flush"].is_string(), "{here}");
    assert_eq!(
        page["tasks"][0]["checkpoint_time"]["tso"],
        page["tasks"][0]["checkpoint"]
    );
    let text = cluster.run(&["status", "--sidecar", address]).stdout;
    for word in [
        "recoverable:",
        "lag:",
        "rate:",
        "memory:",
        "last flush:",
        "GC safepoint:",
    ] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    fits(
        "sidecar-status",
        sidecar
            .page("/status.json")
            .split("\r\n\r\n")
            .nth(1)
            .unwrap(),
    );
    for (path, part) in [
        ("/", "<h2>task t</h2>"),
        ("/readyz", "200 OK"),
        ("/healthz", "200 OK"),
        (
            "/config",
            "\"key\":\"log-backup.max-flush-interval\",\"value\":\"1s\"",
        ),
        ("/loglevel", "info"),
    ] {
        assert!(
            sidecar.page(path).contains(part),
            "{path}: {}",
            sidecar.page(path)
        );
    }
    sidecar.stop();
}

#[test]
fn the_exit_code_of_status_says_what_is_wrong() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let late = status(&cluster, "127.0.0.1:1", &["--max-lag", "100ms"]);
    assert_eq!((late.code, &late.error()["code"]), (21, &"PITR1311".into()));
    let dead = status(&cluster, "127.0.0.1:1", &[]);
    dead.fails_with(75, &["PITR1109", "127.0.0.1:1"]);
    let shown: serde_json::Value = serde_json::from_str(&dead.stdout).unwrap();
    assert_eq!(shown["tasks"][0]["name"], "t", "the rest is shown");
    assert!(shown["sidecar"]["problem"].is_string());
    status(&cluster, "127.0.0.1:1", &["--task-name", "nobody"]).fails_with(10, &["nobody"]);
    let away = tikv_pitr(&["status", "-u", "127.0.0.1:1", "--json"]);
    away.fails_with(75, &["unreachable", "127.0.0.1:1"]);
    assert!(away.stdout.is_empty());
}

#[test]
fn what_is_no_sidecar_is_not_believed() {
    let cluster = Cluster::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answers = [
        "HTTP/1.0 200 OK\r\n\r\n{\"version\": 3}",
        "220 mail ready\r\n",
        "",
    ];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    for _ in answers {
        let ran = status(&cluster, &address, &[]);
        assert_eq!((ran.code, &ran.error()["code"]), (75, &"PITR1109".into()));
    }
    server.join().unwrap();

    let other = Cluster::start();
    let sidecar = Sidecar::start(&other);
    wait_until("it is ready", || sidecar.page("/readyz").contains("200 OK"));
    status(&cluster, sidecar.address(), &[]).fails_with(75, &["belongs to cluster"]);
    sidecar.stop();
}

#[test]
fn a_lock_that_holds_the_checkpoint_makes_the_sidecar_unhealthy_and_is_named() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start_with(&cluster, "lag-limit = \"8s\"");
    let client = Client::of(&cluster);
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    assert!(sidecar.page("/healthz").contains("200 OK"));
    client.lock("demo/held");
    wait_until("health says no", || {
        let page = sidecar.page("/healthz");
        page.contains("503") && page.contains("held by store 1, region") && page.contains("lock")
    });
    let page = status(&cluster, sidecar.address(), &[]).json();
    let held = &page["sidecar"]["page"]["tasks"][0]["held_by"];
    assert!(held["region_id"].is_u64(), "{page}");
    assert!(
        sidecar.page("/readyz").contains("200 OK"),
        "lag is no reason to be taken out"
    );
    let text = cluster
        .run(&["status", "--sidecar", sidecar.address()])
        .stdout;
    assert!(text.contains("held by:     store 1, region"), "{text}");
}

#[test]
fn the_log_level_changes_while_the_sidecar_runs() {
    let cluster = Cluster::start();
    let sidecar = Sidecar::start(&cluster);
    wait_until("it answers", || sidecar.page("/loglevel").contains("info"));
    assert!(
        sidecar
            .send("PUT", "/loglevel", "pitr_cluster=trace,warn")
            .contains("200 OK")
    );
    assert!(sidecar.page("/loglevel").contains("pitr_cluster=trace"));
    let refused = sidecar.send("PUT", "/loglevel", "a=b=c");
    assert!(refused.contains("400 Bad Request"), "{refused}");
    assert!(sidecar.page("/loglevel").contains("pitr_cluster=trace"));
    sidecar.stop();
}
