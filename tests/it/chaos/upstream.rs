//! Upstreams that misbehave, and the book they keep about every request that reached them.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::Reason;
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Dice, text_of};
use crate::support::{Http2Step, Http2Upstream};

/// What an upstream does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// 200 with a length.
    Answer,
    /// 200 in chunks.
    Chunks,
    /// 200 as an event stream, slowly.
    Events,
    /// 200 after a while.
    Late,
    /// 200, and the connection is closed without a word.
    AnswerAndClose,
    /// 200, and the connection is closed a moment later, perhaps just when it is used again.
    AnswerAndCloseSoon,
    /// 200, and bytes that nobody asked for.
    AnswerAndMore,
    /// 200, but the connection ends inside the body.
    Short,
    /// The same, in chunks and by a reset.
    ShortChunks,
    /// 200, but nothing more comes inside the body.
    Stall,
    /// 500.
    Error,
    /// Something that is not HTTP.
    Garbage,
    /// Nothing comes.
    Silence,
    /// The connection is closed.
    Close,
    /// The connection is reset, before the body is read or after.
    Reset,
    ResetEarly,
    /// 429 with a time.
    Rate,
    /// 429 about requests at once.
    Ceiling,
    /// 429 without a word, before the body is read.
    Bare,
    /// 503 with a time.
    Overload,
    /// HTTP/2 says that it was not processed.
    RefusedStream,
}

use Act::*;

impl Act {
    /// Surely not processed.
    fn refuses(self) -> bool {
        matches!(self, Rate | Ceiling | Bare | Overload | RefusedStream)
    }

    fn any(dice: &mut Dice) -> Self {
        if dice.percent(55) {
            return dice.pick(&[Answer, Answer, Chunks, Events, Late]);
        }
        dice.pick(&[
            AnswerAndClose,
            AnswerAndCloseSoon,
            AnswerAndCloseSoon,
            AnswerAndMore,
            Short,
            ShortChunks,
            Stall,
            Error,
            Garbage,
            Silence,
            Close,
            Reset,
            ResetEarly,
            Rate,
            Rate,
            Ceiling,
            Ceiling,
            Bare,
            Overload,
        ])
    }
}

/// All that reached an upstream of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    method: String,
    keyed: bool,
    acts: Vec<Act>,
    /// The last act was carried out to its end: all of an answer was sent.
    whole: bool,
}

/// The book.
#[derive(Default)]
pub(crate) struct Ledger {
    ids: AtomicU64,
    entries: Mutex<HashMap<u64, Entry>>,
    wrong: Mutex<Vec<String>>,
}

impl Ledger {
    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> u64 {
        self.ids.load(Ordering::Relaxed)
    }

    pub(crate) fn entry(&self, id: u64) -> Option<Entry> {
        self.entries.lock().get(&id).cloned()
    }

    pub(crate) fn is_whole(&self, id: u64) -> bool {
        self.entries.lock().get(&id).is_some_and(|entry| entry.whole)
    }

    /// Its last answer began, and nothing says that all of it was sent.
    pub(crate) fn breaks_off(&self, id: u64) -> bool {
        let answers =
            |act: &Act| !act.refuses() && !matches!(act, Error | Garbage | Silence | Close | Reset | ResetEarly);
        self.entries.lock().get(&id).is_some_and(|entry| !entry.whole && entry.acts.last().is_some_and(answers))
    }

    pub(crate) fn acts(&self) -> BTreeMap<Act, u64> {
        let mut acts = BTreeMap::new();
        for act in self.entries.lock().values().flat_map(|entry| &entry.acts) {
            *acts.entry(*act).or_default() += 1;
        }
        acts
    }

    /// A head arrived.
    fn begin(&self, head: &Head, act: Act) {
        let mut entries = self.entries.lock();
        let entry = entries.entry(head.id).or_default();
        entry.method.clone_from(&head.method);
        entry.keyed = head.keyed;
        entry.acts.push(act);
        entry.whole = false;
    }

