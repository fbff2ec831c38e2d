//! What is known about each provider without asking it.

use std::time::Duration;

use crate::control::signals::Dimension;

/// A provider whose habits are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Anthropic.
    Anthropic,
    /// Azure OpenAI.
    Azure,
    /// Amazon Bedrock.
    Bedrock,
    /// Cohere.
    Cohere,
    /// DeepSeek.
    Deepseek,
    /// Fireworks.
    Fireworks,
    /// Google Gemini and Vertex.
    Gemini,
    /// Anything else.
    Generic,
    /// Groq.
    Groq,
    /// Mistral.
    Mistral,
    /// OpenAI.
    Openai,
    /// OpenRouter.
    Openrouter,
    /// Together.
    Together,
    /// xAI.
    Xai,
}

impl Preset {
    /// Every preset, by name.
    pub const ALL: [Self; 14] = [
        Self::Anthropic,
        Self::Azure,
        Self::Bedrock,
        Self::Cohere,
        Self::Deepseek,
        Self::Fireworks,
        Self::Gemini,
        Self::Generic,
        Self::Groq,
        Self::Mistral,
        Self::Openai,
        Self::Openrouter,
        Self::Together,
        Self::Xai,
    ];

    /// The preset called `name` in configurations.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// What configurations call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Azure => "azure",
            Self::Bedrock => "bedrock",
            Self::Cohere => "cohere",
            Self::Deepseek => "deepseek",
            Self::Fireworks => "fireworks",
            Self::Gemini => "gemini",
            Self::Generic => "generic",
            Self::Groq => "groq",
            Self::Mistral => "mistral",
            Self::Openai => "openai",
            Self::Openrouter => "openrouter",
            Self::Together => "together",
            Self::Xai => "xai",
        }
    }

    /// The provider whose API lives on `host`; in any case, without a port. `Generic` for every other host.
    #[must_use]
    pub fn for_host(host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        match host.trim_end_matches('.') {
            "api.anthropic.com" => Self::Anthropic,
            "api.cohere.ai" | "api.cohere.com" => Self::Cohere,
            "api.deepseek.com" => Self::Deepseek,
            "api.fireworks.ai" => Self::Fireworks,
            "api.groq.com" => Self::Groq,
            "api.mistral.ai" => Self::Mistral,
            "api.openai.com" => Self::Openai,
            "api.together.ai" | "api.together.xyz" => Self::Together,
            "api.x.ai" => Self::Xai,
            "generativelanguage.googleapis.com" => Self::Gemini,
            "openrouter.ai" => Self::Openrouter,
            host if host.ends_with(".openai.azure.com") || host.ends_with(".cognitiveservices.azure.com") => {
                Self::Azure
            }
            // Regional: `aiplatform.googleapis.com`, `europe-west4-aiplatform.googleapis.com`.
            host if host == VERTEX || host.strip_suffix(VERTEX).is_some_and(|region| region.ends_with('-')) => {
                Self::Gemini
            }
            host if host.starts_with("bedrock-runtime.") && host.ends_with(".amazonaws.com") => Self::Bedrock,
            _ => Self::Generic,
        }
    }

    /// Over which time this provider counts where its headers do not say. `None` where that differs between accounts.
    ///
    /// Sources: console.groq.com/docs/rate-limits, docs.together.ai/docs/rate-limits,
    /// docs.fireworks.ai/serverless/rate-limits (per second, although enforced per minute); xAI by report only.
    #[must_use]
    pub fn window(self, dimension: Dimension) -> Option<Duration> {
        let seconds = match (self, dimension) {
            (Self::Groq, Dimension::Requests) => 24 * 60 * 60,
            (Self::Groq, _) | (Self::Xai, Dimension::Tokens | Dimension::InputTokens | Dimension::OutputTokens) => 60,
            (Self::Together, _) | (Self::Xai, Dimension::Requests) => 1,
            (Self::Fireworks, Dimension::Tokens | Dimension::InputTokens | Dimension::OutputTokens) => 1,
            _ => return None,
        };
        Some(Duration::from_secs(seconds))
    }

    /// How errors of Tidegate's own look to clients of this provider. All but two follow OpenAI.
    #[must_use]
    pub fn error_shape(self) -> ErrorShape {
        match self {
            Self::Anthropic => ErrorShape::Anthropic,
            Self::Gemini => ErrorShape::Gemini,
            Self::Azure
            | Self::Bedrock
            | Self::Cohere
            | Self::Deepseek
            | Self::Fireworks
            | Self::Generic
            | Self::Groq
            | Self::Mistral
            | Self::Openai
            | Self::Openrouter
            | Self::Together
            | Self::Xai => ErrorShape::Openai,
        }
    }
}

