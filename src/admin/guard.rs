//! Who may ask the admin listener: programs, people, and its own page. Not a page of somebody else's in a browser on
//! this machine, neither under a name of its own that leads here (DNS rebinding) nor across sites.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Method, Request, StatusCode, Version, header};
use sha2::{Digest, Sha256};

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Barred {
    /// It asks for a host that is not this one.
    Host,
    /// It does not say which host it asks for, or names several.
    NoHost,
    /// A page of another site sent it, and it would change something.
    Site,
}

impl Barred {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Site => StatusCode::FORBIDDEN,
            Self::NoHost => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn why(self) -> &'static str {
        match self {
            Self::Host => "this host name is not known here; if it should be, add it to `admin_hosts`\n",
            Self::NoHost => "a request must name one host\n",
            Self::Site => "another site's page may not do this\n",
        }
    }
}

/// `bound`: the address listened on. `names`: host names that are this one too.
pub(super) fn pass<B>(request: &Request<B>, bound: IpAddr, names: &[String]) -> Result<(), Barred> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.to_str().map_err(|_| Barred::Host)?),
        // Health checks of old; no browser speaks it.
        (None, None) if request.version() == Version::HTTP_10 => None,
        (None, None) | (_, Some(_)) => return Err(Barred::NoHost),
    };
    let target = request.uri().authority().map(http::uri::Authority::as_str);
    if host.into_iter().chain(target).any(|host| !is_this_one(host, bound, names)) {
        return Err(Barred::Host);
    }
    let changes = ![Method::GET, Method::HEAD].contains(request.method());
    if changes && is_from_another_site(headers, host) {
        return Err(Barred::Site);
    }
    Ok(())
}

/// An address cannot be rebound; a name can, unless the machine itself or the operator says whose it is. The port says
/// nothing: it may be forwarded.
fn is_this_one(host: &str, bound: IpAddr, names: &[String]) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    if let Ok(address) = name.parse::<IpAddr>() {
        let (address, bound) = (address.to_canonical(), bound.to_canonical());
        return address.is_loopback() || address == bound || bound.is_unspecified();
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || names.contains(&name)
}

/// Programs send neither header; browsers send one of them with every request that may change something. Another port
/// of this machine is the same site, but not the same origin.
fn is_from_another_site(headers: &HeaderMap, host: Option<&str>) -> bool {
    const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let fetched = headers.get_all(SEC_FETCH_SITE).into_iter().any(|site| site != "same-origin" && site != "none");
    let mut origins = headers.get_all(header::ORIGIN).into_iter();
    let own = |origin: &str| {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    };
    fetched || origins.any(|origin| !origin.to_str().is_ok_and(own))
}

/// The text of an element of the page as a source in its policy: its hash.
pub(super) fn source_of(page: &str, element: &str) -> String {
    let text = page.split_once(&format!("<{element}>")).and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let hash = Sha256::digest(text.map_or("", |(text, _)| text));
    format!("'sha256-{}'", base64(&hash))
}

/// RFC 4648 4.
fn base64(bytes: &[u8]) -> String {
    let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | usize::from(chunk.get(index).copied().unwrap_or(0)));
        for index in 0..4 {
            let letter = letters.get(bits >> (18 - 6 * index) & 63).filter(|_| index <= chunk.len());
            text.push(letter.copied().unwrap_or('='));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_standard() {
        for (text, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn which_hosts_are_this_one() {
        let names = ["tidegate.internal".to_owned()];
        for (host, bound, want) in [
            ("127.0.0.1:9090", "127.0.0.1", true),
            ("127.0.0.2", "127.0.0.1", true),
            ("[::1]:9090", "127.0.0.1", true),
            ("[::ffff:127.0.0.1]", "127.0.0.1", true),
            ("localhost", "127.0.0.1", true),
            ("LocalHost.:1", "127.0.0.1", true),
            ("tidegate.localhost:9090", "127.0.0.1", true),
            ("tidegate.internal:9090", "127.0.0.1", true),
            ("TIDEGATE.internal", "127.0.0.1", true),
            ("evil.test:9090", "127.0.0.1", false),
            ("evil.test", "0.0.0.0", false),
            ("127.0.0.1.evil.test", "127.0.0.1", false),
            ("localhost.evil.test", "127.0.0.1", false),
            ("notlocalhost", "127.0.0.1", false),
            ("x.tidegate.internal", "127.0.0.1", false),
            ("user@localhost", "127.0.0.1", false),
            ("localhost@evil.test", "127.0.0.1", false),
            ("", "127.0.0.1", false),
            ("[::1", "127.0.0.1", false),
            ("10.1.2.3", "127.0.0.1", false),
            ("10.1.2.3:9090", "10.1.2.3", true),
            ("10.1.2.3", "0.0.0.0", true),
            ("[fd00::1]", "::", true),
            ("[fd00::1]", "fd00::2", false),
        ] {
            assert_eq!(is_this_one(host, bound.parse().unwrap(), &names), want, "{host} at {bound}");
        }
    }
}
