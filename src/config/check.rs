//! Shape → configuration: what concerns the whole process.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use http::{Uri, uri::Scheme};

use super::{
    Buffers, Config, Drain, Limits, ListenTls, Trace,
    de::{At, Named, Value},
    defaults,
    file::{self, Root},
    otlp,
    problem::{Origin, Problem},
    upstream,
    values::size_text,
};

pub(super) fn config(root: Root) -> Result<Config, Problem> {
    let listen = root.listen.unwrap_or_else(|| default_value("listen", defaults::LISTEN));
    let admin = root.admin.unwrap_or_else(|| default_value("admin", defaults::ADMIN));
    let listen_at = listen.address()?;
    let admin_at = if admin.text == "off" { None } else { Some(admin.address().map_err(|wrong| wrong.or("`off`"))?) };
    if let Some(admin_at) = admin_at.filter(|admin_at| overlap(*admin_at, listen_at)) {
        // Blame what was given: the default cannot be at fault.
        let given = if admin.origin == Origin::START { &listen } else { &admin };
        return Err(given.problem(if admin_at == listen_at {
            format!("`listen` and `admin` are both {listen_at}; they need different ports")
        } else {
            format!("`listen` is {listen_at} and `admin` is {admin_at}, which overlap; they need different ports")
        }));
    }
    let tiers = tiers(root.tiers)?;
    let urls: Vec<Value> =
        root.upstreams.iter().flat_map(|list| &list.inner).filter_map(|upstream| upstream.inner.url.clone()).collect();
    let upstreams = upstream::upstreams(root.upstreams, &tiers)?;
    // Each has a URL by now.
    for (value, upstream) in urls.iter().zip(&upstreams) {
        if leads_to(&upstream.url, listen_at) {
            return Err(value.problem(format_args!(
                "{} is where `listen` is: requests would go round in a circle; name the API instead",
                upstream.url.authority().map_or_else(|| listen_at.to_string(), ToString::to_string)
            )));
        }
    }
    Ok(Config {
        listen: listen_at,
        tls: root.tls.map(listen_tls).transpose()?,
        admin: admin_at,
        admin_hosts: root.admin_hosts.iter().map(host_name).collect::<Result<_, _>>()?,
        threads: threads(root.threads.as_ref())?,
        tiers,
        upstreams,
        buffers: buffers(&root.buffers)?,
        limits: limits(&root.limits)?,
        drain: drain(&root.drain)?,
        trace: trace(root.trace.as_ref())?,
        otlp: root.otlp.map(otlp::otlp).transpose()?,
    })
}

/// Whether one process cannot listen on both. An unspecified address takes the port of every other, `[::]` of both
/// families.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    let (ip, other_ip) = (one.ip(), other.ip());
    one.port() == other.port() && one.port() != 0 && (ip == other_ip || covers(ip, other_ip) || covers(other_ip, ip))
}

/// Whether a request to `url` arrives at `listen` on this machine.
fn leads_to(url: &Uri, listen: SocketAddr) -> bool {
    let https = url.scheme() == Some(&Scheme::HTTPS);
    let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let ip: Option<IpAddr> =
        if host.eq_ignore_ascii_case("localhost") { Some(Ipv4Addr::LOCALHOST.into()) } else { host.parse().ok() };
    // Asked for an unspecified address, the system takes its own.
    ip.is_some_and(|ip| {
        let here = ip.is_loopback() || ip.is_unspecified();
        port == listen.port()
            && port != 0
            && (ip == listen.ip() || (here && overlap(listen, SocketAddr::new(ip, port))))
    })
}

/// Made lower case. Without a port: it may be forwarded.
fn host_name(value: &Value) -> Result<String, Problem> {
    upstream::is_host_name(&value.text)
        .then(|| value.text.to_ascii_lowercase())
        .ok_or_else(|| value.expected("a host name without port, such as `tidegate.internal`"))
}

fn default_value(key: &str, text: &str) -> Value {
    Value { origin: Origin::START, key: key.to_owned(), text: text.to_owned(), shown: text.to_owned() }
}

fn threads(value: Option<&Value>) -> Result<usize, Problem> {
    match value {
        None => Ok(defaults::threads()),
        Some(value) if value.text == "auto" => Ok(defaults::threads()),
        Some(value) => value
            .length(1..=THREADS_MAX)
            .map_err(|_| value.expected(format_args!("a whole number from 1 to {THREADS_MAX}, or `auto`"))),
    }
}

fn trace(value: Option<&Value>) -> Result<Trace, Problem> {
    let Some(value) = value else { return Ok(defaults::TRACE) };
    value.word(&["headers", "off"], |word| match word {
        "headers" => Some(Trace::Headers),
        "off" => Some(Trace::Off),
        _ => None,
    })
}

fn tiers(named: Option<Named>) -> Result<BTreeMap<String, u32>, Problem> {
    let Some(Named(entries)) = named else {
        return Ok(defaults::TIERS.map(|(name, ceiling)| (name.to_owned(), ceiling)).into());
    };
    let mut tiers = BTreeMap::new();
    for (name, value) in entries {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
            return Err(value.problem(format_args!("the name of a tier must have 1 to {NAME_BYTES_MAX} characters")));
        }
        tiers.insert(name, value.count(1..=CEILING_MAX)?);
    }
    Ok(tiers)
}

