//! What a client or an upstream may put on the wire, byte for byte, class by class: every case is a line of a table,
//! and a table tells all of its cases that failed at once.

mod answers;
mod doors;
mod fidelity;
mod heads;
mod http2;
mod smuggling;
mod trailers;

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{PATIENCE, Proxy, Reply, Seen, Upstream};

/// After an answer, what else comes would come within this time.
const QUIET: Duration = Duration::from_millis(60);

/// What must become of the bytes of a case.
enum Want {
    /// One answer with one of these status codes that says whose it is and why, the connection is closed, and nothing
    /// goes upstream.
    Refused(&'static [u16]),
    /// One answer (200), one request upstream, whose bytes contain all of `has` and none of `lacks`.
    Passed { has: &'static [&'static str], lacks: &'static [&'static str] },
    /// Refused, or passed as one clean request: what a parser may read either way.
    Either,
}

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    want: Want,
}

fn refused(name: &'static str, bytes: impl Into<Vec<u8>>) -> Case {
    Case { name, bytes: bytes.into(), want: Want::Refused(&[400]) }
}

fn refused_with(status: &'static [u16], name: &'static str, bytes: impl Into<Vec<u8>>) -> Case {
    Case { name, bytes: bytes.into(), want: Want::Refused(status) }
}

fn passed(
    name: &'static str,
    bytes: impl Into<Vec<u8>>,
    has: &'static [&'static str],
    lacks: &'static [&'static str],
) -> Case {
    Case { name, bytes: bytes.into(), want: Want::Passed { has, lacks } }
}

fn either(name: &'static str, bytes: impl Into<Vec<u8>>) -> Case {
    Case { name, bytes: bytes.into(), want: Want::Either }
}

/// What a client got for its bytes.
struct Got {
    statuses: Vec<u16>,
    closed: bool,
    text: String,
}

impl Got {
    /// It is an answer of Tidegate's own, whole and with its reason.
    fn explains(&self) -> bool {
        let (head, body) = self.text.split_once("\r\n\r\n").unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        head.contains("x-tidegate-fault: ")
            && head.contains(&format!("content-length: {}", body.len()))
            && json.pointer("/error/message").is_some()
    }
}

/// Sends bytes, and listens until the connection ends or nothing more comes.
async fn say(addr: SocketAddr, bytes: &[u8]) -> Got {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut read, mut write) = stream.into_split();
    // Aside, since the answer may come before all is sent, and then nobody takes the rest.
    let bytes = bytes.to_vec();
    let sending = tokio::spawn(async move {
        let _ = write.write_all(&bytes).await;
        write
    });
    let (mut heard, mut closed) = (Vec::new(), false);
    let mut piece = vec![0; 64 * 1024];
    loop {
        let patience = if heard.is_empty() { PATIENCE / 6 } else { QUIET };
        match tokio::time::timeout(patience, read.read(&mut piece)).await {
            Err(_) => break,
            Ok(Ok(count @ 1..)) => heard.extend_from_slice(&piece[..count]),
            Ok(Ok(0) | Err(_)) => {
                closed = true;
                break;
            }
        }
    }
    sending.abort();
    let text = String::from_utf8_lossy(&heard).into_owned();
    let statuses =
        text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect();
    Got { statuses, closed, text }
}

/// Runs a table in front of an upstream that answers 200 to whatever it reads.
async fn run(cases: Vec<Case>) {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut failed = Vec::new();
    let count = cases.len();
    for Case { name, bytes, want } in cases {
        let before = upstream.count();
        let got = say(proxy.addr, &bytes).await;
        let seen = upstream.seen().split_off(before);
        if let Err(why) = check(&want, &got, &seen) {
            let lines: Vec<_> = seen.iter().map(Seen::line).collect();
            let text: String = got.text.chars().take(160).collect();
            failed.push(format!(
                "{name}: {why}; answers {:?}, closed {}, upstream {lines:?}, {text:?}",
                got.statuses, got.closed
            ));
        }
    }
    assert!(failed.is_empty(), "{} of {count} cases:\n{}", failed.len(), failed.join("\n"));
}

fn check(want: &Want, got: &Got, seen: &[Seen]) -> Result<(), String> {
    let refused = |statuses: &[u16]| match got.statuses.as_slice() {
        _ if !seen.is_empty() => Err("it went upstream".to_owned()),
        [status] if !statuses.contains(status) => Err(format!("not one of {statuses:?}")),
        [_] if !got.closed => Err("the connection stays open".to_owned()),
        [_] if !got.explains() => Err("it does not say why".to_owned()),
        [_] => Ok(()),
        _ => Err("not one answer".to_owned()),
    };
    let passed = |has: &[&str], lacks: &[&str]| {
        let ([200], [one]) = (got.statuses.as_slice(), seen) else {
            return Err("not one request and one answer".to_owned());
        };
        let raw = String::from_utf8_lossy(&[one.raw_head.clone(), one.raw_body.clone()].concat()).to_lowercase();
        let missing = has.iter().find(|part| !raw.contains(&part.to_lowercase()));
        let unwanted = lacks.iter().find(|part| raw.contains(&part.to_lowercase()));
        match (missing, unwanted) {
            (None, None) => Ok(()),
            (Some(part), _) => Err(format!("{part:?} is missing in {raw:?}")),
            (_, Some(part)) => Err(format!("{part:?} is in {raw:?}")),
        }
    };
    match want {
        Want::Refused(statuses) => refused(statuses),
        Want::Passed { has, lacks } => passed(has, lacks),
        Want::Either => refused(&[400, 501]).or_else(|_| passed(&[], &["smuggled"])),
    }
}
