//! TLS on both sides: who is trusted, who is not, and which HTTP version is agreed on.

use std::time::Duration;

use http::Version;
use tidegate::config::{Http2, ListenTls, TlsRoots, Upstream as Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Folder, Http2Client, Identity, Issuer, Process, Proxy, Reply, TlsUpstream, Upstream, soon, wait_until,
};

const BOTH: &[&str] = &["h2", "http/1.1"];

fn start(upstream: &TlsUpstream, issuer: &Issuer, change: impl FnOnce(&mut Settings)) -> Proxy {
    Proxy::start(&upstream.url(), |settings| {
        settings.tls.roots = TlsRoots::None;
        settings.tls.ca = Some(issuer.file());
        settings.retry.attempts_max = 2;
        settings.retry.backoff_base = Duration::from_millis(5);
        settings.retry.backoff_jitter = Duration::from_millis(1);
        change(settings);
    })
}

#[tokio::test]
async fn the_version_is_what_both_sides_can() {
    let issuer = Issuer::new();
    let own = issuer.identity("localhost");
    for (name, offered, http2, want) in [
        ("both can both", BOTH, Http2::Auto, Ok(Version::HTTP_2)),
        ("the upstream has HTTP/1.1 only", &["http/1.1"][..], Http2::Auto, Ok(Version::HTTP_11)),
        ("the upstream knows no ALPN", &[], Http2::Auto, Ok(Version::HTTP_11)),
        ("switched off", BOTH, Http2::Off, Ok(Version::HTTP_11)),
        ("only, and it can", BOTH, Http2::Only, Ok(Version::HTTP_2)),
        ("only, and it cannot", &["http/1.1"], Http2::Only, Err("unreachable")),
        ("only, and it knows no ALPN", &[], Http2::Only, Err("unreachable")),
    ] {
        let upstream = TlsUpstream::start(&own, offered, None).await;
        let proxy = start(&upstream, &issuer, |settings| settings.http2 = http2);
        let response = proxy.post("/x", "", "{}").await;
        match want {
            Ok(version) => {
                assert_eq!((response.status, response.text().as_str()), (200, "hello"), "{name}");
                assert_eq!(upstream.seen()[0].version, version, "{name}");
            }
            Err(fault) => {
                assert_eq!((response.status, response.header("x-tidegate-fault")), (502, Some(fault)), "{name}");
                assert!(upstream.seen().is_empty(), "{name}");
            }
        }
        proxy.idle().await;
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_prove_who_it_is_gets_no_request() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let day = rcgen::date_time_ymd;
    for (name, own, server_name) in [
        ("unknown issuer", stranger.identity("localhost"), None),
        ("another name", issuer.identity("other.test"), None),
        ("another name than asked for", issuer.identity("localhost"), Some("api.test")),
        ("expired", issuer.identity_with("localhost", |params| params.not_after = day(2020, 1, 1)), None),
        ("not yet valid", issuer.identity_with("localhost", |params| params.not_before = day(3000, 1, 1)), None),
    ] {
        let upstream = TlsUpstream::start(&own, BOTH, None).await;
        let proxy = start(&upstream, &issuer, |settings| settings.tls.server_name = server_name.map(str::to_owned));
        let response = proxy.post("/v1/messages", "authorization: Bearer secret\r\n", "{}").await;
        assert_eq!((response.status, response.header("x-tidegate-fault")), (502, Some("unreachable")), "{name}");
        assert!(response.text().contains("TLS"), "{name}: {}", response.text());
        assert!(upstream.seen().is_empty(), "{name}");
        proxy.idle().await;
    }
}

#[tokio::test]
async fn the_log_says_what_is_wrong_with_an_upstreams_certificate() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let expired = issuer.identity_with("localhost", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    for (name, own, want) in [
        ("unknown issuer", stranger.identity("localhost"), "UnknownIssuer"),
        ("another name", issuer.identity("other.test"), "not valid for name \"localhost\""),
        ("expired", expired, "certificate expired"),
    ] {
        let upstream = TlsUpstream::start(&own, BOTH, None).await;
        let folder = Folder::new();
        let text = format!(
            "listen: 127.0.0.1:0\nadmin: off\nupstreams:\n  - url: {}\n    retry: {{ attempts_max: 1 }}\n    tls: {{ roots: none, ca: '{}' }}\n",
            upstream.url(),
            issuer.file().display()
        );
        let process = Process::start(&["--config", &folder.write("tidegate.yaml", &text)], &[]);
        let mut client = process.client().await;
        client.post("/x", "authorization: Bearer secret\r\n", "{}").await;
        let response = client.response().await;
        assert_eq!((response.status, response.header("x-tidegate-fault")), (502, Some("unreachable")), "{name}");
        wait_until("it is logged", || process.err().contains("\"exchange\"")).await;
        let log = process.err().replace("\\\"", "\"");
        assert_eq!(log.matches("TLS handshake").count(), 1, "{name}: {log}");
        let line = log.lines().find(|line| line.contains("TLS handshake")).unwrap();
        assert!(line.contains("INFO") && line.contains("localhost") && line.contains(want), "{name}: {line}");
        assert!(!log.contains("secret"), "{name}: {log}");
    }
}

#[tokio::test]
async fn another_server_name_is_verified_and_asked_for() {
    let issuer = Issuer::new();
    let upstream = TlsUpstream::start(&issuer.identity("api.test"), BOTH, None).await;
    let proxy = start(&upstream, &issuer, |settings| settings.tls.server_name = Some("api.test".to_owned()));
    assert_eq!(proxy.post("/x", "", "{}").await.text(), "hello");
    assert_eq!(upstream.seen()[0].server_name.as_deref(), Some("api.test"));
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_configured() {
    let issuer = Issuer::new();
    let upstream = TlsUpstream::start(&issuer.identity("localhost"), BOTH, Some(&issuer)).await;
    let own = issuer.identity("client.test");
    let proxy = start(&upstream, &issuer, |settings| settings.tls.client = Some((own.cert, own.key)));
    assert_eq!(proxy.post("/x", "", "{}").await.text(), "hello");
    assert!(upstream.seen()[0].client_cert);
    let proxy = start(&upstream, &issuer, |_| {});
    let response = proxy.post("/x", "", "{}").await;
    assert_eq!((response.status, response.header("x-tidegate-fault").is_some()), (502, true), "{response:?}");
    assert_eq!(upstream.seen().len(), 1);
    proxy.idle().await;
}

#[tokio::test]
async fn an_upgrade_uses_http_1_1_although_the_upstream_speaks_http2() {
    let issuer = Issuer::new();
    let upstream = TlsUpstream::start(&issuer.identity("localhost"), BOTH, None).await;
    let proxy = start(&upstream, &issuer, |_| {});
    assert_eq!(proxy.post("/x", "", "{}").await.text(), "hello");
    let mut client = proxy.client().await;
    client.send("GET /ws HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.0, 101);
    client.send("ping").await;
    assert_eq!(client.bytes().await, b"ping");
    assert_eq!(proxy.post("/x", "", "{}").await.text(), "hello");
    let versions: Vec<_> = upstream.seen().iter().map(|seen| seen.version).collect();
    assert_eq!(versions, [Version::HTTP_2, Version::HTTP_11, Version::HTTP_2]);
    drop(client);
    proxy.idle().await;
}

fn https_proxy(upstream: &Upstream, own: &Identity, client_ca: Option<&Issuer>) -> Proxy {
    let client_ca = client_ca.map(Issuer::file);
    Proxy::configured(&upstream.url(), |config| {
        config.tls = Some(ListenTls { cert: own.cert.clone(), key: own.key.clone(), client_ca });
    })
}

/// One GET over HTTP/1.1; what came back, or why nothing did.
async fn get(issuer: &Issuer, proxy: &Proxy, alpn: &[&str], own: Option<&Identity>) -> std::io::Result<String> {
    let mut stream = issuer.connect(proxy.addr, alpn, own).await?;
    stream.write_all(b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    soon("the answer's end", stream.read_to_string(&mut answer)).await?;
    Ok(answer)
}

#[tokio::test]
async fn an_https_listener_agrees_on_either_version() {
    let issuer = Issuer::new();
    let upstream = Upstream::start(|seen| Reply::ok(seen.line())).await;
    let proxy = https_proxy(&upstream, &issuer.identity("localhost"), None);
    for alpn in [&["http/1.1"][..], &[]] {
        let answer = get(&issuer, &proxy, alpn, None).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("GET /x HTTP/1.1"), "{alpn:?}: {answer}");
    }
    let stream = issuer.connect(proxy.addr, BOTH, None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let client = Http2Client::over(stream).await;
    assert_eq!(client.post("/x", "{}").await, (200, "POST /x HTTP/1.1".to_owned()));
    // Whoever speaks plain HTTP to it learns nothing and disturbs nobody.
    let mut plain = proxy.client().await;
    plain.get("/x").await;
    let (answer, _) = plain.rest().await;
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    assert_eq!(client.post("/x", "{}").await.0, 200);
    assert_eq!(upstream.count(), 4);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_one_is_asked_for() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let upstream = Upstream::start(|_| Reply::ok("hello")).await;
    let proxy = https_proxy(&upstream, &issuer.identity("localhost"), Some(&issuer));
    for (name, own) in [("none", None), ("a stranger's", Some(stranger.identity("client.test")))] {
        let answer = get(&issuer, &proxy, &["http/1.1"], own.as_ref()).await;
        assert!(answer.is_err(), "{name}: {answer:?}");
    }
    assert_eq!(upstream.count(), 0);
    let own = issuer.identity("client.test");
    let answer = get(&issuer, &proxy, &["http/1.1"], Some(&own)).await.unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
}
