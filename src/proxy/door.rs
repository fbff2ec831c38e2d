//! What the fuzz targets in `tests/fuzz` call of this room beside what it exports. Compiled for them alone, so that
//! nothing of it is reachable in a release.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, request, uri::PathAndQuery};
use http_body::Body;

use super::{answer, head, route, strict};
use crate::fault::Fault;

/// `strict::request`.
pub fn is_strict<B>(request: &Request<B>, head_bytes_max: u64) -> Result<(), Fault> {
    strict::request(request, head_bytes_max)
}

/// `strict::answer`.
#[must_use]
pub fn is_strict_answer<B>(response: &Response<B>, asked: &HeaderMap) -> bool {
    strict::answer(response, asked)
}

/// `route::has_prefix`.
#[must_use]
pub fn has_prefix(path: &str, prefix: &str) -> bool {
    route::has_prefix(path, prefix)
}

/// `head::upgrade_of`.
#[must_use]
pub fn upgrade_of<B: Body>(request: &Request<B>) -> Option<HeaderValue> {
    head::upgrade_of(request)
}

/// `head::path`.
pub fn path(request: &Uri, strip: &str, base: &str) -> Result<PathAndQuery, Fault> {
    head::path(request, strip, base)
}

/// `head::for_upstream`.
pub fn for_upstream(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    head::for_upstream(headers, upgrade);
}

/// `head::join_cookies`.
pub fn join_cookies(headers: &mut HeaderMap) {
    head::join_cookies(headers);
}

/// `head::for_downstream`.
pub fn for_downstream(status: StatusCode, headers: &mut HeaderMap) {
    head::for_downstream(status, headers);
}

/// `head::for_trailers`.
pub fn for_trailers(trailers: &mut HeaderMap) {
    head::for_trailers(trailers);
}

/// `head::compact`.
pub fn compact(head: &mut request::Parts) {
    head::compact(head);
}

/// `answer::client_patience`.
#[must_use]
pub fn client_patience(headers: &HeaderMap) -> Option<Duration> {
    answer::client_patience(headers)
}
