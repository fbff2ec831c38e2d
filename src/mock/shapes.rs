//! Answers and errors in the providers' own shapes, so that their SDKs parse every one of them.

use bytes::Bytes;
use serde_json::{Value, json};

/// The models there are. Requests may name any other.
const MODELS: [&str; 2] = ["mock-1", "mock-2"];

/// Which API a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    Chat,
    CountTokens,
    Embeddings,
    Infer,
    Messages,
    Models,
    Responses,
}

impl Api {
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path.trim_end_matches('/') {
            "/v1/chat/completions" => Self::Chat,
            "/v1/responses" => Self::Responses,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/models" => Self::Models,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/v1/infer" => Self::Infer,
            path if path.strip_prefix("/v1/models/").is_some_and(|id| MODELS.contains(&id)) => Self::Models,
            _ => return None,
        })
    }

    pub(super) fn is_anthropic(self) -> bool {
        matches!(self, Self::Messages | Self::CountTokens)
    }

    pub(super) fn method(self) -> &'static str {
        if self == Self::Models { "GET" } else { "POST" }
    }
}

/// What a request asks for, whatever API it speaks.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) model: String,
    /// The last thing the user said: the answer echoes it.
    pub(super) prompt: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// What a provider would charge up front.
    pub(super) tokens: u64,
    /// The one model a path names.
    only_model: Option<String>,
    body: Value,
}

/// More than any model writes; a larger wish is charged as this much.
const TOKENS_MAX: u64 = 100_000_000;

impl Asked {
    pub(super) fn read(api: Api, path: &str, body: &[u8]) -> Result<Self, String> {
        let body: Value = if api == Api::Models {
            Value::Null
        } else {
            serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?
        };
        if api != Api::Models && !body.is_object() {
            return Err("the body must be a JSON object".to_owned());
        }
        let text = |key: &str| body.get(key).and_then(Value::as_str);
        let prompt = match api {
            Api::Chat | Api::Messages | Api::CountTokens => {
                let messages = body.get("messages").and_then(Value::as_array).ok_or("`messages` must be a list")?;
                messages.last().and_then(|message| message.get("content")).map(content).unwrap_or_default()
            }
            Api::Responses | Api::Infer | Api::Embeddings => {
                body.get("input").map(content).ok_or("`input` is missing")?
            }
            Api::Models => String::new(),
        };
        let max_tokens = ["max_tokens", "max_completion_tokens", "max_output_tokens"]
            .iter()
            .find_map(|key| body.get(key).and_then(Value::as_u64))
            .unwrap_or(16);
        if api == Api::Messages && body.get("max_tokens").is_none() {
            return Err("`max_tokens` is required".to_owned());
        }
        Ok(Self {
            model: text("model").unwrap_or("mock-1").to_owned(),
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            include_usage: body.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false),
            tokens: match api {
                Api::CountTokens | Api::Models => 0,
                Api::Embeddings => words(&prompt),
                Api::Chat | Api::Infer | Api::Messages | Api::Responses => {
                    words(&prompt).saturating_add(max_tokens.min(TOKENS_MAX))
                }
            },
            only_model: path.trim_end_matches('/').strip_prefix("/v1/models/").map(str::to_owned),
            prompt,
            body,
        })
    }

    fn answer(&self) -> String {
        format!("echo: {}", self.prompt)
    }

    pub(super) fn output_tokens(&self) -> u64 {
        words(&self.answer())
    }
}

/// A text, wherever the shape hides it.
fn content(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let part = |part: &Value| match part.as_str() {
                Some(text) => Some(text.to_owned()),
                None => part.get("text").or_else(|| part.get("content")).map(content),
            };
            parts.iter().filter_map(part).collect::<Vec<_>>().join(" ")
        }
        Value::Object(_) => value.get("text").or_else(|| value.get("content")).map(content).unwrap_or_default(),
        Value::Bool(_) | Value::Null | Value::Number(_) => value.to_string(),
    }
}

fn words(text: &str) -> u64 {
    text.split_whitespace().count().max(1) as u64
}

/// A whole answer. `n`: which request it is, for ids. `created`: seconds since 1970.
pub(super) fn answer(api: Api, asked: &Asked, n: u64, created: u64) -> Value {
    let (input, output) = (words(&asked.prompt), asked.output_tokens());
    let text = asked.answer();
    let model = &asked.model;
    match api {
        Api::Chat => json!({
            "id": format!("chatcmpl-{n}"), "object": "chat.completion", "created": created, "model": model,
            "choices": [{
                "index": 0, "message": { "role": "assistant", "content": text, "refusal": null, "annotations": [] },
                "logprobs": null, "finish_reason": "stop",
            }],
            "usage": chat_usage(input, output), "service_tier": "default", "system_fingerprint": null,
        }),
        Api::Responses => response_object(asked, n, created, "completed", true),
        Api::Messages => json!({
            "id": format!("msg_{n}"), "type": "message", "role": "assistant", "model": model,
            "content": [{ "type": "text", "text": text }], "stop_reason": "end_turn", "stop_sequence": null,
            "usage": message_usage(input, output),
        }),
        Api::CountTokens => json!({ "input_tokens": input }),
        Api::Models => match &asked.only_model {
            Some(id) => model_card(id),
            None => json!({ "object": "list", "data": MODELS.map(model_card) }),
        },
        Api::Embeddings => embeddings(asked),
        Api::Infer => json!({
            "id": asked.body.get("id").cloned().unwrap_or_else(|| json!(format!("infer-{n}"))), "model": model,
            "output": text, "usage": { "input_tokens": input, "output_tokens": output },
        }),
    }
}

