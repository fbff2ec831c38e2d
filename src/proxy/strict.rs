//! What hyper lets through and this proxy does not: heads that another reader might read otherwise, or that ask for
//! something no API offers.
//!
//! Source: RFC 9112 3.2 (targets and `Host`), 6.1 (`Transfer-Encoding`), RFC 9110 7.8 (`Upgrade`). hyper itself
//! refuses bad syntax, bad lengths, and a `Transfer-Encoding` that does not end in `chunked`.

use http::{HeaderMap, Method, Response, StatusCode, Uri, Version, header, request};

use crate::fault::Fault;

use super::seen::{Host, Seen, SeenAnswer};

/// Fields in a request head. hyper counts those of HTTP/1.1 itself; in HTTP/2 a byte may stand for a field that was sent
/// before, so that the length bounds next to nothing.
///
/// Not 256: hyper takes 32 bytes a field from the heap while it reads a head, and chunks of 8 KiB that were written to
/// would become the next connections' read buffers, which take less memory while most of them is untouched.
pub const HEADER_COUNT_MAX: usize = 224;

/// A request head. `head_bytes_max`: how long one may be; a target may be half as long.
pub(super) fn request(head: &request::Parts, seen: &Seen, head_bytes_max: u64) -> Result<(), Fault> {
    let (uri, headers) = (&head.uri, &head.headers);
    if [Method::CONNECT, Method::TRACE].contains(&head.method) {
        return Err(Fault::BadMethod);
    }
    if headers.len() > HEADER_COUNT_MAX {
        return Err(Fault::LongHead);
    }
    if seen.transfer_encoding && !is_plainly_framed(headers) {
        return Err(Fault::BadHead("its Transfer-Encoding is not `chunked`"));
    }
    let path = uri.path_and_query().filter(|path| path.path().starts_with('/'));
    let path = path.ok_or(Fault::BadHead("its target is not a path"))?;
    if path.as_str().len() as u64 > head_bytes_max / 2 {
        return Err(Fault::LongTarget);
    }
    if !uri.scheme_str().is_none_or(|scheme| ["http", "https"].contains(&scheme)) {
        return Err(Fault::BadHead("its target is neither http nor https"));
    }
    if !names_one_host(head.version, uri, seen.host) {
        return Err(Fault::BadHead("it must name one host"));
    }
    Ok(())
}

/// A response head: its framing has one reading, and it switches to no protocol but the one that was `asked` for.
#[must_use]
pub(super) fn answer<B>(response: &Response<B>, seen: SeenAnswer, asked: impl FnOnce() -> HeaderMap) -> bool {
    let protocol = |headers: &HeaderMap| headers.get(header::UPGRADE).map(|name| name.as_bytes().to_ascii_lowercase());
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let agreed = || protocol(&asked()).is_some_and(|asked| protocol(response.headers()) == Some(asked));
    (!seen.transfer_encoding || is_plainly_framed(response.headers())) && (!switches || agreed())
}

/// No transfer coding but a single `chunked`.
fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).into_iter();
    let first = codings.next();
    first.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// Exactly one host is named, in legal form. Which one matters to nobody here: a target's own beats `Host`, and the
/// upstream's replaces both.
fn names_one_host(version: Version, uri: &Uri, host: Host) -> bool {
    let enough = match version {
        Version::HTTP_11 => host == Host::One,
        Version::HTTP_2 => host == Host::One || uri.authority().is_some(),
        _ => true,
    };
    enough && host != Host::Bad && uri.authority().is_none_or(|one| is_authority(one.as_str()))
}

/// A host, and a port if there is one; no user.
pub(super) fn is_authority(text: &str) -> bool {
    let (legal, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            (address.parse::<std::net::Ipv6Addr>().is_ok(), port)
        }
        None => {
            let (name, port) = text.split_at(text.bytes().position(|byte| byte == b':').unwrap_or(text.len()));
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
            (!name.is_empty() && name.bytes().all(is_plain), port)
        }
    };
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok();
    legal && (port.is_empty() || port.strip_prefix(':').is_some_and(is_number))
}