fn listen_tls(shape: At<file::ListenTls>) -> Result<ListenTls, Problem> {
    let tls = shape.inner;
    let (cert, key) = pair(("tls.cert", tls.cert.as_ref()), ("tls.key", tls.key.as_ref()))?.ok_or_else(|| {
        shape.origin.problem("`tls` needs `cert` and `key`: the files with the listener's certificate and its key")
    })?;
    Ok(ListenTls {
        cert: cert.file()?,
        key: key.file()?,
        client_ca: tls.client_ca.as_ref().map(Value::file).transpose()?,
    })
}

/// Two values of which neither makes sense alone.
pub(super) fn pair<'a>(
    one: (&str, Option<&'a Value>),
    other: (&str, Option<&'a Value>),
) -> Result<Option<(&'a Value, &'a Value)>, Problem> {
    match (one, other) {
        ((_, None), (_, None)) => Ok(None),
        ((_, Some(one)), (_, Some(other))) => Ok(Some((one, other))),
        ((given, Some(value)), (missing, None)) | ((missing, None), (given, Some(value))) => {
            Err(value.problem(format_args!("`{given}` is given without `{missing}`; they belong together")))
        }
    }
}

fn buffers(shape: &file::Buffers) -> Result<Buffers, Problem> {
    let Buffers { request_max_bytes, total_max_bytes } = defaults::BUFFERS;
    let size = |value: &Option<Value>, or| value.as_ref().map_or(Ok(or), |value| value.size(0..=BUFFER_BYTES_MAX));
    let total = size(&shape.total_max, total_max_bytes)?;
    // A smaller total alone is a wish for smaller bodies as well, not a contradiction.
    let request = size(&shape.request_max, request_max_bytes.min(total))?;
    if let Some(value) = shape.request_max.as_ref().filter(|_| request > total) {
        return Err(value.problem(format_args!(
            "{}, more than `buffers.total_max` ({}) can hold",
            value.is(),
            size_text(total)
        )));
    }
    Ok(Buffers { request_max_bytes: request, total_max_bytes: total })
}

fn limits(shape: &file::Limits) -> Result<Limits, Problem> {
    let Limits { connections_max, header_bytes_max, body_bytes_max, header_timeout, send_timeout, accounts_max } =
        defaults::LIMITS;
    let length = |value: &Option<Value>, or| value.as_ref().map_or(Ok(or), |value| value.length(1..=COUNT_MAX));
    Ok(Limits {
        connections_max: length(&shape.connections_max, connections_max)?,
        header_bytes_max: match &shape.header_bytes_max {
            Some(value) => value.size(HEADER_BYTES_MIN..=HEADER_BYTES_MAX)?,
            None => header_bytes_max,
        },
        body_bytes_max: match &shape.body_bytes_max {
            Some(value) => value.size_or_off(0..=BUFFER_BYTES_MAX)?,
            None => body_bytes_max,
        },
        header_timeout: match &shape.header_timeout {
            Some(value) => value.time(TIME_MIN..=TIME_MAX)?,
            None => header_timeout,
        },
        send_timeout: match &shape.send_timeout {
            Some(value) => value.time(TIME_MIN..=TIME_MAX)?,
            None => send_timeout,
        },
        accounts_max: length(&shape.accounts_max, accounts_max)?,
    })
}

fn drain(shape: &file::Drain) -> Result<Drain, Problem> {
    let Drain { delay, max } = defaults::DRAIN;
    Ok(Drain { delay: time(shape.delay.as_ref(), delay)?, max: time(shape.max.as_ref(), max)? })
}

/// A time that may be zero.
pub(super) fn time(value: Option<&Value>, or: Duration) -> Result<Duration, Problem> {
    value.map_or(Ok(or), |value| value.time(Duration::ZERO..=TIME_MAX))
}

/// Shortest time where zero would let nothing through: the resolution of timers.
pub(super) const TIME_MIN: Duration = Duration::from_millis(1);

/// Longest time: a year. Sums of a few of them stay within what clocks can hold.
pub(super) const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Largest ceiling: far above what one process can hold open, far below where sums overflow.
pub(super) const CEILING_MAX: u32 = 1_000_000;

/// Largest count of connections, accounts or waiting requests, for the same reason.
pub(super) const COUNT_MAX: u32 = 100_000_000;

/// Longest name of an upstream or tier: they become metric labels.
pub(super) const NAME_BYTES_MAX: usize = 64;

/// More threads than any machine has cores.
pub(super) const THREADS_MAX: u32 = 1024;

/// hyper takes no smaller read buffer.
const HEADER_BYTES_MIN: u64 = 8 << 10;

/// A guess: servers of the big APIs refuse heads beyond a hundredth of it.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// 1 TiB: above every machine's memory, below where sums overflow.
const BUFFER_BYTES_MAX: u64 = 1 << 40;
