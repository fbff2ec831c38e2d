//! The real binary: start, signals, reload, exit codes, and what it says where.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Client, Folder, Process, Reply, Response, Step, Upstream, metric, soon, wait_until};

const ANY_PORT: [&str; 4] = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];

fn serve(upstream: &Upstream, more: &[&str]) -> Process {
    let url = upstream.url();
    let args: Vec<&str> = ["--upstream", &url].into_iter().chain(ANY_PORT).chain(more.iter().copied()).collect();
    Process::start(&args, &[])
}

/// Every answer waits for the test.
async fn slow_upstream() -> Upstream {
    Upstream::start(|seen| match seen.line() {
        line if line.contains("/stream") => {
            Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                .then(Step::Hold)
                .then(Step::Send(b"4\r\nlast\r\n0\r\n\r\n".to_vec()))
        }
        _ => Reply::ok("done").held(),
    })
    .await
}

async fn posted(process: &Process, path: &str) -> Client {
    let mut client = process.client().await;
    client.post(path, "", "{}").await;
    client
}

async fn queued(process: &Process, count: u64) {
    process.admin_says("/status", |page| page.json()["accounts"][0]["queued"] == count).await;
}

async fn refuses_connections(process: &Process) {
    let addr = process.addr("proxy").await;
    soon("the proxy's port is closed", async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_line_tells_that_it_is_ready_and_where() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let process = serve(&upstream, &[]);
    let mut client = posted(&process, "/x").await;
    assert_eq!(client.response().await.text(), "hello");
    assert_eq!(process.admin("/readyz").await.status, 200);
    let (proxy, admin) = (process.addr("proxy").await, process.addr("admin").await);
    assert!(proxy.port() != 0 && admin.port() != 0 && proxy != admin);
    process.signal(Signal::TERM);
    let ended = process.ended().await;
    let url = upstream.url();
    assert_eq!(ended.out, format!("tidegate ready proxy=http://{proxy} admin=http://{admin} upstream={url}/\n"));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
}

#[tokio::test]
async fn the_admin_listener_can_be_off() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let url = upstream.url();
    let process = Process::start(&["serve", "--upstream", &url, "--listen", "127.0.0.1:0", "--admin", "off"], &[]);
    assert_eq!(process.told("admin").await, "off");
    assert_eq!(posted(&process, "/x").await.response().await.status, 200);
    process.signal(Signal::INT);
    assert_eq!(process.ended().await.code, Some(0), "SIGINT ends it as politely");
}

#[tokio::test]
async fn a_running_stream_is_finished_after_sigterm_while_nobody_new_gets_in() {
    let upstream = slow_upstream().await;
    let process = serve(&upstream, &[]);
    let mut client = posted(&process, "/stream").await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(process.admin("/readyz").await.status, 200);
    process.signal(Signal::TERM);
    process.admin_says("/readyz", |page| page.status == 503).await;
    refuses_connections(&process).await;
    assert_eq!(process.admin("/healthz").await.status, 200, "it still lives");
    upstream.release(1);
    let (rest, clean) = client.rest().await;
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(clean && rest.ends_with("4\r\nlast\r\n0\r\n\r\n"), "{rest:?}");
    let ended = process.ended().await;
    assert_eq!((ended.code, ended.out.lines().count()), (Some(0), 1), "{}", ended.err);
}

#[tokio::test]
async fn whoever_waits_in_the_queue_at_sigterm_is_served() {
    let upstream = slow_upstream().await;
    let process = serve(&upstream, &["--ceiling", "1"]);
    let mut clients = vec![posted(&process, "/x").await];
    wait_until("the first one has the slot", || upstream.count() == 1).await;
    for _ in 0..3 {
        clients.push(posted(&process, "/x").await);
    }
    queued(&process, 3).await;
    process.signal(Signal::TERM);
    process.admin_says("/readyz", |page| page.status == 503).await;
    upstream.release(4);
    for mut client in clients {
        assert_eq!(client.response().await.text(), "done");
    }
    assert_eq!(process.ended().await.code, Some(0));
    assert_eq!(upstream.in_flight_max(), 1);
}

