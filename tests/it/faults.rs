//! What goes wrong inside Tidegate itself stays small.

use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Full};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tidegate::telemetry::{self, LogFormat, LogLevel};
use tracing::{Event, Metadata, Subscriber, field::Visit, span};

use crate::support::{
    Client, Folder, Http2Client, Process, Proxy, Reply, Step, Upstream, metric, soon, text, wait_until,
};

/// Panics where the program logs that an attempt is made again, in the middle of an exchange, or what an answer used,
/// in the middle of its body.
struct Mine;

struct Text(bool);

impl Visit for Text {
    fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let said = format!("{value:?}");
        self.0 |= said.contains("attempt is made again") || said.contains("usage read");
    }
}

impl Subscriber for Mine {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut found = Text(false);
        event.record(&mut found);
        assert!(!found.0, "a panic for the test");
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_panic_fails_one_exchange_and_its_slot_comes_back() {
    // For the whole process: every test has one of its own.
    tracing::subscriber::set_global_default(Mine).unwrap();
    let upstream = Upstream::start(|seen| match seen.line() {
        line if line.contains("/bad") => Reply(vec![Step::Close]),
        line if line.contains("/held") => Reply::ok("held").held(),
        _ => Reply::ok("hello"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        settings.ceiling = Some(2);
        settings.retry.budget = 10.0;
    });
    let client = Http2Client::connect(proxy.addr).await;
    let neighbour = tokio::spawn({
        let client = client.clone();
        async move { client.post("/held", "{}").await }
    });
    wait_until("the neighbour is under way", || upstream.count() == 1).await;
    for _ in 0..3 {
        let response = client.send("GET", "/bad/v1/messages", &[], "").await;
        let (status, body) = (response.status(), text(response).await);
        assert_eq!(status, 500, "{body}");
        assert!(body.contains("tidegate_internal") && !body.contains("for the test"), "{body}");
        let response = proxy.get("/bad").await;
        assert_eq!((response.status, response.header("x-tidegate-fault")), (500, Some("internal")));
    }
    upstream.release(1);
    assert_eq!(neighbour.await.unwrap(), (200, "held".to_owned()), "on the same connection");
    assert_eq!(client.post("/x", "{}").await, (200, "hello".to_owned()));
    proxy.idle().await;
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_faults_total", &["kind=\"internal\""]), Some(6.0), "{page}");
}

#[tokio::test]
async fn a_panic_inside_a_body_fails_that_exchange_alone() {
    tracing::subscriber::set_global_default(Mine).unwrap();
    let events = "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n";
    let upstream = Upstream::start(move |seen| match seen.line() {
        line if line.contains("/bad") => Reply::new(200, "content-type: text/event-stream\r\n", events),
        line if line.contains("/held") => Reply::ok("held").held(),
        _ => Reply::ok("hello"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(2));
    let client = Http2Client::connect(proxy.addr).await;
    let neighbour = tokio::spawn({
        let client = client.clone();
        async move { client.post("/held", "{}").await }
    });
    wait_until("the neighbour is under way", || upstream.count() == 1).await;
    for _ in 0..3 {
        let request = Request::post("http://tidegate.test/bad").body(Full::from("{}")).unwrap();
        // A reset may overtake the head.
        if let Ok(response) = client.request(request).await {
            assert!(response.into_body().collect().await.is_err(), "what is missing is not taken for an end");
        }
        let mut one = proxy.client().await;
        one.post("/bad", "", "{}").await;
        let (said, _) = one.rest().await;
        assert!(!String::from_utf8_lossy(&said).contains("usage"), "it was cut");
    }
    upstream.release(1);
    assert_eq!(neighbour.await.unwrap(), (200, "held".to_owned()), "on the same connection");
    assert_eq!(client.post("/x", "{}").await, (200, "hello".to_owned()));
    proxy.idle().await;
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_faults_total", &["kind=\"internal\""]), Some(6.0), "{page}");
}

