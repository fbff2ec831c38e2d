//! The WebSocket of the mock: every message comes back. RFC 6455 5.2, as far as an echo needs it.

use std::io;

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{body::MockBody, refuse::refuse, shapes};

/// What a server's key is hashed with. RFC 6455 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Longest frame that is taken.
const FRAME_BYTES_MAX: u64 = 16 << 20;

/// 101, then every message is sent back.
pub(super) fn upgrade(mut request: Request<Incoming>, request_id: &str) -> Response<MockBody> {
    let websocket =
        request.headers().get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned().filter(|_| websocket) else {
        return refuse(false, 426, "invalid_request_error", None, "this endpoint is a WebSocket", request_id);
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // A client that breaks off ends the echo.
            drop(echo(TokioIo::new(upgraded)).await);
        }
    });
    let mut response = Response::new(MockBody::Full(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize();
    if let Ok(accept) = HeaderValue::try_from(shapes::to_base64(&digest)) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// Sends every frame back, unmasked as a server's are, until the client closes.
pub(super) async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        let [first, second] = stream.read_u16().await?.to_be_bytes();
        let length = match second & 0x7f {
            126 => u64::from(stream.read_u16().await?),
            127 => stream.read_u64().await?,
            short => u64::from(short),
        };
        if length > FRAME_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mask = if second & 0x80 == 0 { 0 } else { stream.read_u32().await? };
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        stream.read_exact(&mut payload).await?;
        for (byte, key) in payload.iter_mut().zip(mask.to_be_bytes().into_iter().cycle()) {
            *byte ^= key;
        }
        let opcode = first & 0x0f;
        let answer = if opcode == PING { (first & 0xf0) | PONG } else { first };
        let mut frame = vec![answer];
        match (length, u16::try_from(length)) {
            (0..126, _) => frame.push(length as u8),
            (_, Ok(length)) => {
                frame.push(126);
                frame.extend(length.to_be_bytes());
            }
            (_, Err(_)) => {
                frame.push(127);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend(payload);
        stream.write_all(&frame).await?;
        if opcode == CLOSE {
            return stream.shutdown().await;
        }
    }
}
