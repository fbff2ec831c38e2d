//! What belongs to a client's connection rather than to one exchange.

use std::sync::Arc;

use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::{clock::Alarm, fault::Fault, gate::LastAccount, provider::presets::Preset, upstream::Unheard};

use super::{relay::OutBody, route};

/// What the exchanges of one client connection share.
#[derive(Debug, Default)]
pub struct Client {
    /// What arrived since something last came to a head or to a piece of a body.
    pub unheard: Arc<Unheard>,
    /// For the wait for request bodies. Of exchanges at the same time, one has it.
    pub(super) alarm: Mutex<Alarm>,
    pub(super) account: Mutex<LastAccount>,
}

/// What the client of an exchange that panicked gets.
#[derive(Debug, Clone)]
pub struct AnswerToPanic {
    uri: Uri,
    to_head: bool,
    http1: bool,
}

impl AnswerToPanic {
    /// What the client gets if the answering of this request panics.
    #[must_use]
    pub fn to(request: &Request<Incoming>) -> Self {
        Self {
            uri: request.uri().clone(),
            to_head: request.method() == Method::HEAD,
            http1: request.version() <= http::Version::HTTP_11,
        }
    }

    /// The answer.
    #[must_use]
    pub fn response(&self) -> Response<OutBody> {
        let method = if self.to_head { Method::HEAD } else { Method::POST };
        let shape = route::error_shape(self.uri.path(), Preset::Generic);
        Fault::Internal.response(shape, &method, self.http1).map(|data| OutBody::own(data, None))
    }
}
