//! `/status`: what every account is doing now, as JSON.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{
    history::{self, History},
    story::{self, Facts, Story},
};
use crate::{
    clock,
    control::{gate::GateView, rates::RateView, signals::Dimension},
    gate::Gate,
    metrics,
    proxy::{Shared, Snapshot},
};

/// The whole page.
pub(super) fn page(shared: &Shared, history: &History) -> Value {
    let snapshot = shared.snapshot.load();
    let mut gates = shared.gates();
    gates.sort_by(|a, b| (a.upstream(), a.account()).cmp(&(b.upstream(), b.account())));
    // Accounts beyond the labelled ones share a label and its counters: they are one row.
    let mut accounts: Vec<(Story, GateView, Value)> = gates
        .chunk_by(|a, b| (a.upstream(), a.account()) == (b.upstream(), b.account()))
        .filter_map(|gates| account(gates, history, &snapshot, !shared.is_ready()))
        .collect();
    // There may be dozens, and what is in trouble is what people look for.
    accounts.sort_by_key(|(story, ..)| story::urgency(story.state));
    let states: Vec<&'static str> = accounts.iter().map(|(story, ..)| story.state).collect();
    let overall = story::overall(shared.is_ready(), &states);
    json!({
        "health": {
            "state": overall.state,
            "says": overall.says,
            "in_flight": accounts.iter().map(|(_, view, _)| u64::from(view.in_flight)).sum::<u64>(),
            "queued": accounts.iter().map(|(_, view, _)| view.queued).sum::<usize>(),
        },
        "version": env!("CARGO_PKG_VERSION"),
        "ready": shared.is_ready(),
        "connections": {
            "downstream": shared.metrics.downstream_connections.get(),
            "upstream": shared.metrics.upstream_connections.get(),
        },
        "buffered_bytes": shared.metrics.buffered_bytes.get(),
        "upstreams": snapshot.routes.iter().map(|route| {
            let settings = &route.settings;
            json!({
                "name": settings.name,
                "url": settings.url.to_string(),
                "path_prefix": settings.path_prefix,
                "tier": settings.tier,
                "ceiling": settings.ceiling,
                "counts_spend": settings.counts_spend(),
            })
        }).collect::<Vec<_>>(),
        "accounts": accounts.into_iter().map(|(.., account)| account).collect::<Vec<_>>(),
    })
}

/// What the gates of one label do together. The story is that of the one that is worst off.
fn account(
    gates: &[Arc<Gate>],
    history: &History,
    snapshot: &Snapshot,
    draining: bool,
) -> Option<(Story, GateView, Value)> {
    let now = clock::now();
    let told = gates.iter().map(|gate| {
        let (view, refusal) = (gate.view(), gate.last_refusal());
        let story = story::tell(&Facts {
            view: &view,
            refusal: refusal
                .map(|refusal| (refusal.attribution, refusal.status, now.saturating_duration_since(refusal.at))),
            failure: history
                .failure(gate.upstream(), gate.account())
                .map(|(failure, at)| (failure, now.saturating_duration_since(at))),
            draining,
        });
        (gate, view, story)
    });
    let told: Vec<_> = told.collect();
    let (gate, worst, story) = told.iter().min_by_key(|(_, _, story)| story::rank(story.state))?;
    let mut story = story.clone();
    if told.len() > 1 && story.state != "idle" {
        story.says = format!("{} (one of {} accounts)", story.says, told.len());
    }
    if !snapshot.routes.iter().any(|route| *route.settings.name == *gate.upstream()) {
        story.says.push_str("; this upstream is no longer configured");
    }
    let mut view = told.first().map(|(_, view, _)| view.clone())?;
    for (_, other, _) in told.iter().skip(1) {
        history::add(&mut view, other);
    }
    let pace = told.iter().filter_map(|(_, view, _)| metrics::pace_of(view)).reduce(|sum, pace| sum + pace);
    let refusal = gates.iter().filter_map(|gate| gate.last_refusal()).max_by_key(|refusal| refusal.at);
    // Those of one label may be parts of one account, which must not look richer than it is.
    let balance_usd = gates.iter().filter_map(|gate| snapshot.balance_usd(gate)).reduce(f64::min);
    let counted = gate.metrics.totals();
    let totals: Map<String, Value> = counted
        .named()
        .into_iter()
        .map(|(name, counts)| {
            // What never happened is left out: there may be a thousand accounts.
            let happened = counts.into_iter().filter(|(_, count)| *count > 0);
            let counts: Map<String, Value> = happened.map(|(label, count)| (label.to_owned(), json!(count))).collect();
            (name.to_owned(), Value::Object(counts))
        })
        .collect();
    let remaining: Map<String, Value> =
        gate.remaining().iter().map(|(dimension, left)| (dimension.label().to_owned(), json!(left))).collect();
    let page = json!({
        "upstream": gate.upstream(),
        "account": gate.account(),
        "accounts": told.len(),
        "state": story.state,
        "says": story.says,
        "limit": view.limit,
        "ceiling": view.ceiling,
        "in_flight": view.in_flight,
        "queued": view.queued,
        "paused_seconds": view.paused.map_or(0.0, |(left, _)| left.as_secs_f64()),
        "paused_for": view.paused.map(|(_, reason)| reason.label()),
        "served_per_second": rounded(history.served(gate.upstream(), gate.account(), now)),
        "pace_per_second": pace.map(rounded),
        "delay_limit": worst.delay_limit,
        "overload_limit": worst.overload_limit,
        "rates": worst.rates.iter().map(rate).collect::<Vec<_>>(),
        "remaining": remaining,
        "unknown_means": worst.unknown_means.label(),
        "quota_spent": view.quotas_spent > 0,
        "totals": totals,
        "spend": { "usd": counted.spend_usd(), "unpriced_answers": counted.unpriced },
        "balance_usd": balance_usd,
        "last_refusal": refusal.map(|refusal| json!({
            "status": refusal.status,
            "attribution": refusal.attribution.label(),
            "dimension": refusal.dimension.map(Dimension::label),
            "retry_after_seconds": refusal.retry_after.map(|told| told.as_secs_f64()),
            "ago_seconds": now.saturating_duration_since(refusal.at).as_secs(),
        })),
    });
    Some((story, view, page))
}

fn rate(rate: &RateView) -> Value {
    json!({
        "dimension": rate.dimension.label(),
        "source": rate.source.label(),
        "per_second": rounded(rate.per_second),
        "left": rate.left.map(rounded),
        "limit": rate.limit,
    })
}

/// Two digits after the point: nobody reads more.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
