//! The admin port: every request gets an answer that can stand on the wire, and only a POST changes anything.
//!
//! Input: a request line, header lines, an empty line, a body.

#![no_main]

use std::sync::{Arc, LazyLock, atomic::AtomicBool};

use http::{Method, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use tidegate::{
    admin::{Admin, door},
    config::file,
    gate::Accounts,
    metrics::Metrics,
    proxy::{BufferBudget, Client, Route, Shared, Snapshot},
    tasks::Tasks,
    upstream::{Connector, Ways},
};
use tidegate_fuzz::{head, headers};
use tokio_util::sync::CancellationToken;

static SHARED: LazyLock<Arc<Shared>> = LazyLock::new(|| {
    let text = "upstreams: [{ name: \"x:1\", url: http://127.0.0.1:1/base, ceiling: 3 }]";
    let config = Arc::new(file::parse(text, "f.yaml", &|_| None).expect("it is valid"));
    let metrics = Arc::new(Metrics::new());
    let settings = config.upstreams[0].clone();
    let accounts = Arc::new(Accounts::new(&settings.name, Arc::default(), Arc::clone(&metrics), Tasks::new()));
    let connector = Arc::new(Connector::new(&settings, Ways::default()).expect("plain http needs no files"));
    let route = Arc::new(Route { settings, connector, accounts, balance_epoch: 0 });
    let (client, ()) =
        Request::builder().uri("/v1").header("x-api-key", "k").body(()).expect("it is valid").into_parts();
    let snapshot = Arc::new(Snapshot::new(config, vec![Arc::clone(&route)])).into();
    drop(route.gate(&client, b"", &snapshot, 8, &Client::default()));
    Arc::new(Shared {
        retired: Default::default(),
        snapshot,
        buffers: BufferBudget::new(1, metrics.buffered_bytes.clone()),
        metrics,
        refuse_waiting: CancellationToken::new(),
        draining: AtomicBool::new(false),
        traces: Default::default(),
    })
});

/// What they are before the first request.
static METRICS: LazyLock<String> = LazyLock::new(|| SHARED.metrics.render(std::iter::empty()));

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers"));

fuzz_target!(|data: &[u8]| {
    let _inside = RUNTIME.enter();
    let (lines, body) = head(data);
    let Some((first, rest)) = lines.split_first() else { return };
    let mut words = first.split(|byte| *byte == b' ');
    let mut word = || words.next().unwrap_or_default();
    let (Ok(method), Ok(uri)) = (Method::from_bytes(word()), Uri::try_from(word())) else { return };
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers(rest);

    let admin = Admin::new(Arc::clone(&SHARED), CancellationToken::new());
    LazyLock::force(&METRICS);
    let response = door::handle(&admin, &request);
    assert_eq!(SHARED.metrics.render(std::iter::empty()), *METRICS, "{method} {uri} was counted");
    assert!(SHARED.is_ready(), "{method} {uri} set something");
    let drains = admin.drain.is_cancelled();
    assert!(!drains || (method == Method::POST && uri.path() == "/drain"), "{method} {uri} drains");
    assert!(!drains || response.status() == StatusCode::ACCEPTED);

    let (head, body) = response.into_parts();
    let known = [200, 202, 400, 403, 404, 405, 421, 503];
    assert!(known.contains(&head.status.as_u16()), "{method} {uri}: {}", head.status);
    assert!(head.status != StatusCode::METHOD_NOT_ALLOWED || head.headers.contains_key("allow"));
    for name in ["content-type", "cache-control", "x-content-type-options"] {
        assert_eq!(head.headers.get_all(name).iter().count(), 1, "{method} {uri}: {name}");
    }
    let body = RUNTIME.block_on(body.collect()).expect("a full body never fails").to_bytes();
    assert!(!body.is_empty(), "{method} {uri}: nothing is said");
    match (uri.path(), head.status) {
        ("/status", StatusCode::OK) => {
            let page: serde_json::Value = serde_json::from_slice(&body).expect("it is JSON");
            assert_eq!(page["accounts"].as_array().map(Vec::len), Some(1), "{page}");
        }
        ("/history", StatusCode::OK) => {
            let page: serde_json::Value = serde_json::from_slice(&body).expect("it is JSON");
            assert_eq!(page["points"].as_array().map(Vec::len), Some(0), "{page}");
        }
        ("/metrics", StatusCode::OK) => assert!(body.starts_with(b"# HELP") && body.ends_with(b"\n")),
        _ => {}
    }
});
