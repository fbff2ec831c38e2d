//! HTTP/2 on both sides: a client by prior knowledge, and an upstream that can reset streams as a test likes.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

use super::{soon, upstream::Counted};

/// The client's side of one HTTP/2 connection. Its clones share the connection.
#[derive(Clone)]
pub struct Http2Client(hyper::client::conn::http2::SendRequest<Full<Bytes>>);

impl Http2Client {
    /// Connects and speaks HTTP/2 at once.
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).await.unwrap()).await
    }

    /// Over a stream that is there already.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, conn) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(conn);
        Self(sender)
    }

    /// Sends a request; the answer's body is still to come. Dropping the future or the body resets the stream.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://tidegate.test{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        soon("an answer over HTTP/2", self.0.clone().send_request(request)).await.unwrap()
    }

    /// Sends a request of any form.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        soon("an answer over HTTP/2", self.0.clone().send_request(request)).await
    }

    /// Sends a POST and reads the whole answer.
    pub async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let response = self.send("POST", path, &[], body).await;
        (response.status().as_u16(), text(response).await)
    }
}

/// The whole body of an answer.
pub async fn text(response: Response<Incoming>) -> String {
    let body = soon("the body's end", response.into_body().collect()).await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Http2Seen {
    /// Which request of this upstream, from 0.
    pub nth: usize,
    /// The head, with the pseudo-headers as its URI.
    pub head: http::request::Parts,
    /// The body.
    pub body: Bytes,
    /// What followed it.
    pub trailers: HeaderMap,
}

/// One step of an answer. A stream that was not ended or reset by the last step is ended then.
#[derive(Debug, Clone)]
pub enum Http2Step {
    /// Waits until the test calls [`Http2Upstream::release`].
    Hold,
    /// Sends the head.
    Head(u16, &'static [(&'static str, &'static str)]),
    /// Sends a piece of the body.
    Data(Bytes),
    /// Ends the stream with trailers.
    Trailers(&'static [(&'static str, &'static str)]),
    /// Resets the stream.
    Reset(Reason),
}

/// A whole answer.
pub fn http2_ok(body: impl Into<Bytes>) -> Vec<Http2Step> {
    vec![Http2Step::Head(200, &[]), Http2Step::Data(body.into())]
}

type Script = dyn Fn(&Http2Seen) -> Vec<Http2Step> + Send + Sync;

/// A scripted upstream that speaks HTTP/2 by prior knowledge. Ends with its handle.
pub struct Http2Upstream {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    script: Box<Script>,
    streams_max: u32,
    seen: Mutex<Vec<Http2Seen>>,
    held: Semaphore,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
    resets: Mutex<Vec<Reason>>,
}

impl Http2Upstream {
    /// Answers each request by what `script` says about it.
    pub async fn start(script: impl Fn(&Http2Seen) -> Vec<Http2Step> + Send + Sync + 'static) -> Self {
        Self::with_streams(1000, script).await
    }

    /// With a bound on the streams of a connection.
    pub async fn with_streams(
        streams_max: u32,
        script: impl Fn(&Http2Seen) -> Vec<Http2Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            streams_max,
            seen: Mutex::default(),
            held: Semaphore::new(0),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            in_flight_max: AtomicUsize::new(0),
            resets: Mutex::default(),
        });
        let accepting = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).unwrap();
                    tokio::spawn(serve(stream, Arc::clone(&shared)));
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
    pub fn seen(&self) -> Vec<Http2Seen> {
        self.shared.seen.lock().clone()
    }

    /// How many requests arrived so far.
    pub fn count(&self) -> usize {
        self.shared.seen.lock().len()
    }

    /// How many connections were opened so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Lets `count` held answers go on.
    pub fn release(&self, count: usize) {
        self.shared.held.add_permits(count);
    }

    /// Requests that have arrived and are neither answered nor reset.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// The most there were at once.
    pub fn in_flight_max(&self) -> usize {
        self.shared.in_flight_max.load(Ordering::SeqCst)
    }

    /// The proxy's reasons for resetting held streams.
    pub fn resets(&self) -> Vec<Reason> {
        self.shared.resets.lock().clone()
    }
}

impl Drop for Http2Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    shared.connections.fetch_add(1, Ordering::SeqCst);
    let builder = h2::server::Builder::new().max_concurrent_streams(shared.streams_max).to_owned();
    let Ok(mut conn) = builder.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, respond))) = conn.accept().await {
        tokio::spawn(answer(request, respond, Arc::clone(&shared)));
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, shared: Arc<Shared>) {
    let _in_flight = Counted::new(&shared.in_flight, Some(&shared.in_flight_max));
    let (head, mut incoming) = request.into_parts();
    let mut body = BytesMut::new();
    while let Some(data) = incoming.data().await {
        let Ok(data) = data else { return };
        let _ = incoming.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let Ok(trailers) = incoming.trailers().await else { return };
    let seen = {
        let mut all = shared.seen.lock();
        let seen = Http2Seen { nth: all.len(), head, body: body.freeze(), trailers: trailers.unwrap_or_default() };
        all.push(seen.clone());
        seen
    };
    let mut sending: Option<SendStream<Bytes>> = None;
    for step in (shared.script)(&seen) {
        match step {
            Http2Step::Hold => {
                let reset = poll_fn(|cx| match &mut sending {
                    None => respond.poll_reset(cx),
                    Some(stream) => stream.poll_reset(cx),
                });
                tokio::select! {
                    permit = shared.held.acquire() => permit.unwrap().forget(),
                    reason = reset => {
                        shared.resets.lock().extend(reason);
                        return;
                    }
                }
            }
            Http2Step::Head(status, headers) => {
                let mut response = Response::new(());
                *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
                *response.headers_mut() = map(headers);
                sending = respond.send_response(response, false).ok();
            }
            Http2Step::Data(data) => {
                let _ = sending.as_mut().unwrap().send_data(data, false);
            }
            Http2Step::Trailers(trailers) => {
                let _ = sending.as_mut().unwrap().send_trailers(map(trailers));
                return;
            }
            Http2Step::Reset(reason) => {
                match &mut sending {
                    None => respond.send_reset(reason),
                    Some(stream) => stream.send_reset(reason),
                }
                return;
            }
        }
    }
    if let Some(mut stream) = sending {
        let _ = stream.send_data(Bytes::new(), true);
    }
}

fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair =
        |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    headers.iter().map(pair).collect()
}
