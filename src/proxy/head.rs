//! Which headers cross, and how heads are rewritten for the other side.
//!
//! Source: RFC 9110 7.6.1 (fields that belong to one connection), RFC 9113 8.2.2 (what HTTP/2 must not carry).

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request, uri::PathAndQuery};

use crate::fault::Fault;

/// Fields that stay although `Connection` names them: without them the message would mean something else.
static PROTECTED: [HeaderName; 4] = [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::AUTHORIZATION];

/// Fields that mean nothing, or harm, after a body.
static NO_TRAILERS: [HeaderName; 10] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::HOST,
    header::MAX_FORWARDS,
    header::SET_COOKIE,
    header::TRAILER,
];

/// Request headers that are for Tidegate.
const OWN_PREFIX: &str = "x-tidegate-";

/// Makes a request safe to send twice, where the upstream knows it.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

// These are asked of every field of every head, and to match a text costs half of comparing header names.

/// Whether its values are secrets.
pub(super) fn is_secret(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "cookie"
            | "proxy-authorization"
            | "set-cookie"
            | "api-key"
            | IDEMPOTENCY_KEY
            | "x-api-key"
            | "x-goog-api-key"
    )
}

/// Whether it is a field of one connection, whether `Connection` names it or not.
pub(super) fn belongs_to_connection(name: &str) -> bool {
    matches!(name, "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade")
}

/// Whether it is for Tidegate.
pub(super) fn is_own(name: &str) -> bool {
    name.starts_with(OWN_PREFIX)
}

/// Whether it is for this side alone. `Expect` is answered here: the client is asked for its body when the upstream
/// takes it.
pub(super) fn stays_here(name: &str) -> bool {
    matches!(name, "proxy-authorization" | "expect" | "http2-settings") || is_own(name)
}

/// Marks the values that are secrets: none of them is ever printed, and HTTP/2 keeps none of them in its tables.
pub(super) fn hide(headers: &mut HeaderMap) {
    for (name, value) in headers.iter_mut() {
        if is_secret(name.as_str()) {
            value.set_sensitive(true);
        }
    }
}

/// The protocol a client asks to switch to, if it does so in a way that can be passed on.
#[must_use]
pub(super) fn upgrade_of(head: &request::Parts, is_bodiless: bool) -> Option<HeaderValue> {
    let mut protocols = head.headers.get_all(header::UPGRADE).into_iter();
    let (protocol, another) = (protocols.next()?, protocols.next());
    // Nothing else: HTTP/2 over an upgrade would carry requests past every limit, and nobody knows what others carry.
    let websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket") && another.is_none();
    let asked = head.version == Version::HTTP_11
        && listed(&head.headers, &header::CONNECTION).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    // A handshake has no body; one that is still on its way would be taken for the tunnel's first bytes.
    (asked && websocket && is_bodiless).then(|| protocol.clone())
}

/// The path to ask for upstream: the request's own, less `strip`, after `base`. Not a byte of it is normalised, but an
/// absolute target without a path asks for `/` (RFC 9112 3.2.1).
pub(super) fn path(request: &Uri, strip: &str, base: &str) -> Result<PathAndQuery, Fault> {
    let own = request.path_and_query().filter(|own| own.path().starts_with('/'));
    let own = own.ok_or(Fault::BadHead("its target is not a path"))?;
    let whole = own.as_str();
    // An empty path calls itself `/` and is written as nothing: it is made anew.
    if strip.is_empty() && base.is_empty() && whole.starts_with('/') && whole.len() > 1 {
        return Ok(own.clone());
    }
    let rest = whole.strip_prefix(strip).unwrap_or(whole);
    let slash = if rest.starts_with('/') { "" } else { "/" };
    PathAndQuery::try_from(format!("{base}{slash}{rest}")).map_err(|_| Fault::BadHead("its target is not a path"))
}

