//! Heads that cross: what belongs to one connection stays behind, everything else arrives unchanged, and a path stays
//! under its base.
//!
//! Input: a request head, an empty line, a response head (its first line is the status), an empty line, trailers.

#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Empty;
use libfuzzer_sys::fuzz_target;
use tidegate::proxy::door;
use tidegate_fuzz::{head, headers};

type Lines = BTreeMap<String, Vec<Vec<u8>>>;

const HOP_BY_HOP: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
const PROTECTED: [&str; 4] = ["host", "content-length", "content-type", "authorization"];
const NOT_FOR_UPSTREAM: [&str; 3] = ["proxy-authorization", "expect", "http2-settings"];
const NO_TRAILERS: [&str; 10] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "host",
    "max-forwards",
    "set-cookie",
    "trailer",
];
/// Prefix to match, whether it is removed, base path of the upstream.
const ROUTES: [(&str, bool, &str); 6] = [
    ("/", false, ""),
    ("/", true, "/base"),
    ("/openai", true, ""),
    ("/openai/", true, "/base/v2"),
    ("/openai", false, "/openai"),
    ("/a/b", true, "/a/b"),
];
const HEAD_BYTES_MAX: u64 = 512;

fuzz_target!(|data: &[u8]| {
    let (request_lines, rest) = head(data);
    let (response_lines, rest) = head(rest);
    let (trailer_lines, _) = head(rest);
    let request = request(&request_lines);
    if let Some(request) = &request {
        strict_request(request);
        paths(request.uri());
        for_upstream(request);
        cookies(request.headers());
        compact(request);
        let patience = door::client_patience(request.headers());
        assert!(patience.is_none_or(|patience| patience <= Duration::from_secs(24 * 60 * 60)), "{patience:?}");
    }
    if let Some(response) = response(&response_lines) {
        if let Some(request) = &request {
            strict_answer(&response, request.headers());
        }
        for_downstream(&response);
    }
    for_trailers(&headers(&trailer_lines));
});

fn request(lines: &[&[u8]]) -> Option<Request<Empty<&'static [u8]>>> {
    let (first, rest) = lines.split_first()?;
    let mut words = first.split(|byte| *byte == b' ');
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::from_bytes(words.next()?).ok()?;
    *request.uri_mut() = Uri::try_from(words.next()?).ok()?;
    *request.version_mut() = match words.next()? {
        b"HTTP/1.0" => Version::HTTP_10,
        b"HTTP/2" => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    *request.headers_mut() = headers(rest);
    Some(request)
}

fn response(lines: &[&[u8]]) -> Option<Response<()>> {
    let (first, rest) = lines.split_first()?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_bytes(first).ok()?;
    *response.headers_mut() = headers(rest);
    Some(response)
}

fn lines(headers: &HeaderMap) -> Lines {
    let mut lines = Lines::new();
    for (name, value) in headers {
        lines.entry(name.as_str().to_owned()).or_default().push(value.as_bytes().to_vec());
    }
    lines
}

/// The members of a list, in whatever bytes.
fn members<'a>(lines: &'a Lines, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let values = lines.get(name).map_or(&[][..], Vec::as_slice);
    values
        .iter()
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// Removes what belongs to one connection.
fn strip(lines: &mut Lines) {
    let named: BTreeSet<String> = members(lines, "connection")
        .filter_map(|name| Some(HeaderName::from_bytes(name).ok()?.as_str().to_owned()))
        .filter(|name| !PROTECTED.contains(&name.as_str()))
        .collect();
    lines.retain(|name, _| !named.contains(name) && !HOP_BY_HOP.contains(&name.as_str()));
}

/// Equal lengths are one.
fn one_length(lines: &mut Lines) {
    let lengths: Vec<Vec<u8>> = members(lines, "content-length").map(<[u8]>::to_vec).collect();
    if let [one, others @ ..] = lengths.as_slice()
        && !others.is_empty()
        && others.iter().all(|other| other == one)
    {
        lines.insert("content-length".to_owned(), vec![one.clone()]);
    }
}

fn strict_request(request: &Request<Empty<&'static [u8]>>) {
    if door::is_strict(&request.clone().into_parts().0, HEAD_BYTES_MAX).is_err() {
        return;
    }
    let count = |name: &str| request.headers().get_all(name).iter().count();
    assert!(![Method::CONNECT, Method::TRACE].contains(request.method()));
    assert!(count("host") <= 1 && (count("host") == 1 || request.version() != Version::HTTP_11));
    assert!(count("transfer-encoding") <= 1);
    let coding = request.headers().get("transfer-encoding");
    assert!(coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")));
    let host = request.headers().get("host").map(|host| host.as_bytes().to_vec());
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes().to_vec());
    for name in host.into_iter().chain(authority) {
        assert!(!name.is_empty() && !name.iter().any(|byte| b"@/?#,\\ \t".contains(byte)), "{name:?}");
    }
    let target = request.uri().path_and_query().expect("a strict request has a path");
    assert!(target.path().starts_with('/') && target.as_str().len() as u64 <= HEAD_BYTES_MAX / 2);
}

