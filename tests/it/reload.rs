//! A new configuration, taken while everything runs.

use std::{
    os::unix::fs::symlink,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;

use crate::support::{
    Client, Folder, Http2Client, Identity, Issuer, Process, Proxy, Reply, Response, TlsUpstream, Upstream, metric,
    wait_until,
};

const HEAD: &str = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nthreads: 2\n";

fn with_ceiling(url: &str, ceiling: u32) -> String {
    format!("{HEAD}upstreams: [{{ url: '{url}', ceiling: {ceiling}, limit: {{ algorithm: fixed }} }}]\n")
}

async fn reloads(process: &Process, result: &str, count: f64) {
    let label = format!("result=\"{result}\"");
    process
        .admin_says("/metrics", |page| {
            metric(&page.text(), "tidegate_config_reloads_total", &[&label]).unwrap_or(0.0) >= count
        })
        .await;
}

/// What was read last is in force, or is not.
async fn last_reload(process: &Process, taken: f64) {
    process
        .admin_says("/metrics", |page| {
            metric(&page.text(), "tidegate_config_last_reload_successful", &[]) == Some(taken)
        })
        .await;
}

async fn ceiling(process: &Process) -> serde_json::Value {
    process.admin("/status").await.json()["upstreams"][0]["ceiling"].clone()
}

#[tokio::test]
async fn a_changed_file_is_taken_without_a_signal_and_a_broken_one_is_not() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let folder = Folder::new();
    let file = folder.write("tidegate.yaml", &with_ceiling(&upstream.url(), 3));
    let process = Process::start(&["--config", &file], &[]);
    assert_eq!(ceiling(&process).await, 3);
    last_reload(&process, 1.0).await;
    folder.write("tidegate.yaml", &with_ceiling(&upstream.url(), 4));
    reloads(&process, "accepted", 1.0).await;
    assert_eq!(ceiling(&process).await, 4);

    folder.write("tidegate.yaml", &format!("{HEAD}upstreams: [{{ url: '{}', ceilling: 5 }}]\n", upstream.url()));
    reloads(&process, "rejected", 1.0).await;
    last_reload(&process, 0.0).await;
    assert_eq!(ceiling(&process).await, 4);
    // The counter runs ahead of the log.
    wait_until("the log says so", || process.err().contains("configuration rejected")).await;
    let log = process.err();
    let line = log.lines().find(|line| line.contains("configuration rejected")).unwrap();
    assert!(line.contains("ERROR") && line.contains("tidegate.yaml:4:") && line.contains("ceilling"), "{line}");
    let mut client = process.client().await;
    client.post("/x", "", "{}").await;
    assert_eq!(client.response().await.text(), "hello");

    std::fs::remove_file(&file).unwrap();
    reloads(&process, "rejected", 2.0).await;
    folder.write("tidegate.yaml", &with_ceiling(&upstream.url(), 6));
    reloads(&process, "accepted", 2.0).await;
    last_reload(&process, 1.0).await;
    assert_eq!(ceiling(&process).await, 6);
    // Nothing is taken or refused twice.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let page = process.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_config_reloads_total", &[]), Some(4.0), "{page}");
}

