//! Opening a connection: name, TCP, TLS, each with its own way to fail, all under one deadline.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderValue, Uri, uri::Scheme};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    config::{Http2, TlsRoots, Upstream, UpstreamTls},
    fault::Unreached,
    watch,
};

use super::Ways;

/// Head start of an address over the next one (RFC 8305, 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// What an upstream may still send of an abandoned answer: what was on its way.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// How to reach one upstream.
pub struct Connector {
    host: String,
    port: u16,
    tls: Option<Tls>,
    http2: Http2,
    deadline: Duration,
    pub(super) linger: Duration,
    pub(super) ways: Ways,
    /// What the TLS files held when they were read.
    pub files: Vec<watch::Content>,
    /// `Host` of forwarded requests.
    pub host_header: HeaderValue,
    /// Scheme and authority, for HTTP/2's pseudo-headers.
    pub origin: http::uri::Parts,
    /// Path put before every request's path; empty or without a slash at its end.
    pub base_path: String,
}

struct Tls {
    name: ServerName<'static>,
    negotiated: TlsConnector,
    http1: TlsConnector,
}

/// A connection, and which protocol it speaks.
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) http2: bool,
}

/// Why there is no connection.
#[derive(Debug)]
pub struct NotReached {
    /// What the client is told.
    pub why: Unreached,
    /// What the system or the TLS library says: for the log alone.
    pub said: Option<Box<str>>,
}

impl NotReached {
    pub(super) fn saying(why: Unreached, said: &dyn std::fmt::Display) -> Self {
        Self { why, said: Some(said.to_string().into()) }
    }
}

impl std::fmt::Display for NotReached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.said {
            Some(said) => write!(f, "{}: {said}", self.why),
            None => self.why.fmt(f),
        }
    }
}

impl From<Unreached> for NotReached {
    fn from(why: Unreached) -> Self {
        Self { why, said: None }
    }
}

