//! The admin listener: `/metrics`, `/healthz`, `/readyz`, `/status`, `/history`, the status page, `POST /drain`.

#[cfg(fuzzing)]
pub mod door;
mod events;
mod guard;
mod history;
mod status;
mod story;

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, TcpListener as StdListener},
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use history::History;

use crate::{metrics, proxy::Shared, tasks::Tasks};

/// Admin connections at once; scrapes and a few open pages.
const CONNECTIONS_MAX: usize = 256;
/// Time for a request head.
const HEADER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

const PAGE: &str = include_str!("page.html");
/// The page runs its own script and style, word for word, and talks to nobody but this port.
static PAGE_POLICY: LazyLock<String> = LazyLock::new(|| {
    let (script, style) = (guard::source_of(PAGE, "script"), guard::source_of(PAGE, "style"));
    format!("script-src {script}; style-src {style}; connect-src 'self'; {POLICY}")
});
/// What any other answer may do in a browser: nothing.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// What the admin listener can see and do.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The engine's shared parts.
    pub shared: Arc<Shared>,
    /// Fired by `POST /drain`.
    pub drain: CancellationToken,
    /// What was: sampled while the listener runs.
    history: Arc<Mutex<History>>,
}

impl Admin {
    /// Over what all threads share.
    #[must_use]
    pub fn new(shared: Arc<Shared>, drain: CancellationToken) -> Self {
        Self { shared, drain, history: Arc::default() }
    }

    /// Serves until `tasks` stop.
    pub async fn run(self, listener: StdListener, tasks: Tasks) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let bound = listener.local_addr()?.ip();
        let stopping = tasks.stopping();
        let connections = tasks.child();
        let (admin, ending) = (self.clone(), tasks.stopping());
        tasks.spawn("history", async move {
            let mut looks = tokio::time::interval(history::LOOK_EVERY);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            while ending.run_until_cancelled(looks.tick()).await.is_some() {
                let gates = admin.shared.gates();
                admin.history.lock().look(&gates);
            }
        });
        while let Some(accepted) = stopping.run_until_cancelled(listener.accept()).await {
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            if connections.len() >= CONNECTIONS_MAX {
                continue;
            }
            let (admin, stopping) = (self.clone(), stopping.clone());
            connections.spawn("admin connection", async move {
                let service = service_fn(move |request| {
                    let response = admin.handle(&request, bound);
                    async move { Ok::<_, Infallible>(response) }
                });
                let conn = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                if let Some(Err(error)) = stopping.run_until_cancelled(conn).await {
                    tracing::debug!(%error, "admin connection ended");
                }
            });
        }
        Ok(())
    }

    fn handle<B>(&self, request: &Request<B>, bound: IpAddr) -> Response<Full<Bytes>> {
        if let Err(barred) = guard::pass(request, bound, &self.shared.snapshot.load().config.admin_hosts) {
            return text(barred.status(), barred.why());
        }
        let path = request.uri().path();
        let wanted = if path == "/drain" { Method::POST } else { Method::GET };
        if *request.method() != wanted && !(wanted == Method::GET && *request.method() == Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {wanted}\n"));
            if let Ok(allow) = HeaderValue::from_str(wanted.as_str()) {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            return response;
        }
        match path {
            "/metrics" => typed("text/plain; version=0.0.4; charset=utf-8", self.metrics()),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.shared.is_ready() => text(StatusCode::OK, "ready\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            "/status" => typed("application/json", status::page(&self.shared, &self.history.lock()).to_string()),
            "/history" => {
                typed("application/json", self.history(request.uri().query().unwrap_or_default()).to_string())
            }
            "/" => {
                let mut response = typed("text/html; charset=utf-8", PAGE);
                if let Ok(policy) = HeaderValue::from_str(&PAGE_POLICY) {
                    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
                }
                response
            }
            "/drain" => {
                self.drain.cancel();
                text(StatusCode::ACCEPTED, "draining\n")
            }
            _ => text(StatusCode::NOT_FOUND, "try /, /status, /history, /metrics, /healthz, /readyz\n"),
        }
    }

    /// `upstream=…&account=…&since=…`, all of them optional.
    fn history(&self, query: &str) -> serde_json::Value {
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next_back()
        };
        let since = value("since").and_then(|since| since.parse().ok()).unwrap_or_default();
        self.history.lock().page(value("upstream").zip(value("account")), since)
    }

    fn metrics(&self) -> String {
        let snapshot = self.shared.snapshot.load();
        let gates = self.shared.gates();
        let seen = gates.iter().map(|gate| metrics::Seen {
            upstream: gate.upstream(),
            account: gate.account(),
            view: gate.view(),
            remaining: gate.remaining(),
            balance_usd: snapshot.balance_usd(gate),
        });
        self.shared.metrics.render(seen) + &metrics::process()
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = typed("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

fn typed(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // For browsers that do not know `frame-ancestors`.
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
