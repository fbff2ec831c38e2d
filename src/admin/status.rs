//! `/status`: what every account is doing now, as JSON.

use serde_json::{Map, Value, json};

use super::{
    history::History,
    story::{self, Facts, Story},
};
use crate::{
    clock,
    control::{gate::GateView, rates::RateView, signals::Dimension},
    gate::Gate,
    metrics,
    proxy::{Route, Shared},
};

/// The whole page.
pub(super) fn page(shared: &Shared, history: &History) -> Value {
    let snapshot = shared.snapshot.load();
    let mut gates: Vec<_> = snapshot.accounts().collect();
    gates.sort_by(|(_, a), (_, b)| (a.upstream(), a.account()).cmp(&(b.upstream(), b.account())));
    let accounts: Vec<(Story, GateView, Value)> =
        gates.iter().map(|(route, gate)| account(route, gate, history, !shared.is_ready())).collect();
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

fn account(route: &Route, gate: &Gate, history: &History, draining: bool) -> (Story, GateView, Value) {
    let (view, now) = (gate.view(), clock::now());
    let refusal = gate.last_refusal();
    let story = story::tell(&Facts {
        view: &view,
        refusal: refusal
            .map(|refusal| (refusal.attribution, refusal.status, now.saturating_duration_since(refusal.at))),
        failure: history
            .failure(gate.upstream(), gate.account())
            .map(|(failure, at)| (failure, now.saturating_duration_since(at))),
        draining,
    });
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
        "state": story.state,
        "says": story.says,
        "limit": view.limit,
        "ceiling": view.ceiling,
        "in_flight": view.in_flight,
        "queued": view.queued,
        "paused_seconds": view.paused.map_or(0.0, |(left, _)| left.as_secs_f64()),
        "paused_for": view.paused.map(|(_, reason)| reason.label()),
        "served_per_second": rounded(view.drain_per_second),
        "pace_per_second": metrics::pace_of(&view).map(rounded),
        "delay_limit": view.delay_limit,
        "overload_limit": view.overload_limit,
        "rates": view.rates.iter().map(rate).collect::<Vec<_>>(),
        "remaining": remaining,
        "unknown_means": view.unknown_means.label(),
        "quota_spent": view.quotas_spent > 0,
        "totals": totals,
        "spend": { "usd": counted.spend_usd(), "unpriced_answers": counted.unpriced },
        "balance_usd": route.balance_usd(gate),
        "last_refusal": refusal.map(|refusal| json!({
            "status": refusal.status,
            "attribution": refusal.attribution.label(),
            "dimension": refusal.dimension.map(Dimension::label),
            "retry_after_seconds": refusal.retry_after.map(|told| told.as_secs_f64()),
            "ago_seconds": now.saturating_duration_since(refusal.at).as_secs(),
        })),
    });
    (story, view, page)
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
