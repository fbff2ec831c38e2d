//! What is legal and unwise. `check` says it; nothing depends on it.

use std::time::Duration;

use super::{Config, RetryPost, Upstream, defaults, values::time_text};
use crate::provider::presets::Preset;

/// The common SDKs give up after ten minutes unless told otherwise, and count waiting as answering.
const SDK_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// Models that think first take longer than this to say their first word.
const FIRST_BYTE_SHORT: Duration = Duration::from_secs(60);

impl Config {
    /// What is legal and unwise, one line each, with its place and what to do about it.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let mut advice: Vec<String> = self
            .exposed()
            .map(|(key, address, others_may)| {
                let remedy = match key {
                    "listen" => "bind 127.0.0.1, or ask for certificates with `tls.client_ca`",
                    _ => "bind 127.0.0.1, or keep others away by other means",
                };
                format!("`{key}` is {address}: other machines can reach it and {others_may}, unasked; {remedy}")
            })
            .collect();
        for (name, ceiling) in &self.tiers {
            let known = defaults::TIERS.iter().find(|(known, _)| known == name);
            if let Some((_, usual)) = known.filter(|(_, usual)| ceiling > usual) {
                advice.push(format!(
                    "`tiers.{name}` is {ceiling}, and a tier of this name has {usual} as a rule; what is above the \
                     account's real limit is refused"
                ));
            }
        }
        for upstream in &self.upstreams {
            let name = &upstream.name;
            advice.extend(of_upstream(upstream).into_iter().map(|text| format!("upstream {name}: {text}")));
        }
        advice
    }
}

fn of_upstream(upstream: &Upstream) -> Vec<String> {
    let Upstream { limit, queue, retry, deadlines, url, .. } = upstream;
    let mut advice = Vec::new();
    let ceilings = upstream.account.tiers.iter().map(|tier| tier.ceiling).chain(upstream.ceiling);
    if let Some(ceiling) = ceilings.max().filter(|ceiling| *ceiling > limit.max) {
        advice.push(format!(
            "the ceiling of {ceiling} is never reached, since `limit.max` is {}; leave `limit.max` out",
            limit.max
        ));
    }
    if queue.wait_max > SDK_PATIENCE {
        advice.push(format!(
            "`queue.wait_max` is {}, and the SDKs give up after {} unless their timeout is raised; who has given up \
             cannot be served",
            time_text(queue.wait_max),
            time_text(SDK_PATIENCE)
        ));
    }
    if let Some(first_byte) = deadlines.first_byte.filter(|time| *time > SDK_PATIENCE) {
        advice.push(format!(
            "`deadlines.first_byte` is {}, and the SDKs give up after {} unless their timeout is raised",
            time_text(first_byte),
            time_text(SDK_PATIENCE)
        ));
    }
    if let Some(first_byte) = deadlines.first_byte.filter(|time| *time < FIRST_BYTE_SHORT)
        && upstream.preset != Preset::Generic
    {
        advice.push(format!(
            "`deadlines.first_byte` is {}; models that think first take minutes, and an answer that is given up may \
             be paid for all the same",
            time_text(first_byte)
        ));
    }
    if let Some(total) = deadlines.total.filter(|total| *total < queue.wait_max) {
        advice.push(format!(
            "`deadlines.total` ({}) counts waiting, and is shorter than `queue.wait_max` ({}): who waits that long is \
             cut before its turn",
            time_text(total),
            time_text(queue.wait_max)
        ));
    }
    if retry.post == RetryPost::Always {
        advice.push(
            "`retry.post: always` sends again what may have been processed: it may be done, and paid for, twice"
                .to_owned(),
        );
    }
    for (index, entry) in upstream.prices.iter().enumerate() {
        if let Some(wider) = upstream.prices.iter().take(index).find(|before| before.covers(entry)) {
            advice.push(format!(
                "the price of `{}` never holds, since `{}` stands before it; put it first",
                entry.model, wider.model
            ));
        }
    }
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    advice.extend(of_url(upstream, host));
    let here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if url.scheme_str() == Some("http") && !here {
        advice.push("`url` is plain http to another machine: keys and contents travel unprotected".to_owned());
    }
    advice
}