#[tokio::test]
async fn post_drain_ends_it_like_sigterm() {
    let upstream = slow_upstream().await;
    let process = serve(&upstream, &[]);
    let mut client = posted(&process, "/x").await;
    wait_until("the request is at the upstream", || upstream.count() == 1).await;
    let mut admin = Client::connect(process.addr("admin").await).await;
    admin.post("/drain", "", "").await;
    assert_eq!(admin.response().await.status, 202);
    process.admin_says("/readyz", |page| page.status == 503).await;
    upstream.release(1);
    assert_eq!(client.response().await.text(), "done");
    assert_eq!(process.ended().await.code, Some(0));
}

#[tokio::test]
async fn what_outlasts_the_drain_is_cut_and_counted_and_whoever_still_waits_is_told() {
    let upstream = slow_upstream().await;
    let folder = Folder::new();
    let url = upstream.url();
    let file = folder.write(
        "tidegate.yaml",
        &format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ndrain: {{ max: 300ms }}\nupstreams: [{{ url: '{url}', ceiling: 1 }}]\n"
        ),
    );
    let process = Process::start(&["--config", &file], &[]);
    let mut stream = posted(&process, "/stream").await;
    assert_eq!(stream.head().await.0, 200);
    let mut waiting = posted(&process, "/v1/messages").await;
    queued(&process, 1).await;
    process.signal(Signal::TERM);
    let told = waiting.response().await;
    assert_eq!((told.status, told.header("x-tidegate-fault")), (503, Some("draining")));
    assert_eq!(told.json()["type"], "error", "in the shape of the path's API");
    let (rest, _) = stream.rest().await;
    assert!(!String::from_utf8_lossy(&rest).ends_with("0\r\n\r\n"), "a stream that was cut must not look finished");
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let last = ended.err.lines().last().unwrap_or_default();
    assert!(last.starts_with("tidegate: drain: 1 connection"), "{last}");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn during_the_delay_it_is_not_ready_and_serves_but_keeps_no_connection() {
    let upstream = slow_upstream().await;
    let folder = Folder::new();
    let url = upstream.url();
    let text = format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ndrain: {{ delay: 2s, max: 20s }}\nupstreams: [{{ url: '{url}' }}]\n"
    );
    let process = Process::start(&["--config", &folder.write("tidegate.yaml", &text)], &[]);
    upstream.release(1);
    let mut kept = posted(&process, "/x").await;
    assert_eq!(kept.response().await.header("connection"), None);
    let signalled = Instant::now();
    process.signal(Signal::TERM);
    process.admin_says("/readyz", |page| page.status == 503).await;
    let noticed = signalled.elapsed();
    assert!(noticed < Duration::from_millis(100), "not ready only after {noticed:?}");
    upstream.release(2);
    for mut client in [kept, process.client().await] {
        client.post("/x", "", "{}").await;
        let response = client.response().await;
        assert_eq!((response.text().as_str(), response.header("connection")), ("done", Some("close")));
        assert!(client.rest().await.1, "closed politely");
    }
    assert!(signalled.elapsed() < Duration::from_secs(2), "the delay was over before the test was");
    let mut last = posted(&process, "/x").await;
    wait_until("the last one is at the upstream", || upstream.count() == 4).await;
    refuses_connections(&process).await;
    assert!(signalled.elapsed() >= Duration::from_secs(2), "{:?}", signalled.elapsed());
    upstream.release(1);
    let response = last.response().await;
    assert_eq!((response.text().as_str(), response.header("connection")), ("done", Some("close")));
    assert_eq!(process.ended().await.code, Some(0));
}

