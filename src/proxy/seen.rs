//! What a head has of the fields that matter here: one look at all of them, since each look for one by its name costs as
//! much.

use http::{HeaderMap, HeaderValue};

use super::{answer, head, strict};
use crate::provider::{demand::Told, signals};

/// What a request's fields are.
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
    pub(super) transfer_encoding: bool,
    pub(super) host: Host,
    length: Length,
    /// Type and length of the body.
    pub(super) told: Told,
}

/// The hosts that are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Host {
    #[default]
    None,
    One,
    /// Several, or one in no legal form.
    Bad,
}

/// The lengths that are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Length {
    #[default]
    None,
    /// One number.
    One,
    /// Several, or none that is a number: worth a closer look.
    Odd,
}

impl Length {
    fn note(&mut self, value: &HeaderValue) {
        let digits = value.as_bytes();
        // Any so long is below 2⁶⁴.
        let is_number = (1..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        *self = if *self == Self::None && is_number { Self::One } else { Self::Odd };
    }
}

impl Seen {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            seen.note(name.as_str(), value);
        }
        seen
    }

    /// No length, or a single number.
    pub(super) fn has_one_length(&self) -> bool {
        self.length != Length::Odd
    }

    fn note(&mut self, name: &str, value: &HeaderValue) {
        match name {
            "host" => {
                let is_legal = || value.to_str().is_ok_and(strict::is_authority);
                self.host = if self.host == Host::None && is_legal() { Host::One } else { Host::Bad };
            }
            "content-length" => {
                self.length.note(value);
                self.told.note_length(value);
            }
            "content-type" => self.told.note_type(value),
            name if head::belongs_to_connection(name) => {
                self.upgrade |= name == "upgrade";
                self.transfer_encoding |= name == "transfer-encoding";
                self.local = true;
            }
            name if head::stays_here(name) => {
                self.secret |= head::is_secret(name);
                self.own |= head::is_own(name);
                self.local = true;
            }
            name if head::is_secret(name) => {
                self.secret = true;
                self.idempotency_key |= name == head::IDEMPOTENCY_KEY;
            }
            name => self.patience |= answer::PATIENCE.contains(&name),
        }
    }
}

/// What an answer's fields are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SeenAnswer {
    /// A field that belongs to one connection.
    local: bool,
    secret: bool,
    pub(super) transfer_encoding: bool,
    length: Length,
    /// Something that may be about limits or delays.
    pub(super) limits: bool,
}

impl SeenAnswer {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            let name = name.as_str();
            if name == "content-length" {
                seen.length.note(value);
            } else if head::belongs_to_connection(name) {
                seen.transfer_encoding |= name == "transfer-encoding";
                seen.local = true;
            } else {
                seen.secret |= head::is_secret(name);
                seen.limits |= signals::may_tell(name);
            }
        }
        seen
    }

    /// It passes as it is.
    pub(super) fn is_plain(self) -> bool {
        !self.local && !self.secret && self.length != Length::Odd
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn each_field_is_seen() {
        let none = Seen::default();
        let told = |length: Option<u64>, kind: &str| {
            let mut told = Told::default();
            length.into_iter().for_each(|length| told.note_length(&HeaderValue::from(length)));
            HeaderValue::from_str(kind).iter().filter(|kind| !kind.is_empty()).for_each(|kind| told.note_type(kind));
            told
        };
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
            ("transfer-encoding", Seen { transfer_encoding: true, ..local }),
            ("host", Seen { host: Host::One, ..none }),
            ("content-length", Seen { length: Length::One, told: told(Some(1), ""), ..none }),
            ("content-type", Seen { told: told(None, "1"), ..none }),
        ] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static("1"))]);
            assert_eq!(Seen::of(&headers), want, "{name}");
        }
    }

    #[test]
    fn a_host_and_a_length_that_are_odd_or_repeated_are_seen() {
        for (lines, host, length) in [
            (&[("host", "h:80")][..], Host::One, Length::None),
            (&[("host", "a b")], Host::Bad, Length::None),
            (&[("host", "h"), ("host", "h")], Host::Bad, Length::None),
            (&[("content-length", "12")], Host::None, Length::One),
            (&[("content-length", "12"), ("content-length", "12")], Host::None, Length::Odd),
            (&[("content-length", "12, 12")], Host::None, Length::Odd),
            (&[("content-length", "+12")], Host::None, Length::Odd),
            (&[("content-length", "")], Host::None, Length::Odd),
            (&[("content-length", "18446744073709551616")], Host::None, Length::Odd),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let seen = Seen::of(&headers);
            assert_eq!((seen.host, seen.length), (host, length), "{lines:?}");
            assert_eq!(SeenAnswer::of(&headers).length, length, "{lines:?}");
        }
    }

    #[test]
    fn an_answer_is_plain_if_nothing_of_it_has_to_change() {
        let none = SeenAnswer::default();
        for (name, value, want, is_plain) in [
            ("content-type", "text/plain", none, true),
            ("content-length", "1", SeenAnswer { length: Length::One, ..none }, true),
            ("content-length", "x", SeenAnswer { length: Length::Odd, ..none }, false),
            ("transfer-encoding", "chunked", SeenAnswer { local: true, transfer_encoding: true, ..none }, false),
            ("connection", "close", SeenAnswer { local: true, ..none }, false),
            ("set-cookie", "a=b", SeenAnswer { secret: true, ..none }, false),
            ("retry-after", "1", SeenAnswer { limits: true, ..none }, true),
            ("x-ratelimit-remaining-requests", "1", SeenAnswer { limits: true, ..none }, true),
        ] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
            let seen = SeenAnswer::of(&headers);
            assert_eq!((seen, seen.is_plain()), (want, is_plain), "{name}");
        }
    }
}
