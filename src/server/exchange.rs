//! Requests of a connection become exchanges, each of which may fail alone.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::{
    body::{Body, Incoming},
    service::Service,
};

use crate::proxy::{AnswerToPanic, Engine, OutBody};

use super::{
    answer::Answer,
    watch::{Open, Watch},
};

/// Turns the requests of a connection into exchanges.
pub(super) struct Exchanges {
    engine: Arc<Engine>,
    watch: Arc<Watch>,
}

impl Exchanges {
    pub(super) fn new(engine: &Arc<Engine>, watch: &Arc<Watch>) -> Self {
        Self { engine: Arc::clone(engine), watch: Arc::clone(watch) }
    }
}

impl Service<Request<Incoming>> for Exchanges {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Exchange;

    fn call(&self, mut request: Request<Incoming>) -> Exchange {
        let open = self.watch.begin(request.body().size_hint().exact());
        if self.watch.take_fragment() {
            // No more than any other target that is not a path, now that nobody can tell what it was.
            *request.uri_mut() = Uri::from_static("*");
        }
        Exchange {
            version: request.version(),
            to_head: request.method() == Method::HEAD,
            panicked: AnswerToPanic::to(&request),
            handled: Box::pin(Arc::clone(&self.engine).handle(request, Arc::clone(&self.watch.client))),
            watch: Arc::clone(&self.watch),
            open: Some(open),
        }
    }
}

/// A running exchange. If it panics, it fails alone: its slot comes back, its client is answered, and the connection's
/// other exchanges go on.
pub(super) struct Exchange {
    handled: Pin<Box<dyn Future<Output = Result<Response<OutBody>, Infallible>> + Send>>,
    version: Version,
    to_head: bool,
    panicked: AnswerToPanic,
    watch: Arc<Watch>,
    open: Option<Open>,
}

impl Future for Exchange {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let handled = &mut self.handled;
        // Never polled again afterwards: what it left half done is dropped with it.
        let response = match catch_unwind(AssertUnwindSafe(|| handled.as_mut().poll(cx))) {
            Ok(handled) => ready!(handled)?,
            Err(_) => self.panicked.response(),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.watch.becomes_tunnel();
        }
        let open = self.open.take();
        Poll::Ready(Ok(Answer::new(response, self.version, self.to_head, open)))
    }
}
