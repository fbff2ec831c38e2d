//! Clients that know what they must get: the text of their own request's answer, or one clear error.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, time::Sleep};

use super::{Dice, text_of, upstream::Ledger};
use crate::support::PATIENCE;

/// What a request is to be.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) id: u64,
    pub(crate) method: Method,
    pub(crate) keyed: bool,
    /// Which upstream.
    one: bool,
    key: u64,
    /// Bytes to send, and whether their number is told ahead.
    upload: usize,
    announced: bool,
    /// Time between its pieces.
    pause: Duration,
    /// Bytes to get.
    want: usize,
    /// Leave after this time.
    leave: Option<Duration>,
}

impl Plan {
    pub(crate) fn new(id: u64, dice: &mut Dice) -> Self {
        let method = match dice.below(20) {
            0..7 => Method::GET,
            7..15 => Method::POST,
            15 => Method::PATCH,
            16..18 => Method::PUT,
            18 => Method::DELETE,
            _ => Method::HEAD,
        };
        let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(&method);
        // Some are larger than what is held (48 KiB).
        let upload = if has_body { dice.pick(&[0, 1, 700, 9_000, 40_000, 90_000]) } else { 0 };
        Self {
            id,
            keyed: method == Method::POST && dice.percent(30),
            method,
            one: dice.percent(75),
            key: dice.below(4),
            upload,
            announced: dice.percent(60),
            pause: if dice.percent(30) { dice.millis(30) } else { Duration::ZERO },
            want: dice.pick(&[0, 1, 300, 5_000, 60_000]),
            leave: dice.percent(12).then(|| dice.millis(400)),
        }
    }

    fn request(&self) -> Request<Upload> {
        let path = if self.one { "/one" } else { "/two" };
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(format!("http://tidegate.test{path}/{}", self.id))
            .header("host", "tidegate.test")
            .header("authorization", format!("Bearer key-{}", self.key))
            .header("x-id", self.id)
            .header("x-upload", self.upload)
            .header("x-want", self.want);
        if self.keyed {
            request = request.header("idempotency-key", format!("key-{}", self.id));
        }
        let rest = Bytes::from(text_of("request", self.id, self.upload));
        request.body(Upload { rest, announced: self.announced, pause: self.pause, timer: None }).unwrap()
    }
}

/// A body in pieces.
pub(crate) struct Upload {
    rest: Bytes,
    announced: bool,
    pause: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
        }
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(16_000);
        let piece = self.rest.split_to(piece);
        if !self.pause.is_zero() {
            self.timer = Some(Box::pin(tokio::time::sleep(self.pause)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.announced { SizeHint::with_exact(self.rest.len() as u64) } else { SizeHint::default() }
    }
}

/// How a request ended for its client.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An answer, whole or cut.
    Answer { status: u16, fault: Option<String>, owner: Option<String>, body: Bytes, cut: Option<String> },
    /// It left by itself.
    Cancelled,
    /// HTTP/2: the stream was reset, which may overtake the head of an answer that is cut at once.
    Reset(String),
    /// Nothing at all: always wrong.
    Nothing(String),
}

impl Outcome {
    pub(crate) fn is_cut(&self) -> bool {
        matches!(self, Self::Answer { cut: Some(_), .. } | Self::Reset(_))
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Answer { cut: Some(_), .. } | Self::Reset(_) => "cut".to_owned(),
            Self::Answer { fault: Some(fault), .. } => format!("fault {fault}"),
            Self::Answer { status: 200, .. } => "done".to_owned(),
            Self::Answer { status, .. } => format!("refused {status}"),
            Self::Cancelled => "cancelled".to_owned(),
            Self::Nothing(_) => "nothing".to_owned(),
        }
    }

    /// Whether it is this request's own, and one that may be.
    pub(crate) fn is_right(&self, plan: &Plan, ledger: &Ledger) -> Result<(), String> {
        let Self::Answer { status, fault, owner, body, cut } = self else {
            return match self {
                Self::Reset(why) if !ledger.breaks_off(plan.id) => Err(format!("it was reset: {why}")),
                Self::Nothing(why) => Err(format!("it got no answer: {why}")),
                _ => Ok(()),
            };
        };
        if fault.is_some() {
            let json = serde_json::from_slice::<serde_json::Value>(body).ok();
            let says =
                json.is_some_and(|json| json.pointer("/error/message").is_some_and(serde_json::Value::is_string));
            let silent = plan.method == Method::HEAD && body.is_empty();
            return if cut.is_none() && (says || silent) { Ok(()) } else { Err("its fault is not clear".to_owned()) };
        }
        if owner.as_deref() != Some(plan.id.to_string().as_str()) {
            return Err(format!("it got the answer to {owner:?}"));
        }
        let whole = match (*status, plan.method == Method::HEAD) {
            (_, true) => Vec::new(),
            (200, false) => text_of("answer", plan.id, plan.want),
            (_, false) => text_of("error", plan.id, body.len()),
        };
        match cut {
            _ if !whole.starts_with(body) => Err("its answer is not its own".to_owned()),
            None if body.len() < whole.len() => Err("a part of its answer is taken for the whole".to_owned()),
            Some(why) if ledger.is_whole(plan.id) => Err(format!("it was cut although the upstream sent all: {why}")),
            Some(_) | None => Ok(()),
        }
    }
}

