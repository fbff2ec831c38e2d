//! What the fuzz targets in `tests/fuzz` call of this room beside what it exports. Compiled for them alone, so that
//! nothing of it is reachable in a release.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, Uri, request, response, uri::PathAndQuery};

use super::{
    answer, head, route,
    seen::{Seen, SeenAnswer},
    strict,
};
use crate::fault::Fault;

/// `strict::request`.
pub fn is_strict(head: &request::Parts, head_bytes_max: u64) -> Result<(), Fault> {
    strict::request(head, &Seen::of(&head.headers), head_bytes_max)
}

/// `strict::answer`.
#[must_use]
pub fn is_strict_answer<B>(response: &Response<B>, asked: &HeaderMap) -> bool {
    strict::answer(response, SeenAnswer::of(response.headers()), || asked.clone())
}

/// `route::has_prefix`.
#[must_use]
pub fn has_prefix(path: &str, prefix: &str) -> bool {
    route::has_prefix(path, prefix)
}

/// `head::upgrade_of`.
#[must_use]
pub fn upgrade_of(head: &request::Parts, is_bodiless: bool) -> Option<HeaderValue> {
    head::upgrade_of(head, is_bodiless)
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

/// `answer::prepare`.
pub fn for_downstream(head: &mut response::Parts) {
    let seen = SeenAnswer::of(&head.headers);
    answer::prepare(head, seen);
}

/// `head::for_trailers`.
pub fn for_trailers(trailers: &mut HeaderMap) {
    head::for_trailers(trailers);
}

/// `head::compact`.
pub fn compact(head: &mut request::Parts, target: &mut Uri) {
    head::compact(head, target);
}

/// `answer::client_patience`.
#[must_use]
pub fn client_patience(headers: &HeaderMap) -> Option<Duration> {
    answer::client_patience(headers)
}
