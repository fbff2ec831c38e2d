//! What a request head has of the fields that few have: one look at all names, since each look for one by its name costs
//! as much.

use http::HeaderMap;

use super::{answer, head};

/// Which of these fields are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) upgrade: bool,
    /// A field that stays here, or belongs to one connection.
    pub(super) local: bool,
    /// A field for Tidegate.
    pub(super) own: bool,
    pub(super) secret: bool,
    pub(super) idempotency_key: bool,
    /// What [`answer::client_patience`] reads.
    pub(super) patience: bool,
}

impl Seen {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            seen.note(name.as_str());
        }
        seen
    }

    fn note(&mut self, name: &str) {
        self.secret |= head::is_secret(name);
        if head::belongs_to_connection(name) {
            self.upgrade |= name == "upgrade";
            self.local = true;
        } else if head::stays_here(name) {
            self.own |= head::is_own(name);
            self.local = true;
        } else {
            self.idempotency_key |= name == head::IDEMPOTENCY_KEY;
            self.patience |= answer::PATIENCE.contains(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn each_field_is_seen() {
        let none = Seen::default();
        let local = Seen { local: true, ..none };
        for (name, want) in [
            ("accept", none),
            ("upgrade", Seen { upgrade: true, ..local }),
            ("te", local),
            ("connection", local),
            ("expect", local),
            ("http2-settings", local),
            ("proxy-authorization", Seen { secret: true, ..local }),
            ("x-tidegate-flow", Seen { own: true, ..local }),
            ("authorization", Seen { secret: true, ..none }),
            ("x-api-key", Seen { secret: true, ..none }),
            ("idempotency-key", Seen { secret: true, idempotency_key: true, ..none }),
            ("x-stainless-timeout", Seen { patience: true, ..none }),
            ("x-stainless-read-timeout", Seen { patience: true, ..none }),
            ("x-server-timeout", Seen { patience: true, ..none }),
            ("x-stainless-lang", none),
        ] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static("1"))]);
            assert_eq!(Seen::of(&headers), want, "{name}");
        }
    }
}
