//! Counts in JSON bodies, as providers write them.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// A count. `None` for a value of any other kind: one odd field must not hide the others. Cohere writes `12.0`.
pub(super) struct Count(pub(super) Option<u32>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)
    }
}

impl Count {
    /// Reads the value at the beginning of `text`.
    pub(super) fn read(text: &[u8]) -> Option<u32> {
        let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        match (digits, text.get(digits)) {
            // Nearly all are plain, and cannot overflow.
            (1..=9, None | Some(b',' | b'}' | b' ' | b'\n' | b'\r')) => {
                let digits = text.get(..digits).unwrap_or_default();
                Some(digits.iter().fold(0, |count, digit| count * 10 + u32::from(digit - b'0')))
            }
            _ => Self::deserialize(&mut serde_json::Deserializer::from_slice(text)).ok()?.0,
        }
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count")
    }

    fn visit_u64<E>(self, count: u64) -> Result<Count, E> {
        Ok(Count(Some(u32::try_from(count).unwrap_or(u32::MAX))))
    }

    fn visit_f64<E>(self, count: f64) -> Result<Count, E> {
        // The cast saturates, as wanted, and drops the fraction.
        Ok(Count((count >= 0.0).then_some(count as u32)))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Count, E> {
        Ok(Count(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Count, E> {
        Ok(Count(None))
    }

    fn visit_str<E>(self, _: &str) -> Result<Count, E> {
        Ok(Count(None))
    }

    fn visit_unit<E>(self) -> Result<Count, E> {
        Ok(Count(None))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Count, S::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Count(None))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut fields: M) -> Result<Count, M::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Count(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_in_every_form() {
        for (text, want) in [
            ("7", Some(7)),
            ("0,", Some(0)),
            ("123456789}", Some(123_456_789)),
            ("4294967295 ", Some(u32::MAX)),
            ("99999999999,", Some(u32::MAX)),
            ("12.9,", Some(12)),
            ("1e3}", Some(1000)),
            ("-3", None),
            ("null", None),
            ("\"7\"", None),
            ("[7]", None),
            ("7x", Some(7)),
            ("", None),
        ] {
            assert_eq!(Count::read(text.as_bytes()), want, "{text}");
        }
    }
}
