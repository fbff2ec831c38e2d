//! The conventions' words for what Tidegate knows, and what of a path may be told.

use std::borrow::Cow;

use http::Method;

use crate::provider::presets::Preset;

/// `gen_ai.operation.name`, where the path tells. Source: OpenTelemetry's GenAI conventions; the paths are the providers'.
pub(super) fn operation(method: &Method, path: &str) -> Option<&'static str> {
    if method != Method::POST {
        return None;
    }
    let mut segments = path.trim_end_matches('/').rsplit('/');
    let (last, before) = (segments.next()?, segments.next().unwrap_or_default());
    let action = last.rsplit_once(':').map_or(last, |(_, action)| action);
    match action {
        "chat" | "converse" | "converse-stream" | "responses" => Some("chat"),
        "completions" if before == "chat" => Some("chat"),
        "completions" => Some("text_completion"),
        // Anthropic's; those of a thread are something else.
        "messages" if before == "v1" => Some("chat"),
        "generateContent" | "streamGenerateContent" => Some("generate_content"),
        "batchEmbedContents" | "embed" | "embedContent" | "embeddings" => Some("embeddings"),
        _ => None,
    }
}

/// `gen_ai.provider.name`; the conventions' own word where they have one.
pub(super) fn provider(preset: Preset) -> Option<&'static str> {
    match preset {
        Preset::Generic => None,
        Preset::Azure => Some("azure.ai.openai"),
        Preset::Bedrock => Some("aws.bedrock"),
        Preset::Gemini => Some("gcp.gemini"),
        Preset::Mistral => Some("mistral_ai"),
        Preset::Xai => Some("x_ai"),
        Preset::Anthropic
        | Preset::Cohere
        | Preset::Deepseek
        | Preset::Fireworks
        | Preset::Groq
        | Preset::Openai
        | Preset::Openrouter
        | Preset::Together => Some(preset.name()),
    }
}

/// What stands for a segment that is not told.
const HIDDEN: &str = "*";
/// Longest word of any API's path, and some more.
const WORD_BYTES_MAX: usize = 24;
/// Segments that are told; APIs have about five.
const SEGMENTS_MAX: usize = 12;

/// The path, of which every segment that may be an identifier or a secret is hidden: all that are not lower-case words or
/// versions. The action that Google's APIs have behind a colon stays.
pub(super) fn scrubbed(path: &str) -> String {
    let mut told = String::with_capacity(path.len().min(64));
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            told.push('/');
        }
        if index > SEGMENTS_MAX {
            told.push_str(HIDDEN);
            break;
        }
        let (name, action) = match segment.rsplit_once(':') {
            Some((name, action)) if is_action(action) => (name, Some(action)),
            Some(_) | None => (segment, None),
        };
        told.push_str(if is_word(name) || is_version(name) { name } else { HIDDEN });
        if let Some(action) = action {
            told.push(':');
            told.push_str(action);
        }
    }
    told
}

fn is_word(text: &str) -> bool {
    text.len() <= WORD_BYTES_MAX && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_' | b'-'))
}

/// Those of Google's APIs.
fn is_action(text: &str) -> bool {
    matches!(
        text,
        "batchEmbedContents"
            | "countTokens"
            | "embedContent"
            | "generateContent"
            | "predict"
            | "rawPredict"
            | "streamGenerateContent"
            | "streamRawPredict"
    )
}

/// `v1`, `v1beta`, `v1beta2`, `v1.1`.
fn is_version(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('v').filter(|rest| rest.len() <= 9) else { return false };
    rest.starts_with(|char: char| char.is_ascii_digit())
        && rest
            .split(|char: char| char.is_ascii_digit() || char == '.')
            .all(|word| matches!(word, "" | "alpha" | "beta"))
}

/// A model's name as it is told: of a sane length. Bedrock's may be an ARN, which holds the number of the caller's account;
/// what is percent-encoded may be one too.
pub(super) fn model(name: Cow<'_, str>) -> Option<String> {
    let is_name =
        !name.is_empty() && name.len() <= 128 && !name.contains(|char: char| char.is_control() || char == '%');
    let is_arn = || name.as_bytes().windows(4).any(|bytes| bytes.eq_ignore_ascii_case(b"arn:"));
    (is_name && !is_arn()).then(|| name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_told_by_their_paths() {
        for (path, want) in [
            ("/v1/chat/completions", Some("chat")),
            ("/openai/deployments/mine/chat/completions", Some("chat")),
            ("/v1/completions", Some("text_completion")),
            ("/v1/responses", Some("chat")),
            ("/v1/messages", Some("chat")),
            ("/v1/messages/", Some("chat")),
            ("/v1/messages/batches", None),
            ("/v1/threads/thread_1/messages", None),
            ("/v2/chat", Some("chat")),
            ("/model/anthropic.claude-3:0/converse-stream", Some("chat")),
            ("/v1beta/models/gemini-3:streamGenerateContent", Some("generate_content")),
            ("/v1beta/models/e:batchEmbedContents", Some("embeddings")),
            ("/v1/embeddings", Some("embeddings")),
            ("/v1/models", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(operation(&Method::POST, path), want, "{path}");
            assert_eq!(operation(&Method::GET, path), None, "{path}");
        }
    }

    #[test]
    fn what_may_identify_somebody_is_not_told() {
        for (path, want) in [
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1/threads/thread_abc123/runs", "/v1/threads/*/runs"),
            ("/openai/deployments/My-Own/chat/completions", "/openai/deployments/*/chat/completions"),
            ("/v1beta/models/gemini-3-pro:generateContent", "/v1beta/models/*:generateContent"),
            ("/model/arn%3Aaws%3A1/invoke", "/model/*/invoke"),
            ("/v1/users/me@example.com", "/v1/users/*"),
            ("/bot12345:AAHsecret/send", "/*/send"),
            ("/a:b:c", "/*"),
            ("/v1beta2/x", "/v1beta2/x"),
            ("/v1.1/v123456789012/vx/v1sk", "/v1.1/*/vx/*"),
            ("/abcdefghijklmnopqrstuvwxyzabcdef", "/*"),
            ("//x/", "//x/"),
            ("/", "/"),
            ("*", "*"),
            ("/ü/%20", "/*/*"),
        ] {
            assert_eq!(scrubbed(path), want, "{path}");
        }
        assert_eq!(scrubbed(&"/a".repeat(5000)), format!("{}/*", "/a".repeat(12)));
    }

    #[test]
    fn a_model_is_told_unless_its_name_holds_an_identifier() {
        for name in ["gpt-5", "anthropic.claude-3:0", "meta-llama/Llama-3.3-70B", "My-Own", "barn"] {
            assert_eq!(model(name.into()).as_deref(), Some(name));
        }
        let long = "m".repeat(129);
        for name in [
            "",
            "a\nb",
            long.as_str(),
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/abc",
            "ARN:aws:bedrock:us-east-1:123456789012:inference-profile/abc",
            "arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fabc",
            "%61rn%3aaws",
        ] {
            assert_eq!(model(name.into()), None, "{name}");
        }
    }
}
