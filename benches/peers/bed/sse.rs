//! Streams of events: the origin's end, which writes when told to, and the clients', which count.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use super::wire;

/// The origin's ends of all streams, by group: a group is what one proxy relays.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    groups: Mutex<Vec<Vec<Arc<TcpStream>>>>,
}

fn chunk() -> Vec<u8> {
    format!("{:x}\r\n{}\r\n", wire::EVENT.len(), wire::EVENT).into_bytes()
}

impl Hub {
    /// Takes a connection whose request was read: answers with a head and a first event, then holds it for [`Hub::tide`].
    pub(super) async fn feed(&self, group: usize, stream: TcpStream) {
        let mut first = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\
            Transfer-Encoding: chunked\r\n\r\n"
            .to_vec();
        first.extend(chunk());
        let stream = Arc::new(stream);
        if let Err(error) = stream.try_write(&first) {
            eprintln!("peers: origin: {error}");
            return;
        }
        {
            let mut groups = self.groups.lock();
            if groups.len() <= group {
                groups.resize_with(group + 1, Vec::new);
            }
            if let Some(group) = groups.get_mut(group) {
                group.push(Arc::clone(&stream));
            }
        }
        let mut byte = [0; 16];
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut byte) {
                Ok(1..) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
            }
        }
        if let Some(group) = self.groups.lock().get_mut(group) {
            group.retain(|other| !Arc::ptr_eq(other, &stream));
        }
    }

    /// Ten events a second to each stream of a group, each at its own moment; how many were written.
    pub(crate) async fn tide(&self, group: usize, long: Duration) -> u64 {
        const PERIOD: usize = 100;
        let event = chunk();
        let (mut written, mut at) = (0, 0);
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let start = Instant::now();
        while start.elapsed() < long {
            tick.tick().await;
            let streams: Vec<_> = {
                let groups = self.groups.lock();
                let group = groups.get(group).map_or(&[][..], Vec::as_slice);
                group.iter().skip(at % PERIOD).step_by(PERIOD).cloned().collect()
            };
            at += 1;
            written += streams.iter().filter(|stream| stream.try_write(&event).is_ok()).count() as u64;
        }
        written
    }
}

/// The clients' ends of one proxy's streams.
#[derive(Debug)]
pub(crate) struct Readers {
    tasks: JoinSet<()>,
    pub events: Arc<AtomicU64>,
    /// Time from opening a connection to the first event, of each stream.
    pub first: Vec<Duration>,
}

impl Readers {
    /// Opens `number` streams, one each `apart`.
    pub(crate) async fn open(addr: SocketAddr, group: usize, number: usize, apart: Duration) -> Result<Self> {
        let events = Arc::new(AtomicU64::new(0));
        let first = Arc::new(Mutex::new(Vec::with_capacity(number)));
        let mut tasks = JoinSet::new();
        let request = wire::get(&format!("/sse/{group}"));
        let start = Instant::now();
        for index in 0..number {
            // Turning on the spot: a timer of 1 ms would be coarser than what is measured.
            while start.elapsed() < apart * u32::try_from(index)? {
                tokio::task::yield_now().await;
            }
            tasks.spawn(read(addr, Arc::clone(&request), Arc::clone(&events), Arc::clone(&first)));
        }
        let late = Instant::now();
        while first.lock().len() < number {
            ensure!(
                late.elapsed() < Duration::from_secs(20),
                "{} of {number} streams had no event",
                number - first.lock().len()
            );
            tokio::task::yield_now().await;
        }
        let first = std::mem::take(&mut *first.lock());
        Ok(Self { tasks, events, first })
    }

    /// Waits until `events` have arrived.
    pub(crate) async fn wait(&self, events: u64) -> Result<()> {
        let start = Instant::now();
        while self.events.load(Relaxed) < events {
            let have = self.events.load(Relaxed);
            ensure!(start.elapsed() < Duration::from_secs(5), "{have} of {events} events arrived");
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        Ok(())
    }

    pub(crate) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn read(addr: SocketAddr, request: Arc<[u8]>, events: Arc<AtomicU64>, first: Arc<Mutex<Vec<Duration>>>) {
    let start = Instant::now();
    let Ok(mut stream) = TcpStream::connect(addr).await else { return };
    if stream.write_all(&request).await.is_err() {
        return;
    }
    let mut seen = false;
    let mut buffer = [0; 2048];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                let bytes = buffer.get(..read).unwrap_or_default();
                let count = memchr::memchr_iter(wire::EVENT_MARK, bytes).count() as u64;
                if count > 0 && !seen {
                    seen = true;
                    first.lock().push(start.elapsed());
                }
                events.fetch_add(count, Relaxed);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