/// What a URL rarely means.
fn of_url(upstream: &Upstream, host: &str) -> Vec<String> {
    let mut advice = Vec::new();
    let name = host.to_ascii_lowercase();
    if host.contains('$') {
        advice.push(format!("`url` has `{host}` for its host as it stands; a variable is written `${{NAME}}`"));
    } else if name == "api.example.com" || name.starts_with("your-resource.") {
        advice.push(format!("`url` still names {host}, which only shows where the API's own name belongs"));
    }
    let is_version = |segment: &str| {
        segment.strip_prefix('v').is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
    };
    let last = upstream.url.path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let strips = upstream.strip_prefix && upstream.path_prefix != "/";
    if is_version(last) && !strips {
        advice.push(format!(
            "`url` ends with /{last}, which goes before the path of each request: one for /{last}/… becomes \
             /{last}/{last}/…; leave it out where clients send it, as most do"
        ));
    }
    let known = Preset::for_host(host);
    if known != Preset::Generic && known != upstream.preset {
        advice.push(format!(
            "`preset` is {}, and {host} is known as {}; leave `preset` out",
            upstream.preset.name(),
            known.name()
        ));
    }
    advice
}

#[cfg(test)]
mod tests {
    use crate::config::file;

    fn advice(text: &str) -> Vec<String> {
        file::parse(text, "f", &|_| None).unwrap().advice()
    }

    #[test]
    fn what_is_usual_needs_no_advice() {
        assert_eq!(advice("upstreams: [{ url: https://api.openai.com, tier: pro }]"), [""; 0]);
        assert_eq!(
            advice(
                "upstreams: [{ url: 'http://127.0.0.1:1' }, { url: 'http://[::1]:1/v1', name: b, match: { path_prefix: /b, strip_prefix: true } }]"
            ),
            [""; 0]
        );
    }

    #[test]
    fn what_is_unwise_is_named_with_its_place() {
        for (text, want) in [
            ("{ admin: '0.0.0.0:9090', upstreams: [{ url: https://h }] }", "`admin` is 0.0.0.0:9090: other machines"),
            ("{ listen: '10.0.0.1:80', upstreams: [{ url: https://h }] }", "`listen` is 10.0.0.1:80: other machines"),
            ("{ tiers: { free: 100 }, upstreams: [{ url: https://h }] }", "`tiers.free` is 100, and a tier"),
            (
                "upstreams: [{ url: https://h, ceiling: 50, limit: { max: 20 } }]",
                "upstream h: the ceiling of 50 is never",
            ),
            ("upstreams: [{ url: https://h, queue: { wait_max: 11m } }]", "upstream h: `queue.wait_max` is 11m, and"),
            (
                "upstreams: [{ url: https://h, deadlines: { first_byte: 1h } }]",
                "upstream h: `deadlines.first_byte` is 1h, and",
            ),
            (
                "upstreams: [{ url: https://api.openai.com, deadlines: { first_byte: 30s } }]",
                "upstream api.openai.com: `deadlines.first_byte` is 30s; models",
            ),
            ("upstreams: [{ url: https://h, deadlines: { total: 1m } }]", "upstream h: `deadlines.total` (1m) counts"),
            ("upstreams: [{ url: https://h, retry: { post: always } }]", "upstream h: `retry.post: always` sends"),
            (
                "upstreams: [{ url: https://h, prices: [{ model: a*, input: 1, output: 1 }, { model: ab, input: 1, output: 1 }] }]",
                "upstream h: the price of `ab` never holds",
            ),
            ("upstreams: [{ url: 'https://$HOST' }]", "upstream -HOST: `url` has `$HOST` for its host as it stands"),
            (
                "upstreams: [{ url: https://api.example.com }]",
                "upstream api.example.com: `url` still names api.example",
            ),
            (
                "upstreams: [{ name: a, url: https://YOUR-RESOURCE.openai.azure.com }]",
                "upstream a: `url` still names YOUR-RESOURCE.",
            ),
            ("upstreams: [{ url: https://h/api/v1/ }]", "upstream h: `url` ends with /v1, which goes before"),
            (
                "upstreams: [{ name: a, url: https://api.anthropic.com, preset: openai }]",
                "upstream a: `preset` is openai, and api.anthropic.com is known as anthropic",
            ),
            ("upstreams: [{ url: http://10.0.0.1 }]", "upstream 10.0.0.1: `url` is plain http to another machine"),
        ] {
            let found = advice(text);
            assert!(found.len() == 1 && found[0].starts_with(want), "{text}: {found:?}");
        }
    }
}
