//! The API behind the proxies: answers made beforehand, as little work as possible.
//!
//! The path says what is wanted: `/ms1` an answer after 1 ms, `/hold` one after [`Origin::release`], `/sse/N` a stream that
//! [`super::sse`] feeds, `/down` 64 MiB, `/up` a body to be counted, `/chunks/N` N small chunks, everything else 2 KiB at
//! once.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::{
    sse::Hub,
    wire::{self, MIB},
};

pub(crate) const BODY_MIB: usize = 64;

/// Two listeners with the same answers.
#[derive(Debug)]
pub(crate) struct Origin {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    /// What the certificate of `tls` is signed by; it is for `localhost` and 127.0.0.1.
    pub ca: PathBuf,
    pub hub: Arc<Hub>,
    hold: watch::Sender<bool>,
    pub waiting: Arc<std::sync::atomic::AtomicU64>,
}

#[derive(Debug, Clone)]
struct Answers {
    plain: Arc<[u8]>,
    down: Arc<[u8]>,
    hold: watch::Receiver<bool>,
    waiting: Arc<std::sync::atomic::AtomicU64>,
}

impl Origin {
    pub(crate) async fn start(dir: &Path) -> Result<Self> {
        let (hold, held) = watch::channel(false);
        let waiting = Arc::default();
        let body = wire::answer_body();
        let head = |length: usize| {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\n\
                 Server: origin\r\nContent-Length: {length}\r\n\r\n"
            )
            .into_bytes()
        };
        let answers = Answers {
            plain: [head(body.len()), body].concat().into(),
            down: head(BODY_MIB * MIB).into(),
            hold: held,
            waiting: Arc::clone(&waiting),
        };
        let hub = Arc::new(Hub::default());
        let (plain, ours, streams) = (listen()?, answers.clone(), Arc::clone(&hub));
        let (plain_addr, tls) = (plain.local_addr()?, listen()?);
        tokio::spawn(async move {
            while let Ok((stream, _)) = plain.accept().await {
                tokio::spawn(plainly(stream, ours.clone(), Arc::clone(&streams)));
            }
        });
        let (acceptor, ca) = acceptor(dir)?;
        let tls_addr = tls.local_addr()?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = tls.accept().await {
                let (acceptor, answers) = (acceptor.clone(), answers.clone());
                tokio::spawn(async move {
                    stream.set_nodelay(true).unwrap_or_default();
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        serve(&mut stream, &answers).await;
                    }
                });
            }
        });
        Ok(Self { plain: plain_addr, tls: tls_addr, ca, hub, hold, waiting })
    }

    /// Lets requests for `/hold` wait, or answers all of them.
    pub(crate) fn release(&self, now: bool) {
        self.hold.send_replace(now);
    }
}

fn listen() -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok(socket.listen(4096)?)
}

fn acceptor(dir: &Path) -> Result<(TlsAcceptor, PathBuf)> {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let ca = dir.join("origin.pem");
    fs::write(&ca, cert.pem())?;
    let key = PrivateKeyDer::from_pem_slice(signing_key.serialize_pem().as_bytes())?;
    let mut config = ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), ca))
}

async fn plainly(mut stream: TcpStream, answers: Answers, hub: Arc<Hub>) {
    stream.set_nodelay(true).unwrap_or_default();
    if let Some(group) = serve(&mut stream, &answers).await {
        hub.feed(group, stream).await;
    }
}

/// Serves requests until the connection ends, or is to become a stream of events: then its group.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, answers: &Answers) -> Option<usize> {
    let mut held = Vec::with_capacity(4096);
    loop {
        let head = loop {
            if let Some(head) = wire::head(&held) {
                break head;
            }
            if stream.read_buf(&mut held).await.ok()? == 0 {
                return None;
            }
        };
        let path = wire::path(held.get(..head.bytes)?).to_vec();
        let mut missing = (head.bytes + head.length.unwrap_or(0)).saturating_sub(held.len());
        held.clear();
        if missing > 64 * 1024 {
            let mut sink = vec![0; 256 * 1024];
            while missing > 0 {
                let read = stream.read(&mut sink).await.ok()?;
                if read == 0 {
                    return None;
                }
                missing = missing.saturating_sub(read);
            }
        }
        while missing > 0 {
            held.clear();
            let read = stream.read_buf(&mut held).await.ok()?;
            if read == 0 {
                return None;
            }
            missing = missing.saturating_sub(read);
        }
        held.clear();
        if let Some(group) = path.strip_prefix(b"/sse/") {
            return std::str::from_utf8(group).ok()?.parse().ok();
        }
        answer(stream, answers, &path).await?;
    }
}

async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, answers: &Answers, path: &[u8]) -> Option<()> {
    use std::sync::atomic::Ordering::Relaxed;

    if path == b"/ms1" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    } else if path == b"/hold" {
        answers.waiting.fetch_add(1, Relaxed);
        answers.hold.clone().wait_for(|released| *released).await.ok()?;
        answers.waiting.fetch_sub(1, Relaxed);
    } else if path == b"/down" {
        stream.write_all(&answers.down).await.ok()?;
        let block = vec![b'x'; 256 * 1024];
        for _ in 0..BODY_MIB * MIB / block.len() {
            stream.write_all(&block).await.ok()?;
        }
        return Some(());
    } else if let Some(number) = path.strip_prefix(b"/chunks/") {
        let number = std::str::from_utf8(number).ok()?.parse().ok()?;
        let chunk = format!("{:x}\r\n{}\r\n", wire::EVENT.len(), wire::EVENT);
        let all = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(number)
        );
        return stream.write_all(all.as_bytes()).await.ok();
    }
    stream.write_all(&answers.plain).await.ok()
}
