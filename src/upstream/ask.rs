//! A request of Tidegate's own, beside what it proxies: one connection, one question, one answer.

use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::{connect::Connector, hold::Io};

impl Connector {
    /// Sends a request to where this leads, over HTTP/1.1, and reads the whole answer.
    ///
    /// # Errors
    ///
    /// When there is no answer, or a longer one; in words, for a log.
    pub async fn ask(&self, request: Request<Bytes>, answer_bytes_max: usize) -> Result<Response<Bytes>, String> {
        let connected = self.connect(true).await.map_err(|why| why.to_string())?;
        let (io, _landing) = Io::new(connected.stream, None);
        let broken = |error: &dyn std::fmt::Display| error.to_string();
        let (mut sender, conn) = http1::handshake(TokioIo::new(io)).await.map_err(|error| broken(&error))?;
        let mut request = request.map(Full::new);
        *request.uri_mut() = request.uri().path_and_query().cloned().map(Uri::from).unwrap_or_default();
        request.headers_mut().insert(header::HOST, self.host_header.clone());
        let answer = async {
            let (head, body) = sender.send_request(request).await.map_err(|error| broken(&error))?.into_parts();
            let body = Limited::new(body, answer_bytes_max).collect().await.map_err(|error| broken(&error))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection's side may end first, with the answer already here.
            _ = conn => answer.await,
        }
    }
}
