//! Refusals as providers word them, from their documentation or from captured answers.

use super::Attribution::{self, Ceiling, Overload, Quota, Rate, Unknown};

/// One refusal, and what it says.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) status: u16,
    pub(super) lines: &'static [(&'static str, &'static str)],
    pub(super) body: &'static str,
    pub(super) want: Attribution,
    pub(super) delay_ms: Option<u64>,
}

const fn row(name: &'static str, status: u16, body: &'static str, want: Attribution, delay_ms: Option<u64>) -> Row {
    Row { name, status, lines: &[], body, want, delay_ms }
}

const fn headed(
    name: &'static str,
    status: u16,
    lines: &'static [(&'static str, &'static str)],
    body: &'static str,
    want: Attribution,
    delay_ms: Option<u64>,
) -> Row {
    Row { name, status, lines, body, want, delay_ms }
}

#[rustfmt::skip] // one case, one line
pub(super) const ROWS: &[Row] = &[
    row("OpenAI, tokens", 429, r#"{"error":{"message":"Rate limit reached for gpt-6. Please try again in 1.2s. Visit us.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#, Rate, Some(1_200)),
    row("OpenAI, requests in prose", 429, r#"{"error":{"message":"Rate limit reached for gpt-6 on requests per min (RPM): Limit 3, Used 3. Please try again in 20s.","code":"rate_limit_exceeded"}}"#, Rate, Some(20_000)),
    row("OpenAI, says nothing more", 429, r#"{"error":{"message":"Rate limit reached","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}"#, Unknown, None),
    row("OpenAI, quota as code and type", 429, r#"{"error":{"message":"You exceeded your current quota, please check your plan","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#, Quota, None),
    row("OpenAI, quota as type beside a new code", 429, r#"{"error":{"message":"","type":"insufficient_quota","code":"something_new"}}"#, Quota, None),
    row("OpenAI, credit", 429, r#"{"error":{"message":"","type":"requests","code":"credit_balance_exhausted"}}"#, Quota, None),
    row("OpenAI, organisation spend", 429, r#"{"error":{"code":"organization_spend_limit_exceeded"}}"#, Quota, None),
    row("OpenAI, project spend", 429, r#"{"error":{"code":"project_spend_limit_exceeded"}}"#, Quota, None),
    row("OpenAI, organisation usage", 429, r#"{"error":{"code":"organization_usage_limit_exceeded"}}"#, Quota, None),
    row("OpenAI, billing", 429, r#"{"error":{"code":"billing_hard_limit_reached"}}"#, Quota, None),
    row("compatible server, quota", 429, r#"{"error":{"type":"exceeded_current_quota_error"}}"#, Quota, None),
    row("OpenAI, slow down", 503, r#"{"error":{"message":"Slow Down","type":"server_error"}}"#, Overload, None),
    row("Azure, prose in seconds", 429, r#"{"error":{"code":"429","message":"Requests have exceeded call rate limit of your tier. Please retry after 37 seconds."}}"#, Unknown, Some(37_000)),
    headed("Azure, milliseconds before prose", 429, &[("retry-after-ms", "1500"), ("retry-after", "2")], r#"{"error":{"code":429,"message":"Please retry after 37 seconds."}}"#, Unknown, Some(1_500)),
    row("Anthropic, says nothing more", 429, r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"},"request_id":"req_1"}"#, Unknown, None),
    row("Anthropic, tokens", 429, r#"{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your organization's rate limit of 30,000 input tokens per minute"}}"#, Rate, None),
    row("Anthropic, older wording", 429, r#"{"type":"error","error":{"type":"rate_limit_error","message":"Number of request tokens has exceeded your per-minute rate limit"}}"#, Rate, None),
    row("Anthropic, concurrency", 429, r#"{"type":"error","error":{"type":"rate_limit_error","message":"Number of concurrent connections has exceeded your rate limit. Please try again later."}}"#, Ceiling, None),
    row("Anthropic, spend enforced", 429, r#"{"type":"error","error":{"type":"rate_limit_error","message":"…","details":{"error_code":"enforced_spend_limit_reached"}},"request_id":"req_1"}"#, Quota, None),
    row("Anthropic, spend by contract", 429, r#"{"type":"error","error":{"type":"rate_limit_error","details":{"error_code":"contract_spend_limit_reached"}}}"#, Quota, None),
    row("Anthropic, ramp", 429, r#"{"type":"error","error":{"type":"rate_limit_error","details":{"error_code":"ramp_limit_exceeded"}}}"#, Rate, None),
    row("Anthropic, overloaded", 529, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#, Overload, None),
    headed("Anthropic, counter at 0", 429, &[("anthropic-ratelimit-requests-remaining", "0"), ("retry-after", "7")], r#"{"type":"error","error":{"type":"rate_limit_error","message":"…"}}"#, Rate, Some(7_000)),
    row("Anthropic, credit on a 400", 400, r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the API."}}"#, Quota, None),
    row("Gemini, per minute", 429, r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"You exceeded your current quota, please check your plan and billing details. Please retry in 34.07s.","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaMetric":"m","quotaId":"GenerateRequestsPerMinutePerProjectPerModel-FreeTier","quotaValue":"20"}]},{"@type":"type.googleapis.com/google.rpc.Help","links":[{}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34s"}]}}"#, Rate, Some(34_000)),
    row("Gemini, per day with a short delay, in an array", 429, r#"[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]},{"retryDelay":"38s"}]}}]"#, Quota, Some(38_000)),
    row("Gemini, daily", 429, r#"{"error":{"details":[{"violations":[{"quotaId":"DailyTokens"}]}]}}"#, Quota, None),
    row("Gemini, long delay", 429, r#"{"error":{"code":429,"details":[{"retryDelay":"65205s"}]}}"#, Quota, Some(65_205_000)),
    row("Gemini, delay at the bound", 429, r#"{"error":{"code":429,"details":[{"retryDelay":"300s"}]}}"#, Unknown, Some(300_000)),
    row("Gemini, milliseconds", 429, r#"{"error":{"details":[{"retryDelay":"900ms"}]}}"#, Unknown, Some(900)),
    row("Gemini, quota as reason", 429, r#"{"error":{"details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"QUOTA_EXHAUSTED"}]}}"#, Quota, None),
    row("Gemini, credits as reason", 429, r#"{"error":{"details":[{"reason":"INSUFFICIENT_G1_CREDITS_BALANCE"}]}}"#, Quota, None),
    row("Gemini, prose only", 429, r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Please retry in 34.07s."}}"#, Unknown, Some(34_070)),
    row("Gemini, unavailable", 503, r#"{"error":{"code":503,"status":"UNAVAILABLE","message":"The model is overloaded."}}"#, Overload, None),
    row("Mistral, per second", 429, r#"{"object":"error","message":"Requests rate limit exceeded","type":"rate_limited","param":null,"code":"1300"}"#, Rate, None),
    row("Mistral, capacity", 429, r#"{"object":"error","message":"Service tier capacity exceeded for this model.","type":"invalid_request_error","param":null,"code":"3505"}"#, Overload, None),
    row("Mistral, code as a number", 429, r#"{"object":"error","message":"Service tier capacity exceeded for this model.","type":null,"code":3505}"#, Overload, None),
    headed("Mistral, month", 429, &[("x-ratelimitbysize-remaining-month", "0")], r#"{"message":"Requests rate limit exceeded"}"#, Quota, None),
    row("Groq, minutes in one word", 429, r#"{"error":{"message":"Rate limit reached on tokens per day (TPD). Please try again in 7m12.345s. Need more?","type":"tokens","code":"rate_limit_exceeded"}}"#, Rate, Some(432_345)),
    row("Groq, flex", 498, "", Overload, None),
    row("Groq, spend on a 400", 400, r#"{"error":{"code":"blocked_api_access"}}"#, Quota, None),
    row("Cohere, trial month", 429, r#"{"message":"You are using a Trial key, which is limited to 1000 API calls / month."}"#, Quota, None),
    row("Cohere, trial minute", 429, r#"{"message":"You are using a Trial key, which is limited to 40 API calls / minute."}"#, Rate, None),
    row("OpenRouter, money in flight", 402, r#"{"error":{"code":402,"message":"…","metadata":{"limit_source":"openrouter_in_flight_budget"}}}"#, Ceiling, None),
    row("OpenRouter, no credit", 402, r#"{"error":{"code":402,"message":"Insufficient credits","metadata":{}}}"#, Quota, None),
    row("OpenRouter, budget", 403, r#"{"error":{"code":403,"metadata":{"limit_source":"openrouter_key_limit"}}}"#, Quota, None),
    row("Bedrock, tokens", 429, r#"{"message":"Too many tokens, please wait before trying again."}"#, Rate, None),
    headed("Bedrock, kind in the head", 429, &[("x-amzn-errortype", "ThrottlingException:http://internal.amazon.com/", )], r#"{"message":"…"}"#, Rate, None),
    headed("Bedrock, model not ready", 429, &[("x-amzn-errortype", "ModelNotReadyException")], "{}", Overload, None),
    headed("GitHub, primary limit", 403, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-limit", "60")], r#"{"message":"API rate limit exceeded"}"#, Rate, None),
    headed("Azure, unknown counters", 429, &[("x-ratelimit-remaining-tokens", "-1"), ("x-ratelimit-limit-tokens", "-1")], "{}", Unknown, None),
    headed("gateway, a 503 with an empty counter", 503, &[("x-ratelimit-remaining", "0")], "", Rate, None),
    row("RFC 9457, quota of a window", 429, r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","violated-policies":["daily"]}"#, Rate, None),
    row("RFC 9457, parallel requests", 429, r#"{"type":"about:blank","status":429,"detail":"At most 4 simultaneous requests"}"#, Ceiling, None),
    row("error as a string", 429, r#"{"error":"Too many requests in flight"}"#, Ceiling, None),
    row("plain text", 429, "Maximum parallel requests reached, retry after 3 seconds", Ceiling, Some(3_000)),
    row("nothing", 429, "", Unknown, None),
    row("a page", 429, "<html><title>429 Too Many Requests</title></html>", Unknown, None),
    row("advertising for a plan", 429, r#"{"message":"20 requests per minute. Upgrade your monthly limit."}"#, Rate, None),
    row("wrong types everywhere", 429, r#"{"error":{"message":7,"type":["tokens"],"code":{"a":1},"status":null,"details":[3,{"violations":"x","retryDelay":5},null],"metadata":[]}}"#, Unknown, None),
    row("one wrong type does not hide the rest", 429, r#"{"error":{"message":null,"type":"tokens","code":429,"details":"x"}}"#, Rate, None),
    row("an echo outside the known fields", 429, r#"{"error":{"message":"Rate limit reached","input":"concurrent, per minute, try again in 9s"},"echo":"insufficient_quota"}"#, Unknown, None),
    row("cut off", 429, r#"{"error":{"message":"concurrent requests per minute, try again in 9s"#, Unknown, None),
];
