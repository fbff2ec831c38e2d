//! The command line of `tidegate mock`.

use std::net::SocketAddr;

use super::settings::{HeaderFamily, Latency, RetryAfterForm, Says, Settings};

/// Arguments of `tidegate mock`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = HELP)]
pub struct MockArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081", value_parser = address)]
    pub listen: SocketAddr,
    /// Most requests in flight per key; one more is refused with 429 at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ceiling: Option<u32>,
    /// Requests per second and key
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rps: Option<u32>,
    /// Requests per minute and key
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rpm: Option<u32>,
    /// Tokens per minute and key, charged before the work begins: the prompt's, and as many as the answer may have
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tpm: Option<u32>,
    /// Requests that may come at once under --rps and --rpm; without it, those of the whole second or minute
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "fixed_window")]
    pub burst: Option<u32>,
    /// --rps, --rpm and --tpm count in windows of a second or minute instead of refilling all the time
    #[arg(long)]
    pub fixed_window: bool,
    /// Overload instead of refusals: with more than N requests in work over all keys, all slow down to the speed of N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub knee: Option<u32>,
    /// Time an answer takes: 200ms, lognormal:4s:0.8 (mean, sigma), or tokens:20ms (for each output token); 7 days at most
    #[arg(long, value_name = "TIME", default_value = "200ms")]
    pub latency: Latency,
    /// How refusals spell their delay; without it, rate refusals carry seconds and ceiling refusals nothing
    #[arg(long, value_name = "FORM")]
    pub retry_after: Option<RetryAfterForm>,
    /// Whether the body of a 429 tells which limit was met
    #[arg(long, value_name = "WHAT", default_value = "kind")]
    pub says: Says,
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
Examples:
  tidegate mock --ceiling 10 --rpm 600 --latency lognormal:4s:0.8
  tidegate mock --headers anthropic --tpm 40000 --retry-after ms

Endpoints, in the providers' own shapes: /v1/chat/completions, /v1/responses, /v1/embeddings, /v1/models (OpenAI);
/v1/messages, /v1/messages/count_tokens (Anthropic); /v1/infer (plain JSON: {\"input\": …}); /v1/echo (the request's body,
sent back as it comes); /v1/bytes/N; /v1/realtime (WebSocket upgrade, echoes bytes).

A request takes its slot, and counts as one request, when its head arrives; its tokens are charged when its body has.
One that has more tokens than a whole minute is refused for good, with 413.

/__ledger tells what happened, in all and per key: accepted, refused by reason, processed, abandoned, highest in flight,
time in slots, tokens, request ids processed more than once, and the time an ideal client would have taken. DELETE
/__ledger starts over. A request's id is its x-request-id header, else its idempotency-key, else a hash of path and body.

PUT /__settings changes limits at once, for steps; what is in flight stays. GET shows them. Keys that are left out stay
as they are, null takes a limit away:
  {\"ceiling\": 10, \"rps\": null, \"rpm\": 600, \"burst\": 20, \"tpm\": null, \"knee\": null,
   \"latency\": \"2s\", \"error_rate\": 0.1}

Request headers that ask for something special:
  x-mock-latency: 50ms     this answer's time
  x-mock-fault: KIND       429, 500, 502, 503, 504, 529, quota, reset-before, reset-inside, stall
  x-mock-fail-first: N     only the first N attempts with this id that are let in fail so";

fn address(text: &str) -> Result<SocketAddr, String> {
    let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let wanted = "expected an IP address and a port, such as 127.0.0.1:8081 or, for every interface, 0.0.0.0:8081";
    local.as_deref().unwrap_or(text).parse().map_err(|_| wanted.to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "a number from 0 to 1".to_owned())
}

impl From<&MockArgs> for Settings {
    fn from(args: &MockArgs) -> Self {
        Self {
            ceiling: args.ceiling,
            rps: args.rps,
            rpm: args.rpm,
            burst: args.burst,
            tpm: args.tpm,
            fixed_window: args.fixed_window,
            knee: args.knee,
            latency: args.latency,
            retry_after: args.retry_after,
            says: args.says,
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
