//! The configuration as text: what is in effect, and what each account gets.

use std::fmt::Write as _;

use super::{
    Account, AccountBy, AccountTier, Algorithm, Config, Http2, LimitSettings, ModelPrice, RetryPost, TlsRoots, Trace,
    Upstream,
    prices::dollars_text,
    values::{size_text, time_text},
};
use crate::control::cost::Price;

/// The configuration in effect as YAML, every key given. It loads again and gives the same configuration; credentials
/// are known by their hash alone, and those for a collector not at all.
#[must_use]
pub fn effective(config: &Config) -> String {
    let mut text = String::new();
    let Config { listen, tls, admin, admin_hosts, threads, tiers, upstreams, buffers, limits, drain, trace, otlp } =
        config;
    let mut line = |content: String| {
        text.push_str(&content);
        text.push('\n');
    };
    line(format!("listen: {}", quoted(&listen.to_string())));
    if let Some(tls) = tls {
        let client_ca = tls.client_ca.as_ref().map(|file| format!(", client_ca: {}", quoted(&file.to_string_lossy())));
        let (cert, key) = (quoted(&tls.cert.to_string_lossy()), quoted(&tls.key.to_string_lossy()));
        line(format!("tls: {{ cert: {cert}, key: {key}{} }}", client_ca.unwrap_or_default()));
    }
    line(format!("admin: {}", admin.map_or("off".to_owned(), |admin| quoted(&admin.to_string()))));
    let hosts: Vec<String> = admin_hosts.iter().map(|host| quoted(host)).collect();
    line(format!("admin_hosts: [{}]", hosts.join(", ")));
    line(format!("threads: {threads}"));
    line(format!(
        "trace: {}",
        match trace {
            Trace::Headers => "headers",
            Trace::Off => "off",
        }
    ));
    let tiers: Vec<String> = tiers.iter().map(|(name, ceiling)| format!("{}: {ceiling}", quoted(name))).collect();
    line(format!("tiers: {{ {} }}", tiers.join(", ")));
    line("upstreams:".to_owned());
    for upstream in upstreams {
        upstream_lines(upstream, &mut line);
    }
    let (request, total) = (size_text(buffers.request_max_bytes), size_text(buffers.total_max_bytes));
    line(format!("buffers: {{ request_max: {request}, total_max: {total} }}"));
    line(format!(
        "limits: {{ connections_max: {}, header_bytes_max: {}, body_bytes_max: {}, header_timeout: {}, send_timeout: {}, accounts_max: {} }}",
        limits.connections_max,
        size_text(limits.header_bytes_max),
        limits.body_bytes_max.map_or("off".to_owned(), size_text),
        time_text(limits.header_timeout),
        time_text(limits.send_timeout),
        limits.accounts_max
    ));
    line(format!("drain: {{ delay: {}, max: {} }}", time_text(drain.delay), time_text(drain.max)));
    if let Some(otlp) = otlp {
        line("otlp:".to_owned());
        line(format!("  endpoint: {}", quoted(&otlp.endpoint.to_string())));
        line(format!("  sample: {}", otlp.sample));
        let headers: Vec<String> =
            otlp.headers.iter().map(|(name, _)| format!("{}: {HIDDEN}", quoted(name.as_str()))).collect();
        line(format!("  headers: {{ {} }}", headers.join(", ")));
        line(format!("  service_name: {}", quoted(&otlp.service_name)));
    }
    text
}

/// What stands for a value that is not shown, and is a value itself.
const HIDDEN: &str = "hidden";

