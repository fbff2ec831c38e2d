//! Single values: text → number, time, size, word. Times and sizes carry their unit.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use http::HeaderName;

use super::{
    de::Value,
    problem::{Origin, Problem, excerpt, nearest},
};

impl Value {
    /// The value of a flag.
    pub(super) fn of_flag(flag: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { origin: Origin::Flag(flag), key: flag.to_owned(), shown: text.clone(), text }
    }

    pub(super) fn problem(&self, message: impl std::fmt::Display) -> Problem {
        self.origin.problem(message)
    }

    /// "`key` is `value`, expected …"; a flag is named by the error around it.
    pub(super) fn expected(&self, what: impl std::fmt::Display) -> Problem {
        self.problem(format_args!("{}, expected {what}", self.is()))
    }

    /// "`key` is `value`".
    pub(super) fn is(&self) -> String {
        match self.origin {
            Origin::Flag(_) => format!("found `{}`", excerpt(&self.shown)),
            Origin::Place { .. } => format!("`{}` is `{}`", self.key, excerpt(&self.shown)),
        }
    }

    /// A whole number in `range`.
    pub(super) fn count(&self, range: RangeInclusive<u32>) -> Result<u32, Problem> {
        let (min, max) = (range.start(), range.end());
        let count = digits(&self.text).and_then(|number| u32::try_from(number).ok());
        count
            .filter(|count| range.contains(count))
            .ok_or_else(|| self.expected(format_args!("a whole number from {min} to {max}")))
    }

    /// As `count`, for what the program holds as `usize`.
    pub(super) fn length(&self, range: RangeInclusive<u32>) -> Result<usize, Problem> {
        self.count(range).map(|count| count as usize) // 32 bits fit on every target tokio runs on
    }

    /// A decimal number in `range`.
    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Result<f64, Problem> {
        let (min, max) = (range.start(), range.end());
        let plain = self.text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let number = if plain { self.text.parse().ok() } else { None };
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.expected(format_args!("a number from {min} to {max}")))
    }

    /// A time in `range`.
    pub(super) fn time(&self, range: RangeInclusive<Duration>) -> Result<Duration, Problem> {
        let time = match parse_time(&self.text) {
            Ok(time) => time,
            Err(Misread::NoUnit) => {
                let text = self.text.trim();
                return Err(self.expected(format_args!("a time with its unit: `{text}s` or `{text}ms`")));
            }
            Err(Misread::NotOne) => return Err(self.expected("a time such as `30s`, `250ms`, `5m` or `1m30s`")),
        };
        if range.contains(&time) {
            return Ok(time);
        }
        let (min, max) = (time_text(*range.start()), time_text(*range.end()));
        Err(self.expected(format_args!("a time from {min} to {max}")))
    }

    /// A time in `range`, or `off`.
    pub(super) fn time_or_off(&self, range: RangeInclusive<Duration>) -> Result<Option<Duration>, Problem> {
        match self.text.as_str() {
            "off" => Ok(None),
            "false" | "no" | "none" | "never" => Err(self.expected("a time such as `30s`, or `off`")),
            _ if parse_time(&self.text).is_ok_and(|time| time.is_zero()) => {
                Err(self.expected("a time above zero, or `off` for no bound"))
            }
            _ => self.time(range).map(Some),
        }
    }

    /// A size in bytes in `range`.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Result<u64, Problem> {
        let size = match parse_size(&self.text) {
            Ok(size) => size,
            Err(Misread::NoUnit) => {
                let text = self.text.trim();
                return Err(self.expected(format_args!("a size with its unit: `{text}KiB`, `{text}MiB` or `{text}B`")));
            }
            Err(Misread::NotOne) => return Err(self.expected("a size such as `64KiB`, `4MiB`, `1GiB` or `512B`")),
        };
        if range.contains(&size) {
            return Ok(size);
        }
        let (min, max) = (size_text(*range.start()), size_text(*range.end()));
        Err(self.expected(format_args!("a size from {min} to {max}")))
    }

    /// A size in `range`, or `off`.
    pub(super) fn size_or_off(&self, range: RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        match self.text.as_str() {
            "off" => Ok(None),
            "false" | "no" | "none" | "never" => Err(self.expected("a size such as `100MiB`, or `off`")),
            _ => self.size(range).map(Some),
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Result<bool, Problem> {
        match self.text.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.expected("`true` or `false`")),
        }
    }

    /// One of the words that `meaning` knows.
    pub(super) fn word<T>(&self, words: &[&str], meaning: impl Fn(&str) -> Option<T>) -> Result<T, Problem> {
        meaning(&self.text).ok_or_else(|| match nearest(&self.text, words.iter().copied()) {
            Some(meant) => self.problem(format_args!("{}; did you mean `{meant}`?", self.is())),
            None => self.expected(format_args!("one of: {}", words.join(", "))),
        })
    }

    /// The name of a header, made lower case.
    pub(super) fn header(&self) -> Result<HeaderName, Problem> {
        HeaderName::from_bytes(self.text.as_bytes())
            .map_err(|_| self.expected("the name of a header, such as `x-team`"))
    }

    /// A file's name; relative ones begin in the working directory.
    pub(super) fn file(&self) -> Result<PathBuf, Problem> {
        if self.text.is_empty() || self.text.contains('\0') {
            return Err(self.expected("the name of a file"));
        }
        Ok(PathBuf::from(&self.text))
    }

    /// An address to listen on: `IP:PORT`, or `localhost:PORT` for 127.0.0.1.
    pub(super) fn address(&self) -> Result<SocketAddr, Problem> {
        let text = self.text.as_str();
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        if let Some(port) = text.strip_prefix("localhost:").and_then(port) {
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
        let bare = text.strip_prefix(':').or_else(|| text.strip_prefix("*:"));
        Err(if let Some(port) = port(text) {
            self.expected(format_args!(
                "an address and a port: `127.0.0.1:{port}` (this machine only) or `0.0.0.0:{port}`"
            ))
        } else if let Some(port) = bare.and_then(port) {
            self.expected(format_args!("an address before the port: `0.0.0.0:{port}` for every interface"))
        } else if text.contains("://") {
            self.expected("an address and a port without a scheme, such as `127.0.0.1:8080`")
        } else if text.parse::<std::net::IpAddr>().is_ok() || text == "localhost" {
            self.expected("a port behind the address, such as `127.0.0.1:8080` or `[::1]:8080`")
        } else {
            self.expected("an IP address and a port, such as `127.0.0.1:8080`")
        })
    }
}

