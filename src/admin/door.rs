//! What the fuzz targets in `tests/fuzz` call of this room beside what it exports. Compiled for them alone, so that
//! nothing of it is reachable in a release.

use std::net::Ipv4Addr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;

use super::Admin;

/// `Admin::handle`, for a listener on loopback.
#[must_use]
pub fn handle<B>(admin: &Admin, request: &Request<B>) -> Response<Full<Bytes>> {
    admin.handle(request, Ipv4Addr::LOCALHOST.into())
}
