//! The metric reference in the README is what the code says. `TIDEGATE_WRITE=1` writes it anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use tidegate::{
    control::{
        gate::{GateView, PauseReason},
        rates::{RateSource, RateView},
        signals::{Attribution, Budget, Budgets, Dimension},
    },
    metrics::{Metrics, Remaining, Seen, process},
};

const BEGIN: &str = "<!-- metrics: written by tests/it/reference.rs -->\n";
const END: &str = "<!-- /metrics -->\n";

/// A page on which every metric has a sample.
fn page() -> String {
    let metrics = Metrics::new();
    let _account = metrics.account("u", "a");
    let _spans = metrics.spans_dropped();
    metrics.reloaded(true);
    metrics.reloaded(false);
    let mut budgets = Budgets::default();
    for (id, dimension) in (0..).zip(Dimension::ALL) {
        budgets.add(Budget { id, dimension, limit: None, remaining: 1, reset: None, window: None, refill: None });
    }
    let mut remaining = Remaining::default();
    remaining.update(&budgets);
    let rate = RateView {
        dimension: Dimension::Requests,
        source: RateSource::Reported,
        per_second: 1.0,
        left: None,
        limit: None,
    };
    let view = GateView {
        limit: 1,
        ceiling: Some(1),
        in_flight: 1,
        queued: 1,
        paused: Some((Duration::from_secs(1), PauseReason::RetryAfter)),
        drain_per_second: 1.0,
        delay_limit: None,
        overload_limit: None,
        rates: vec![rate],
        unknown_means: Attribution::Unknown,
        quotas_spent: 0,
    };
    let seen = Seen { upstream: "u", account: "a", view, remaining, balance_usd: Some(1.0) };
    metrics.render([seen]) + &process()
}

fn reference(page: &str) -> String {
    let mut table = "| Metric | Kind | Labels | Meaning |\n|---|---|---|---|\n".to_owned();
    let about = |word: &str| -> BTreeMap<&str, &str> {
        page.lines().filter_map(|line| line.strip_prefix(&format!("# {word} "))?.split_once(' ')).collect()
    };
    let (kinds, helps) = (about("TYPE"), about("HELP"));
    assert!(kinds.len() > 20 && kinds.keys().eq(helps.keys()));
    for (name, kind) in kinds {
        let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (found, pairs) = series.split_once('{').unwrap_or((series, "}"));
            let own = found == name || kind == "histogram" && found == format!("{name}_count");
            for (label, value) in
                pairs.trim_end_matches('}').split(',').filter(|_| own).filter_map(|pair| pair.split_once('='))
            {
                labels.entry(label).or_default().insert(value.trim_matches('"'));
            }
        }
        let label = |(label, values): (&&str, &BTreeSet<&str>)| {
            if ["upstream", "account", "version"].contains(label) {
                return format!("`{label}`");
            }
            format!("`{label}`: {}", values.iter().copied().collect::<Vec<_>>().join(", "))
        };
        // Those that tell accounts apart first.
        let order = |label: &str| (label != "upstream", label != "account", label == "version");
        let mut labels: Vec<_> = labels.iter().collect();
        labels.sort_by_key(|(name, _)| order(name));
        let labels: Vec<String> = labels.into_iter().map(label).collect();
        table.push_str(&format!("| `{name}` | {kind} | {} | {} |\n", labels.join("; "), helps[name]));
    }
    table
}

#[test]
fn the_readme_lists_every_metric_as_the_code_has_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the README has a place for it");
    let (found, after) = rest.split_once(END).expect("the place has an end");
    let want = reference(&page());
    if std::env::var_os("TIDEGATE_WRITE").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{want}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(found, want, "TIDEGATE_WRITE=1 cargo test --test it readme_lists writes it anew");
}
