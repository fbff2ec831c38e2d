//! From ended exchanges to the collector: a bounded queue, and one task beside the request path that sends batches.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header, request};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SpanExporter};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Otlp},
    metrics::{Metrics, SpansDropped},
    tasks::Tasks,
    upstream::{Connector, Ways},
};

use super::{
    TracesError, map,
    span::{Exchange, Span},
};

/// Spans that wait to be sent; OpenTelemetry's own default. They take about 1 KiB each.
const QUEUE_COUNT_MAX: usize = 2048;
/// Spans sent at once; OpenTelemetry's own default.
const BATCH_COUNT_MAX: usize = 512;
/// Time a span waits for others. A guess: one request a second is no load, and whoever tries it out sees something.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// Time a batch has to be taken, further tries included; the specification's default.
const EXPORT_MAX: Duration = Duration::from_secs(10);
/// Time the last batches have at the end of a drain: ample for a collector that is there.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// A collector answers with a few bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How gzip begins; an export that is not compressed begins with the tag of its first field, 0x0a.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Where spans go; nowhere by default.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Export>>);

struct Export {
    queue: Arc<Queue>,
    tasks: Tasks,
    flush: CancellationToken,
}

/// Takes ended exchanges without ever waiting.
pub(super) struct Queue {
    pub(super) sample: f64,
    pub(super) scheme: &'static str,
    sender: mpsc::Sender<Exchange>,
    dropped: SpansDropped,
}

impl Queue {
    pub(super) fn take(&self, exchange: Exchange) {
        match self.sender.try_send(exchange) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.dropped.queue_full.inc(),
            Err(TrySendError::Closed(_)) => self.dropped.late.inc(),
        }
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Traces(on)" } else { "Traces(off)" })
    }
}

impl Traces {
    /// Starts sending on the current runtime, if the configuration asks for it.
    pub fn start(config: &Config, metrics: &Metrics) -> Result<Self, TracesError> {
        let Some(otlp) = &config.otlp else { return Ok(Self::default()) };
        let exporter = exporter(otlp)?;
        let (sender, receiver) = mpsc::channel(QUEUE_COUNT_MAX);
        let dropped = metrics.spans_dropped();
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let queue = Arc::new(Queue { sample: otlp.sample, scheme, sender, dropped: dropped.clone() });
        let (tasks, flush) = (Tasks::new(), CancellationToken::new());
        tasks.spawn("traces", run(receiver, exporter, dropped, flush.clone()));
        Ok(Self(Some(Arc::new(Export { queue, tasks, flush }))))
    }

    /// The span of a request whose head is complete. A look at one header, or one random number, if it is not recorded.
    #[must_use]
    pub fn begin(&self, head: &request::Parts, now: Instant) -> Span {
        self.0.as_ref().map_or_else(Span::default, |export| Span::begin(&export.queue, head, now))
    }

    /// Sends what waits, within a bounded time. Nothing is taken any more.
    pub async fn flush(&self) {
        let Some(export) = &self.0 else { return };
        export.flush.cancel();
        if !export.tasks.finished(FLUSH_MAX).await {
            tracing::warn!("the last spans were not taken within {} s", FLUSH_MAX.as_secs());
        }
    }
}

