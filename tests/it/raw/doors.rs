//! No open door: nothing a client says chooses where its request goes, and no tunnel stands that was not agreed.

use super::{Case, passed, refused, refused_with, run, say};
use crate::support::{Http2Client, Proxy, Reply, Step, Upstream};

const UPSTREAM: &str = "\r\nhost: 127.0.0.1:";

fn to(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

#[tokio::test]
async fn a_target_is_a_path_and_its_authority_goes_nowhere() {
    run(vec![
        passed("absolute", to("http://elsewhere.test/x?y"), &["get /x?y http/1.1\r\n", UPSTREAM], &["elsewhere"]),
        passed("absolute, https", to("https://elsewhere.test/x"), &["get /x http/1.1\r\n", UPSTREAM], &["elsewhere"]),
        passed("absolute, a port", to("http://127.0.0.1:1/x"), &["get /x http/1.1\r\n", UPSTREAM], &[":1\r\n"]),
        passed("absolute, no path", to("http://elsewhere.test"), &["get / http/1.1\r\n", UPSTREAM], &["elsewhere"]),
        passed(
            "the path looks like a host",
            to("//elsewhere.test/x"),
            &["get //elsewhere.test/x http/1.1\r\n", UPSTREAM],
            &[],
        ),
        passed("an at sign", to("/@elsewhere.test/x"), &["get /@elsewhere.test/x http/1.1\r\n", UPSTREAM], &[]),
        passed("a URL as the path", to("/http://elsewhere.test/x"), &["get /http://elsewhere.test/x ", UPSTREAM], &[]),
        passed(
            "another Host",
            "GET /x HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Forwarded-Host: evil\r\n\r\n",
            &["get /x http/1.1\r\n", UPSTREAM],
            &["169.254"],
        ),
        passed(
            "a method override is the upstream's affair",
            "POST /x HTTP/1.1\r\nHost: h\r\nX-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n",
            &["post /x http/1.1\r\n", "x-http-method-override: delete"],
            &[],
        ),
        refused("an at sign without a slash", to("@elsewhere.test/x")),
        refused("no slash", to("x/y")),
        refused("authority form", to("elsewhere.test:443")),
        refused("authority form without a port", to("elsewhere.test")),
        refused("asterisk", to("*")),
        refused("asterisk, OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        refused("absolute, a user", to("http://user:pass@elsewhere.test/x")),
        refused("absolute, letters as the port", to("http://elsewhere.test:http/x")),
        refused("absolute, no host", to("http:///x")),
        refused("another scheme", to("ftp://elsewhere.test/x")),
        refused("a file", to("file:///etc/passwd")),
        refused("an odd scheme", to("gopher://127.0.0.1:70/x")),
        refused("javascript", to("javascript:alert(1)")),
    ])
    .await;
}

#[tokio::test]
async fn targets_that_are_no_path_do_not_pass_behind_a_base_path_either() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&format!("{}/base", upstream.url()), |_| {});
    for target in ["elsewhere.test:443", "elsewhere.test", "*", "@elsewhere.test/x", "ftp://elsewhere.test/x"] {
        let got = say(proxy.addr, to(target).as_bytes()).await;
        assert!(got.statuses == [400] && got.closed, "{target}: {}", got.text);
        assert_eq!(upstream.count(), 0, "{target}");
    }
}

#[tokio::test]
async fn tunnels_and_echoes_are_no_methods_here() {
    run(vec![
        refused_with(&[405], "CONNECT", "CONNECT elsewhere.test:443 HTTP/1.1\r\nHost: elsewhere.test:443\r\n\r\n"),
        refused_with(
            &[405],
            "CONNECT, early bytes",
            "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n\x16\x03\x01GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        refused_with(&[405, 400], "CONNECT with a path", "CONNECT /x HTTP/1.1\r\nHost: h\r\n\r\n"),
        refused_with(&[405], "TRACE", "TRACE /x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer secret\r\n\r\n"),
        refused_with(&[405], "TRACE, HTTP/1.0", "TRACE /x HTTP/1.0\r\n\r\n"),
        refused_with(&[405], "TRACE with a body", "TRACE /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi"),
    ])
    .await;
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let connect = http::Request::connect("elsewhere.test:443").body(http_body_util::Full::default()).unwrap();
    for answer in [client.send("TRACE", "/x", &[], "").await, client.request(connect).await.unwrap()] {
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-tidegate-fault"]),
            (405, &"bad_method".parse().unwrap())
        );
        assert!(answer.headers()["allow"].to_str().unwrap().contains("GET"), "{answer:?}");
    }
    for method in ["TRACE /x", "CONNECT h:443"] {
        let got = say(proxy.addr, format!("{method} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await;
        assert!(got.text.to_lowercase().contains("\r\nallow: get"), "{method}: {}", got.text);
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn no_upgrade_but_a_websocket_is_passed_on() {
    let with = |lines: &str| format!("GET /x HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    let stripped = |name, bytes: String| -> Case {
        passed(name, bytes, &["get /x"], &["upgrade", "http2-settings", "connection"])
    };
    run(vec![
        stripped("h2c", with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n")),
        stripped(
            "h2c, settings not named",
            with("Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        ),
        stripped("h2c second", with("Connection: Upgrade\r\nUpgrade: foo, h2c\r\n")),
        stripped("h2c after websocket", with("Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n")),
        stripped("h2c on a second line", with("Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n")),
        stripped("H2C", with("Connection: Upgrade\r\nUpgrade: H2C\r\n")),
        stripped("TLS", with("Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n")),
        stripped("HTTP/2.0", with("Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n")),
        stripped("unknown", with("Connection: Upgrade\r\nUpgrade: anything\r\n")),
        stripped("not named by Connection", with("Upgrade: websocket\r\n")),
        stripped("HTTP/1.0", "GET /x HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned()),
        passed(
            "websocket with a body",
            "POST /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
            &["post /x", "\r\n\r\nhi"],
            &["upgrade"],
        ),
        passed(
            "websocket that is not taken up",
            with("Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n"),
            &["\r\nupgrade: websocket\r\n", "\r\nconnection: upgrade\r\n", "sec-websocket-key: k"],
            &[],
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_101_that_was_not_asked_for_is_the_upstreams_fault() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ";
    for (name, answer, lines) in [
        ("unasked", format!("{switch}websocket\r\n\r\n"), ""),
        ("unasked, no headers", "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned(), ""),
        ("h2c asked", format!("{switch}h2c\r\n\r\n"), "Connection: upgrade\r\nUpgrade: h2c\r\n"),
        ("another protocol", format!("{switch}h2c\r\n\r\n"), "Connection: upgrade\r\nUpgrade: websocket\r\n"),
        (
            "no protocol",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned(),
            "Connection: upgrade\r\nUpgrade: websocket\r\n",
        ),
    ] {
        let upstream = Upstream::start(move |_| Reply::raw(answer.clone()).then(Step::Echo)).await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        let got = say(proxy.addr, format!("GET /x HTTP/1.1\r\nHost: h\r\n{lines}\r\n").as_bytes()).await;
        assert_eq!(got.statuses, [502], "{name}: {}", got.text);
        assert!(got.text.contains("upstream_protocol"), "{name}: {}", got.text);
        proxy.idle().await;
    }
}