/// Whole HTTP/2 frames of a connection: type, flags, stream, payload.
async fn frame(stream: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    soon("a frame", stream.read_exact(&mut head)).await.ok()?;
    let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    soon("a payload", stream.read_exact(&mut payload)).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

#[tokio::test]
async fn an_http2_client_is_told_to_go_in_two_steps_and_gets_its_answer() {
    const HEADERS: u8 = 1;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    let upstream = slow_upstream().await;
    let process = serve(&upstream, &[]);
    let mut stream = TcpStream::connect(process.addr("proxy").await).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // :method GET, :scheme http, :path /, :authority h; the head and the stream end here.
    let head = b"\x82\x86\x84\x41\x01h";
    let send = async |stream: &mut TcpStream, id: u8| {
        stream.write_all(&[0, 0, head.len() as u8, HEADERS, 5, 0, 0, 0, id]).await.unwrap();
        stream.write_all(head).await.unwrap();
    };
    send(&mut stream, 1).await;
    wait_until("the request is at the upstream", || upstream.count() == 1).await;
    process.signal(Signal::TERM);
    let mut goaways = Vec::new();
    let mut answered = Vec::new();
    while let Some((kind, flags, id, payload)) = frame(&mut stream).await {
        match kind {
            GOAWAY => goaways.push((u32::from_be_bytes(payload[..4].try_into().unwrap()), payload[4..8].to_vec())),
            PING if flags & 1 == 0 => {
                // A request that was on its way when the first word arrived.
                send(&mut stream, 3).await;
                stream.write_all(&[0, 0, 8, PING, 1, 0, 0, 0, 0]).await.unwrap();
                stream.write_all(&payload).await.unwrap();
                wait_until("it is served too", || upstream.count() == 2).await;
                upstream.release(2);
            }
            HEADERS => answered.push(id),
            _ => {}
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 3]);
    assert_eq!(goaways, [((1 << 31) - 1, vec![0; 4]), (3, vec![0; 4])]);
    assert_eq!(process.ended().await.code, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let upstream = slow_upstream().await;
    let process = serve(&upstream, &[]);
    let _client = posted(&process, "/x").await;
    wait_until("the request is at the upstream", || upstream.count() == 1).await;
    process.signal(Signal::TERM);
    process.admin_says("/readyz", |page| page.status == 503).await;
    process.signal(Signal::TERM);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.err.lines().last().unwrap_or_default().starts_with("tidegate: "), "{}", ended.err);
}

#[tokio::test]
async fn connections_without_a_request_do_not_hold_up_the_end() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let mut slow = Vec::new();
    for (name, first) in [
        ("kept after an answer", "GET /x HTTP/1.1\r\nhost: h\r\n\r\n"),
        ("silent from the start", ""),
        ("half a method", "P"),
        ("half a head", "GET /x HTTP/1.1\r\n"),
    ] {
        let process = serve(&upstream, &["--threads", "1"]);
        let mut client = process.client().await;
        client.send(first).await;
        if name == "kept after an answer" {
            assert_eq!(client.response().await.status, 200);
        }
        process.admin_says("/status", |page| page.json()["connections"]["downstream"] == 1).await;
        let began = Instant::now();
        process.signal(Signal::TERM);
        assert_eq!(process.ended().await.code, Some(0), "{name}");
        if began.elapsed() > Duration::from_secs(5) {
            slow.push((name, began.elapsed()));
        }
    }
    assert!(slow.is_empty(), "{slow:?}");
}

#[tokio::test]
async fn sighup_takes_the_changed_file_without_touching_what_runs() {
    let upstream = slow_upstream().await;
    let folder = Folder::new();
    let url = upstream.url();
    let with_ceiling = |ceiling: u32| {
        let text = format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nupstreams:\n  - url: {url}\n    ceiling: {ceiling}\n    limit: {{ algorithm: fixed }}\n"
        );
        folder.write("tidegate.yaml", &text)
    };
    let file = with_ceiling(1);
    let process = Process::start(&["--config", &file], &[]);
    let mut running = posted(&process, "/x").await;
    wait_until("the first one has the slot", || upstream.count() == 1).await;
    let mut waiting = posted(&process, "/x").await;
    queued(&process, 1).await;

    with_ceiling(2);
    process.signal(Signal::HUP);
    wait_until("the second one has a slot too", || upstream.count() == 2).await;
    let reloads = |page: &Response, result: &str| metric(&page.text(), "tidegate_config_reloads_total", &[result]);
    process.admin_says("/metrics", |page| reloads(page, "result=\"accepted\"") == Some(1.0)).await;

    folder.write("tidegate.yaml", &format!("upstreams:\n  - url: {url}\n    ceilling: 9\n"));
    process.signal(Signal::HUP);
    process.admin_says("/metrics", |page| reloads(page, "result=\"rejected\"") == Some(1.0)).await;
    wait_until("the log says where", || process.err().contains("tidegate.yaml:3:5")).await;
    assert!(process.err().contains("ceilling"), "{}", process.err());
    let status = process.admin("/status").await.json();
    assert_eq!((&status["accounts"][0]["ceiling"], &status["upstreams"][0]["ceiling"]), (&2.into(), &2.into()));

    upstream.release(2);
    assert_eq!(running.response().await.text(), "done");
    assert_eq!(waiting.response().await.text(), "done");
    process.signal(Signal::TERM);
    assert_eq!(process.ended().await.code, Some(0));
}

