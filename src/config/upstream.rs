//! Shape → configuration: one upstream.

use std::time::Duration;

use http::{HeaderName, Uri};

use super::{
    Deadlines, Http2, Queue, Retry, RetryPost, TlsRoots, Upstream, UpstreamTls,
    account::{self, Tiers},
    check::{self, COUNT_MAX, NAME_BYTES_MAX, TIME_MAX, TIME_MIN},
    de::{At, Value},
    defaults, file, limit, prices,
    problem::{Origin, Problem},
    values::time_text,
};
use crate::provider::presets::Preset;

pub(super) fn upstreams(list: Option<At<Vec<At<file::Upstream>>>>, tiers: &Tiers) -> Result<Vec<Upstream>, Problem> {
    let origin = list.as_ref().map_or(Origin::START, |list| list.origin);
    let list = list.map(|list| list.inner).unwrap_or_default();
    if list.is_empty() {
        return Err(origin.problem("no upstream is given; the least is `upstreams: [{ url: https://api.openai.com }]`"));
    }
    let mut upstreams: Vec<Upstream> = Vec::with_capacity(list.len());
    for shape in list {
        let (named, prefixed) = (shape.inner.name.clone(), shape.inner.matching.path_prefix.clone());
        let at = |value: Option<Value>| value.map_or(shape.origin, |value| value.origin);
        let upstream = upstream(shape.origin, shape.inner, tiers)?;
        if upstreams.iter().any(|other| other.name == upstream.name) {
            let name = &upstream.name;
            return Err(at(named).problem(format_args!("a second upstream called `{name}`; give each its own `name`")));
        }
        if let Some(other) = upstreams.iter().find(|other| other.path_prefix == upstream.path_prefix) {
            return Err(at(prefixed).problem(format_args!(
                "`{}` and `{}` both have the path prefix `{}`; tell them apart by `match: {{ path_prefix: … }}`",
                other.name, upstream.name, upstream.path_prefix
            )));
        }
        upstreams.push(upstream);
    }
    Ok(upstreams)
}

fn upstream(origin: Origin, shape: file::Upstream, tiers: &Tiers) -> Result<Upstream, Problem> {
    let Some(url_value) = &shape.url else {
        return Err(origin.problem("this upstream has no `url`; add one, such as `url: https://api.openai.com`"));
    };
    let url = url(url_value)?;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let ceiling = account::ceiling(shape.tier.as_ref(), shape.ceiling.as_ref(), tiers)?;
    let account = account::account(shape.account, tiers)?;
    let highest = account.tiers.iter().map(|tier| tier.ceiling).chain(ceiling.as_ref().map(|known| known.0)).max();
    let limit = limit::limit(&shape.limit, highest)?;
    if let (Some(value), Some((ceiling, _))) = (&shape.limit.min, &ceiling)
        && limit.min > *ceiling
    {
        return Err(value.problem(format_args!("{}, above the ceiling of {ceiling}", value.is())));
    }
    Ok(Upstream {
        name: name(shape.name.as_ref(), host)?,
        path_prefix: path_prefix(shape.matching.path_prefix.as_ref())?,
        strip_prefix: flag(shape.matching.strip_prefix.as_ref())?,
        preset: preset(shape.preset.as_ref(), host)?,
        ceiling: ceiling.as_ref().map(|known| known.0),
        tier: ceiling.and_then(|known| known.1),
        rpm: shape.rpm.as_ref().map(|value| value.count(1..=RATE_MAX)).transpose()?,
        tpm: shape.tpm.as_ref().map(|value| value.count(1..=RATE_MAX).map(u64::from)).transpose()?,
        account,
        limit,
        queue: queue(&shape.queue)?,
        retry: retry(&shape.retry)?,
        deadlines: deadlines(&shape.deadlines)?,
        tls: tls(&shape.tls)?,
        http2: http2(shape.http2.as_ref())?,
        prices: prices::prices(&shape.prices)?,
        balance: shape.balance.as_ref().map(|file::Header { header }| header.header()).transpose()?,
        url,
    })
}

