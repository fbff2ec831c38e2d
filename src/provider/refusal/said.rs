//! The parts of an error body that mean something, whichever provider's shape it has.
//!
//! A message may quote the request. So only known fields are read, and free text only where a body is no JSON at all.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use super::{BODY_BYTES_MAX, phrases};
use crate::provider::durations;

/// What an error body says. All of it is in lower case.
#[derive(Default)]
pub(super) struct Said {
    /// Types, codes, statuses and reasons.
    pub(super) words: Vec<String>,
    /// Google's names of the violated quotas.
    pub(super) quota_ids: Vec<String>,
    /// Google's `RetryInfo`.
    pub(super) retry_info: Option<Duration>,
    /// The message, or a body that is not JSON; at most [`TEXT_CHARS_MAX`] characters.
    pub(super) text: String,
}

/// Characters of prose that are looked at: a refusal says its reason early. A guess.
const TEXT_CHARS_MAX: usize = 4096;

impl Said {
    /// Reads a decoded body. A body that is cut off, or that begins as JSON and is none, says nothing.
    pub(super) fn of(body: &[u8]) -> Self {
        let body = body.get(..BODY_BYTES_MAX).unwrap_or(body);
        let body = body
            .strip_prefix(b"\xef\xbb\xbf") // byte order mark
            .unwrap_or(body)
            .trim_ascii();
        if !body.starts_with(b"{") && !body.starts_with(b"[") {
            return Self { text: prose([String::from_utf8_lossy(body).as_ref()]), ..Self::default() };
        }
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return Self::default();
        };
        // Gemini wraps the error of a call that would have streamed into an array.
        let value = value.get(0).unwrap_or(&value);
        match value.get("error") {
            Some(error) if error.is_object() => Self::of_fault(error, None),
            error => Self::of_fault(value, error.and_then(Value::as_str)),
        }
    }

    fn of_fault(value: &Value, error: Option<&str>) -> Self {
        let fault = Fault::deserialize(value).unwrap_or_default();
        let words = [fault.r#type, fault.code, fault.status]
            .into_iter()
            .chain(fault.details.iter().flat_map(|detail| [detail.error_code.clone(), detail.reason.clone()]))
            .chain(fault.metadata.map(|metadata| metadata.limit_source))
            .flatten()
            .map(|word| word.to_string().to_ascii_lowercase())
            .collect();
        Self {
            words,
            quota_ids: fault
                .details
                .iter()
                .flat_map(|detail| &detail.violations)
                .filter_map(|violation| violation.quota_id.as_deref())
                .map(str::to_ascii_lowercase)
                .collect(),
            retry_info: fault
                .details
                .iter()
                .filter_map(|detail| durations::duration(detail.retry_delay.as_deref()?))
                .max(),
            text: prose(
                [error, fault.message.as_deref(), fault.title.as_deref(), fault.detail.as_deref()]
                    .into_iter()
                    .flatten(),
            ),
        }
    }

    /// How long it asks to wait.
    pub(super) fn delay(&self) -> Option<Duration> {
        self.retry_info.or_else(|| phrases::delay(&self.text))
    }
}

fn prose<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts
        .into_iter()
        .flat_map(|text| text.chars().chain([' ']))
        .take(TEXT_CHARS_MAX)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// An error object: the one under `error`, or the whole body (Mistral, Cohere, Bedrock, RFC 9457).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fault {
    #[serde(deserialize_with = "lenient")]
    message: Option<String>,
    #[serde(deserialize_with = "lenient")]
    title: Option<String>,
    #[serde(deserialize_with = "lenient")]
    detail: Option<String>,
    #[serde(deserialize_with = "lenient")]
    r#type: Option<Word>,
    #[serde(deserialize_with = "lenient")]
    code: Option<Word>,
    #[serde(deserialize_with = "lenient")]
    status: Option<Word>,
    #[serde(deserialize_with = "each")]
    details: Vec<Detail>,
    #[serde(deserialize_with = "lenient")]
    metadata: Option<Metadata>,
}

/// Anthropic's `details`, or one of Google's.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Detail {
    #[serde(deserialize_with = "lenient")]
    error_code: Option<Word>,
    #[serde(deserialize_with = "lenient")]
    reason: Option<Word>,
    #[serde(deserialize_with = "lenient", rename = "retryDelay")]
    retry_delay: Option<String>,
    #[serde(deserialize_with = "each")]
    violations: Vec<Violation>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Violation {
    #[serde(deserialize_with = "lenient", rename = "quotaId")]
    quota_id: Option<String>,
}

/// OpenRouter's.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    #[serde(deserialize_with = "lenient")]
    limit_source: Option<Word>,
}

/// A code: providers write it as a string or as a number.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Word {
    Number(serde_json::Number),
    Text(String),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// A value of another type counts as absent: one odd field must not hide the others.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).ok())
}

/// The readable items of an array; a single item may stand without the array.
fn each<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Vec<T>, D::Error> {
    let items = match Value::deserialize(from)? {
        Value::Array(items) => items,
        item @ Value::Object(_) => vec![item],
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    Ok(items.into_iter().filter_map(|item| serde_json::from_value(item).ok()).collect())
}
