//! W3C Trace Context crosses untouched: on every attempt, over HTTP/1.1 and over HTTP/2.

use std::time::Duration;

use tidegate::config::Http2;

use crate::support::{Http2Client, Http2Step, Http2Upstream, Proxy, Reply, Upstream, http2_ok, text};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STATE: [&str; 2] = ["congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "tenant@vendor=x y"];
const BAGGAGE: &str = "userId=alice,serverNode=DF%2028;p=1";

fn fast(settings: &mut tidegate::config::Upstream) {
    settings.retry.backoff_base = Duration::from_millis(10);
    settings.retry.backoff_jitter = Duration::from_millis(1);
}

#[tokio::test]
async fn the_clients_context_goes_with_every_attempt() {
    for (name, parent) in [("traceparent", PARENT), ("TraceParent", "no context at all"), ("traceparent", "")] {
        let upstream = Upstream::start(|seen| match seen.nth {
            0 => Reply::new(503, "", ""),
            1 => Reply::new(429, "retry-after-ms: 10\r\n", r#"{"error":{"message":"too many requests per minute"}}"#),
            _ => Reply::ok("fine"),
        })
        .await;
        let proxy = Proxy::start(&upstream.url(), fast);
        let headers = format!(
            "{name}: {parent}\r\ntracestate: {}\r\ntracestate: {}\r\nbaggage: {BAGGAGE}\r\n",
            STATE[0], STATE[1]
        );
        assert_eq!(proxy.post("/v1/chat/completions", &headers, "{}").await.text(), "fine");
        let seen = upstream.seen();
        assert_eq!(seen.len(), 3);
        for seen in seen {
            assert_eq!(seen.header("traceparent"), [parent]);
            assert_eq!(seen.header("tracestate"), STATE);
            assert_eq!(seen.header("baggage"), [BAGGAGE]);
        }
    }
}

#[tokio::test]
async fn so_it_does_over_http2_and_nothing_is_added_to_a_request_without_one() {
    let upstream = Http2Upstream::start(|seen| match seen.nth {
        0 => vec![Http2Step::Head(503, &[])],
        _ => http2_ok("fine"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        fast(settings);
        settings.http2 = Http2::Only;
    });
    let client = Http2Client::connect(proxy.addr).await;
    let headers = [("traceparent", PARENT), ("tracestate", STATE[0]), ("tracestate", STATE[1]), ("baggage", BAGGAGE)];
    let response = client.send("POST", "/v1/messages", &headers, "{}").await;
    assert_eq!(text(response).await, "fine");
    assert_eq!(text(client.send("POST", "/v1/messages", &[], "{}").await).await, "fine");
    let seen = upstream.seen();
    assert_eq!(seen.len(), 3);
    for (nth, seen) in seen.iter().enumerate() {
        let all = |name: &str| seen.head.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        let [parents, states, baggage] = ["traceparent", "tracestate", "baggage"].map(all);
        match nth {
            0 | 1 => assert!(parents == [PARENT] && states == STATE && baggage == [BAGGAGE], "{seen:?}"),
            _ => assert!(parents.is_empty() && states.is_empty() && baggage.is_empty(), "{seen:?}"),
        }
    }
}
