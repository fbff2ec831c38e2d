//! Asks a running Tidegate, over its admin port.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Time for a whole answer: ample for this machine, short enough for whoever watches health.
const PATIENCE: Duration = Duration::from_secs(4);
/// Most of an answer that is read: the status of 1,024 accounts takes a tenth of it.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The text names no admin port.
    #[error("{0:?} is no admin port; name it like http://127.0.0.1:9090")]
    Address(String),
    /// Nobody listens there.
    #[error("cannot connect to {0} ({1}); is Tidegate running, and is that its admin port?")]
    Connect(String, std::io::Error),
    /// It listens and does not answer.
    #[error("{0} did not answer within {patience} s", patience = PATIENCE.as_secs())]
    Late(String),
    /// It answered something else than HTTP, or broke off.
    #[error("{0} gave no proper answer: {1}")]
    Protocol(String, String),
}

/// An admin port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    authority: String,
}

impl Remote {
    /// From `http://127.0.0.1:9090`, with or without the scheme. An address that only makes sense for a listener
    /// (`0.0.0.0:9090`) means this machine.
    ///
    /// # Errors
    ///
    /// When it is neither, or names no port.
    pub fn new(text: &str) -> Result<Self, RemoteError> {
        let wrong = || RemoteError::Address(text.to_owned());
        let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let uri: Uri = format!("http://{bare}/").parse().map_err(|_| wrong())?;
        let (Some(authority), Some(port), "/") =
            (uri.authority(), uri.port_u16().filter(|port| *port != 0), uri.path())
        else {
            return Err(wrong());
        };
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(wrong());
        }
        let host = authority.host();
        let authority = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() && address.is_ipv4() => format!("127.0.0.1:{port}"),
            Ok(address) if address.is_unspecified() => format!("[::1]:{port}"),
            Ok(_) | Err(_) => format!("{host}:{port}"),
        };
        Ok(Self { authority })
    }

    /// Where it is, for people.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// The answer to a GET.
    ///
    /// # Errors
    ///
    /// When there is none in time.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), RemoteError> {
        tokio::time::timeout(PATIENCE, self.ask(path)).await.map_err(|_| RemoteError::Late(self.url()))?
    }

    async fn ask(&self, path: &str) -> Result<(StatusCode, Bytes), RemoteError> {
        let broken = |error: &dyn std::fmt::Display| RemoteError::Protocol(self.url(), error.to_string());
        let stream =
            TcpStream::connect(&self.authority).await.map_err(|error| RemoteError::Connect(self.url(), error))?;
        let (mut sender, conn) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let request = Request::get(path)
            .header(header::HOST, &self.authority)
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(&error))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            let body = body.collect().await.map_err(|error| broken(&error))?.to_bytes();
            Ok((status, body))
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection's side may end first, with the answer already here.
            _ = conn => answer.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_port_is_named_in_many_ways() {
        for (text, want) in [
            ("http://127.0.0.1:9090", Some("http://127.0.0.1:9090")),
            ("http://127.0.0.1:9090/", Some("http://127.0.0.1:9090")),
            ("127.0.0.1:9090", Some("http://127.0.0.1:9090")),
            ("localhost:1", Some("http://localhost:1")),
            ("0.0.0.0:9090", Some("http://127.0.0.1:9090")),
            ("[::]:9090", Some("http://[::1]:9090")),
            ("[fd00::1]:9090", Some("http://[fd00::1]:9090")),
            ("gateway.internal:80", Some("http://gateway.internal:80")),
            ("off", None),
            ("127.0.0.1", None),
            ("127.0.0.1:0", None),
            (":9090", None),
            ("http://:9090", None),
            ("http://127.0.0.1:9090/status", None),
            ("https://127.0.0.1:9090", None),
            ("user:pw@127.0.0.1:9090", None),
            ("", None),
            ("a b:1", None),
        ] {
            assert_eq!(Remote::new(text).ok().map(|remote| remote.url()).as_deref(), want, "{text}");
        }
    }
}
