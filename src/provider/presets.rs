//! What is known about each provider without asking it.

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