fn upstream_lines(upstream: &Upstream, line: &mut impl FnMut(String)) {
    let Upstream { limit, queue, retry, deadlines, tls, .. } = upstream;
    line(format!("  - name: {}", quoted(&upstream.name)));
    line(format!("    url: {}", quoted(&upstream.url.to_string())));
    line(format!(
        "    match: {{ path_prefix: {}, strip_prefix: {} }}",
        quoted(&upstream.path_prefix),
        upstream.strip_prefix
    ));
    line(format!("    preset: {}", upstream.preset.name()));
    match (&upstream.tier, upstream.ceiling) {
        (Some(tier), Some(ceiling)) => line(format!("    tier: {} # {ceiling} attempts in flight", quoted(tier))),
        (_, Some(ceiling)) => line(format!("    ceiling: {ceiling}")),
        (_, None) => {}
    }
    if let Some(rpm) = upstream.rpm {
        line(format!("    rpm: {rpm}"));
    }
    if let Some(tpm) = upstream.tpm {
        line(format!("    tpm: {tpm}"));
    }
    account_lines(&upstream.account, line);
    line(format!(
        "    limit: {{ algorithm: {}, min: {}, max: {}, initial: {}{} }}",
        limit.algorithm.name(),
        limit.min,
        limit.max,
        limit.initial,
        algorithm_keys(limit)
    ));
    line(format!(
        "    queue: {{ depth_max: {}, depth_per_flow_max: {}, wait_max: {}, flow: {{ header: {} }} }}",
        queue.depth_max,
        queue.depth_per_flow_max,
        time_text(queue.wait_max),
        quoted(queue.flow.as_str())
    ));
    line("    retry:".to_owned());
    line(format!("      attempts_max: {}", retry.attempts_max));
    let post = match retry.post {
        RetryPost::Always => "always",
        RetryPost::Keyed => "keyed",
        RetryPost::Refused => "refused",
    };
    line(format!("      post: {post}"));
    let (base, max) = (time_text(retry.backoff_base), time_text(retry.backoff_max));
    line(format!("      backoff: {{ base: {base}, max: {max}, jitter: {} }}", time_text(retry.backoff_jitter)));
    line(format!("      retry_after_max: {}", time_text(retry.retry_after_max)));
    line(format!("      budget: {}", retry.budget));
    let or_off = |time: Option<_>| time.map_or("off".to_owned(), time_text);
    line(format!(
        "    deadlines: {{ connect: {}, first_byte: {}, idle: {}, total: {}, linger: {} }}",
        time_text(deadlines.connect),
        or_off(deadlines.first_byte),
        or_off(deadlines.idle),
        or_off(deadlines.total),
        time_text(deadlines.linger)
    ));
    let roots = match tls.roots {
        TlsRoots::Bundled => "bundled",
        TlsRoots::None => "none",
        TlsRoots::System => "system",
    };
    let (cert, key) = tls.client.as_ref().map(|(cert, key)| (cert, key)).unzip();
    let files: String = [("ca", tls.ca.as_ref()), ("client_cert", cert), ("client_key", key)]
        .into_iter()
        .filter_map(|(name, file)| Some(format!(", {name}: {}", quoted(&file?.to_string_lossy()))))
        .collect();
    let server_name = tls.server_name.as_ref().map(|name| format!(", server_name: {}", quoted(name)));
    line(format!("    tls: {{ roots: {roots}{files}{} }}", server_name.unwrap_or_default()));
    let http2 = match upstream.http2 {
        Http2::Auto => "auto",
        Http2::Off => "off",
        Http2::Only => "only",
    };
    line(format!("    http2: {http2}"));
    if upstream.prices.is_empty() {
        line("    prices: []".to_owned());
    } else {
        line("    prices: # dollars for a million tokens".to_owned());
    }
    for ModelPrice { model, price } in &upstream.prices {
        let Price { input, cached, cache_write, cache_write_1h, output } = price;
        let prices = [
            ("input", input),
            ("cached", cached),
            ("cache_write", cache_write),
            ("cache_write_1h", cache_write_1h),
            ("output", output),
        ];
        let prices: String = prices.iter().map(|(key, picos)| format!(", {key}: {}", dollars_text(**picos))).collect();
        line(format!("      - {{ model: {}{prices} }}", quoted(model)));
    }
    if let Some(header) = &upstream.balance {
        line(format!("    balance: {{ header: {} }}", quoted(header.as_str())));
    }
}

/// The keys of the algorithm in use, each after a comma.
fn algorithm_keys(limit: &LimitSettings) -> String {
    let LimitSettings { aimd, gradient, tide, vegas, .. } = limit;
    match limit.algorithm {
        Algorithm::Aimd => {
            let timeout = aimd.timeout.map_or("off".to_owned(), time_text);
            format!(", decrease: {}, timeout: {timeout}", aimd.decrease)
        }
        Algorithm::Fixed => String::new(),
        Algorithm::Gradient => format!(
            ", tolerance: {}, smoothing: {}, queue: {}, long_window: {}, window: {}, window_samples_min: {}",
            gradient.tolerance,
            gradient.smoothing,
            gradient.queue,
            gradient.long_window,
            time_text(gradient.window),
            gradient.window_samples_min
        ),
        Algorithm::Tide => format!(
            ", cut: {}, growth: {}, probe_answers: {}, probe_min: {}, pace: {}, delay_tolerance: {}, delay_guard: {}, \
             min_share: {}",
            tide.cut,
            tide.growth,
            tide.probe_answers,
            time_text(tide.probe_min),
            tide.pace,
            tide.delay_tolerance,
            tide.delay_guard.name(),
            tide.min_share
        ),
        Algorithm::Vegas => format!(
            ", alpha: {}, beta: {}, threshold: {}, probe: {}",
            vegas.alpha, vegas.beta, vegas.threshold, vegas.probe
        ),
    }
}