fn model_card(id: &str) -> Value {
    json!({ "id": id, "object": "model", "created": 1_700_000_000, "owned_by": "tidegate" })
}

fn chat_usage(input: u64, output: u64) -> Value {
    json!({
        "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        "prompt_tokens_details": { "cached_tokens": 0, "audio_tokens": 0 },
        "completion_tokens_details": { "reasoning_tokens": 0, "audio_tokens": 0 },
    })
}

fn message_usage(input: u64, output: u64) -> Value {
    json!({
        "input_tokens": input, "output_tokens": output,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "service_tier": "standard",
    })
}

fn response_object(asked: &Asked, n: u64, created: u64, status: &str, done: bool) -> Value {
    let (input, output) = (words(&asked.prompt), asked.output_tokens());
    json!({
        "id": format!("resp_{n}"), "object": "response", "created_at": created, "status": status, "background": false,
        "error": null, "incomplete_details": null, "instructions": null, "max_output_tokens": null, "metadata": {},
        "model": asked.model, "parallel_tool_calls": true, "previous_response_id": null,
        "output": if done { json!([output_item(asked, n, "completed", true)]) } else { json!([]) },
        "reasoning": { "effort": null, "summary": null }, "store": false, "temperature": 1.0, "top_p": 1.0,
        "text": { "format": { "type": "text" } }, "tool_choice": "auto", "tools": [], "truncation": "disabled",
        "usage": if done { json!({
            "input_tokens": input, "input_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0 },
            "output_tokens": output, "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": input + output,
        }) } else { Value::Null },
    })
}

fn output_item(asked: &Asked, n: u64, status: &str, done: bool) -> Value {
    let content = if done { json!([output_text(&asked.answer())]) } else { json!([]) };
    json!({ "id": format!("msg_{n}"), "type": "message", "status": status, "role": "assistant", "content": content })
}

fn output_text(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn embeddings(asked: &Asked) -> Value {
    let inputs: Vec<String> = match asked.body.get("input") {
        // A list of numbers is one text, as tokens.
        Some(Value::Array(items)) if !items.iter().all(Value::is_number) => items.iter().map(content).collect(),
        Some(one) => vec![content(one)],
        None => Vec::new(),
    };
    let base64 = asked.body.get("encoding_format").and_then(Value::as_str) == Some("base64");
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let vector = vector(text);
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(to_base64(&bytes))
            } else {
                json!(vector)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let tokens: u64 = inputs.iter().map(|text| words(text)).sum();
    json!({
        "object": "list", "data": data, "model": asked.model,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })
}

/// Eight numbers that depend on nothing but the text.
fn vector(text: &str) -> Vec<f32> {
    let seed = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut rng = crate::control::rng::Rng::new(seed);
    (0..8).map(|_| (rng.unit() * 2.0 - 1.0) as f32).collect()
}

pub(super) fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().enumerate().fold(0u32, |bits, (at, byte)| bits | (u32::from(*byte) << (16 - 8 * at)));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            let digit_is_there = digit <= group.len();
            text.push(if digit_is_there { DIGITS.get(index as usize).map_or('=', |d| char::from(*d)) } else { '=' });
        }
    }
    text
}

/// The pieces of a streamed answer, in order, each one flush of the server's.
pub(super) fn stream(api: Api, asked: &Asked, n: u64, created: u64) -> Vec<Bytes> {
    let text = asked.answer();
    let pieces: Vec<&str> = text.split_inclusive(' ').collect();
    match api {
        Api::Messages => message_stream(asked, n, &pieces),
        Api::Responses => response_stream(asked, n, created, &pieces),
        Api::Chat | Api::CountTokens | Api::Embeddings | Api::Infer | Api::Models => {
            chat_stream(asked, n, created, &pieces)
        }
    }
}

fn data(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn event(value: &Value) -> Bytes {
    let name = value.get("type").and_then(Value::as_str).unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {value}\n\n"))
}

fn chat_stream(asked: &Asked, n: u64, created: u64, pieces: &[&str]) -> Vec<Bytes> {
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": format!("chatcmpl-{n}"), "object": "chat.completion.chunk", "created": created,
            "model": asked.model, "system_fingerprint": null, "choices": choices,
        });
        if asked.include_usage
            && let Some(fields) = chunk.as_object_mut()
        {
            fields.insert("usage".to_owned(), usage);
        }
        data(&chunk)
    };
    let choice = |delta: Value, finish: Value| json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
    let mut chunks =
        vec![chunk(choice(json!({ "role": "assistant", "content": "", "refusal": null }), Value::Null), Value::Null)];
    for piece in pieces {
        chunks.push(chunk(choice(json!({ "content": piece }), Value::Null), Value::Null));
    }
    chunks.push(chunk(choice(json!({}), json!("stop")), Value::Null));
    if asked.include_usage {
        chunks.push(chunk(json!([]), chat_usage(words(&asked.prompt), asked.output_tokens())));
    }
    chunks.push(Bytes::from_static(b"data: [DONE]\n\n"));
    chunks
}