#[tokio::test]
async fn exchanges_of_an_upstream_that_is_gone_are_shown_until_they_end() {
    let upstream = Upstream::start(|_| Reply::ok("done").held()).await;
    let (folder, url) = (Folder::new(), upstream.url());
    let one = |name: &str, path: &str| {
        format!(
            "{{ name: {name}, url: '{url}', match: {{ path_prefix: {path} }}, ceiling: 1, limit: {{ algorithm: fixed }} }}"
        )
    };
    let without = format!("{HEAD}upstreams: [{}]\n", one("a", "/a"));
    let with = format!("{HEAD}upstreams: [{}, {}]\n", one("a", "/a"), one("b", "/b"));
    let file = folder.write("tidegate.yaml", &with);
    let process = Process::start(&["--config", &file], &[]);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = process.client().await;
        client.post("/b/x", "", "{}").await;
        clients.push(client);
    }
    let busy = |page: &Response| {
        let account = &page.json()["accounts"][0];
        (&account["upstream"], &account["in_flight"], &account["queued"]) == (&"b".into(), &1.into(), &2.into())
    };
    process.admin_says("/status", busy).await;
    folder.write("tidegate.yaml", &without);
    reloads(&process, "accepted", 1.0).await;
    let status = process.admin("/status").await;
    assert!(busy(&status) && status.json()["health"]["queued"] == 2, "{}", status.text());
    let says = status.json()["accounts"][0]["says"].as_str().unwrap().to_owned();
    assert!(says.ends_with("; this upstream is no longer configured"), "{says}");
    let page = process.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_in_flight", &["upstream=\"b\""]), Some(1.0), "{page}");
    assert_eq!(metric(&page, "tidegate_queue_depth", &["upstream=\"b\""]), Some(2.0), "{page}");
    // Configured again, they still count against its ceiling.
    folder.write("tidegate.yaml", &with);
    reloads(&process, "accepted", 2.0).await;
    let mut late = process.client().await;
    late.post("/b/x", "", "{}").await;
    process.admin_says("/status", |page| page.json()["accounts"][0]["queued"] == 3).await;
    assert_eq!(process.admin("/status").await.json()["accounts"].as_array().unwrap().len(), 1);
    assert_eq!(upstream.in_flight_max(), 1);
    folder.write("tidegate.yaml", &without);
    reloads(&process, "accepted", 3.0).await;
    upstream.release(4);
    clients.push(late);
    for client in &mut clients {
        assert_eq!(client.response().await.text(), "done");
    }
    process.admin_says("/status", |page| page.json()["accounts"].as_array().unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_config_map_is_taken_when_its_symbolic_link_is_swapped() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let folder = Folder::new();
    let root = folder.path();
    let publish = |version: &str, ceiling: u32| {
        std::fs::create_dir(root.join(version)).unwrap();
        folder.write(&format!("{version}/tidegate.yaml"), &with_ceiling(&upstream.url(), ceiling));
        symlink(version, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    publish("..2026_01", 3);
    symlink("..data/tidegate.yaml", root.join("tidegate.yaml")).unwrap();
    let process = Process::start(&["--config", root.join("tidegate.yaml").to_str().unwrap()], &[]);
    assert_eq!(ceiling(&process).await, 3);
    publish("..2026_02", 7);
    std::fs::remove_dir_all(root.join("..2026_01")).unwrap();
    reloads(&process, "accepted", 1.0).await;
    assert_eq!(ceiling(&process).await, 7);
}

#[tokio::test]
async fn under_traffic_no_exchange_and_no_slot_is_lost() {
    let upstream = Upstream::start(|seen| match seen.line() {
        line if line.contains("/held") => Reply::ok("held").held(),
        _ => Reply::ok("done").after(Duration::from_millis(2)),
    })
    .await;
    let folder = Folder::new();
    let url = upstream.url();
    let file = folder.write("tidegate.yaml", &with_ceiling(&url, 8));
    let process = Process::start(&["--config", &file], &[]);
    let addr = process.addr("proxy").await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..24)
        .map(|_| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                while !stop.load(Ordering::Relaxed) {
                    client.post("/x", "", "{}").await;
                    let response = client.response().await;
                    assert_eq!((response.status, response.text().as_str()), (200, "done"), "{response:?}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let (mut accepted, mut rejected) = (0.0, 0.0);
    for round in 0..18 {
        let before = done.load(Ordering::Relaxed);
        wait_until("traffic goes on", || done.load(Ordering::Relaxed) > before + 50).await;
        let text = match round % 3 {
            0 => with_ceiling(&url, 5),
            1 => format!("{}bogus: 1\n", with_ceiling(&url, 200)),
            _ => with_ceiling(&url, 8),
        };
        // Renamed into place, or a look at the file could find half of it.
        std::fs::rename(folder.write("next.yaml", &text), &file).unwrap();
        process.signal(Signal::HUP);
        match round % 3 {
            1 => rejected += 1.0,
            _ => accepted += 1.0,
        }
        reloads(&process, "accepted", accepted).await;
        reloads(&process, "rejected", rejected).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(upstream.in_flight_max() <= 8, "{} at once", upstream.in_flight_max());
    assert_eq!(upstream.count(), done.load(Ordering::Relaxed), "each arrived once");
    let mut held = Vec::new();
    for _ in 0..9 {
        held.push(process.client().await);
        held.last_mut().unwrap().post("/held", "", "{}").await;
    }
    process.admin_says("/status", |page| page.json()["accounts"][0]["queued"] == 1).await;
    wait_until("every slot is in use", || upstream.in_flight() == 8).await;
    upstream.release(9);
    for mut client in held {
        assert_eq!(client.response().await.text(), "held");
    }
}

#[tokio::test]
async fn an_account_that_is_first_seen_by_an_exchange_from_before_has_the_new_settings() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(7));
    let mut client = proxy.client().await;
    client.send("POST /x HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await;
    assert_eq!(client.head().await.0, 100, "its exchange has begun");
    let mut config = (*proxy.app().shared.snapshot.load().config).clone();
    config.upstreams[0].ceiling = Some(3);
    proxy.app().reload(config).unwrap();
    client.send("{}").await;
    assert_eq!(client.response().await.text(), "fine");
    assert_eq!(proxy.view().ceiling, Some(3));
}

#[tokio::test]
async fn what_was_learnt_is_kept() {
    let mock = Process::start(&["mock", "--listen", "127.0.0.1:0", "--ceiling", "4", "--latency", "10ms"], &[]);
    let url = format!("http://{}", mock.addr("url").await);
    let folder = Folder::new();
    let with_depth = |depth: u32| {
        let text = format!("{HEAD}upstreams: [{{ url: '{url}', queue: {{ depth_max: {depth} }} }}]\n");
        folder.write("tidegate.yaml", &text)
    };
    let file = with_depth(1000);
    let process = Process::start(&["--config", &file], &[]);
    let addr = process.addr("proxy").await;
    let clients: Vec<_> = (0..16)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                for _ in 0..10 {
                    client.post("/v1/infer", "", r#"{"input":"hi"}"#).await;
                    assert_eq!(client.response().await.status, 200);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    process.admin_says("/status", |page| page.json()["accounts"][0]["in_flight"] == 0).await;
    let learnt = process.admin("/status").await.json()["accounts"][0]["limit"].as_u64().unwrap();
    assert!(learnt < 10, "{learnt}: nothing was learnt");
    with_depth(2000);
    process.signal(Signal::HUP);
    reloads(&process, "accepted", 1.0).await;
    assert_eq!(process.admin("/status").await.json()["accounts"][0]["limit"], learnt);
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_nothing_else_is() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let folder = Folder::new();
    let same = with_ceiling(&upstream.url(), 3);
    let file = folder.write("tidegate.yaml", &same);
    let process = Process::start(&["--config", &file], &[]);
    assert_eq!(ceiling(&process).await, 3);
    let told = |log: &str| log.lines().filter(|line| line.contains("needs a restart")).count();
    let others = same.replace("threads: 2", "threads: 1\nlimits: { connections_max: 5, accounts_max: 9 }");
    for (accepted, text, count) in [(1.0, others.as_str(), 2), (2.0, others.as_str(), 4), (3.0, same.as_str(), 4)] {
        folder.write("tidegate.yaml", text);
        process.signal(Signal::HUP);
        reloads(&process, "accepted", accepted).await;
        wait_until("the log says what was done", || {
            process.err().matches("configuration reloaded").count() >= accepted as usize
        })
        .await;
        assert_eq!(told(&process.err()), count, "{}", process.err());
    }
    let log = process.err();
    for key in ["threads", "limits"] {
        assert!(log.contains(&format!("\"key\":\"{key}\"")), "{key}: {log}");
    }
    // A new bound on accounts is taken at once.
    folder.write("tidegate.yaml", &same.replace("threads: 2", "threads: 2\nlimits: { accounts_max: 9 }"));
    process.signal(Signal::HUP);
    reloads(&process, "accepted", 4.0).await;
    assert_eq!(told(&process.err()), 4, "{}", process.err());
}

/// Puts the certificate and the key of `from` where those of `to` are.
fn replace(to: &Identity, from: &Identity) {
    std::fs::copy(&from.cert, &to.cert).unwrap();
    std::fs::copy(&from.key, &to.key).unwrap();
}

#[tokio::test]
async fn a_new_certificate_of_the_listener_is_used_and_open_connections_go_on() {
    let (former, next) = (Issuer::new(), Issuer::new());
    let upstream = Upstream::start(|seen| match seen.line() {
        line if line.contains("/held") => Reply::ok("held").held(),
        _ => Reply::ok("hello"),
    })
    .await;
    let own = former.identity("localhost");
    let folder = Folder::new();
    let (cert, key, url) = (own.cert.display(), own.key.display(), upstream.url());
    let file = folder.write(
        "tidegate.yaml",
        &format!("{HEAD}tls: {{ cert: '{cert}', key: '{key}' }}\nupstreams: [{{ url: '{url}' }}]\n"),
    );
    let process = Process::start(&["--config", &file], &[]);
    let addr = process.addr("proxy").await;
    let connect = async |issuer: &Issuer| issuer.connect(addr, &["h2"], None).await;
    let open = Http2Client::over(connect(&former).await.unwrap()).await;
    assert!(connect(&next).await.is_err());
    let running = tokio::spawn({
        let open = open.clone();
        async move { open.post("/held", "{}").await }
    });
    wait_until("a request is under way", || upstream.count() == 1).await;

    // A certificate without its key: nothing changes.
    let others = next.identity("localhost");
    std::fs::copy(&others.cert, &own.cert).unwrap();
    reloads(&process, "rejected", 1.0).await;
    wait_until("the log says why", || process.err().contains("certificate and key")).await;
    assert!(connect(&former).await.is_ok() && connect(&next).await.is_err());
    // Both, and nobody said a word.
    replace(&own, &others);
    reloads(&process, "accepted", 1.0).await;
    let fresh = Http2Client::over(connect(&next).await.unwrap()).await;
    assert!(connect(&former).await.is_err());
    assert_eq!(fresh.post("/x", "{}").await, (200, "hello".to_owned()));
    assert_eq!(open.post("/x", "{}").await, (200, "hello".to_owned()), "on the connection from before");
    upstream.release(1);
    assert_eq!(running.await.unwrap(), (200, "held".to_owned()));
    // And on a signal.
    former.identity("localhost"); // in the same files
    process.signal(Signal::HUP);
    reloads(&process, "accepted", 2.0).await;
    assert!(connect(&former).await.is_ok() && connect(&next).await.is_err());
    assert!(!process.err().contains("needs a restart"), "{}", process.err());
}

#[tokio::test]
async fn new_issuers_and_client_certificates_for_the_upstream_are_used_on_new_connections() {
    let (former, next) = (Issuer::new(), Issuer::new());
    let upstream = TlsUpstream::start(&next.identity("localhost"), &["http/1.1"], Some(&next)).await;
    let own = former.identity("client.test");
    let folder = Folder::new();
    let ca = folder.path().join("ca.pem");
    std::fs::copy(former.file(), &ca).unwrap();
    let tls = format!(
        "{{ roots: none, ca: '{}', client_cert: '{}', client_key: '{}' }}",
        ca.display(),
        own.cert.display(),
        own.key.display()
    );
    let url = upstream.url();
    let file = folder.write(
        "tidegate.yaml",
        &format!("{HEAD}upstreams: [{{ url: '{url}', retry: {{ attempts_max: 1 }}, tls: {tls} }}]\n"),
    );
    let process = Process::start(&["--config", &file], &[]);
    let status = async || {
        let mut client = process.client().await;
        client.post("/x", "", "{}").await;
        client.response().await.status
    };
    assert_eq!(status().await, 502, "an issuer nobody knows");
    replace(&own, &next.identity("client.test"));
    std::fs::copy(next.file(), &ca).unwrap();
    reloads(&process, "accepted", 1.0).await;
    assert_eq!(status().await, 200);
    assert!(upstream.seen()[0].client_cert);
}