fn account_lines(account: &Account, line: &mut impl FnMut(String)) {
    line("    account:".to_owned());
    line(match &account.by {
        AccountBy::Credential => "      by: credential".to_owned(),
        AccountBy::Header(header) => format!("      by: {{ header: {} }}", quoted(header.as_str())),
        AccountBy::Upstream => "      by: upstream".to_owned(),
    });
    line(format!("      split_by_model: {}", account.split_by_model));
    if account.tiers.is_empty() {
        return line("      tiers: []".to_owned());
    }
    line("      tiers: # credentials by their hash; the credential itself is not kept".to_owned());
    for AccountTier { sha256, tier, ceiling } in &account.tiers {
        let sha256 = hex(sha256);
        line(match tier {
            Some(tier) => format!("        - {{ sha256: {sha256}, tier: {} }}", quoted(tier)),
            None => format!("        - {{ sha256: {sha256}, ceiling: {ceiling} }}"),
        });
    }
}

/// A table for people: what each account of each upstream gets.
#[must_use]
pub fn accounts(config: &Config) -> String {
    let mut rows =
        vec![["upstream", "account", "in flight at most", "from", "queue", "wait at most"].map(str::to_owned)];
    for upstream in &config.upstreams {
        let (each, own) = (&upstream.account, &upstream.account.tiers);
        let mut row = |account: String, in_flight: String, from: String| {
            let (queue, wait) = (upstream.queue.depth_max.to_string(), time_text(upstream.queue.wait_max));
            rows.push([upstream.name.clone(), account, in_flight, from, queue, wait]);
        };
        let bound = |ceiling: u32, tier: &Option<String>| match tier {
            _ if ceiling > upstream.limit.max => (upstream.limit.max.to_string(), "limit.max".to_owned()),
            Some(tier) => (ceiling.to_string(), format!("tier {tier}")),
            None => (ceiling.to_string(), "ceiling".to_owned()),
        };
        for AccountTier { sha256, tier, ceiling } in own {
            let digits: String = hex(sha256).chars().take(8).collect();
            let (in_flight, from) = bound(*ceiling, tier);
            row(format!("credential {digits}…{}", by_model(each)), in_flight, from);
        }
        let who = match &each.by {
            AccountBy::Credential if own.is_empty() => "each credential".to_owned(),
            AccountBy::Credential => "each other credential".to_owned(),
            AccountBy::Header(header) => format!("each value of {header}"),
            AccountBy::Upstream => "all requests together".to_owned(),
        };
        let (in_flight, from) = match upstream.ceiling {
            Some(ceiling) => bound(ceiling, &upstream.tier),
            None if upstream.limit.algorithm == Algorithm::Fixed => {
                (upstream.limit.initial.to_string(), "limit.initial, fixed".to_owned())
            }
            None => ("found".to_owned(), format!("from {}, at most {}", upstream.limit.initial, upstream.limit.max)),
        };
        row(format!("{who}{}", by_model(each)), in_flight, from);
    }
    table(&rows)
}

fn by_model(account: &Account) -> &'static str {
    if account.split_by_model { ", per model" } else { "" }
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all that is written to it");
        text
    })
}

/// The text as one YAML value, in quotes unless it is plain beyond doubt.
fn quoted(text: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "_./:-".contains(char);
    let begins = text.starts_with(|char: char| char.is_ascii_alphanumeric() || char == '/');
    let is_null = text.eq_ignore_ascii_case("null");
    if begins && text.chars().all(plain) && !text.ends_with(':') && !is_null {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for char in text.replace("${", "$${").chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control()
                || matches!(char, '\u{2028}' | '\u{2029}' | '\u{e000}'..='\u{e003}' | '\u{feff}') =>
            {
                write!(quoted, "\\U{:08X}", u32::from(char)).expect("a String takes all that is written to it");
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}