#[tokio::test]
async fn sighup_switches_algorithm_and_rates() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let folder = Folder::new();
    let url = upstream.url();
    let with = |more: &str| {
        let text =
            format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nupstreams:\n  - url: {url}\n    ceiling: 40\n{more}");
        folder.write("tidegate.yaml", &text)
    };
    let file = with("");
    let process = Process::start(&["--config", &file], &[]);
    assert_eq!(posted(&process, "/x").await.response().await.status, 200);
    let account = process.admin("/status").await.json()["accounts"][0].clone();
    assert_eq!((&account["limit"], &account["pace_per_second"]), (&40.into(), &serde_json::Value::Null), "{account}");
    for (reloads, more, pace) in [
        (1.0, "    limit: { algorithm: aimd, max: 20 }\n    rpm: 600\n", serde_json::json!(10.0)),
        (2.0, "    limit: { algorithm: vegas, max: 30 }\n    rpm: 1200\n", serde_json::json!(20.0)),
        (3.0, "    limit: { algorithm: tide, max: 50 }\n", serde_json::Value::Null),
    ] {
        with(more);
        process.signal(Signal::HUP);
        process
            .admin_says("/metrics", |page| {
                metric(&page.text(), "tidegate_config_reloads_total", &["result=\"accepted\""]) == Some(reloads)
            })
            .await;
        let account = process.admin("/status").await.json()["accounts"][0].clone();
        let max = account["limit"].as_u64().unwrap();
        assert!([20, 30, 40].contains(&max), "{more}: {account}");
        assert_eq!(account["pace_per_second"], pace, "{more}: {account}");
        for _ in 0..3 {
            assert_eq!(posted(&process, "/x").await.response().await.status, 200, "{more}");
        }
    }
    let page = process.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_limit_changes_total", &["reason=\"retune\""]), Some(3.0), "{page}");
}

#[tokio::test]
async fn sighup_without_a_file_changes_nothing() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let process = serve(&upstream, &["--ceiling", "3"]);
    assert_eq!(posted(&process, "/x").await.response().await.status, 200);
    process.signal(Signal::HUP);
    process
        .admin_says("/metrics", |page| {
            metric(&page.text(), "tidegate_config_reloads_total", &["result=\"accepted\""]) == Some(1.0)
        })
        .await;
    assert_eq!(process.admin("/status").await.json()["accounts"][0]["ceiling"], 3);
    assert_eq!(posted(&process, "/x").await.response().await.status, 200);
}