/// Why a text is no time or size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misread {
    /// It is a number alone.
    NoUnit,
    NotOne,
}

/// `1m30s`: numbers, each followed by its unit, the larger units first.
fn parse_time(text: &str) -> Result<Duration, Misread> {
    let mut rest = text.trim();
    if rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && !rest.is_empty() {
        return Err(Misread::NoUnit);
    }
    let mut total_ms: u64 = 0;
    let mut units = TIME_UNITS.iter();
    while !rest.is_empty() || total_ms == 0 {
        let (number, unit, after) = number_and_unit(rest).ok_or(Misread::NotOne)?;
        let unit_ms = units.find(|known| known.0 == unit).ok_or(Misread::NotOne)?.1;
        let ms = number.checked_mul(unit_ms).ok_or(Misread::NotOne)?;
        total_ms = total_ms.checked_add(ms).ok_or(Misread::NotOne)?;
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    Ok(Duration::from_millis(total_ms))
}

fn parse_size(text: &str) -> Result<u64, Misread> {
    let text = text.trim();
    if digits(text).is_some() {
        return Err(Misread::NoUnit);
    }
    let (number, unit, after) = number_and_unit(text).ok_or(Misread::NotOne)?;
    let (_, unit_bytes) = SIZE_UNITS.iter().find(|known| known.0 == unit).ok_or(Misread::NotOne)?;
    if !after.is_empty() {
        return Err(Misread::NotOne);
    }
    number.checked_mul(*unit_bytes).ok_or(Misread::NotOne)
}

/// Number, unit and what follows them.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let (number, rest) = text.split_at(text.find(|char: char| !char.is_ascii_digit())?);
    let rest = rest.trim_start();
    let (unit, after) = rest.split_at(rest.find(|char: char| !char.is_ascii_alphabetic()).unwrap_or(rest.len()));
    Some((digits(number)?, unit, after.trim_start()))
}

fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn port(text: &str) -> Option<u16> {
    digits(text).and_then(|port| u16::try_from(port).ok())
}

/// The time as a configuration spells it. Whole milliseconds, as every parsed time is.
pub(super) fn time_text(time: Duration) -> String {
    let mut rest = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, unit_ms) in TIME_UNITS {
        if rest >= unit_ms && unit != "d" {
            text.push_str(&format!("{}{unit}", rest / unit_ms));
            rest %= unit_ms;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// The size as a configuration spells it, in the largest unit that leaves no rest.
pub(super) fn size_text(bytes: u64) -> String {
    let fits = |unit: &&(&str, u64)| unit.0.len() != 2 && bytes != 0 && bytes.is_multiple_of(unit.1);
    let (unit, unit_bytes) = SIZE_UNITS.iter().find(fits).unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / unit_bytes)
}

/// In milliseconds, largest first.
const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// In bytes, largest first.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("kB", 1000),
    ("B", 1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_a_unit_and_are_spelt_back() {
        for (text, want) in [
            ("30s", Ok("30s")),
            ("250ms", Ok("250ms")),
            ("90s", Ok("1m30s")),
            ("1m30s", Ok("1m30s")),
            ("1h 5ms", Ok("1h5ms")),
            ("30 s", Ok("30s")),
            ("2d", Ok("48h")),
            ("0s", Ok("0s")),
            ("0s5ms", Ok("5ms")),
            ("30", Err(Misread::NoUnit)),
            ("1.5", Err(Misread::NoUnit)),
            ("", Err(Misread::NotOne)),
            ("s", Err(Misread::NotOne)),
            ("-1s", Err(Misread::NotOne)),
            ("1.5s", Err(Misread::NotOne)),
            ("1s1m", Err(Misread::NotOne)),
            ("1s1s", Err(Misread::NotOne)),
            ("1m30", Err(Misread::NotOne)),
            ("5 parsecs", Err(Misread::NotOne)),
            ("99999999999999999999s", Err(Misread::NotOne)),
            ("18446744073709551615d", Err(Misread::NotOne)),
        ] {
            assert_eq!(parse_time(text).map(time_text), want.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn sizes_need_a_unit_and_are_spelt_back() {
        for (text, want) in [
            ("4MiB", Ok("4MiB")),
            ("64KiB", Ok("64KiB")),
            ("2048MiB", Ok("2GiB")),
            ("512B", Ok("512B")),
            ("1 MB", Ok("1000000B")),
            ("0B", Ok("0B")),
            ("4", Err(Misread::NoUnit)),
            ("4M", Err(Misread::NotOne)),
            ("4mib", Err(Misread::NotOne)),
            ("4MiB4KiB", Err(Misread::NotOne)),
            ("18446744073709551615GiB", Err(Misread::NotOne)),
        ] {
            assert_eq!(parse_size(text).map(size_text), want.map(str::to_owned), "{text}");
        }
    }
}