/// `https://host[:port][/base]`.
pub(super) fn url(value: &Value) -> Result<Uri, Problem> {
    let text = value.text.as_str();
    let Some((scheme, rest)) = text.split_once("://") else {
        if text.contains(['@', '?']) {
            // Not shown either: it has the looks of a password or a key.
            return Err(value.problem(format_args!(
                "`{}` must be a URL with its scheme and without user name and query, such as `https://api.openai.com`",
                value.key
            )));
        }
        let local = ["localhost", "127.", "10.", "192.168.", "[::1]"].iter().any(|host| text.starts_with(host));
        let scheme = if local { "http" } else { "https" };
        let proposal = if text.is_empty() { "api.openai.com" } else { &value.shown };
        return Err(value.expected(format_args!("a URL with its scheme: `{scheme}://{proposal}`")));
    };
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return Err(value.problem(format_args!("`{}` must begin with `https://` or `http://`", value.key)));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // The value is not shown: what stands before the `@` is a password.
    let wrong = if authority.contains('@') {
        "carries a user name; leave out everything up to the `@`: credentials come from the client's requests"
    } else if rest.contains('?') {
        "carries a query; leave it out: each request brings its own"
    } else if rest.contains('#') {
        "carries a fragment; leave out everything from the `#`"
    } else if authority.is_empty() || authority.starts_with(':') {
        "has no host"
    } else {
        return parse_url(value);
    };
    Err(value.problem(format_args!("`{}` {wrong}", value.key)))
}

fn parse_url(value: &Value) -> Result<Uri, Problem> {
    let wrong = |want: &str| match value.text.contains('@') {
        // A password with a slash in it.
        true => value.problem(format_args!("`{}` is none of the kind expected: {want}", value.key)),
        false => value.expected(want),
    };
    let url: Uri = value.text.parse().map_err(|_| wrong("a URL such as `https://api.openai.com`"))?;
    let authority = url.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let bare = authority.rsplit_once(']').map_or(authority, |(_, port)| port);
    let port_is_number = bare.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0));
    if !port_is_number {
        return Err(wrong("a URL whose port is a number from 1 to 65535"));
    }
    Ok(url)
}

/// The host unless given; what a host may have and a name may not is replaced.
fn name(value: Option<&Value>, host: &str) -> Result<String, Problem> {
    let valid = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-' | ':');
    let Some(value) = value else {
        return Ok(host.chars().take(NAME_BYTES_MAX).map(|char| if valid(char) { char } else { '-' }).collect());
    };
    if value.text.is_empty() || value.text.len() > NAME_BYTES_MAX || !value.text.chars().all(valid) {
        return Err(value.expected(format_args!("1 to {NAME_BYTES_MAX} letters, digits, `.`, `_`, `-` or `:`")));
    }
    Ok(value.text.clone())
}

