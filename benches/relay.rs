//! What passing an exchange on costs: the same exchange `direct`, without a proxy, and `through` Tidegate.
//!
//! `cargo bench --bench relay`. Client, proxy and upstream are tasks of one thread and meet over loopback, so that nobody
//! waits for another core: the difference between the two rows is what the proxy costs, its system calls included. It is
//! built as benches are, without LTO, so the released binary is somewhat quicker.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the real clock")]
#![expect(clippy::expect_used, reason = "a benchmark fails loudly")]

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwap;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memchr::{memchr_iter, memmem};
use tidegate::{
    config::Config,
    gate::Accounts,
    metrics::Metrics,
    proxy::{BufferBudget, Engine, Route, Shared, Snapshot},
    server::{self, Acceptors, Server},
    tasks::Tasks,
    upstream::{Connector, Ways},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

/// As the binary has it.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const MIB: usize = 1024 * 1024;
const EVENTS: usize = 100;
/// Stands in each event once, so that events can be counted by it.
const MARK: u8 = b'~';
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"gpt-4o-mini\",\
    \"choices\":[{\"index\":0,\"delta\":{\"content\":\"~word\"}}]}\n\n";
const EVENTS_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
/// Room for what is read at once.
const READ_BYTES: usize = 64 * 1024;

/// One kind of exchange.
struct Work {
    request: Vec<u8>,
    answer: Answer,
}

enum Answer {
    Whole(Vec<u8>),
    /// Events one by one: each is sent when the client has the one before, so that none can share a read with another.
    Events {
        asked: Notify,
    },
}

impl Work {
    fn new(path: &str, content_type: &str, request: &[u8], answer: Answer) -> Arc<Self> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-abcdefgh\r\nAccept: */*\r\n\
             User-Agent: bench\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            request.len()
        );
        Arc::new(Self { request: [head.as_bytes(), request].concat(), answer })
    }

    /// The upstream's side of a connection.
    async fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut held = Vec::with_capacity(READ_BYTES);
        loop {
            read_message(&mut stream, &mut held, b"POST ").await?;
            match &self.answer {
                Answer::Whole(answer) => stream.write_all(answer).await?,
                Answer::Events { asked } => {
                    let chunk = format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
                    stream.write_all(EVENTS_HEAD).await?;
                    for _ in 0..EVENTS {
                        asked.notified().await;
                        stream.write_all(chunk.as_bytes()).await?;
                    }
                    stream.write_all(b"0\r\n\r\n").await?;
                }
            }
        }
    }
}

/// An answer that says how long it is.
fn whole(content_type: &str, body: &[u8]) -> Answer {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n", body.len());
    Answer::Whole([head.as_bytes(), body].concat())
}

/// `before` and `after` with so much between them that it is `bytes` in all.
fn padded(before: &str, after: &str, bytes: usize) -> Vec<u8> {
    let text = "x".repeat(bytes - before.len() - after.len());
    [before, &text, after].concat().into_bytes()
}

/// Reads a message whose head says how long it is, and forgets it.
async fn read_message(stream: &mut TcpStream, held: &mut Vec<u8>, begins: &[u8]) -> Result<()> {
    held.clear();
    let head = loop {
        ensure!(stream.read_buf(held).await? > 0, "the connection was closed");
        if let Some(at) = memmem::find(held, b"\r\n\r\n") {
            break at + 4;
        }
    };
    ensure!(held.starts_with(begins), "{}", String::from_utf8_lossy(held));
    let text = String::from_utf8_lossy(held.get(..head).unwrap_or_default());
    let length = text
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("content-length").then_some(value))
        .context("no Content-Length")?;
    let mut left = (head + length.parse::<usize>()?).checked_sub(held.len()).context("more than was asked for")?;
    while left > 0 {
        held.clear();
        let count = stream.read_buf(held).await?;
        ensure!(count > 0, "the connection was closed");
        left = left.checked_sub(count).context("more than was asked for")?;
    }
    Ok(())
}

/// The client's side: one connection, kept.
struct Client {
    stream: TcpStream,
    held: Vec<u8>,
}

impl Client {
    async fn connect(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, held: Vec::with_capacity(READ_BYTES) })
    }

    async fn exchanges(&mut self, work: &Work, count: u64) -> Result<Duration> {
        let start = Instant::now();
        for _ in 0..count {
            self.stream.write_all(&work.request).await?;
            match &work.answer {
                Answer::Whole(_) => read_message(&mut self.stream, &mut self.held, b"HTTP/1.1 200 ").await?,
                Answer::Events { asked } => self.read_events(asked).await?,
            }
        }
        Ok(start.elapsed())
    }

    async fn read_events(&mut self, asked: &Notify) -> Result<()> {
        self.held.clear();
        let (mut seen, mut reads) = (0, 0);
        asked.notify_one();
        while !self.held.ends_with(b"\r\n0\r\n\r\n") {
            let before = self.held.len();
            ensure!(self.stream.read_buf(&mut self.held).await? > 0, "the connection was closed");
            let came = memchr_iter(MARK, self.held.get(before..).unwrap_or_default()).count();
            seen += came;
            reads += 1;
            if came > 0 && seen < EVENTS {
                asked.notify_one();
            }
        }
        ensure!(self.held.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.held));
        ensure!(seen == EVENTS && reads >= EVENTS, "{seen} events in {reads} reads");
        Ok(())
    }
}

/// Starts the upstream on this thread.
async fn upstream(work: Arc<Work>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let work = Arc::clone(&work);
            // Ends with an error when the other side closes.
            tokio::spawn(async move { drop(work.serve(stream).await) });
        }
    });
    Ok(address)
}

/// Starts a worker of the proxy on this thread, with all defaults, as `App` starts one on a thread of its own.
async fn proxy(upstream: SocketAddr) -> Result<SocketAddr> {
    let config = Arc::new(Config::for_upstream(&format!("http://{upstream}"))?);
    let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::new());
    let mut routes = Vec::new();
    for settings in &config.upstreams {
        let connector = Arc::new(Connector::new(settings, Ways::default())?);
        let accounts = Accounts::new(&settings.name, Arc::default(), Arc::clone(&metrics), tasks.clone());
        routes.push(Arc::new(Route {
            settings: settings.clone(),
            connector,
            accounts: Arc::new(accounts),
            balance_epoch: 0,
        }));
    }
    let shared = Arc::new(Shared {
        retired: Default::default(),
        snapshot: ArcSwap::from_pointee(Snapshot::new(Arc::clone(&config), routes)),
        buffers: BufferBudget::new(config.buffers.total_max_bytes, metrics.buffered_bytes.clone()),
        metrics: Arc::clone(&metrics),
        refuse_waiting: CancellationToken::new(),
        draining: AtomicBool::new(false),
        traces: Default::default(),
    });
    let (acceptors, mut handed) = Acceptors::new(1, config.limits, metrics);
    let server = Server {
        index: 0,
        acceptors,
        engine: Engine::new(shared, tasks.clone(), tasks.clone()),
        tls: None,
        connections: tasks,
        closing: CancellationToken::new(),
    };
    let listener = server::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = listener.local_addr()?;
    let handed = handed.pop().context("one worker")?;
    tokio::spawn(async move { Arc::new(server).run(listener, handed).await.expect("the proxy accepts") });
    Ok(address)
}

/// One group: this work, without and with the proxy.
fn measure(criterion: &mut Criterion, name: &str, throughput: Throughput, work: &Arc<Work>) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
    let clients = runtime.block_on(async {
        let upstream = upstream(Arc::clone(work)).await?;
        let proxy = proxy(upstream).await?;
        anyhow::Ok([("direct", Client::connect(upstream).await?), ("through", Client::connect(proxy).await?)])
    });
    let mut group = criterion.benchmark_group(name);
    group.throughput(throughput);
    for (way, mut client) in clients.expect("upstream and proxy start") {
        group.bench_function(way, |bencher| {
            bencher.iter_custom(|count| {
                runtime.block_on(client.exchanges(work, count)).expect("every exchange comes to its end")
            });
        });
    }
    group.finish();
}

fn relay(criterion: &mut Criterion) {
    const CHAT: &str = "/v1/chat/completions";
    const JSON: &str = "application/json";
    const BYTES: &str = "application/octet-stream";
    let question = padded(
        "{\"model\":\"gpt-4o-mini\",\"max_tokens\":300,\"messages\":[{\"role\":\"user\",\"content\":\"",
        "\"}]}",
        1024,
    );
    let answer = padded(
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\
         \"message\":{\"role\":\"assistant\",\"content\":\"",
        "\"},\"finish_reason\":\"stop\"}],\
         \"usage\":{\"prompt_tokens\":200,\"completion_tokens\":300,\"total_tokens\":500}}",
        2048,
    );
    let streamed = padded(
        "{\"model\":\"gpt-4o-mini\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"",
        "\"}]}",
        1024,
    );
    let file = vec![b'x'; MIB];
    let mib = Throughput::Bytes(MIB as u64);

    let work = Work::new(CHAT, JSON, &question, whole(JSON, &answer));
    measure(criterion, "JSON, 1 KiB up and 2 KiB down", Throughput::Elements(1), &work);
    let work = Work::new("/v1/fetch", JSON, &question, whole(BYTES, &file));
    measure(criterion, "1 MiB down", mib.clone(), &work);
    let work = Work::new("/v1/files", BYTES, &file, whole(JSON, &answer));
    measure(criterion, "1 MiB up", mib, &work);
    let work = Work::new(CHAT, JSON, &streamed, Answer::Events { asked: Notify::new() });
    measure(criterion, "100 events, one by one", Throughput::Elements(EVENTS as u64), &work);
}

criterion_group!(benches, relay);
criterion_main!(benches);