/// Plain or TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why an upstream's TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// A file cannot be read or is not what it should be.
    #[error("upstream `{upstream}`: {}: {problem}", path.display())]
    File {
        /// Name of the upstream.
        upstream: String,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The parts do not fit together.
    #[error("upstream `{upstream}`: tls: {problem}")]
    Tls {
        /// Name of the upstream.
        upstream: String,
        /// What is wrong.
        problem: String,
    },
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Connector {
    /// Prepares everything that does not change from connection to connection. Reads the TLS files.
    pub fn new(upstream: &Upstream, ways: Ways) -> Result<Self, ConnectorError> {
        let url = &upstream.url;
        let https = url.scheme() == Some(&Scheme::HTTPS);
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
        // Before they are read: a change in between is then noticed later, not never.
        let files = upstream.tls.files().map(|path| watch::content(&path)).collect();
        let tls = if https { Some(Tls::new(upstream, &host)?) } else { None };
        let authority = url.authority().map_or(host.as_str(), |authority| authority.as_str());
        let host_header = HeaderValue::from_str(authority).map_err(|_| ConnectorError::Tls {
            upstream: upstream.name.clone(),
            problem: format!("`{authority}` cannot stand in a Host header"),
        })?;
        let base_path = url.path().trim_end_matches('/').to_owned();
        let mut origin = Uri::default().into_parts();
        origin.scheme = url.scheme().cloned();
        origin.authority = url.authority().cloned();
        Ok(Self {
            host,
            port,
            tls,
            http2: upstream.http2,
            deadline: upstream.deadlines.connect,
            linger: upstream.deadlines.linger,
            ways,
            files,
            host_header,
            origin,
            base_path,
        })
    }

    /// Whether a connection may turn out to speak HTTP/2.
    pub(super) fn may_speak_http2(&self) -> bool {
        match self.http2 {
            Http2::Auto => self.tls.is_some(),
            Http2::Off => false,
            Http2::Only => true,
        }
    }

    /// Opens a connection within the deadline. `http1`: whatever ALPN would say (for upgrades).
    pub(super) async fn connect(&self, http1: bool) -> Result<Connected, NotReached> {
        tokio::time::timeout(self.deadline, self.open(http1)).await.unwrap_or_else(|_| Err(Unreached::Timeout.into()))
    }

    async fn open(&self, http1: bool) -> Result<Connected, NotReached> {
        let addresses = (self.ways.resolve)(self.host.clone(), self.port)
            .await
            .map_err(|error| NotReached::saying(Unreached::Dns, &error))?;
        let stream = reach(addresses).await?;
        // Small stream events must not wait for company.
        stream.set_nodelay(true).map_err(|error| NotReached::saying(Unreached::Connect, &error))?;
        let Some(tls) = &self.tls else {
            return Ok(Connected { stream: Stream::Plain(stream), http2: self.http2 == Http2::Only && !http1 });
        };
        let connector = if http1 { &tls.http1 } else { &tls.negotiated };
        let stream = connector
            .connect(tls.name.clone(), stream)
            .await
            .map_err(|error| NotReached::saying(Unreached::Tls, &error))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if self.http2 == Http2::Only && !http2 && !http1 {
            let said = "the upstream did not agree to HTTP/2, which `http2: only` asks for";
            return Err(NotReached::saying(Unreached::Tls, &said));
        }
        Ok(Connected { stream: Stream::Tls(Box::new(stream)), http2 })
    }
}

/// Connects to whichever address answers first. They are tried in the resolver's order with the families taking turns,
/// each with a head start over the next; one that fails makes way at once.
async fn reach(addresses: Vec<SocketAddr>) -> Result<TcpStream, NotReached> {
    if addresses.is_empty() {
        return Err(Unreached::Dns.into());
    }
    let mut refused = NotReached::from(Unreached::Connect);
    let mut left = taking_turns(addresses).into_iter();
    let mut racing: Vec<Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>> = Vec::new();
    loop {
        match left.next() {
            Some(address) => racing.push(Box::pin(TcpStream::connect(address))),
            None if racing.is_empty() => return Err(refused),
            None => {}
        }
        let ended = poll_fn(|cx| {
            for (index, attempt) in racing.iter_mut().enumerate() {
                if let Poll::Ready(end) = attempt.as_mut().poll(cx) {
                    drop(racing.swap_remove(index));
                    return Poll::Ready(end);
                }
            }
            Poll::Pending
        });
        tokio::select! {
            end = ended => match end {
                Ok(stream) => return Ok(stream),
                Err(error) => refused = NotReached::saying(Unreached::Connect, &error),
            },
            () = tokio::time::sleep(HEAD_START), if left.len() > 0 => {}
        }
    }
}

/// The resolver's order, but the families take turns.
fn taking_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut other) = (first.into_iter(), other.into_iter());
    let mut turns = Vec::with_capacity(first.len() + other.len());
    while first.len() + other.len() > 0 {
        turns.extend(first.next());
        turns.extend(other.next());
    }
    turns
}

impl Tls {
    fn new(upstream: &Upstream, host: &str) -> Result<Self, ConnectorError> {
        let wrong = |problem: String| ConnectorError::Tls { upstream: upstream.name.clone(), problem };
        let name = upstream.tls.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name.clone())
            .map_err(|_| wrong(format!("`{name}` is no name a certificate can be for; set tls.server_name")))?;
        let config = client_config(&upstream.name, &upstream.tls)?;
        let with_alpn = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        let negotiated: &[&[u8]] = match upstream.http2 {
            Http2::Auto => &[b"h2", b"http/1.1"],
            Http2::Off => &[b"http/1.1"],
            Http2::Only => &[b"h2"],
        };
        Ok(Self { name, negotiated: with_alpn(negotiated), http1: with_alpn(&[b"http/1.1"]) })
    }
}

