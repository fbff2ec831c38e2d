//! Certificates, and an upstream that speaks TLS and both HTTP versions.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::Folder;

/// An issuer of certificates.
pub struct Issuer {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: Folder,
}

/// A certificate with its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

impl Issuer {
    /// A new one that nobody knows.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // With a name of its own: one of the same name would be taken for it, and its signatures for wrong.
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("issuer {nth} for tests"));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = Folder::new();
        folder.write("ca.pem", &issuer.pem());
        Self { issuer, folder }
    }

    /// Its own certificate's file.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for a name.
    pub fn identity(&self, name: &str) -> Identity {
        self.identity_with(name, |_| {})
    }

    /// A certificate for a name, with changes.
    pub fn identity_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            cert: self.folder.write(&format!("{name}.cert.pem"), &cert.pem()).into(),
            key: self.folder.write(&format!("{name}.key.pem"), &key.serialize_pem()).into(),
        }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }

    /// A TLS connection to `localhost` that trusts this issuer only.
    pub async fn connect(
        &self,
        addr: SocketAddr,
        alpn: &[&str],
        own: Option<&Identity>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_auth_cert(own.chain(), own.private_key()).unwrap(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        super::soon("a TLS handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }
}

impl Identity {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(&self.cert).unwrap().map(Result::unwrap).collect()
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct TlsSeen {
    /// Which HTTP version it came in.
    pub version: Version,
    /// What the client asked for by SNI.
    pub server_name: Option<String>,
    /// Whether the client had a certificate.
    pub client_cert: bool,
}

/// An https upstream that says `hello`, and echoes after an upgrade. Ends with its handle.
pub struct TlsUpstream {
    /// Where it listens.
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<TlsSeen>>>,
    accepting: JoinHandle<()>,
}

impl TlsUpstream {
    /// With a certificate and the protocols it offers; `clients`: whose certificates it asks for.
    pub async fn start(own: &Identity, alpn: &[&str], clients: Option<&Issuer>) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(issuer) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(issuer.roots(), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(own.chain(), own.private_key()).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::default();
        let accepting = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(acceptor.clone(), stream, Arc::clone(&seen)));
                }
            }
        });
        Self { addr, seen, accepting }
    }

    /// Its base URL under the name `localhost`.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.addr.port())
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<TlsSeen> {
        self.seen.lock().clone()
    }
}

impl Drop for TlsUpstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, seen: Arc<Mutex<Vec<TlsSeen>>>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let server_name = session.server_name().map(str::to_owned);
    let client_cert = session.peer_certificates().is_some();
    let service = service_fn(move |request: Request<Incoming>| {
        let version = request.version();
        seen.lock().push(TlsSeen { version, server_name: server_name.clone(), client_cert });
        async move { Ok::<_, Infallible>(answer(request)) }
    });
    if http2 {
        let builder = conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    } else {
        let _ = conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    }
}

fn answer(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Some(protocol) = request.headers().get("upgrade").cloned() else {
        return Response::new(Full::from("hello"));
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", "upgrade".parse().unwrap());
    response.headers_mut().insert("upgrade", protocol);
    response
}