#[tokio::test]
async fn a_panic_is_a_line_of_the_log_and_quotes_nothing() {
    const CHILD: &str = "TIDEGATE_TEST_FORMAT";
    let fail = |what: &str| assert!(!what.starts_with("sk-"), "byte index 1 of `{what}`");
    if let Ok(format) = std::env::var(CHILD) {
        let format = if format == "json" { LogFormat::Json } else { LogFormat::Text };
        telemetry::start(Some(format), LogLevel::Warn);
        assert!(std::thread::spawn(move || fail("sk-secret")).join().is_err());
        return;
    }
    let test = std::thread::current().name().unwrap().to_owned();
    for format in ["json", "text"] {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env(CHILD, format)
            .env("RUST_BACKTRACE", "1")
            .output()
            .unwrap();
        let log = String::from_utf8(child.stderr).unwrap();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("faults.rs")).collect();
        assert!(child.status.success() && !lines.is_empty() && !log.contains("sk-"), "{log}");
        if format == "json" {
            let line: serde_json::Value =
                serde_json::from_str(lines[0]).unwrap_or_else(|error| panic!("{error}: {log}"));
            assert_eq!((line["level"].as_str(), line["message"].as_str()), (Some("ERROR"), Some("panic")), "{log}");
            assert!(line["place"].as_str().unwrap().starts_with("tests/it/faults.rs:"), "{log}");
            assert!(line["backtrace"].as_str().unwrap().contains("faults"), "{log}");
        }
    }
}

#[tokio::test]
async fn out_of_file_descriptors_it_says_so_once_and_recovers() {
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let url = upstream.url();
    let args = ["--upstream", &url, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "1"];
    let process = Process::start(&args, &[]);
    let addr = process.addr("proxy").await;
    let mut client = process.client().await;
    client.post("/x", "", "{}").await;
    assert_eq!(client.response().await.text(), "hello");
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count() as u64;
    let few = Rlimit { current: Some(open + 4), maximum: Some(open + 4) };
    prlimit(Pid::from_raw(process.id() as i32), Resource::Nofile, few).unwrap();
    let mut crowd = Vec::new();
    for _ in 0..20 {
        crowd.push(tokio::net::TcpStream::connect(addr).await.unwrap());
    }
    wait_until("it says so", || process.err().contains("connections cannot be accepted")).await;
    client.post("/x", "", "{}").await;
    assert_eq!(client.response().await.text(), "hello", "who is in is served");
    let mut late = process.client().await;
    late.post("/x", "", "{}").await;
    drop(crowd);
    assert_eq!(late.response().await.text(), "hello", "who waited is served when there is room");
    drop((client, late));
    soon("it says that too", async {
        while !process.err().contains("connections are accepted again") {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(tokio::net::TcpStream::connect(addr).await);
        }
    })
    .await;
    assert_eq!(process.err().matches("cannot be accepted").count(), 1, "{}", process.err());
    process.signal(Signal::TERM);
    assert_eq!(process.ended().await.code, Some(0));
}

#[tokio::test]
async fn each_failure_is_one_line_of_the_log_and_says_why() {
    let folder = Folder::new();
    let file = folder.write(
        "c.yaml",
        "{listen: '127.0.0.1:0', admin: off, upstreams: [{name: away, url: 'http://127.0.0.1:1', match: {path_prefix: /a}, retry: {attempts_max: 1}}]}",
    );
    let process = Process::start(&["--config", &file], &[]);
    let proxy = process.addr("proxy").await;
    let (long, mut lines) = ("x".repeat(40_000), 0);
    for (request, status, fault, reason) in [
        ("GET /nowhere HTTP/1.1\r\nhost: h\r\n\r\n", 404, "no_route", "no upstream"),
        ("GET /a HTTP/1.1\r\nhost: h\r\nhost: i\r\n\r\n", 400, "bad_head", "host"),
        ("TRACE /a HTTP/1.1\r\nhost: h\r\n\r\n", 405, "bad_method", "method"),
        ("CONNECT h:1 HTTP/1.1\r\nhost: h\r\n\r\n", 405, "bad_method", "method"),
        (format!("GET /{long} HTTP/1.1\r\nhost: h\r\n\r\n").as_str(), 414, "long_target", "target"),
        ("GET /a HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, "bad_head", "well-formed"),
        ("GET /a HTTP/1.1\r\nhost: h\r\n\r\n", 502, "unreachable", "(connecting failed): Connection refused"),
    ] {
        let mut client = Client::connect(proxy).await;
        client.send(request).await;
        assert_eq!(client.response().await.status, status, "{fault}");
        lines += 1;
        wait_until("it is logged", || process.err().matches("\"exchange\"").count() == lines).await;
        let log = process.err();
        let line: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"exchange".into()), "{line}");
        assert_eq!((&line["status"], &line["fault"]), (&status.into(), &fault.into()), "{line}");
        assert!(
            line["reason"].as_str().is_some_and(|said| said.to_lowercase().contains(&reason.to_lowercase())),
            "{line}"
        );
        assert_eq!(line["upstream"].as_str(), (fault == "unreachable").then_some("away"), "{line}");
    }
}
