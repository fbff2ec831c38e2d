//! HTTP/2 frame by frame, for clients and upstreams that no library would play.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::Proxy;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// `GET http://h/x` in HPACK: three fields of the static table, and a literal `:authority`.
pub const GET: &[u8] = &[0x82, 0x86, 0x44, 2, b'/', b'x', 0x41, 1, b'h'];
/// The same as POST.
pub const POST: &[u8] = &[0x83, 0x86, 0x44, 2, b'/', b'x', 0x41, 1, b'h'];
/// `:status: 200`.
pub const OK: &[u8] = &[0x88];

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A literal field that enters no table.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127);
    let mut field = vec![0, u8::try_from(name.len()).unwrap()];
    field.extend_from_slice(name.as_bytes());
    field.push(u8::try_from(value.len()).unwrap());
    field.extend_from_slice(value.as_bytes());
    field
}

/// Kind, flags, stream and payload of the next frame; `None`: the other side has closed.
pub async fn read_frame(stream: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// Preface and settings. The kernel holds little of what is sent, however late the proxy gets to run: what went is what
/// the proxy took.
pub async fn hostile(proxy: &Proxy) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(32 << 10).unwrap();
    let mut stream = socket.connect(proxy.addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// Writes pieces until all are written, the other side has had enough, or it takes no more. How many bytes went.
pub async fn pour(stream: &mut TcpStream, pieces: impl Iterator<Item = Vec<u8>>, reads: bool) -> usize {
    let (mut read, mut write) = stream.split();
    let poured = AtomicUsize::new(0);
    let writing = async {
        for piece in pieces {
            match tokio::time::timeout(Duration::from_secs(3), write.write_all(&piece)).await {
                Ok(Ok(())) => poured.fetch_add(piece.len(), Ordering::SeqCst),
                _ => return,
            };
        }
    };
    let reading = async {
        let mut piece = vec![0; 65536];
        while reads && matches!(read.read(&mut piece).await, Ok(1..)) {}
        if !reads {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! { () = writing => {}, () = reading => {} }
    poured.into_inner()
}
