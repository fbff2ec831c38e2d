//! The WebSocket of the mock: every message comes back. RFC 6455 5.2, as far as an echo needs it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Longest frame that is taken.
const FRAME_BYTES_MAX: u64 = 16 << 20;

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
