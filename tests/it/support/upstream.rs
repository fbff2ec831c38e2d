//! An HTTP/1.1 server on raw sockets that does what a test tells it, and remembers every byte it was sent.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

/// A request as it arrived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Which request of this upstream, from 0.
    pub nth: usize,
    /// Which connection, from 0.
    pub connection: usize,
    /// Request line and headers; what is not UTF-8 is replaced.
    pub head: String,
    /// The same, byte for byte.
    pub raw_head: Vec<u8>,
    /// The body, unchunked.
    pub body: Vec<u8>,
    /// The body as it came, chunk sizes and trailers included.
    pub raw_body: Vec<u8>,
}

impl Seen {
    /// The request line.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// All values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }
}

/// One step of an answer.
#[derive(Debug, Clone)]
pub enum Step {
    /// Sends bytes.
    Send(Vec<u8>),
    /// Waits.
    Wait(Duration),
    /// Waits until the test calls [`Upstream::release`].
    Hold,
    /// Closes the connection.
    Close,
    /// Resets the connection.
    Reset,
    /// Sends back whatever comes, until the other side closes.
    Echo,
}

/// An answer, step by step. The connection is kept afterwards unless the last step closes it.
#[derive(Debug, Clone)]
pub struct Reply(pub Vec<Step>);

impl Reply {
    /// A whole answer.
    pub fn new(status: u16, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::raw(format!("HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\n{headers}\r\n{body}"))
    }

    /// 200 with a body.
    pub fn ok(body: &str) -> Self {
        Self::new(200, "", body)
    }

    /// Bytes as they are.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self(vec![Step::Send(bytes.into())])
    }

    /// Adds a step at the end.
    pub fn then(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }

    /// Waits for [`Upstream::release`] before anything is sent.
    pub fn held(mut self) -> Self {
        self.0.insert(0, Step::Hold);
        self
    }

    /// Waits before anything is sent.
    pub fn after(mut self, wait: Duration) -> Self {
        self.0.insert(0, Step::Wait(wait));
        self
    }
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A scripted upstream. Ends with its handle.
pub struct Upstream {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    held: Semaphore,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
    open: AtomicUsize,
}

impl Upstream {
    /// Answers each request by what `script` says about it.
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Mutex::default(),
            held: Semaphore::new(0),
            in_flight: AtomicUsize::new(0),
            in_flight_max: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                for connection in 0.. {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    tokio::spawn(serve(stream, connection, Arc::clone(&shared)));
                }
            }
        });
        Self { addr, shared, accepting }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// How many requests arrived so far.
    pub fn count(&self) -> usize {
        self.shared.seen.lock().len()
    }

    /// Lets `count` held answers go on.
    pub fn release(&self, count: usize) {
        self.shared.held.add_permits(count);
    }

    /// Requests that have arrived and are neither answered nor given up by the proxy.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// The most there were at once.
    pub fn in_flight_max(&self) -> usize {
        self.shared.in_flight_max.load(Ordering::SeqCst)
    }

    /// Open connections.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Counts while it lives.
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    pub(super) fn new(counter: &'a AtomicUsize, max: Option<&AtomicUsize>) -> Self {
        let now = counter.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(max) = max {
            max.fetch_max(now, Ordering::SeqCst);
        }
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(mut stream: TcpStream, connection: usize, shared: Arc<Shared>) {
    let _open = Counted::new(&shared.open, None);
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    while let Some(mut seen) = read_request(&mut stream, &mut buffer).await {
        seen.connection = connection;
        {
            let mut all = shared.seen.lock();
            seen.nth = all.len();
            all.push(seen.clone());
        }
        let _in_flight = Counted::new(&shared.in_flight, Some(&shared.in_flight_max));
        for step in (shared.script)(&seen).0 {
            let go_on = match step {
                Step::Send(bytes) => stream.write_all(&bytes).await.is_ok(),
                Step::Wait(time) => unless_closed(&stream, tokio::time::sleep(time)).await,
                Step::Hold => unless_closed(&stream, async { shared.held.acquire().await.unwrap().forget() }).await,
                Step::Close => false,
                Step::Reset => {
                    // Closing with a zero linger is what sends a reset.
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    false
                }
                Step::Echo => {
                    let mut piece = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut piece).await {
                        if stream.write_all(&piece[..count]).await.is_err() {
                            break;
                        }
                    }
                    false
                }
            };
            if !go_on {
                return;
            }
        }
    }
}

/// `false`: the proxy hung up first.
async fn unless_closed(stream: &TcpStream, wait: impl Future<Output = ()>) -> bool {
    let closed = async {
        let mut byte = [0];
        while let Ok(1..) = stream.peek(&mut byte).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! { () = wait => true, () = closed => false }
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut piece = vec![0; 16 * 1024];
    let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
    buffer.extend_from_slice(&piece[..count]);
    Some(())
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, buffer).await?;
    };
    let raw_head: Vec<u8> = buffer.drain(..end).collect();
    let head = String::from_utf8_lossy(&raw_head).into_owned();
    let mut seen = Seen { head, raw_head, ..Seen::default() };
    if let Some(length) = seen.header("content-length").first().and_then(|value| value.parse::<usize>().ok()) {
        while buffer.len() < length {
            more(stream, buffer).await?;
        }
        seen.body = buffer.drain(..length).collect();
        seen.raw_body.clone_from(&seen.body);
    } else if seen.header("transfer-encoding").contains(&"chunked") {
        loop {
            let line = take_line(stream, buffer, &mut seen.raw_body).await?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            if size == 0 {
                while !take_line(stream, buffer, &mut seen.raw_body).await?.trim().is_empty() {}
                break;
            }
            while buffer.len() < size + 2 {
                more(stream, buffer).await?;
            }
            let chunk: Vec<u8> = buffer.drain(..size + 2).collect();
            seen.raw_body.extend_from_slice(&chunk);
            seen.body.extend_from_slice(&chunk[..size]);
        }
    }
    Some(seen)
}

async fn take_line(stream: &mut TcpStream, buffer: &mut Vec<u8>, raw: &mut Vec<u8>) -> Option<String> {
    let end = loop {
        if let Some(at) = buffer.iter().position(|byte| *byte == b'\n') {
            break at + 1;
        }
        more(stream, buffer).await?;
    };
    let line: Vec<u8> = buffer.drain(..end).collect();
    raw.extend_from_slice(&line);
    Some(String::from_utf8_lossy(&line).into_owned())
}
