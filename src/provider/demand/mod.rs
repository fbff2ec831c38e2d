//! What a request asks for, read from its path and body before it is sent.
//!
//! A body may hold megabytes of prompt: nothing of it is copied or built into a tree, and what stands before a break
//! counts.

use std::{borrow::Cow, fmt};

use http::{HeaderMap, header};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

pub use crate::control::cost::Demand;
use crate::provider::{count::Count, kinds::nothing_but_objects, names};

#[cfg(test)]
mod tests;

/// What a request asks for. `body` is what is held of its body; of one that only passes through, the length is still
/// known from the head.
#[must_use]
pub fn demand(headers: &HeaderMap, path: &str, body: &[u8]) -> Demand {
    let told = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let bytes = told.unwrap_or(0).max(body.len());
    let asked = if is_json(headers) { Asked::of(body) } else { Asked::default() };
    let stream = asked.stream || streams(path);
    let model = model_in(path).map(Cow::Borrowed).or(asked.model);
    Demand {
        model: model.map_or(0, |name| names::number([name.as_ref()])),
        input_tokens: u32::try_from(bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX),
        output_tokens_max: asked.output_tokens_max,
        stream,
        read: asked.read,
    }
}

/// The model a request is for: the one in its path (Gemini, Azure, Bedrock), else the one its body names.
#[must_use]
pub fn model<'a>(path: &'a str, body: &'a [u8]) -> Option<Cow<'a, str>> {
    model_in(path).map(Cow::Borrowed).or_else(|| Asked::of(body).model)
}

/// English prose has about four; what is learnt from usage corrects the guess.
const BYTES_PER_TOKEN: usize = 4;

/// `/v1beta/models/gemini-3:generateContent`, `/openai/deployments/mine/chat/completions`, `/model/some.id/converse`.
fn model_in(path: &str) -> Option<&str> {
    let mut segments = path.split('/').skip_while(|segment| !["models", "model", "deployments"].contains(segment));
    let name = segments.nth(1)?;
    // Gemini's action follows the last colon; Bedrock's names have colons of their own, and an action after the slash.
    let name = name.rsplit_once(':').filter(|_| segments.next().is_none()).map_or(name, |(name, _)| name);
    (!name.is_empty()).then_some(name)
}

/// `…:streamGenerateContent` (Gemini), `…:streamRawPredict` (Vertex), `…/converse-stream` (Bedrock).
fn streams(path: &str) -> bool {
    let action = path.rsplit('/').next().unwrap_or_default();
    action.contains(":stream") || action.ends_with("-stream")
}

/// A body that says nothing of its type is tried: curl's users forget it.
fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_none_or(|value| {
        let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().to_ascii_lowercase().ends_with(b"json")
    })
}

/// The fields of a body that matter.
#[derive(Default)]
struct Asked<'a> {
    model: Option<Cow<'a, str>>,
    output_tokens_max: Option<u32>,
    stream: bool,
    /// It is an object.
    read: bool,
}

impl<'a> Asked<'a> {
    fn of(body: &'a [u8]) -> Self {
        let mut asked = Self::default();
        // An error ends the reading; what preceded it was read.
        drop(Fields { asked: &mut asked }.deserialize(&mut serde_json::Deserializer::from_slice(body)));
        asked
    }
}

/// Fills `asked` as it goes, so that a body that breaks off has told what it told.
struct Fields<'r, 'a> {
    asked: &'r mut Asked<'a>,
}

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Key {
    #[serde(rename = "model")]
    Model,
    #[serde(rename = "stream")]
    Stream,
    #[serde(rename = "max_tokens", alias = "max_completion_tokens", alias = "max_output_tokens")]
    #[serde(alias = "maxOutputTokens", alias = "maxTokens")]
    OutputTokensMax,
    /// Gemini's, and Bedrock's.
    #[serde(rename = "generationConfig", alias = "generation_config", alias = "inferenceConfig")]
    Settings,
    #[serde(other)]
    Other,
}

impl<'de> DeserializeSeed<'de> for Fields<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    nothing_but_objects!(());

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        self.asked.read = true;
        while let Some(key) = map.next_key()? {
            match key {
                Key::Model => {
                    if let Text::Is(name) = map.next_value()? {
                        self.asked.model = Some(name);
                    }
                }
                Key::Stream => self.asked.stream |= matches!(map.next_value()?, Flag::Is(true)),
                Key::OutputTokensMax => {
                    let Count(count) = map.next_value()?;
                    self.asked.output_tokens_max = self.asked.output_tokens_max.max(count);
                }
                Key::Settings => map.next_value_seed(Fields { asked: self.asked })?,
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A string, borrowed where it has no escapes. A value of another kind is none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text<'a> {
    #[serde(borrow)]
    Is(Cow<'a, str>),
    Other(IgnoredAny),
}

/// A switch. A value of another kind is none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Flag {
    Is(bool),
    Other(IgnoredAny),
}