/// The shape of an error body, as the SDKs of that API expect it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorShape {
    /// `{"type":"error","error":{"type":…,"message":…}}`
    Anthropic,
    /// `{"error":{"code":…,"message":…,"status":…}}`
    Gemini,
    /// `{"error":{"message":…,"type":…,"param":null,"code":…}}`
    Openai,
}

const VERTEX: &str = "aiplatform.googleapis.com";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_preset() {
        for preset in Preset::ALL {
            assert_eq!(Preset::from_name(preset.name()), Some(preset));
        }
        for unknown in ["", "auto", "OpenAI", "open ai"] {
            assert_eq!(Preset::from_name(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_host_tells_the_provider() {
        for (host, want) in [
            ("api.openai.com", Preset::Openai),
            ("API.OpenAI.com", Preset::Openai),
            ("api.openai.com.", Preset::Openai),
            ("mine.openai.azure.com", Preset::Azure),
            ("mine.cognitiveservices.azure.com", Preset::Azure),
            ("api.anthropic.com", Preset::Anthropic),
            ("generativelanguage.googleapis.com", Preset::Gemini),
            ("aiplatform.googleapis.com", Preset::Gemini),
            ("europe-west4-aiplatform.googleapis.com", Preset::Gemini),
            ("api.groq.com", Preset::Groq),
            ("api.mistral.ai", Preset::Mistral),
            ("api.cohere.com", Preset::Cohere),
            ("api.cohere.ai", Preset::Cohere),
            ("api.together.xyz", Preset::Together),
            ("api.together.ai", Preset::Together),
            ("api.fireworks.ai", Preset::Fireworks),
            ("openrouter.ai", Preset::Openrouter),
            ("api.deepseek.com", Preset::Deepseek),
            ("api.x.ai", Preset::Xai),
            ("bedrock-runtime.us-east-1.amazonaws.com", Preset::Bedrock),
            ("localhost", Preset::Generic),
            ("openai.com", Preset::Generic),
            ("evil-api.openai.com", Preset::Generic),
            ("api.openai.com.example", Preset::Generic),
            ("openai.azure.com", Preset::Generic),
            ("notaiplatform.googleapis.com", Preset::Generic),
            ("", Preset::Generic),
        ] {
            assert_eq!(Preset::for_host(host), want, "{host}");
        }
    }

    #[test]
    fn windows_that_no_header_names_are_known() {
        for (preset, requests, tokens) in [
            (Preset::Groq, Some(86_400), Some(60)),
            (Preset::Together, Some(1), Some(1)),
            (Preset::Fireworks, None, Some(1)),
            (Preset::Xai, Some(1), Some(60)),
            (Preset::Openai, None, None),
            (Preset::Generic, None, None),
        ] {
            let seconds = |dimension| preset.window(dimension).map(|window| window.as_secs());
            assert_eq!(seconds(Dimension::Requests), requests, "{}", preset.name());
            for dimension in [Dimension::Tokens, Dimension::InputTokens, Dimension::OutputTokens] {
                assert_eq!(seconds(dimension), tokens, "{}", preset.name());
            }
        }
    }

    #[test]
    fn only_anthropic_and_gemini_have_errors_of_their_own() {
        for preset in Preset::ALL {
            let want = match preset.name() {
                "anthropic" => ErrorShape::Anthropic,
                "gemini" => ErrorShape::Gemini,
                _ => ErrorShape::Openai,
            };
            assert_eq!(preset.error_shape(), want, "{}", preset.name());
        }
    }
}