fn message_stream(asked: &Asked, n: u64, pieces: &[&str]) -> Vec<Bytes> {
    let (input, output) = (words(&asked.prompt), asked.output_tokens());
    let mut events = vec![
        event(&json!({ "type": "message_start", "message": {
            "id": format!("msg_{n}"), "type": "message", "role": "assistant", "model": asked.model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": message_usage(input, 1),
        }})),
        event(&json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } })),
        event(&json!({ "type": "ping" })),
    ];
    for piece in pieces {
        let delta = json!({ "type": "text_delta", "text": piece });
        events.push(event(&json!({ "type": "content_block_delta", "index": 0, "delta": delta })));
    }
    events.push(event(&json!({ "type": "content_block_stop", "index": 0 })));
    events.push(event(&json!({
        "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null },
        "usage": { "output_tokens": output },
    })));
    events.push(event(&json!({ "type": "message_stop" })));
    events
}

fn response_stream(asked: &Asked, n: u64, created: u64, pieces: &[&str]) -> Vec<Bytes> {
    let item = format!("msg_{n}");
    let place = json!({ "item_id": item, "output_index": 0, "content_index": 0 });
    let text = asked.answer();
    let mut events = vec![
        json!({ "type": "response.created", "response": response_object(asked, n, created, "in_progress", false) }),
        json!({ "type": "response.in_progress", "response": response_object(asked, n, created, "in_progress", false) }),
        json!({ "type": "response.output_item.added", "output_index": 0, "item": output_item(asked, n, "in_progress", false) }),
        json!({ "type": "response.content_part.added", "part": output_text("") }),
    ];
    for piece in pieces {
        events.push(json!({ "type": "response.output_text.delta", "delta": piece, "logprobs": [] }));
    }
    events.push(json!({ "type": "response.output_text.done", "text": text, "logprobs": [] }));
    events.push(json!({ "type": "response.content_part.done", "part": output_text(&text) }));
    events.push(json!({
        "type": "response.output_item.done", "output_index": 0, "item": output_item(asked, n, "completed", true),
    }));
    events.push(
        json!({ "type": "response.completed", "response": response_object(asked, n, created, "completed", true) }),
    );
    let part = |kind: &str| kind.contains("content_part") || kind.contains("output_text");
    events
        .into_iter()
        .enumerate()
        .map(|(number, mut value)| {
            let in_part = value.get("type").and_then(Value::as_str).is_some_and(part);
            if let (Some(fields), Some(place)) = (value.as_object_mut(), place.as_object()) {
                fields.insert("sequence_number".to_owned(), json!(number));
                if in_part {
                    fields.extend(place.clone());
                }
            }
            event(&value)
        })
        .collect()
}

/// An error in the shape of the API.
pub(super) fn error(
    anthropic: bool,
    status: u16,
    kind: &str,
    code: Option<&str>,
    message: &str,
    request: &str,
) -> Value {
    if anthropic {
        let kind = match status {
            400 | 405 => "invalid_request_error",
            401 => "authentication_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            504 => "timeout_error",
            529 => "overloaded_error",
            _ => "api_error",
        };
        let details = code.map(|code| json!({ "error_code": code }));
        let mut error = json!({ "type": kind, "message": message });
        if let (Some(details), Some(fields)) = (details, error.as_object_mut()) {
            fields.insert("details".to_owned(), details);
        }
        json!({ "type": "error", "error": error, "request_id": request })
    } else {
        json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded_as_it_should_be() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(to_base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn prompts_are_found_in_every_shape() {
        for (api, body, want) in [
            (Api::Chat, r#"{"messages":[{"role":"user","content":"hi"}]}"#, "hi"),
            (
                Api::Messages,
                r#"{"max_tokens":5,"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}"#,
                "hi",
            ),
            (Api::Responses, r#"{"input":"hi"}"#, "hi"),
            (Api::Responses, r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}]}"#, "hi"),
            (Api::Infer, r#"{"input":{"a":1}}"#, ""),
            (Api::Infer, r#"{"input":7}"#, "7"),
        ] {
            assert_eq!(Asked::read(api, "", body.as_bytes()).unwrap().prompt, want, "{body}");
        }
        for (api, body) in
            [(Api::Chat, "{}"), (Api::Chat, "["), (Api::Messages, r#"{"messages":[]}"#), (Api::Infer, "{}")]
        {
            assert!(Asked::read(api, "", body.as_bytes()).is_err(), "{body}");
        }
    }
}