fn strict_answer(response: &Response<()>, asked: &HeaderMap) {
    if door::is_strict_answer(response, asked) {
        assert!(response.headers().get_all("transfer-encoding").iter().count() <= 1);
        assert!(response.status() != StatusCode::SWITCHING_PROTOCOLS || asked.contains_key("upgrade"));
    }
}

fn paths(uri: &Uri) {
    for (prefix, strips, base) in ROUTES {
        if !door::has_prefix(uri.path(), prefix) {
            continue;
        }
        let strip = if strips { prefix.trim_end_matches('/') } else { "" };
        let whole = uri.path_and_query().map_or("", |path| path.as_str());
        let Ok(path) = door::path(uri, strip, base) else {
            assert!(!whole.starts_with(['/', '?']), "{uri} is a path, and was refused");
            continue;
        };
        let rest = &whole[strip.len()..];
        let slash = if rest.starts_with('/') { "" } else { "/" };
        let sent = Uri::from(path);
        assert_eq!(sent.to_string(), format!("{base}{slash}{rest}"), "{uri} under {base}, less {strip}");
        assert!(sent.authority().is_none() && sent.scheme().is_none(), "{sent} has a host");
        assert!(sent.path().strip_prefix(base).is_some_and(|rest| rest.starts_with('/')), "{sent} left {base}");
    }
}

fn for_upstream(request: &Request<Empty<&'static [u8]>>) {
    let (head, _) = request.clone().into_parts();
    assert!(door::upgrade_of(&head, false).is_none(), "a body would follow");
    let upgrade = door::upgrade_of(&head, true);
    if let Some(protocol) = &upgrade {
        assert!(protocol.as_bytes().eq_ignore_ascii_case(b"websocket") && request.version() == Version::HTTP_11);
    }
    let mut want = lines(request.headers());
    one_length(&mut want);
    let trailers = members(&want, "te").any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    strip(&mut want);
    want.retain(|name, _| !NOT_FOR_UPSTREAM.contains(&name.as_str()) && !name.starts_with("x-tidegate-"));
    if trailers {
        want.insert("te".to_owned(), vec![b"trailers".to_vec()]);
    }
    if let Some(protocol) = &upgrade {
        want.insert("connection".to_owned(), vec![b"upgrade".to_vec()]);
        want.insert("upgrade".to_owned(), vec![protocol.as_bytes().to_vec()]);
    }
    let mut sent = request.headers().clone();
    door::for_upstream(&mut sent, upgrade.clone());
    assert_eq!(lines(&sent), want);
    door::for_upstream(&mut sent, upgrade);
    assert_eq!(lines(&sent), want, "the second time");
}

fn cookies(headers: &HeaderMap) {
    let crumbs = lines(headers).remove("cookie").unwrap_or_default();
    let mut joined = headers.clone();
    door::join_cookies(&mut joined);
    let mut want = lines(headers);
    if !crumbs.is_empty() {
        want.insert("cookie".to_owned(), vec![crumbs.join(&b"; "[..])]);
    }
    assert_eq!(lines(&joined), want);
}

fn compact(request: &Request<Empty<&'static [u8]>>) {
    let (mut head, _) = request.clone().into_parts();
    if let Ok(path) = door::path(request.uri(), "", "") {
        head.uri = Uri::from(path);
    }
    let before = head.clone();
    let mut target = before.uri.clone();
    door::compact(&mut head, &mut target);
    assert_eq!((&head.uri, &target), (&before.uri, &before.uri));
    assert_eq!(lines(&head.headers), lines(&before.headers));
}

fn for_downstream(response: &Response<()>) {
    let mut want = lines(response.headers());
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = want.get("upgrade").and_then(|values| values.first()).filter(|_| switches).cloned();
    if want.contains_key("transfer-encoding") {
        want.remove("content-length");
    } else {
        one_length(&mut want);
    }
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok();
    let is_one_number = |values: &Vec<Vec<u8>>| match values.as_slice() {
        [one] => std::str::from_utf8(one).is_ok_and(is_number),
        _ => false,
    };
    want.retain(|name, values| {
        name != "content-length" || (response.status() != StatusCode::NO_CONTENT && is_one_number(values))
    });
    strip(&mut want);
    if let Some(protocol) = protocol {
        want.insert("connection".to_owned(), vec![b"upgrade".to_vec()]);
        want.insert("upgrade".to_owned(), vec![protocol]);
    }
    let (mut sent, ()) = response.clone().into_parts();
    door::for_downstream(&mut sent);
    assert_eq!(lines(&sent.headers), want);
    door::for_downstream(&mut sent);
    assert_eq!(lines(&sent.headers), want, "the second time");
}

fn for_trailers(trailers: &HeaderMap) {
    let mut want = lines(trailers);
    strip(&mut want);
    want.retain(|name, _| !NO_TRAILERS.contains(&name.as_str()));
    let mut sent = trailers.clone();
    door::for_trailers(&mut sent);
    assert_eq!(lines(&sent), want);
}
