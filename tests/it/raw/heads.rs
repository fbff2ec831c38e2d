//! Request lines, names, values and sizes: a head is read one way, or refused.

use tidegate::provider::presets::Preset;

use super::{Case, either, passed, refused, refused_with, run};
use crate::support::{Proxy, Reply, Upstream, metric};

fn get(lines: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
}

fn line(line: &str) -> String {
    format!("{line}\r\nHost: localhost\r\n\r\n")
}

#[tokio::test]
async fn a_request_line_is_method_target_version() {
    run(vec![
        refused("HTTP/0.9", "GET /x\r\n\r\n"),
        refused("HTTP/1.2", line("GET /x HTTP/1.2")),
        refused("HTTP/2.0", line("GET /x HTTP/2.0")),
        refused("HTTP/3", line("GET /x HTTP/3")),
        refused("HTTP/1", line("GET /x HTTP/1")),
        refused("HTTP/01.1", line("GET /x HTTP/01.1")),
        refused("HTTP/1.10", line("GET /x HTTP/1.10")),
        refused("http/1.1", line("GET /x http/1.1")),
        refused("no version", line("GET /x ")),
        refused("a blank after the version", line("GET /x HTTP/1.1 ")),
        refused("a blank in the target", line("GET /x y HTTP/1.1")),
        refused("a tab after the method", line("GET\t/x HTTP/1.1")),
        refused("a tab after the target", line("GET /x\tHTTP/1.1")),
        refused("two blanks after the target", line("GET /x  HTTP/1.1")),
        either("two blanks after the method", line("GET  /x HTTP/1.1")),
        refused("a blank before the method", line(" GET /x HTTP/1.1")),
        refused("a method that is no token", line("G(T /x HTTP/1.1")),
        refused("a colon in the method", line("GET: /x HTTP/1.1")),
        refused("NUL in the target", line("GET /x\0y HTTP/1.1")),
        refused("ESC in the target", line("GET /x\u{1b} HTTP/1.1")),
        refused("DEL in the target", line("GET /x\u{7f} HTTP/1.1")),
        refused("bare CR in the target", line("GET /x\ry HTTP/1.1")),
        refused("a byte that is no text in the target", b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        refused("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        passed("an empty line before", "\r\n".to_owned() + &get(""), &["get /x http/1.1\r\n"], &[]),
        passed("an unknown method", line("BREW /x HTTP/1.1"), &["brew /x http/1.1\r\n"], &[]),
    ])
    .await;
}

#[tokio::test]
async fn lines_names_and_values_have_one_reading() {
    run(vec![
        refused("a blank before the colon", get("X-A : b\r\n")),
        refused("a tab before the colon", get("X-A\t: b\r\n")),
        refused("a blank in a name", get("X A: b\r\n")),
        refused("no name", get(": b\r\n")),
        refused("no colon", get("X-A\r\n")),
        refused("a folded line", get("X-A: b\r\n c\r\n")),
        refused("a folded line, by a tab", get("X-A: b\r\n\tc\r\n")),
        refused("a blank before the first header", "GET /x HTTP/1.1\r\n Host: localhost\r\n\r\n"),
        refused("bare CR in a value", get("X-A: b\rc\r\n")),
        refused("bare CR before LF's line", get("X-A: b\r\r\n")),
        refused("bare CR ends a line", get("X-A: b\rX-B: c\r\n")),
        refused("NUL in a value", get("X-A: b\0c\r\n")),
        refused("BEL in a value", get("X-A: b\u{7}c\r\n")),
        refused("DEL in a value", get("X-A: b\u{7f}c\r\n")),
        refused("NUL in a name", get("X\0A: b\r\n")),
        refused("a control byte in a name", get("X\u{1}A: b\r\n")),
        refused("a slash in a name", get("X/A: b\r\n")),
        refused("a comma in a name", get("X,A: b\r\n")),
        refused("a byte above 127 in a name", get("X\u{e9}: b\r\n")),
        either("bare LF ends the head's lines", "GET /x HTTP/1.1\nHost: localhost\nX-A: b\n\n"),
        either("bare LF ends one line", get("X-A: b\nX-B: c\r\n")),
        either("bare LF hides a framing", get("X-A: b\nContent-Length: 0\r\n")),
        passed("a tab in a value", get("X-A: b\tc\r\n"), &["x-a: b\tc\r\n"], &[]),
        passed("no blank after the colon", get("X-A:b\r\n"), &["x-a: b\r\n"], &[]),
        passed("blanks around a value", get("X-A: \t b \t \r\n"), &["x-a: b\r\n"], &[]),
        passed("every token character", get("!#$%&'*+-.^_`|~09aZ: b\r\n"), &["!#$%&'*+-.^_`|~09az: b\r\n"], &[]),
    ])
    .await;
}

#[tokio::test]
async fn host_is_there_once_and_names_a_host() {
    let host = |lines: &str| format!("GET /x HTTP/1.1\r\n{lines}\r\n");
    let mut cases: Vec<Case> = vec![
        refused("missing", host("")),
        refused("twice", host("Host: a\r\nHost: b\r\n")),
        refused("twice and equal", host("Host: a\r\nHost: a\r\n")),
        refused("twice, the second empty", host("Host: a\r\nHost:\r\n")),
        refused("twice in HTTP/1.0", "GET /x HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
        refused("missing with an absolute target", "GET http://localhost/x HTTP/1.1\r\n\r\n"),
        refused("twice with an absolute target", "GET http://a/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        refused("a bad one with an absolute target", "GET http://a/x HTTP/1.1\r\nHost: a b\r\n\r\n"),
        passed("HTTP/1.0 without", "GET /x HTTP/1.0\r\n\r\n", &["\r\nhost: 127.0.0.1:"], &[]),
    ];
    cases.extend(
        [
            ("empty", ""),
            ("a list", "a,b"),
            ("a list with a blank", "a, b"),
            ("a blank", "a b"),
            ("a user", "user@host"),
            ("a user and a password", "user:pass@host"),
            ("an empty user", "@host"),
            ("a path", "host/path"),
            ("a scheme", "http://host"),
            ("a query", "host?x"),
            ("a fragment", "host#x"),
            ("a backslash", "host\\x"),
            ("letters as the port", "host:http"),
            ("a port beyond 65535", "host:65536"),
            ("a negative port", "host:-1"),
            ("two ports", "host:80:81"),
            ("only a port", ":80"),
            ("an open bracket", "[::1"),
            ("a bracket and more", "[::1]x"),
            ("letters in brackets", "[host]"),
            ("a byte above 127", "h\u{f6}st"),
            ("a quote", "\"host\""),
            ("a tab", "a\tb"),
            ("angle brackets", "<host>"),
        ]
        .into_iter()
        .map(|(name, value)| refused(name, host(&format!("Host: {value}\r\n")))),
    );
    cases.extend(
        [
            ("a name", "api.example.com"),
            ("a name and a port", "api.example.com:443"),
            ("an address", "127.0.0.1:8080"),
            ("IPv6", "[2001:db8::1]"),
            ("IPv6 and a port", "[::1]:8080"),
            ("an underscore", "my_service"),
            ("a dot at the end", "host."),
            ("capitals", "LOCALHOST"),
        ]
        .into_iter()
        .map(|(name, value)| {
            passed(name, host(&format!("Host: {value}\r\n")), &["get /x http/1.1\r\n", "\r\nhost: 127.0.0.1:"], &[])
        }),
    );
    run(cases).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_its_own_status() {
    let long = |bytes: usize| "a".repeat(bytes);
    run(vec![
        refused_with(&[431], "many headers", get(&"X-A: b\r\n".repeat(300))),
        refused_with(&[431], "very many headers", get(&"X-A: b\r\n".repeat(5_000))),
        refused_with(&[431], "one long value", get(&format!("X-A: {}\r\n", long(80_000)))),
        refused_with(&[431], "one endless value", get(&format!("X-A: {}\r\n", long(4 << 20)))),
        refused_with(&[431], "one long name", get(&format!("{}: b\r\n", long(70_000)))),
        refused_with(&[414], "a long target", line(&format!("GET /{} HTTP/1.1", long(40_000)))),
        refused_with(&[414], "a long query", line(&format!("GET /x?{} HTTP/1.1", long(50_000)))),
        refused_with(&[414], "a target longer than a head", line(&format!("GET /{} HTTP/1.1", long(100_000)))),
        refused_with(&[414], "an endless target", line(&format!("GET /{} HTTP/1.1", long(4 << 20)))),
        refused_with(
            &[431],
            "a long value after a target",
            line(&format!("GET /x HTTP/1.1\r\nX-A: {}", long(100_000))),
        ),
        refused_with(&[400, 414], "an endless method", line(&format!("{} / HTTP/1.1", "G".repeat(100_000)))),
        passed("a hundred and fifty headers", get(&"X-A: b\r\n".repeat(150)), &["x-a: b\r\n"], &[]),
        passed("a value of 32 KiB", get(&format!("X-A: {}\r\n", long(32_768))), &["aaaaaaaa\r\n"], &[]),
        passed(
            "a target of 30,000 bytes",
            line(&format!("GET /{}z HTTP/1.1", long(30_000))),
            &["aaaaz http/1.1\r\n"],
            &[],
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_after_others_too_and_in_the_shape_of_the_api() {
    let upstream = Upstream::start(|seen| match seen.line() {
        // Ends like hyper's own answer to a bad request.
        line if line.contains("/alike") => Reply::ok(std::str::from_utf8(ALIKE).unwrap()),
        line if line.contains("/bare") => Reply::raw("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
        _ => Reply::ok("fine"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.preset = Preset::Anthropic);
    let mut client = proxy.client().await;
    for path in ["/alike", "/bare", "/bare", "/x", "/alike"] {
        client.get(path).await;
        let response = client.response().await;
        assert!(response.header("x-tidegate-fault").is_none(), "{path}: {response:?}");
        let want: &[u8] = match path {
            "/alike" => ALIKE,
            "/x" => b"fine",
            _ => b"",
        };
        assert_eq!(response.body, want, "{path}");
    }
    client.send("NO REQUEST\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.status, response.header("x-tidegate-fault")), (400, Some("bad_head")), "{response:?}");
    assert_eq!(response.json().pointer("/type").unwrap(), "error");
    assert_eq!(response.json().pointer("/error/type").unwrap(), "invalid_request_error");
    assert!(client.rest().await.0.is_empty());
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_faults_total", &["kind=\"bad_head\""]), Some(1.0), "{page}");

    // Behind a request in the same packet: its answer first.
    let mut client = proxy.client().await;
    client.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\nNO REQUEST\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "fine");
    let response = client.response().await;
    assert_eq!((response.status, response.header("x-tidegate-fault")), (400, Some("bad_head")), "{response:?}");
}

const ALIKE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_fragment_never_goes_upstream() {
    run(vec![
        refused("in the path", line("GET /x#y HTTP/1.1")),
        refused("after the query", line("GET /x?y#z HTTP/1.1")),
        refused("in a URL", line("GET http://localhost/x#y HTTP/1.1")),
        refused("empty", line("GET /x# HTTP/1.1")),
        passed("escaped", line("GET /x%23y HTTP/1.1"), &["get /x%23y http/1.1\r\n"], &[]),
        passed("only in a header", get("Referer: http://h/x#y\r\n"), &["referer: http://h/x#y\r\n"], &[]),
    ])
    .await;
    // Of a head that came with another's answer under way it is not known any more, and left out.
    let upstream = Upstream::start(|_| Reply::ok("fine").after(std::time::Duration::from_millis(20))).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\nGET /y#z HTTP/1.1\r\nHost: h\r\n\r\n").await;
    for _ in 0..2 {
        assert_eq!(client.response().await.text(), "fine");
    }
    assert_eq!(upstream.seen()[1].line(), "GET /y HTTP/1.1");
}