#[tokio::test]
async fn wrong_use_is_one_line_on_standard_error_and_exit_code_2() {
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    let folder = Folder::new();
    let unknown = folder.write("unknown.yaml", "upstreams: [{ url: 'http://h' }]\nlisten_on: 127.0.0.1:0\n");
    let torn = folder.write("torn.yaml", "upstreams: [{ url: 'http://h'\n");
    let missing = folder.path().join("missing.yaml").to_str().unwrap().to_owned();
    let a_folder = folder.path().to_str().unwrap().to_owned();
    let no_certificate = folder.write(
        "tls.yaml",
        &format!("listen: 127.0.0.1:0\nadmin: off\ntls: {{ cert: '{missing}', key: '{missing}' }}\nupstreams: [{{ url: 'http://h' }}]\n"),
    );
    let no_ca = folder.write(
        "ca.yaml",
        &format!("listen: 127.0.0.1:0\nadmin: off\nupstreams: [{{ url: 'https://h', tls: {{ ca: '{missing}' }} }}]\n"),
    );
    let up = ["--upstream", "http://127.0.0.1:9"];
    for (name, args, want) in [
        ("no upstream", vec![], "--upstream"),
        ("serve, no upstream", vec!["serve"], "--upstream"),
        ("bad URL", vec!["--upstream", "api.openai.com"], "--upstream"),
        ("port in use", [&up[..], &["--listen", &busy, "--admin", "off"]].concat(), busy.as_str()),
        ("admin port in use", [&up[..], &["--listen", "127.0.0.1:0", "--admin", &busy]].concat(), busy.as_str()),
        ("unknown tier", [&up[..], &["--tier", "nope"]].concat(), "--tier"),
        ("unknown preset", [&up[..], &["--preset", "nope"]].concat(), "--preset"),
        ("unreadable file", vec!["--config", &missing], "missing.yaml"),
        ("a folder", vec!["--config", &a_folder], "tidegate-it-"),
        ("unknown key", vec!["--config", &unknown], "unknown.yaml:2:1"),
        ("not YAML", vec!["--config", &torn], "torn.yaml:"),
        ("no certificate", vec!["--config", &no_certificate], "missing.yaml"),
        ("no issuers", vec!["--config", &no_ca], "missing.yaml"),
        ("check, unknown key", vec!["check", &unknown], "unknown.yaml:2:1"),
        ("check, unreadable file", vec!["check", &missing], "missing.yaml"),
    ] {
        let ended = Process::run(&args, &[]).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{name}: {ended:?}");
        assert_eq!(ended.err.lines().count(), 1, "{name}: {}", ended.err);
        assert!(ended.err.starts_with("tidegate: ") && ended.err.contains(want), "{name}: {}", ended.err);
    }
}

#[tokio::test]
async fn a_wrong_command_line_is_one_line_too() {
    for (name, args, want) in [
        ("unknown flag", vec!["--upsteam", "http://h"], "--upsteam"),
        ("not a number", vec!["--upstream", "http://h", "--ceiling", "many"], "--ceiling"),
        ("unknown command", vec!["srve"], "srve"),
        ("value missing", vec!["--upstream"], "--upstream"),
    ] {
        let ended = Process::run(&args, &[]).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{name}: {ended:?}");
        assert!(ended.err.starts_with("tidegate: ") && ended.err.contains(want), "{name}: {}", ended.err);
        assert_eq!(ended.err.lines().count(), 1, "{name}: {}", ended.err);
    }
}

#[tokio::test]
async fn a_flag_beats_the_environment_and_the_environment_beats_the_file() {
    let folder = Folder::new();
    let file = folder.write(
        "tidegate.yaml",
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nupstreams: [{ name: x, url: 'http://127.0.0.1:9', ceiling: 3 }]\n",
    );
    let ceiling = ("TIDEGATE_CEILING", "5");
    for (name, args, env, want, tier) in [
        ("file", vec![], vec![], 3, ""),
        ("environment", vec![], vec![ceiling], 5, ""),
        ("flag", vec!["--ceiling", "7"], vec![ceiling], 7, ""),
        ("tier in the environment", vec![], vec![("TIDEGATE_TIER", "free")], 10, "free"),
        ("tier as flag, ceiling in the environment", vec!["--tier", "pro"], vec![ceiling], 50, "pro"),
        ("ceiling as flag, tier in the environment", vec!["--ceiling", "2"], vec![("TIDEGATE_TIER", "pro")], 2, ""),
    ] {
        let env = [&env[..], &[("TIDEGATE_CONFIG", &file)]].concat();
        let process = Process::start(&args, &env);
        let status = process.admin("/status").await.json();
        assert_eq!(status["upstreams"][0]["ceiling"], want, "{name}");
        assert_eq!(status["upstreams"][0]["tier"].as_str().unwrap_or_default(), tier, "{name}");
        assert_eq!(status["upstreams"][0]["name"], "x", "{name}");
    }
}