enum Sender {
    One(http1::SendRequest<Upload>),
    Two(http2::SendRequest<Upload>),
}

/// One client and its connection.
pub(crate) struct Worker {
    addr: SocketAddr,
    http2: bool,
    sender: Option<Sender>,
}

impl Worker {
    pub(crate) fn new(addr: SocketAddr, http2: bool) -> Self {
        Self { addr, http2, sender: None }
    }

    async fn sender(&mut self) -> &mut Sender {
        let ready = match &mut self.sender {
            Some(Sender::One(sender)) => sender.ready().await.is_ok(),
            Some(Sender::Two(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !ready {
            let stream = TcpStream::connect(self.addr).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let stream = TokioIo::new(stream);
            self.sender = Some(if self.http2 {
                let builder = http2::Builder::new(TokioExecutor::new());
                let (sender, conn) = builder.handshake(stream).await.unwrap();
                tokio::spawn(conn);
                Sender::Two(sender)
            } else {
                let (sender, conn) = http1::handshake(stream).await.unwrap();
                tokio::spawn(conn);
                Sender::One(sender)
            });
        }
        self.sender.as_mut().unwrap()
    }

    pub(crate) async fn carry_out(&mut self, plan: &Plan, dice: &mut Dice) -> Outcome {
        // A kept connection that is closed is a matter of its own.
        if dice.percent(3) {
            self.sender = None;
        }
        let work = async {
            let mut request = plan.request();
            let sent = match self.sender().await {
                Sender::One(sender) => {
                    *request.uri_mut() = request.uri().path().parse().unwrap();
                    sender.send_request(request).await
                }
                Sender::Two(sender) => {
                    request.headers_mut().remove("host");
                    sender.send_request(request).await
                }
            };
            match sent {
                Ok(response) => read(response).await,
                Err(error) if format!("{error:?}").contains("Reset(") => Outcome::Reset(format!("{error:?}")),
                Err(error) => Outcome::Nothing(format!("{error:?}")),
            }
        };
        let outcome = match plan.leave {
            Some(leave) => tokio::time::timeout(leave, work).await.unwrap_or(Outcome::Cancelled),
            None => tokio::time::timeout(PATIENCE, work)
                .await
                .unwrap_or_else(|_| Outcome::Nothing(format!("within {PATIENCE:?}"))),
        };
        let clean = matches!(&outcome, Outcome::Answer { cut: None, .. });
        // An HTTP/1.1 connection on which something was left in the middle is of no use; HTTP/2's lives on.
        if !clean && !self.http2 {
            self.sender = None;
        }
        outcome
    }
}

async fn read(response: Response<Incoming>) -> Outcome {
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, fault, owner) = (response.status().as_u16(), header("x-tidegate-fault"), header("x-answer-to"));
    let mut inner = response.into_body();
    let (mut body, mut cut) = (Vec::new(), None);
    while let Some(frame) = inner.frame().await {
        match frame {
            Ok(frame) => body.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..])),
            Err(error) => {
                cut = Some(format!("{error:?}"));
                break;
            }
        }
    }
    Outcome::Answer { status, fault, owner, body: body.into(), cut }
}