/// Without a slash at the end, so that `/openai/` and `/openai` are one.
fn path_prefix(value: Option<&Value>) -> Result<String, Problem> {
    let Some(value) = value else { return Ok(defaults::PATH_PREFIX.to_owned()) };
    let text = value.text.as_str();
    if !text.starts_with('/') {
        return Err(value.expected(format_args!("a path that begins with `/`: `/{}`", value.shown)));
    }
    let trimmed = text.trim_end_matches('/');
    let plain = trimmed.split('/').skip(1).all(|segment| !matches!(segment, "" | "." | ".."));
    let parsed = text.parse::<http::uri::PathAndQuery>();
    if !plain || text.contains(['?', '#']) || parsed.is_err() {
        return Err(value.expected("a plain path, such as `/openai`"));
    }
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

pub(super) fn flag(value: Option<&Value>) -> Result<bool, Problem> {
    value.map_or(Ok(false), Value::flag)
}

fn preset(value: Option<&Value>, host: &str) -> Result<Preset, Problem> {
    let Some(value) = value else { return Ok(Preset::for_host(host)) };
    let names: Vec<&str> = ["auto"].into_iter().chain(Preset::ALL.map(Preset::name)).collect();
    value.word(&names, |word| if word == "auto" { Some(Preset::for_host(host)) } else { Preset::from_name(word) })
}

fn queue(shape: &file::Queue) -> Result<Queue, Problem> {
    let length = |value: &Option<Value>, or| value.as_ref().map_or(Ok(or), |value| value.length(1..=COUNT_MAX));
    let depth_max = length(&shape.depth_max, defaults::QUEUE_DEPTH)?;
    Ok(Queue {
        depth_max,
        depth_per_flow_max: length(&shape.depth_per_flow_max, depth_max)?,
        wait_max: check::time(shape.wait_max.as_ref(), defaults::QUEUE_WAIT)?,
        flow: match &shape.flow {
            Some(file::Header { header }) => header.header()?,
            None => HeaderName::from_static(defaults::FLOW_HEADER),
        },
    })
}

fn retry(shape: &file::Retry) -> Result<Retry, Problem> {
    let backoff_base = check::time(shape.backoff.base.as_ref(), defaults::BACKOFF_BASE)?;
    let backoff_max = check::time(shape.backoff.max.as_ref(), defaults::BACKOFF_MAX.max(backoff_base))?;
    let given = shape.backoff.max.as_ref().or(shape.backoff.base.as_ref());
    if let Some(value) = given.filter(|_| backoff_base > backoff_max) {
        let (base, max) = (time_text(backoff_base), time_text(backoff_max));
        return Err(value.problem(format_args!("`backoff.base` ({base}) is above `backoff.max` ({max})")));
    }
    Ok(Retry {
        attempts_max: match &shape.attempts_max {
            Some(value) if value.text == "0" => {
                return Err(value.expected("at least 1: the first attempt counts, so 1 means no retries"));
            }
            Some(value) => value.count(1..=ATTEMPTS_MAX)?,
            None => defaults::ATTEMPTS,
        },
        post: match &shape.post {
            Some(value) => value.word(&["refused", "keyed", "always"], |word| match word {
                "always" => Some(RetryPost::Always),
                "keyed" => Some(RetryPost::Keyed),
                "refused" => Some(RetryPost::Refused),
                _ => None,
            })?,
            None => defaults::RETRY_POST,
        },
        backoff_base,
        backoff_max,
        backoff_jitter: check::time(shape.backoff.jitter.as_ref(), defaults::BACKOFF_JITTER)?,
        retry_after_max: check::time(shape.retry_after_max.as_ref(), defaults::RETRY_AFTER_MAX)?,
        budget: match &shape.budget {
            Some(value) => value.number(0.0..=RETRY_BUDGET_MAX)?,
            None => defaults::RETRY_BUDGET,
        },
    })
}

fn deadlines(shape: &file::Deadlines) -> Result<Deadlines, Problem> {
    let bound = |value: &Option<Value>, or: Option<Duration>| {
        value.as_ref().map_or(Ok(or), |value| value.time_or_off(TIME_MIN..=TIME_MAX))
    };
    Ok(Deadlines {
        connect: match &shape.connect {
            Some(value) => value.time(TIME_MIN..=TIME_MAX)?,
            None => defaults::CONNECT,
        },
        first_byte: bound(&shape.first_byte, Some(defaults::FIRST_BYTE))?,
        idle: bound(&shape.idle, Some(defaults::IDLE))?,
        total: bound(&shape.total, None)?,
        linger: check::time(shape.linger.as_ref(), defaults::LINGER)?,
    })
}

fn tls(shape: &file::UpstreamTls) -> Result<UpstreamTls, Problem> {
    let roots = match &shape.roots {
        Some(value) => value.word(&["system", "bundled", "none"], |word| match word {
            "bundled" => Some(TlsRoots::Bundled),
            "none" => Some(TlsRoots::None),
            "system" => Some(TlsRoots::System),
            _ => None,
        })?,
        None => defaults::TLS_ROOTS,
    };
    if let Some(value) = shape.roots.as_ref().filter(|_| roots == TlsRoots::None && shape.ca.is_none()) {
        return Err(value.problem(
            "`tls.roots` is `none` and there is no `tls.ca`: no certificate could be trusted; add `ca: FILE`",
        ));
    }
    let client =
        check::pair(("tls.client_cert", shape.client_cert.as_ref()), ("tls.client_key", shape.client_key.as_ref()))?;
    Ok(UpstreamTls {
        roots,
        ca: shape.ca.as_ref().map(Value::file).transpose()?,
        client: client.map(|(cert, key)| Ok((cert.file()?, key.file()?))).transpose()?,
        server_name: shape.server_name.as_ref().map(server_name).transpose()?,
    })
}

pub(super) fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        inner && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn server_name(value: &Value) -> Result<String, Problem> {
    let is_ip = value.text.parse::<std::net::IpAddr>().is_ok();
    if !is_ip && !is_host_name(&value.text) {
        return Err(value.expected("a host name, such as `api.example.com`"));
    }
    Ok(value.text.clone())
}

fn http2(value: Option<&Value>) -> Result<Http2, Problem> {
    let Some(value) = value else { return Ok(defaults::HTTP2) };
    value.word(&["auto", "off", "only"], |word| match word {
        "auto" => Some(Http2::Auto),
        "off" => Some(Http2::Off),
        "only" => Some(Http2::Only),
        _ => None,
    })
}

/// Largest rate per minute: far above what any account is sold, far below where sums overflow.
pub(super) const RATE_MAX: u32 = 1_000_000_000;

/// More would only prolong what has failed; refusals are not counted here.
pub(super) const ATTEMPTS_MAX: u32 = 100;

/// A guess: beyond ten retries per request the budget bounds nothing.
pub(super) const RETRY_BUDGET_MAX: f64 = 10.0;
