//! A configuration to start from, for `tidegate init`.

use crate::provider::presets::Preset;

/// Where a provider's API is, what its SDK must be told, and what an operator should know.
struct Story {
    url: &'static str,
    client: &'static str,
    note: &'static str,
}

/// A commented configuration in front of `preset`'s API. `url` replaces the one that is known.
#[must_use]
pub fn file(preset: Preset, url: Option<&str>) -> String {
    let story = story(preset);
    let name = preset.name();
    let url = url.unwrap_or(story.url);
    let note = if story.note.is_empty() { String::new() } else { format!("    # {}\n", story.note) };
    format!(
        "\
# Tidegate in front of {what}. Everything left out has its default; config/tidegate.yaml lists all keys.
#
#     tidegate check FILE             what is in force, what each account gets, and what is unwise
#     tidegate --config FILE          run it; changes of this file are taken while it runs
#     tidegate schema > tidegate.schema.json, and editors that know the next line complete and check what you write:
# yaml-language-server: $schema=tidegate.schema.json
#
# The client: {client}
# with retries of its own off (max_retries=0): two loops of retries multiply.

listen: 127.0.0.1:8080            # where clients go; 0.0.0.0:8080 lets other machines in
admin: 127.0.0.1:9090             # metrics, health and status page; it has no password

# Attempts in flight that each tier allows. The numbers are yours to set.
tiers: {{ free: 10, pro: 50, enterprise: 200 }}

upstreams:
{first}# how metrics and logs call it
    url: {url}
{known}# what is known about its headers and errors
{note}
    # How much may be in flight for each key. With neither line the limit is found from the refusals.
    # tier: pro
    # ceiling: 50

    # Rates that are known need not be found out; most providers report them in their headers.
    # rpm: 500
    # tpm: 200000

    # What a million tokens cost, in dollars, so that what is spent is counted. The first entry that fits holds.
    # prices:
    #   - {{ model: NAME*, {price} }}

    account:
      by: credential              # each key has limits of its own; `upstream`: all share one
      split_by_model: false       # true where the provider counts each model for itself

    queue:
      wait_max: 5m                # SDKs give up after 10 minutes unless told otherwise

    retry:
      attempts_max: 4             # the first one included; refusals (429) are waited out and not counted
      post: refused               # keyed: also what carries Idempotency-Key

    deadlines:
      first_byte: 10m             # models that think first take minutes

drain:
  max: 10m                        # for running requests to end after SIGTERM
",
        first = format_args!("{:<34}", format!("  - name: {name}")),
        known = format_args!("{:<34}", format!("    preset: {name}")),
        // What is written to a cache costs more than other input at Anthropic's.
        price = match preset == Preset::Anthropic {
            true => "input: 3, cached: 0.3, cache_write: 3.75, cache_write_1h: 6, output: 15",
            false => "input: 1.25, cached: 0.125, output: 10",
        },
        what = if preset == Preset::Generic { "an API with rate limits" } else { name },
        client = story.client,
    )
}

fn story(preset: Preset) -> Story {
    let openai = "OPENAI_BASE_URL=http://127.0.0.1:8080/v1, or base_url=\"http://127.0.0.1:8080/v1\"";
    let v1 = "base_url=\"http://127.0.0.1:8080/v1\"";
    let (url, client, note) = match preset {
        Preset::Anthropic => {
            ("https://api.anthropic.com", "ANTHROPIC_BASE_URL=http://127.0.0.1:8080, or base_url (without /v1)", "")
        }
        Preset::Azure => (
            "https://YOUR-RESOURCE.openai.azure.com",
            "azure_endpoint=\"http://127.0.0.1:8080\"",
            "Replace YOUR-RESOURCE by the name of your resource.",
        ),
        Preset::Bedrock => (
            "https://bedrock-runtime.us-east-1.amazonaws.com",
            "endpoint_url=\"http://127.0.0.1:8080\"",
            "Requests are signed for their host: the SDK must sign for this one.",
        ),
        Preset::Cohere => ("https://api.cohere.com", "base_url=\"http://127.0.0.1:8080\"", ""),
        Preset::Deepseek => (
            "https://api.deepseek.com",
            "base_url=\"http://127.0.0.1:8080\"",
            "It keeps requests waiting instead of refusing them: a ceiling of your own helps.",
        ),
        Preset::Fireworks => ("https://api.fireworks.ai", "base_url=\"http://127.0.0.1:8080/inference/v1\"", ""),
        Preset::Gemini => (
            "https://generativelanguage.googleapis.com",
            "http_options={\"base_url\": \"http://127.0.0.1:8080\"}",
            "Limits are counted per project and per model.",
        ),
        Preset::Generic => ("https://api.example.com", "its base URL becomes http://127.0.0.1:8080", ""),
        Preset::Groq => ("https://api.groq.com", "base_url=\"http://127.0.0.1:8080\"", ""),
        Preset::Mistral => ("https://api.mistral.ai", "server_url=\"http://127.0.0.1:8080\"", ""),
        Preset::Openai => ("https://api.openai.com", openai, "Limits are counted per model."),
        Preset::Openrouter => ("https://openrouter.ai", "base_url=\"http://127.0.0.1:8080/api/v1\"", ""),
        Preset::Together => ("https://api.together.xyz", v1, ""),
        Preset::Xai => ("https://api.x.ai", v1, ""),
    };
    Story { url, client, note }
}
