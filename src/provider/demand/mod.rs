//! What a request asks for, read from its path and body before it is sent.
//!
//! A body may hold megabytes of prompt: nothing of it is copied or built into a tree, and what stands before a break
//! counts.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;

pub use crate::control::cost::Demand;
use crate::provider::{count::Count, members::Members, names, quotes};

#[cfg(test)]
mod tests;

/// What a request's head tells of its body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Its length.
    bytes: Option<usize>,
    /// It has a type, and that is JSON.
    is_json: Option<bool>,
}

impl Told {
    /// What these headers tell.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut told = Self::default();
        headers.get_all(header::CONTENT_LENGTH).iter().for_each(|value| told.note_length(value));
        headers.get_all(header::CONTENT_TYPE).iter().for_each(|value| told.note_type(value));
        told
    }

    /// A `Content-Length`. The first number counts.
    pub fn note_length(&mut self, value: &HeaderValue) {
        self.bytes = self.bytes.or_else(|| value.to_str().ok()?.parse().ok());
    }

    /// A `Content-Type`. The first counts.
    pub fn note_type(&mut self, value: &HeaderValue) {
        let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let is_json = kind.last_chunk().is_some_and(|end: &[u8; 4]| end.eq_ignore_ascii_case(b"json"));
        self.is_json.get_or_insert(is_json);
    }
}

/// What a request asks for. `body` is what is held of its body; of one that only passes through, the length is still
/// known from the head.
#[must_use]
pub fn demand(told: &Told, path: &str, body: &[u8]) -> Demand {
    of_model(told, path, body).0
}

/// The same, and the model it is for, where it names one.
#[must_use]
pub fn of_model<'a>(told: &Told, path: &'a str, body: &'a [u8]) -> (Demand, Option<Cow<'a, str>>) {
    let bytes = told.bytes.unwrap_or(0).max(body.len());
    // A body that says nothing of its type is tried: curl's users forget it.
    let asked = if told.is_json.unwrap_or(true) { Asked::of(body) } else { Asked::default() };
    let stream = asked.stream || streams(path);
    let model = model_in(path).map(unescaped).or(asked.model);
    let demand = Demand {
        model: model.as_deref().map_or(0, |name| names::number([name])),
        input_tokens: u32::try_from(bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX),
        output_tokens_max: asked.output_tokens_max,
        stream,
        read: asked.read,
    };
    (demand, model)
}

/// The model a request is for: the one in its path (Gemini, Azure, Bedrock), else the one its body names.
#[must_use]
pub fn model<'a>(path: &'a str, body: &'a [u8]) -> Option<Cow<'a, str>> {
    model_in(path).map(unescaped).or_else(|| Asked::of(body).model)
}

/// English prose has about four; what is learnt from usage corrects the guess.
const BYTES_PER_TOKEN: usize = 4;

/// `/v1beta/models/gemini-3:generateContent`, `/openai/deployments/mine/chat/completions`, `/model/some.id/converse`.
fn model_in(path: &str) -> Option<&str> {
    // Most paths name none, and a loop over bytes says so sooner than a search for each slash.
    let mut segments = path.as_bytes().split(|byte| *byte == b'/');
    if !segments.any(|segment| matches!(segment, b"models" | b"model" | b"deployments")) {
        return None;
    }
    let mut segments = path.split('/').skip_while(|segment| !["models", "model", "deployments"].contains(segment));
    let name = segments.nth(1)?;
    // Gemini's action follows the last colon; Bedrock's names have colons of their own, and an action after the slash.
    let name = name.rsplit_once(':').filter(|_| segments.next().is_none()).map_or(name, |(name, _)| name);
    (!name.is_empty()).then_some(name)
}

/// A segment of a path as it is meant: Bedrock's clients write the colon of a name as `%3A`. What is no escape, or would be
/// no text, stays as it is.
fn unescaped(segment: &str) -> Cow<'_, str> {
    let Some((plain, mut rest)) = segment.split_once('%') else { return Cow::Borrowed(segment) };
    let mut bytes = plain.as_bytes().to_vec();
    loop {
        match rest.as_bytes().first_chunk().and_then(hex) {
            Some(byte) => {
                bytes.push(byte);
                // Two digits, each of one byte.
                rest = rest.get(2..).unwrap_or_default();
            }
            None => bytes.push(b'%'),
        }
        let Some((plain, more)) = rest.split_once('%') else { break };
        bytes.extend_from_slice(plain.as_bytes());
        rest = more;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_or(Cow::Borrowed(segment), Cow::Owned)
}

fn hex(digits: &[u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? * 16 + low?).ok()
}

/// `…:streamGenerateContent` (Gemini), `…:streamRawPredict` (Vertex), `…/converse-stream` (Bedrock).
fn streams(path: &str) -> bool {
    let action = path.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if !action.iter().any(|byte| matches!(byte, b':' | b'-')) {
        return false;
    }
    let action = path.rsplit('/').next().unwrap_or_default();
    action.contains(":stream") || action.ends_with("-stream")
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
    /// An error ends the reading; what preceded it was read.
    fn of(body: &'a [u8]) -> Self {
        let mut asked = Self::default();
        asked.read_object(body, NESTED_MAX);
        asked
    }

    /// `None`: that was all that can be read.
    fn read_object(&mut self, text: &'a [u8], nested_max: u8) -> Option<()> {
        let mut members = Members::of(text)?;
        self.read = true;
        loop {
            let (key, value) = members.next_key()?;
            match key.as_ref() {
                b"model" => {
                    self.model = text_at(value).or(self.model.take());
                }
                b"stream" => self.stream |= value.starts_with(b"true"),
                b"max_tokens" | b"max_completion_tokens" | b"max_output_tokens" | b"maxOutputTokens" | b"maxTokens" => {
                    self.output_tokens_max = self.output_tokens_max.max(Count::read(value));
                }
                // Gemini's, and Bedrock's.
                b"generationConfig" | b"generation_config" | b"inferenceConfig" if nested_max > 0 => {
                    self.read_object(value, nested_max - 1);
                }
                _ => {}
            }
            members.pass()?;
        }
    }
}

/// Objects within each other that are read.
const NESTED_MAX: u8 = 1;

/// Reads the string at the beginning, borrowed where it has no escapes. `None`: it is none.
fn text_at(text: &[u8]) -> Option<Cow<'_, str>> {
    let content = text.strip_prefix(b"\"")?;
    let content = content.get(..quotes::closing(content)?)?;
    if content.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'\\') {
        return std::str::from_utf8(content).ok().map(Cow::Borrowed);
    }
    let Text(text) = Text::deserialize(&mut serde_json::Deserializer::from_slice(text)).ok()?;
    Some(text)
}

/// A string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