fn exporter(otlp: &Otlp) -> Result<OtlpExporter, TracesError> {
    let wrong = |error: &dyn fmt::Display| TracesError(error.to_string());
    let base = otlp.endpoint.to_string();
    let base = base.trim_end_matches('/');
    let url = if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") };
    // The collector is reached as upstreams are: names, addresses, certificates and deadlines alike.
    let settings = Config::for_upstream(base).map_err(|error| wrong(&error))?;
    let upstream = settings.upstreams.first().ok_or_else(|| wrong(&"no endpoint"))?;
    let connector = Connector::new(upstream, Ways::default()).map_err(|error| wrong(&error))?;
    let mut exporter = OtlpExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_http_client(Client { connector, headers: otlp.headers.clone(), failing: AtomicBool::new(false) })
        .with_endpoint(url)
        .with_timeout(EXPORT_MAX)
        .build()
        .map_err(|error| wrong(&error))?;
    let own = [
        KeyValue::new("service.name", otlp.service_name.clone()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    // OTEL_RESOURCE_ATTRIBUTES is read here too; a name in it is in the configuration already.
    exporter.set_resource(&Resource::builder().with_attributes(own).build());
    Ok(exporter)
}

async fn run(
    mut queue: mpsc::Receiver<Exchange>,
    exporter: OtlpExporter,
    dropped: SpansDropped,
    flush: CancellationToken,
) {
    let scope = InstrumentationScope::builder("tidegate").with_version(env!("CARGO_PKG_VERSION")).build();
    let mut batch = Vec::new();
    while gather(&mut queue, &mut batch, &flush).await {
        let count = batch.len();
        let spans = batch.drain(..).map(|exchange| map::span(exchange, &scope)).collect();
        // The exporter's own bound covers the time between its tries alone.
        let taken = tokio::time::timeout(EXPORT_MAX, exporter.export(spans)).await;
        if !matches!(taken, Ok(Ok(()))) {
            dropped.export_failed.inc_by(count as u64);
        }
    }
}

/// Fills a batch: with all there is once it is full, old enough, or wanted now. `false`: that was the last.
async fn gather(queue: &mut mpsc::Receiver<Exchange>, batch: &mut Vec<Exchange>, flush: &CancellationToken) -> bool {
    let waiting = async {
        queue.recv_many(batch, BATCH_COUNT_MAX).await;
        let full = async {
            while (1..BATCH_COUNT_MAX).contains(&batch.len()) {
                let room = BATCH_COUNT_MAX - batch.len();
                if queue.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(BATCH_WAIT, full).await);
    };
    if flush.run_until_cancelled(waiting).await.is_none() {
        queue.close();
        while batch.len() < BATCH_COUNT_MAX
            && let Ok(exchange) = queue.try_recv()
        {
            batch.push(exchange);
        }
    }
    !batch.is_empty()
}

/// One request on a connection of its own for each batch. Says once when the collector is lost, and once when it is back.
#[derive(Debug)]
struct Client {
    connector: Connector,
    headers: Vec<(HeaderName, HeaderValue)>,
    failing: AtomicBool,
}

impl Client {
    async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.set_headers(&mut request);
        let url = request.uri().to_string();
        let asked = tokio::time::timeout(EXPORT_MAX, self.connector.ask(request, ANSWER_BYTES_MAX)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", EXPORT_MAX.as_secs())));
        let trouble = match &asked {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status().as_u16())),
            Err(why) => Some(why.clone()),
        };
        let failed = self.failing.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(error) if !failed => {
                tracing::warn!(url, error, "the collector does not take spans; they are dropped and counted");
            }
            None if failed => tracing::info!(url, "the collector takes spans again"),
            Some(_) | None => {}
        }
        asked.map_err(Into::into)
    }

    /// The exporter lays `OTEL_EXPORTER_OTLP_HEADERS` over all it has set itself, unchecked: a length of theirs would cut
    /// the body off. So what must be right is set anew here, and the configured headers are laid over the rest.
    fn set_headers(&self, request: &mut Request<Bytes>) {
        let is_gzip = request.body().starts_with(&GZIP);
        let headers = request.headers_mut();
        for name in Otlp::NOT_TO_BE_SET {
            headers.remove(name);
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if is_gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
    }
}

/// As `async_trait` writes it.
impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(self.send(request))
    }
}

/// A queue that nobody empties, for what is put into it.
#[cfg(test)]
pub(super) fn queue_alone() -> (Arc<Queue>, mpsc::Receiver<Exchange>) {
    let (sender, receiver) = mpsc::channel(1);
    (Arc::new(Queue { sample: 1.0, scheme: "http", sender, dropped: Metrics::new().spans_dropped() }), receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, metrics::End, traces::Ending};

    #[test]
    fn what_ends_after_the_last_batch_is_not_taken_for_a_full_queue() {
        let (queue, receiver) = queue_alone();
        let (head, ()) = Request::new(()).into_parts();
        let end = || {
            let now = clock::now();
            Span::begin(&queue, &head, now).end(&Ending {
                at: now,
                end: End::Complete,
                status: 200,
                fault: None,
                account: None,
                attempts: 0,
                queued: Duration::ZERO,
                waited: Duration::ZERO,
                upstream: Duration::ZERO,
                request_bytes: 0,
                response_bytes: 0,
            });
        };
        let counts = || (queue.dropped.queue_full.get(), queue.dropped.late.get());
        end();
        assert_eq!(counts(), (0, 0));
        end();
        assert_eq!(counts(), (1, 0));
        drop(receiver);
        end();
        assert_eq!(counts(), (1, 1));
    }
}
