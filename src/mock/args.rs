//! The command line of `tidegate mock`.

use std::net::SocketAddr;

use super::settings::{HeaderFamily, Latency, RetryAfterForm, Settings};

/// Arguments of `tidegate mock`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = HELP)]
pub struct MockArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    /// Most requests in flight per key; one more is refused with 429 at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ceiling: Option<u32>,
    /// Requests per minute and key
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rpm: Option<u32>,
    /// Tokens per minute and key, charged when a request comes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tpm: Option<u32>,
    /// --rpm and --tpm count in windows of a minute instead of refilling all the time
    #[arg(long)]
    pub fixed_window: bool,
    /// Time an answer takes: 200ms, lognormal:4s:0.8 (mean, sigma), or tokens:20ms (for each output token)
    #[arg(long, value_name = "TIME", default_value = "200ms")]
    pub latency: Latency,
    /// How refusals spell their delay; without it, rate refusals carry seconds and ceiling refusals nothing
    #[arg(long, value_name = "FORM")]
    pub retry_after: Option<RetryAfterForm>,
    /// Rate-limit headers on every answer
    #[arg(long, value_name = "FAMILY", default_value = "openai")]
    pub headers: HeaderFamily,
    /// Share of requests that fail before any work is done, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub error_rate: f64,
    /// Status of those failures
    #[arg(long, value_name = "STATUS", default_value_t = 500, value_parser = clap::value_parser!(u16).range(400..600))]
    pub error_status: u16,
    /// Share of requests whose connection is reset before the answer, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub reset_rate: f64,
    /// Share of answers that break off in the middle, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub truncate_rate: f64,
    /// Share of requests that are never answered, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub stall_rate: f64,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

const HELP: &str = "\
Endpoints, in the providers' own shapes: /v1/chat/completions, /v1/responses, /v1/embeddings, /v1/models (OpenAI);
/v1/messages, /v1/messages/count_tokens (Anthropic); /v1/infer (plain JSON: {\"input\": …}); /v1/echo (the request's body,
sent back as it comes); /v1/bytes/N; /v1/realtime (WebSocket upgrade, echoes bytes).

/__ledger tells what happened: accepted, refused, processed per request id, duplicates, highest in flight, and the time
an ideal client would have taken. DELETE /__ledger starts over. A request's id is its x-request-id header, else its
idempotency-key, else a hash of path and body.

Request headers that ask for something special:
  x-mock-latency: 50ms     this answer's time
  x-mock-fault: KIND       429, 500, 502, 503, 504, 529, quota, reset-before, reset-inside, stall
  x-mock-fail-first: N     only the first N attempts with this id fail so";

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "a number from 0 to 1".to_owned())
}

impl From<&MockArgs> for Settings {
    fn from(args: &MockArgs) -> Self {
        Self {
            ceiling: args.ceiling,
            rpm: args.rpm,
            tpm: args.tpm,
            fixed_window: args.fixed_window,
            latency: args.latency,
            retry_after: args.retry_after,
            headers: args.headers,
            error_rate: args.error_rate,
            error_status: args.error_status,
            reset_rate: args.reset_rate,
            truncate_rate: args.truncate_rate,
            stall_rate: args.stall_rate,
            seed: args.seed,
        }
    }
}