/// Prepares a client's request headers for the upstream.
pub(super) fn for_upstream(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    one_length(headers);
    let trailers = listed(headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    strip_hop_by_hop(headers);
    let here: Vec<HeaderName> = headers.keys().filter(|name| stays_here(name.as_str())).cloned().collect();
    for name in here {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// HTTP/2 may send `Cookie` in crumbs; elsewhere it is one line (RFC 9113 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(mut whole) = HeaderValue::from_maybe_shared(Bytes::from(crumbs.join(&b"; "[..])))
    {
        whole.set_sensitive(headers.get(header::COOKIE).is_some_and(HeaderValue::is_sensitive));
        headers.insert(header::COOKIE, whole);
    }
}

/// Prepares the upstream's response headers for the client.
pub(super) fn for_downstream(status: StatusCode, headers: &mut HeaderMap) {
    let upgrade = (status == StatusCode::SWITCHING_PROTOCOLS).then(|| headers.get(header::UPGRADE).cloned()).flatten();
    one_framing(headers);
    if status == StatusCode::NO_CONTENT || !tells_one_length(headers) {
        headers.remove(header::CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
    hide(headers);
    if let Some(protocol) = upgrade {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// What may follow a body: nothing that frames or routes a message, or belongs to one connection (RFC 9110 6.5.1).
/// hyper leaves it out of HTTP/1.1 by itself, and passes it on in HTTP/2, where it breaks the message.
pub(super) fn for_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in &NO_TRAILERS {
        trailers.remove(name);
    }
}

/// Gives up what a head shares with the connection's read buffer, for a request that is going to wait: its values are
/// slices of a buffer of 8 KiB, which they would keep alive, and the connection would take another to watch for a
/// hang-up. Measured: 8 KiB less for each of 10,000 that wait.
pub(crate) fn compact(head: &mut request::Parts, target: &mut Uri) {
    let total = head.headers.values().map(HeaderValue::len).sum();
    let mut values = BytesMut::with_capacity(total);
    for value in head.headers.values_mut() {
        values.extend_from_slice(value.as_bytes());
        let sensitive = value.is_sensitive();
        // A value that was valid before it was copied is valid still.
        if let Ok(copy) = HeaderValue::from_maybe_shared(values.split().freeze()) {
            *value = copy;
            value.set_sensitive(sensitive);
        }
    }
    let is_same = head.uri == *target;
    if let Ok(copy) = Uri::try_from(target.to_string()) {
        *target = copy;
    }
    if is_same {
        head.uri.clone_from(target);
    } else if let Ok(copy) = Uri::try_from(head.uri.to_string()) {
        head.uri = copy;
    }
}

/// RFC 9110 9.2.2.
#[must_use]
pub(super) fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE].contains(method)
}

/// `Transfer-Encoding` overrides a length, and equal lengths are one (RFC 9112 6.3). hyper has read the body by that
/// rule; the client must not have to.
fn one_framing(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    } else {
        one_length(headers);
    }
}

/// Equal lengths are one. Those of an HTTP/2 request come as they were sent, which h2 has found to be equal.
pub(super) fn one_length(headers: &mut HeaderMap) {
    let mut values = headers.get_all(header::CONTENT_LENGTH).into_iter();
    let is_one = values.next().is_none_or(|length| !length.as_bytes().contains(&b','));
    if is_one && values.next().is_none() {
        return;
    }
    let mut lengths = listed(headers, &header::CONTENT_LENGTH);
    if let (Some(length), Some(another)) = (lengths.next(), lengths.next())
        && another == length
        && lengths.all(|another| another == length)
        && let Ok(length) = HeaderValue::from_bytes(length)
    {
        drop(lengths);
        headers.insert(header::CONTENT_LENGTH, length);
    }
}

/// Whether the length, if any, is one number. hyper looks at that of an answer with a body only.
fn tells_one_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).into_iter();
    let (length, another) = (lengths.next(), lengths.next());
    let is_number = |length: &HeaderValue| length.to_str().is_ok_and(|text| text.parse::<u64>().is_ok());
    another.is_none() && length.is_none_or(|length| is_number(length) && !length.as_bytes().starts_with(b"+"))
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let there = |headers: &HeaderMap| headers.keys().find(|name| belongs_to_connection(name.as_str())).cloned();
    let Some(mut name) = there(headers) else { return };
    // What nearly all say names nothing.
    let named: Vec<HeaderName> = listed(headers, &header::CONNECTION)
        .filter(|option| !option.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|option| HeaderName::try_from(option).ok())
        .filter(|name| !PROTECTED.contains(name))
        .collect();
    for name in &named {
        headers.remove(name);
    }
    loop {
        headers.remove(name);
        let Some(another) = there(headers) else { return };
        name = another;
    }
}