    fn whole(&self, id: u64) {
        if let Some(entry) = self.entries.lock().get_mut(&id) {
            entry.whole = true;
        }
    }

    fn check(&self, head: &Head, body: &[u8]) {
        if body != text_of("request", head.id, head.upload) {
            self.wrong.lock().push(format!("the body of {} is not its own: {} bytes", head.id, body.len()));
        }
    }

    /// What was done twice and must not be, and bodies that went astray.
    pub(crate) fn violations(&self) -> Vec<String> {
        let entries = self.entries.lock();
        let twice = entries.iter().filter(|(_, entry)| {
            let begun = entry.acts.iter().filter(|act| !act.refuses()).count();
            let idempotent = ["GET", "HEAD", "PUT", "DELETE"].contains(&entry.method.as_str());
            // Four attempts may fail; a key allows what the method does not, in the seconds in which that is configured.
            begun > if idempotent || entry.keyed { 4 } else { 1 }
        });
        let twice = twice.map(|(id, entry)| format!("{id} was processed too often: {entry:?}"));
        twice.chain(self.wrong.lock().clone()).collect()
    }
}

/// What a head says.
struct Head {
    id: u64,
    method: String,
    upload: usize,
    want: usize,
    keyed: bool,
    chunked: bool,
    length: usize,
}

impl Head {
    fn of(text: &str) -> Self {
        let value = |name: &str| {
            text.lines().filter_map(|line| line.split_once(':')).find(|(found, _)| found.eq_ignore_ascii_case(name))
        };
        let number = |name: &str| value(name).and_then(|(_, value)| value.trim().parse::<u64>().ok()).unwrap_or(0);
        Self {
            id: number("x-id"),
            method: text.split(' ').next().unwrap().to_owned(),
            upload: number("x-upload") as usize,
            want: number("x-want") as usize,
            keyed: value("idempotency-key").is_some(),
            chunked: value("transfer-encoding").is_some(),
            length: number("content-length") as usize,
        }
    }
}

/// An HTTP/1.1 upstream that can go away and come back under its address.
pub(crate) struct One {
    addr: SocketAddr,
    ledger: Arc<Ledger>,
    seed: u64,
    /// Keeps the port while nobody listens: a stranger must not get it, nor a connection find itself.
    _place: Socket,
    running: Mutex<Option<tokio::task::JoinHandle<()>>>,
    lives: AtomicU64,
}

impl One {
    pub(crate) fn start(ledger: Arc<Ledger>, seed: u64) -> Self {
        let place = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        place.set_reuse_address(true).unwrap();
        place.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let addr = place.local_addr().unwrap().as_socket().unwrap();
        let one = Self { addr, ledger, seed, _place: place, running: Mutex::default(), lives: AtomicU64::new(0) };
        one.come_back();
        one
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every connection is cut and nobody listens.
    pub(crate) fn go_away(&self) {
        if let Some(running) = self.running.lock().take() {
            running.abort();
        }
    }

    pub(crate) fn come_back(&self) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&self.addr.into()).unwrap();
        socket.listen(1024).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        let (ledger, mut dice) = (Arc::clone(&self.ledger), Dice::new(self.seed, 1000 + life));
        *self.running.lock() = Some(tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let dice = Dice::new(dice.below(u64::MAX), 0);
                connections.spawn(serve(stream, Arc::clone(&ledger), dice));
                while connections.try_join_next().is_some() {}
            }
        }));
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.go_away();
    }
}

async fn serve(mut stream: TcpStream, ledger: Arc<Ledger>, mut dice: Dice) {
    // One in fifty is cut as soon as it stands, before anything was read of it.
    if dice.percent(2) {
        return reset(&stream);
    }
    let mut buffer = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut buffer).await {
        let act = Act::any(&mut dice);
        ledger.begin(&head, act);
        match act {
            ResetEarly => return reset(&stream),
            Bare => {
                drop(say(&mut stream, &head, 429, "connection: close\r\n").await);
                return;
            }
            _ => {}
        }
        let Some(body) = read_body(&mut stream, &mut buffer, &head).await else { return };
        ledger.check(&head, &body);
        if !carry_out(&mut stream, &head, act, &ledger, &mut dice).await.unwrap_or(false) {
            return;
        }
    }
}

fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Head> {
    loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..at + 4).collect();
            return Some(Head::of(&String::from_utf8_lossy(&head)));
        }
        more(stream, buffer).await?;
    }
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut piece = [0; 16 * 1024];
    let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
    buffer.extend_from_slice(&piece[..count]);
    Some(())
}

async fn read_body(stream: &mut TcpStream, buffer: &mut Vec<u8>, head: &Head) -> Option<Vec<u8>> {
    if !head.chunked {
        while buffer.len() < head.length {
            more(stream, buffer).await?;
        }
        return Some(buffer.drain(..head.length).collect());
    }
    let mut body = Vec::new();
    loop {
        let end = loop {
            match buffer.windows(2).position(|window| window == b"\r\n") {
                Some(at) => break at,
                None => more(stream, buffer).await?,
            }
        };
        let line: Vec<u8> = buffer.drain(..end + 2).collect();
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).ok()?;
        while buffer.len() < size + 2 {
            more(stream, buffer).await?;
        }
        body.extend(buffer.drain(..size));
        buffer.drain(..2);
        if size == 0 {
            return Some(body);
        }
    }
}

/// An answer that is none of 200.
async fn say(stream: &mut TcpStream, head: &Head, status: u16, lines: &str) -> std::io::Result<()> {
    let body = if head.method == "HEAD" { Vec::new() } else { text_of("error", head.id, 40) };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} Status\r\nx-answer-to: {}\r\ncontent-length: {length}\r\n{lines}\r\n{}",
        head.id,
        String::from_utf8_lossy(&body)
    );
    stream.write_all(text.as_bytes()).await
}

