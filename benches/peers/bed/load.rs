//! HTTP/1.1 load: keep-alive connections, each with one request under way.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{cpu, wire};

/// What to send: one request again and again, or many in an order drawn beforehand.
#[derive(Debug)]
pub(crate) struct Requests {
    all: Vec<Arc<[u8]>>,
    order: Vec<u32>,
    next: AtomicUsize,
}

impl Requests {
    pub(crate) fn one(request: Arc<[u8]>) -> Arc<Self> {
        Arc::new(Self { all: vec![request], order: vec![0], next: AtomicUsize::new(0) })
    }

    pub(crate) fn many(all: Vec<Arc<[u8]>>, order: Vec<u32>) -> Arc<Self> {
        Arc::new(Self { all, order, next: AtomicUsize::new(0) })
    }

    fn next(&self) -> Option<Arc<[u8]>> {
        let turn = self.next.fetch_add(1, Relaxed) % self.order.len();
        self.order.get(turn).and_then(|index| self.all.get(*index as usize)).cloned()
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    held: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await.context("connecting to the proxy")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, held: Vec::with_capacity(4096) })
    }

    /// Sends a request and reads the whole answer, which must be a 200.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await?;
        self.answer().await
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    pub(crate) async fn answer(&mut self) -> Result<()> {
        self.held.clear();
        let head = loop {
            if let Some(head) = wire::head(&self.held) {
                break head;
            }
            ensure!(self.stream.read_buf(&mut self.held).await? > 0, "the proxy hung up");
        };
        if !self.held.starts_with(b"HTTP/1.1 200") {
            bail!("the proxy answered {}", String::from_utf8_lossy(&self.held));
        }
        let Some(length) = head.length else {
            while !wire::chunks_ended(self.held.get(head.bytes..).unwrap_or_default()) {
                ensure!(self.stream.read_buf(&mut self.held).await? > 0, "the proxy hung up");
            }
            return Ok(());
        };
        let mut missing = (head.bytes + length).saturating_sub(self.held.len());
        let mut sink = if missing > 64 * 1024 { vec![0; 256 * 1024] } else { Vec::new() };
        while missing > 0 {
            let read = if sink.is_empty() {
                self.held.clear();
                self.stream.read_buf(&mut self.held).await?
            } else {
                self.stream.read(&mut sink).await?
            };
            ensure!(read > 0, "the proxy hung up");
            missing = missing.saturating_sub(read);
        }
        Ok(())
    }
}

/// What a turn gave.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub done: u64,
    pub wall: Duration,
    /// Processor time of the proxy.
    pub cpu: Duration,
    /// Share of the time that load generator and origin were busy.
    pub own: f64,
    pub latencies: Vec<Duration>,
}

impl Turn {
    pub(crate) fn cpu_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.done as f64
    }

    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.wall.as_secs_f64()
    }
}

/// When a turn's lanes stop sending.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    After(Duration),
    /// After this many requests altogether.
    Count(u64),
    /// Measures only the middle: from the first time on, for the second, while the load goes on.
    Middle(Duration, Duration),
}

#[derive(Debug)]
struct Course {
    requests: Arc<Requests>,
    stop: AtomicBool,
    left: AtomicI64,
    done: AtomicU64,
}

/// Connections to one proxy, in lanes: a lane has one request under way, and its connections take turns.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    lanes: Vec<Vec<Client>>,
}

impl Pool {
    pub(crate) async fn open(addr: SocketAddr, connections: usize, lanes: usize) -> Result<Self> {
        let mut pool = Self::default();
        pool.lanes.resize_with(lanes, Vec::new);
        for index in 0..connections {
            let client = Client::connect(addr).await?;
            if let Some(lane) = pool.lanes.get_mut(index % lanes) {
                lane.push(client);
            }
        }
        Ok(pool)
    }

