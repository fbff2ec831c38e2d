//! What goes wrong inside Tidegate itself stays small.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tracing::{Event, Metadata, Subscriber, field::Visit, span};

use crate::support::{Http2Client, Process, Proxy, Reply, Step, Upstream, metric, soon, text, wait_until};

/// Panics where the program logs that an attempt is made again: in the middle of an exchange.
struct Mine;

struct Text(bool);

impl Visit for Text {
    fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 |= format!("{value:?}").contains("attempt is made again");
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