fn client_config(upstream: &str, tls: &UpstreamTls) -> Result<ClientConfig, ConnectorError> {
    let wrong = |problem: String| ConnectorError::Tls { upstream: upstream.to_owned(), problem };
    let mut roots = RootCertStore::empty();
    match tls.roots {
        TlsRoots::Bundled => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        TlsRoots::None => {}
        TlsRoots::System => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if let Some(path) = &tls.ca {
        for certificate in certificates(upstream, path)? {
            roots.add(certificate).map_err(|error| file_error(upstream, path, &error))?;
        }
    }
    if roots.is_empty() {
        return Err(wrong("no trusted issuers were found; set tls.roots: bundled, or tls.ca to a file".to_owned()));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots);
    match &tls.client {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let chain = certificates(upstream, cert)?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error(upstream, key, &error))?;
            builder.with_client_auth_cert(chain, key_der).map_err(|error| wrong(error.to_string()))
        }
    }
}

fn certificates(upstream: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectorError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect())
        .map_err(|error| file_error(upstream, path, &error))?;
    if certificates.is_empty() {
        return Err(file_error(upstream, path, &"no certificate in it"));
    }
    Ok(certificates)
}

fn file_error(upstream: &str, path: &Path, problem: &dyn std::fmt::Display) -> ConnectorError {
    ConnectorError::File { upstream: upstream.to_owned(), path: path.to_owned(), problem: problem.to_string() }
}

/// Closes our side and waits until the upstream has closed its own, or `max` has passed: only then is an abandoned
/// attempt surely out of the upstream's hands. One that goes on sending instead is reset.
pub(super) async fn linger(stream: &mut TcpStream, max: Duration) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let gone = async {
        stream.shutdown().await?;
        let mut rest = vec![0; 4096];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match stream.read(&mut rest).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    // However it ends, the connection is closed next.
    drop(tokio::time::timeout(max, gone).await);
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;

    /// An address where connecting neither succeeds nor fails: a listener whose queue is full. Ends with the sockets.
    async fn black_hole() -> (SocketAddr, Socket, Vec<TcpStream>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            queued.push(stream.unwrap());
        }
        (address, socket, queued)
    }

    async fn refused() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_only_costs_its_head_start() {
        let (hole, _socket, _queued) = black_hole().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        for addresses in [vec![hole, good], vec![hole, refused().await, good], vec![good, hole], vec![hole, hole, good]]
        {
            // The connect deadline.
            let reached = tokio::time::timeout(Duration::from_secs(5), reach(addresses.clone())).await;
            assert_eq!(reached.unwrap().unwrap().peer_addr().unwrap(), good, "{addresses:?}");
        }
        assert!(tokio::time::timeout(Duration::from_secs(1), reach(vec![hole])).await.is_err(), "it is one");
    }

    #[tokio::test]
    async fn no_address_and_none_that_answers_are_told_apart() {
        assert_eq!(reach(Vec::new()).await.unwrap_err().why, Unreached::Dns);
        let refused = reach(vec![refused().await, refused().await]).await.unwrap_err();
        assert_eq!(refused.why, Unreached::Connect);
        assert!(refused.said.unwrap().contains("refused"), "the system's own words");
    }

    #[test]
    fn families_take_turns_and_the_resolvers_first_is_first() {
        let [six, four]: [IpAddr; 2] = ["::1".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let at = |ip: IpAddr, port: u16| SocketAddr::from((ip, port));
        let listed = vec![at(six, 1), at(six, 2), at(six, 3), at(four, 4), at(four, 5)];
        let want = vec![at(six, 1), at(four, 4), at(six, 2), at(four, 5), at(six, 3)];
        assert_eq!(taking_turns(listed), want);
        assert_eq!(taking_turns(vec![at(four, 1), at(six, 2)]), [at(four, 1), at(six, 2)]);
        assert!(taking_turns(Vec::new()).is_empty());
    }
}