    /// One turn. `pids` are the processes whose processor time is counted.
    pub(crate) async fn run(&mut self, requests: &Arc<Requests>, stop: Stop, pids: &[u32]) -> Result<Turn> {
        let left = if let Stop::Count(count) = stop { i64::try_from(count)? } else { i64::MAX };
        let course = Arc::new(Course {
            requests: Arc::clone(requests),
            stop: AtomicBool::new(false),
            left: AtomicI64::new(left),
            done: AtomicU64::new(0),
        });
        let mut lanes = JoinSet::new();
        let mark = || (cpu::spent(pids), cpu::own(), Instant::now(), course.done.load(Relaxed));
        let mut before = mark();
        for lane in self.lanes.drain(..) {
            lanes.spawn(drive(lane, Arc::clone(&course)));
        }
        let mut middle = None;
        match stop {
            Stop::After(long) => tokio::time::sleep(long).await,
            Stop::Count(_) => {}
            Stop::Middle(first, long) => {
                tokio::time::sleep(first).await;
                before = mark();
                tokio::time::sleep(long).await;
                middle = Some(mark());
            }
        }
        if !matches!(stop, Stop::Count(_)) {
            course.stop.store(true, Relaxed);
        }
        let mut latencies = Vec::new();
        while let Some(lane) = lanes.join_next().await {
            let (lane, times) = lane??;
            self.lanes.push(lane);
            latencies.extend(times);
        }
        let wall_end = mark();
        if middle.is_none() {
            // What the proxy does after an answer belongs to it.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let after = middle.unwrap_or((cpu::spent(pids), wall_end.1, wall_end.2, wall_end.3));
        let wall = after.2 - before.2;
        Ok(Turn {
            done: after.3 - before.3,
            wall,
            cpu: after.0.saturating_sub(before.0),
            own: (after.1.saturating_sub(before.1)).as_secs_f64() / wall.as_secs_f64(),
            latencies,
        })
    }

    /// Requests at a fixed rate over all lanes, each measured from the moment it was due.
    pub(crate) async fn paced(
        &mut self,
        request: &Arc<[u8]>,
        per_second: u32,
        long: Duration,
    ) -> Result<Vec<Duration>> {
        let apart = Duration::from_secs(1) / per_second;
        let mut waiting = JoinSet::new();
        let mut latencies = Vec::new();
        let mut idle: Vec<Client> = self.lanes.drain(..).flatten().collect();
        let lanes = idle.len();
        let start = Instant::now();
        for number in 0.. {
            let due = start + apart * number;
            if apart * number > long {
                break;
            }
            loop {
                while let Some(back) = waiting.try_join_next() {
                    let (client, time) = back??;
                    idle.insert(0, client);
                    latencies.push(time);
                }
                if Instant::now() >= due && !idle.is_empty() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let Some(mut client) = idle.pop() else { continue };
            let request = Arc::clone(request);
            waiting.spawn(async move {
                client.exchange(&request).await?;
                anyhow::Ok((client, due.elapsed()))
            });
        }
        while let Some(back) = waiting.join_next().await {
            let (client, time) = back??;
            idle.push(client);
            latencies.push(time);
        }
        ensure!(idle.len() == lanes, "a connection was lost");
        self.lanes = idle.into_iter().map(|client| vec![client]).collect();
        Ok(latencies)
    }
}

async fn drive(mut lane: Vec<Client>, course: Arc<Course>) -> Result<(Vec<Client>, Vec<Duration>)> {
    let mut latencies = Vec::new();
    'all: loop {
        for client in &mut lane {
            if course.stop.load(Relaxed) || course.left.fetch_sub(1, Relaxed) <= 0 {
                break 'all;
            }
            let Some(request) = course.requests.next() else { break 'all };
            let start = Instant::now();
            client.exchange(&request).await?;
            latencies.push(start.elapsed());
            course.done.fetch_add(1, Relaxed);
        }
    }
    Ok((lane, latencies))
}

/// Keeps the thread awake while it lives, so that no answer waits for it to wake up.
#[derive(Debug)]
pub(crate) struct Awake(tokio::task::JoinHandle<()>);

impl Awake {
    pub(crate) fn new() -> Self {
        Self(tokio::spawn(async {
            loop {
                tokio::task::yield_now().await;
            }
        }))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.abort();
    }
}