/// `true`: the connection is kept.
async fn carry_out(
    stream: &mut TcpStream,
    head: &Head,
    act: Act,
    ledger: &Ledger,
    dice: &mut Dice,
) -> std::io::Result<bool> {
    let id = head.id;
    let ok = format!("HTTP/1.1 200 OK\r\nx-answer-to: {id}\r\n");
    let body = if head.method == "HEAD" { Vec::new() } else { text_of("answer", id, head.want) };
    let part = body.len() / 2;
    match act {
        Answer | Late | AnswerAndClose | AnswerAndCloseSoon | AnswerAndMore => {
            if act == Late {
                tokio::time::sleep(dice.millis(400)).await;
            }
            stream.write_all(format!("{ok}content-length: {}\r\n", body.len()).as_bytes()).await?;
            let mut rest = [b"\r\n", body.as_slice()].concat();
            if act == AnswerAndMore {
                // At once with the end: what comes later may meet a request that is already under way, and is then its
                // answer for all that anybody can tell.
                rest.extend(b"HTTP/1.1 200 OK\r\nx-answer-to: poison\r\ncontent-length: 6\r\n\r\npoison");
            }
            stream.write_all(&rest).await?;
            ledger.whole(id);
            if act == AnswerAndCloseSoon {
                // What arrives meanwhile is taken by nobody.
                tokio::time::sleep(dice.millis(60)).await;
            }
            Ok(matches!(act, Answer | Late))
        }
        Chunks | Events | ShortChunks => {
            let kind = if act == Events { "text/event-stream" } else { "application/octet-stream" };
            stream
                .write_all(format!("{ok}content-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes())
                .await?;
            if head.method == "HEAD" {
                ledger.whole(id);
                return Ok(act != ShortChunks);
            }
            let upto = if act == ShortChunks { part } else { body.len() };
            for piece in body[..upto].chunks(1 + body.len() / 6) {
                if act == Events {
                    tokio::time::sleep(dice.millis(60)).await;
                }
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                stream.write_all(piece).await?;
                stream.write_all(b"\r\n").await?;
            }
            if act == ShortChunks {
                tokio::time::sleep(dice.millis(20)).await;
                reset(stream);
                return Ok(false);
            }
            stream.write_all(b"0\r\n\r\n").await?;
            ledger.whole(id);
            Ok(true)
        }
        Short | Stall => {
            stream.write_all(format!("{ok}content-length: {}\r\n\r\n", head.want + 1).as_bytes()).await?;
            stream.write_all(&body).await?;
            if act == Stall {
                gone(stream).await;
            }
            Ok(false)
        }
        Silence => {
            gone(stream).await;
            Ok(false)
        }
        Error => say(stream, head, 500, "").await.map(|()| true),
        Rate => {
            say(stream, head, 429, "retry-after-ms: 60\r\nx-ratelimit-remaining-requests: 0\r\n").await.map(|()| true)
        }
        Ceiling => say(stream, head, 429, "x-ratelimit-limit-concurrent: 4\r\n").await.map(|()| true),
        Overload => say(stream, head, 503, "retry-after-ms: 40\r\n").await.map(|()| true),
        Garbage => stream.write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n").await.map(|()| false),
        Close => Ok(false),
        Reset => {
            reset(stream);
            Ok(false)
        }
        ResetEarly | Bare | RefusedStream => Ok(false),
    }
}

/// Until the proxy has hung up, but not for ever.
async fn gone(stream: &mut TcpStream) {
    let mut byte = [0];
    drop(tokio::time::timeout(Duration::from_secs(10), stream.read(&mut byte)).await);
}

/// An HTTP/2 upstream that resets streams.
pub(crate) async fn two(ledger: Arc<Ledger>, seed: u64) -> Http2Upstream {
    let dice = Mutex::new(Dice::new(seed, 2000));
    Http2Upstream::start(move |seen| {
        let header = |name: &str| seen.head.headers.get(name).map_or("", |value| value.to_str().unwrap());
        let text = format!(
            "{} \r\nx-id: {}\r\nx-upload: {}\r\nx-want: {}\r\n",
            seen.head.method,
            header("x-id"),
            header("x-upload"),
            header("x-want"),
        );
        let head = Head { keyed: seen.head.headers.contains_key("idempotency-key"), ..Head::of(&text) };
        let mut dice = dice.lock();
        let act = match dice.percent(60) {
            true => Answer,
            false => dice.pick(&[Short, ShortChunks, Close, RefusedStream, Rate, Ceiling, Overload, Error]),
        };
        ledger.begin(&head, act);
        ledger.check(&head, &seen.body);
        steps(&head, act, &ledger)
    })
    .await
}

fn steps(head: &Head, act: Act, ledger: &Ledger) -> Vec<Http2Step> {
    let id: &'static str = Box::leak(head.id.to_string().into_boxed_str());
    let headers: &'static [(&str, &str)] = Box::leak(Box::new([("x-answer-to", id), ("retry-after-ms", "30")]));
    let to_head = head.method == "HEAD";
    let data = |kind: &str, length: usize| {
        let length = if to_head { 0 } else { length };
        Http2Step::Data(Bytes::from(text_of(kind, head.id, length)))
    };
    match act {
        Short => vec![Http2Step::Head(200, headers), data("answer", head.want / 2), Http2Step::Reset(Reason::CANCEL)],
        Close => vec![Http2Step::Reset(Reason::INTERNAL_ERROR)],
        // It looks like an end, and is none.
        ShortChunks => vec![Http2Step::Head(200, headers), Http2Step::Reset(Reason::NO_ERROR)],
        RefusedStream => vec![Http2Step::Reset(Reason::REFUSED_STREAM)],
        Rate => vec![Http2Step::Head(429, headers), data("error", 40)],
        Ceiling => vec![Http2Step::Head(429, &headers[..1]), data("error", 40)],
        Overload => vec![Http2Step::Head(503, headers), data("error", 40)],
        Error => vec![Http2Step::Head(500, headers), data("error", 40)],
        _ => {
            ledger.whole(head.id);
            vec![Http2Step::Head(200, &headers[..1]), data("answer", head.want)]
        }
    }
}