/// The members of a comma-separated list, over all lines of the field. One of odd bytes does not hide its neighbours.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_belongs_to_one_connection_does_not_cross() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Private"),
            ("connection", "x-second, host, content-length"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-private", "1"),
            ("x-second", "2"),
            ("x-tidegate-flow", "team"),
            ("host", "localhost"),
            ("content-length", "3"),
            ("x-kept", "a"),
            ("x-kept", "b"),
            ("trailer", "x-sum"),
        ]);
        for_upstream(&mut headers, None);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "te", "trailer", "x-kept"]);
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers.get_all("x-kept").iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn secrets_are_not_printed() {
        let mut headers = map(&[("authorization", "Bearer sk-1"), ("cookie", "sk-2"), ("x-api-key", "sk-3")]);
        headers.append(header::COOKIE, HeaderValue::from_static("sk-4"));
        headers.insert("accept", HeaderValue::from_static("text/plain"));
        hide(&mut headers);
        join_cookies(&mut headers);
        let (mut head, ()) = http::Request::new(()).into_parts();
        head.headers = headers;
        compact(&mut head, &mut Uri::default());
        let printed = format!("{head:?}");
        assert!(printed.contains("text/plain") && !printed.contains("sk-"), "{printed}");
    }

    #[test]
    fn a_line_with_other_bytes_still_names_its_fields() {
        let mut headers = map(&[("x-private", "1"), ("x-kept", "2"), ("te", "trailers")]);
        headers.append("connection", HeaderValue::from_bytes(b"\xff, X-Private").unwrap());
        for_upstream(&mut headers, None);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-kept"]);
    }

    #[test]
    fn an_upgrade_is_passed_on_only_when_it_was_asked_for() {
        for (version, lines, want) in [
            (Version::HTTP_11, vec![("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], true),
            (Version::HTTP_11, vec![("upgrade", "websocket")], false),
            (Version::HTTP_11, vec![("connection", "upgrade"), ("upgrade", "h2c")], false),
            (Version::HTTP_10, vec![("connection", "upgrade"), ("upgrade", "websocket")], false),
            (Version::HTTP_2, vec![("upgrade", "websocket")], false),
        ] {
            let (mut head, ()) = http::Request::new(()).into_parts();
            (head.version, head.headers) = (version, map(&lines));
            assert_eq!(upgrade_of(&head, true).is_some(), want, "{version:?} {lines:?}");
            assert!(upgrade_of(&head, false).is_none(), "{version:?} {lines:?}");
        }
    }

    #[test]
    fn a_path_crosses_byte_for_byte() {
        for (uri, strip, base, want) in [
            ("/v1/chat?a=b%20c", "", "", "/v1/chat?a=b%20c"),
            ("http://elsewhere/v1//x/../y", "", "", "/v1//x/../y"),
            ("/openai/v1/chat", "/openai", "", "/v1/chat"),
            ("/openai", "/openai", "", "/"),
            ("/openai?x", "/openai", "", "/?x"),
            ("/v1/models", "", "/base", "/base/v1/models"),
            ("/openai/v1", "/openai", "/base", "/base/v1"),
            ("http://elsewhere", "", "", "/"),
            ("http://elsewhere#x", "", "", "/"),
            ("http://elsewhere?x", "", "", "/?x"),
            ("http://elsewhere", "", "/base", "/base/"),
            ("http://elsewhere?x", "", "/base", "/base/?x"),
        ] {
            // As it will be written: an empty path calls itself `/`, and is written as nothing.
            assert_eq!(Uri::from(path(&uri.parse().unwrap(), strip, base).unwrap()).to_string(), want, "{uri}");
        }
        assert!(path(&"*".parse().unwrap(), "", "").is_err());
    }
}
