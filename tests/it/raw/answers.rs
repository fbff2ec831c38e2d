//! What an upstream may answer: what is whole arrives whole, what is broken never looks whole, and nothing of one
//! answer gets into the next.

use std::time::Duration;

use http_body_util::BodyExt;

use super::say;
use crate::support::{Http2Client, Proxy, Reply, Step, Upstream, soon};

const GET: &str = "GET /x HTTP/1.1\r\nHost: h\r\n\r\n";

#[tokio::test]
async fn answers_are_passed_on_by_their_framing() {
    let mut failed = Vec::new();
    for (name, answer, close, status, body) in [
        ("a length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", false, 200, "hi"),
        ("no length, closed", "HTTP/1.1 200 OK\r\n\r\nhi", true, 200, "hi"),
        ("HTTP/1.0, closed", "HTTP/1.0 200 OK\r\n\r\nhi", true, 200, "hi"),
        ("chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", false, 200, "hi"),
        ("Chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n", false, 200, "hi"),
        (
            "both framings",
            "HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            false,
            200,
            "hi",
        ),
        ("equal lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", false, 200, "hi"),
        ("a list of equal lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi", false, 200, "hi"),
        ("an odd status", "HTTP/1.1 799 Odd\r\nContent-Length: 2\r\n\r\nhi", false, 799, "hi"),
        ("no reason", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi", false, 200, "hi"),
        (
            "103 first",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            false,
            200,
            "hi",
        ),
        (
            "100 unasked",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            false,
            200,
            "hi",
        ),
        ("204", "HTTP/1.1 204 No Content\r\n\r\n", false, 204, ""),
        ("204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", false, 204, ""),
        (
            "304 with a length",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: \"a\"\r\n\r\n",
            false,
            304,
            "",
        ),
        ("205", "HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n", false, 205, ""),
    ] {
        let upstream = Upstream::start(move |_| {
            let reply = Reply::raw(answer);
            if close { reply.then(Step::Close) } else { reply }
        })
        .await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.send(GET).await;
            let response = client.response().await;
            let framings = response.head.to_lowercase().matches("content-length:").count()
                + response.head.matches("chunked").count();
            if (response.status, response.text().as_str(), response.complete) != (status, body, true) || framings > 1 {
                failed.push(format!("{name}: {response:?}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn garbage_is_a_502() {
    let mut failed = Vec::new();
    for (name, answer) in [
        ("no head", "hello\r\n\r\n"),
        ("HTTP/0.9", "<html>hello</html>"),
        ("another version", "HTTP/3.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("no status", "HTTP/1.1 \r\n\r\n"),
        ("status 99", "HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n"),
        ("status 1000", "HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n"),
        ("unequal lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!"),
        ("a signed length", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi"),
        ("an empty length", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhi"),
        ("gzip, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
        ("chunked, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
        ("gzip", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi"),
        ("identity", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nhi"),
        ("TE of HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
        ("a folded line", "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n"),
        ("NUL in a value", "HTTP/1.1 200 OK\r\nX-A: \0\r\nContent-Length: 0\r\n\r\n"),
        ("bare CR in a value", "HTTP/1.1 200 OK\r\nX-A: b\rc\r\nContent-Length: 0\r\n\r\n"),
        ("a blank before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
        ("nothing", ""),
    ] {
        let upstream = Upstream::start(move |_| Reply::raw(answer).then(Step::Close)).await;
        let proxy = Proxy::start(&upstream.url(), |settings| settings.retry.attempts_max = 1);
        let got = say(proxy.addr, GET.as_bytes()).await;
        if got.statuses != [502] || !got.text.contains("upstream_protocol") {
            failed.push(format!("{name}: {}", got.text));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn a_body_that_breaks_off_never_ends_cleanly() {
    let mut failed = Vec::new();
    for (name, answer) in [
        ("short of its length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
        ("between chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ("inside a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello"),
        ("inside a size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1"),
        ("after the last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"),
        ("a bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n0\r\n\r\n"),
        ("a bad end of a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n"),
    ] {
        for end in [Step::Close, Step::Reset] {
            let last = end.clone();
            let upstream = Upstream::start(move |_| {
                Reply::raw(answer).then(Step::Wait(Duration::from_millis(20))).then(last.clone())
            })
            .await;
            let proxy = Proxy::start(&upstream.url(), |_| {});
            let mut client = proxy.client().await;
            client.send(GET).await;
            if client.response().await.complete {
                failed.push(format!("{name}, {end:?}: whole over HTTP/1.1"));
            }
            // There a body may end with the connection, so that only a reset tells.
            let mut client = proxy.client().await;
            client.send("GET /x HTTP/1.0\r\n\r\n").await;
            let (bytes, clean) = client.rest().await;
            let text = String::from_utf8_lossy(&bytes);
            if clean && !text.to_lowercase().contains("content-length") && !text.contains(" 502 ") {
                failed.push(format!("{name}, {end:?}: whole over HTTP/1.0: {text:?}"));
            }
            let client = Http2Client::connect(proxy.addr).await;
            let body = client.send("GET", "/x", &[], "").await.into_body();
            if soon("the end", body.collect()).await.is_ok() {
                failed.push(format!("{name}, {end:?}: whole over HTTP/2"));
            }
            proxy.idle().await;
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn excess_bytes_never_answer_the_next_request() {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for (name, method, answer) in [
        ("HEAD with a body", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nexcess"),
        ("204 with a body", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\nexcess"),
        ("304 with a body", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\nexcess"),
        ("more than its length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
        ("after the last chunk", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
    ] {
        for late in [false, true] {
            let upstream = Upstream::start(move |seen| match seen.line() {
                line if line.contains("/victim") => Reply::ok("yours"),
                _ if late => Reply::raw(answer)
                    .then(Step::Wait(Duration::from_millis(1)))
                    .then(Step::Send(poison.as_bytes().to_vec())),
                _ => Reply::raw(format!("{answer}{poison}")),
            })
            .await;
            let proxy = Proxy::configured(&upstream.url(), |config| config.threads = 1);
            for _ in 0..12 {
                let mut client = proxy.client().await;
                client.send(format!("{method} /x HTTP/1.1\r\nHost: h\r\n\r\n")).await;
                client.head().await;
                if late {
                    // What comes after the next request was written is its answer, whatever the upstream meant.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let victim = proxy.get("/victim").await;
                assert_eq!((victim.status, victim.text().as_str()), (200, "yours"), "{name}, late: {late}");
            }
        }
    }
}

#[tokio::test]
async fn lengths_of_bodies_that_are_not_sent_are_told() {
    let head = |lines: &str| format!("HTTP/1.1 304 Not Modified\r\n{lines}ETag: \"a\"\r\n\r\n");
    let ok = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}ETag: \"a\"\r\n\r\n");
    for (name, method, answer, length) in [
        ("304", "GET", head("Content-Length: 1234\r\n"), Some("1234")),
        ("304 of length 0", "GET", head("Content-Length: 0\r\n"), Some("0")),
        ("304 without", "GET", head(""), None),
        ("304 with nonsense", "GET", head("Content-Length: x\r\n"), None),
        ("304 with two", "GET", head("Content-Length: 1\r\nContent-Length: 2\r\n"), None),
        ("304, chunked", "GET", head("Transfer-Encoding: chunked\r\n"), None),
        ("304 to HEAD", "HEAD", head("Content-Length: 1234\r\n"), Some("1234")),
        ("HEAD", "HEAD", ok("Content-Length: 1234\r\n"), Some("1234")),
        ("HEAD without", "HEAD", ok(""), None),
    ] {
        let upstream = Upstream::start(move |_| Reply::raw(answer.clone())).await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        let mut client = proxy.client().await;
        // Whatever it says, the next answer begins right after.
        for _ in 0..3 {
            client.send(format!("{method} /x HTTP/1.1\r\nHost: h\r\n\r\n")).await;
            let response = client.response_to_head().await;
            assert_eq!(response.header("content-length"), length, "{name}: {response:?}");
            assert_eq!(response.header("etag"), Some("\"a\""), "{name}: {response:?}");
        }
        let client = Http2Client::connect(proxy.addr).await;
        let response = client.send(method, "/x", &[], "").await;
        if let Some(length) = length {
            assert_eq!(response.headers()["content-length"], length, "{name}");
        }
        assert!(soon("the end", response.into_body().collect()).await.unwrap().to_bytes().is_empty(), "{name}");
        proxy.idle().await;
    }
}
