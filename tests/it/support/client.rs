//! A client on a raw socket: what it sends is what the test wrote, what it gets is what was on the wire.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::soon;

/// One connection.
pub struct Client {
    /// The socket, for tests that go below HTTP.
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer as it arrived.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Status line and headers, byte for byte.
    pub head: String,
    /// The body, unchunked.
    pub body: Vec<u8>,
    /// Trailer lines of a chunked body.
    pub trailers: Vec<String>,
    /// The body ended as its framing says.
    pub complete: bool,
}

impl Response {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl Client {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends a POST with a body of known length.
    pub async fn post(&mut self, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{headers}\r\n");
        self.send(format!("{head}{body}")).await;
    }

    /// Sends a GET.
    pub async fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
    }

    /// The next answer, whole.
    pub async fn response(&mut self) -> Response {
        soon("a response", self.read(false)).await
    }

    /// The answer to a HEAD request.
    pub async fn response_to_head(&mut self) -> Response {
        soon("a response", self.read(true)).await
    }

    /// The next head; what follows stays unread.
    pub async fn head(&mut self) -> (u16, String) {
        soon("a response head", async {
            let end = loop {
                if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                    break at + 4;
                }
                assert!(self.more().await, "the connection ended inside a head: {:?}", self.buffer);
            };
            let head = String::from_utf8_lossy(&self.buffer.drain(..end).collect::<Vec<_>>()).into_owned();
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
            (status, head)
        })
        .await
    }

    /// The rest of an answer whose head was read already.
    pub async fn rest_of(&mut self, (status, head): (u16, String)) -> Response {
        soon("the rest of a response", self.read_body(status, head, false)).await
    }

    /// The next bytes that arrive; empty at the end.
    pub async fn bytes(&mut self) -> Vec<u8> {
        if self.buffer.is_empty() {
            soon("bytes", self.more()).await;
        }
        std::mem::take(&mut self.buffer)
    }

    /// Everything up to the end of the connection, and whether that end was clean.
    pub async fn rest(&mut self) -> (Vec<u8>, bool) {
        soon("the end of the connection", async {
            let mut piece = vec![0; 16 * 1024];
            loop {
                match self.stream.read(&mut piece).await {
                    Ok(0) => return (std::mem::take(&mut self.buffer), true),
                    Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
                    Err(_) => return (std::mem::take(&mut self.buffer), false),
                }
            }
        })
        .await
    }

    /// `false`: the connection ended.
    async fn more(&mut self) -> bool {
        let mut piece = vec![0; 16 * 1024];
        match self.stream.read(&mut piece).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&piece[..count]);
                true
            }
        }
    }

    async fn read(&mut self, to_head: bool) -> Response {
        let (status, head) = self.head().await;
        self.read_body(status, head, to_head).await
    }

    async fn read_body(&mut self, status: u16, head: String, to_head: bool) -> Response {
        let mut response = Response { status, head, body: Vec::new(), trailers: Vec::new(), complete: true };
        if to_head || status == 204 || status == 304 || status < 200 {
            return response;
        }
        if response.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            response.complete = self.chunks(&mut response).await.is_some();
        } else if let Some(length) = response.header("content-length").map(|value| value.parse::<usize>().unwrap()) {
            while self.buffer.len() < length && self.more().await {}
            response.complete = self.buffer.len() >= length;
            response.body = self.buffer.drain(..length.min(self.buffer.len())).collect();
        } else {
            while self.more().await {}
            response.body = std::mem::take(&mut self.buffer);
        }
        response
    }

    async fn chunks(&mut self, response: &mut Response) -> Option<()> {
        loop {
            let line = self.line().await?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            if size == 0 {
                loop {
                    let line = self.line().await?;
                    if line.trim().is_empty() {
                        return Some(());
                    }
                    response.trailers.push(line.trim().to_owned());
                }
            }
            while self.buffer.len() < size + 2 {
                if !self.more().await {
                    response.body.append(&mut self.buffer);
                    return None;
                }
            }
            response.body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
        }
    }

    async fn line(&mut self) -> Option<String> {
        let end = loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                break at + 1;
            }
            if !self.more().await {
                return None;
            }
        };
        Some(String::from_utf8_lossy(&self.buffer.drain(..end).collect::<Vec<_>>()).into_owned())
    }
}