#[tokio::test]
async fn the_environment_alone_is_enough() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let url = upstream.url();
    let env = [
        ("TIDEGATE_UPSTREAM", url.as_str()),
        ("TIDEGATE_LISTEN", "127.0.0.1:0"),
        ("TIDEGATE_ADMIN", "127.0.0.1:0"),
        ("TIDEGATE_THREADS", "1"),
        ("TIDEGATE_LOG_FORMAT", "json"),
        ("TIDEGATE_LOG_LEVEL", "debug"),
    ];
    let process = Process::start(&[], &env);
    let mut client = process.client().await;
    client.post("/secret-path?key=hidden", "authorization: Bearer sk-secret\r\n", "{\"secret\":1}").await;
    assert_eq!(client.response().await.text(), "hello");
    process.signal(Signal::TERM);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0));
    assert!(!ended.err.is_empty());
    for line in ended.err.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line.is_object()), "{line}");
    }
    for secret in ["secret", "hidden"] {
        assert!(!ended.err.contains(secret), "{secret} was logged: {}", ended.err);
    }
}

#[tokio::test]
async fn check_accepts_the_reference_and_every_example() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = vec![root.join("tidegate.yaml")];
    files.extend(std::fs::read_dir(root.join("examples")).unwrap().map(|entry| entry.unwrap().path()));
    assert!(files.len() >= 3);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let names: Vec<String> = text
            .split("${")
            .skip(1)
            .filter_map(|rest| rest.split_once('}'))
            .map(|(name, _)| name.to_owned())
            .filter(|name| name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_'))
            .collect();
        let value = |name: &str| match name {
            name if name.contains("KEY") => "sk-very-secret",
            name if name.contains("HOST") => "upstream.internal",
            _ => "7",
        };
        let env: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value(name))).collect();
        let ended = Process::run(&["check", file.to_str().unwrap()], &env).await;
        assert_eq!(ended.code, Some(0), "{}: {}", file.display(), ended.err);
        // That other machines reach it is what a gateway and a sidecar are for.
        let exposed = |line: &str| line.starts_with("tidegate: warning: `") && line.contains("other machines");
        assert!(ended.err.lines().all(exposed), "{}: {}", file.display(), ended.err);
        assert!(ended.out.contains("upstreams:"), "{}", ended.out);
        assert!(!ended.out.contains("sk-very-secret"), "{}: a secret was shown", file.display());
    }
}

#[tokio::test]
async fn help_and_version_go_to_standard_output() {
    let help = Process::run(&["--help"], &[]).await;
    assert_eq!((help.code, help.err.as_str()), (Some(0), ""));
    assert!(help.out.contains("Examples:") && help.out.contains("tidegate --upstream https://"), "{}", help.out);
    for command in ["serve", "demo", "mock", "check"] {
        assert!(help.out.contains(command), "{command}");
        assert_eq!(Process::run(&[command, "--help"], &[]).await.code, Some(0), "{command}");
    }
    let version = Process::run(&["--version"], &[]).await;
    assert_eq!(version.out.trim(), format!("tidegate {}", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn the_mock_says_where_it_is_and_refuses_above_its_ceiling() {
    let process = Process::start(&["mock", "--listen", "127.0.0.1:0", "--ceiling", "1", "--latency", "1h"], &[]);
    let addr = process.addr("url").await;
    assert_eq!(process.out(), format!("tidegate mock ready url=http://{addr}\n"));
    let mut held = Client::connect(addr).await;
    held.post("/v1/infer", "", r#"{"input":"hi"}"#).await;
    let ledger = async || {
        let mut client = Client::connect(addr).await;
        client.get("/__ledger").await;
        client.response().await.json()
    };
    soon("the slot is taken", async { while ledger().await["in_flight"] != 1 {} }).await;
    let mut refused = Client::connect(addr).await;
    refused.post("/v1/infer", "x-mock-latency: 0ms\r\n", r#"{"input":"hi"}"#).await;
    assert_eq!(refused.response().await.status, 429);
    drop(held);
    soon("the slot is free", async { while ledger().await["in_flight"] != 0 {} }).await;
    refused.post("/v1/infer", "x-mock-latency: 0ms\r\n", r#"{"input":"hi"}"#).await;
    assert_eq!(refused.response().await.status, 200);
    process.signal(Signal::TERM);
    assert_eq!(process.ended().await.code, Some(0));
}
