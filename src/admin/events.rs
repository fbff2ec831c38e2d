//! What happened lately: moves of limits, pauses, faults, quotas, errors. What goes on is one event.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::history::LOOK_EVERY;
use crate::{
    control::{gate::PauseReason, limit::ChangeReason},
    fault::FaultKind,
};

/// Events kept.
pub(super) const EVENTS_MAX: usize = 128;
/// Moves of a limit that follow each other sooner are one event.
const ONE_MOVE: Duration = Duration::from_secs(15);
/// Faults of one kind likewise.
const ONE_TROUBLE: Duration = Duration::from_secs(30);

/// One account, by the labels of its metrics.
pub(super) type Key = (Arc<str>, Arc<str>);

/// The last ones, the newest at the end.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<Event>);

#[derive(Debug)]
struct Event {
    at: SystemTime,
    last: Instant,
    key: Key,
    what: What,
}

/// What may happen to an account.
#[derive(Debug, PartialEq)]
pub(super) enum What {
    Fault { kind: FaultKind, count: u64 },
    Limit { from: u32, to: u32, reason: ChangeReason, moves: u32 },
    Pause { reason: PauseReason, left: Option<Duration> },
    Quota { spent: bool },
    ServerErrors { count: u64 },
}

impl Events {
    /// `what` happened to an account; if it is what went on already, it is the same event.
    pub(super) fn happened(&mut self, key: &Key, what: What, now: Instant) {
        let goes_on = |event: &Event| {
            let fresh = now.saturating_duration_since(event.last) < what.one_for();
            event.key == *key && fresh && event.what.goes_on_as(&what)
        };
        // What goes on is news again.
        if let Some(mut event) = self.0.iter().position(goes_on).and_then(|at| self.0.remove(at)) {
            (event.last, event.at) = (now, SystemTime::now());
            event.what.go_on(what);
            self.0.push_back(event);
            return;
        }
        if self.0.len() >= EVENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Event { at: SystemTime::now(), last: now, key: key.clone(), what });
    }

    /// The newest first.
    pub(super) fn json(&self) -> Vec<Value> {
        self.0.iter().rev().map(Event::json).collect()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Event>()
    }
}

impl What {
    fn goes_on_as(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Fault { kind: a, .. }, Self::Fault { kind: b, .. }) => a == b,
            (Self::Limit { .. }, Self::Limit { .. }) => true,
            (Self::Pause { reason: a, .. }, Self::Pause { reason: b, .. }) => a == b,
            (Self::ServerErrors { .. }, Self::ServerErrors { .. }) => true,
            (
                Self::Fault { .. }
                | Self::Limit { .. }
                | Self::Pause { .. }
                | Self::Quota { .. }
                | Self::ServerErrors { .. },
                _,
            ) => false,
        }
    }

    fn one_for(&self) -> Duration {
        match self {
            Self::Fault { .. } | Self::ServerErrors { .. } => ONE_TROUBLE,
            Self::Limit { .. } => ONE_MOVE,
            Self::Pause { .. } | Self::Quota { .. } => LOOK_EVERY,
        }
    }

    fn go_on(&mut self, next: Self) {
        match (self, next) {
            (Self::Fault { count, .. }, Self::Fault { count: more, .. })
            | (Self::ServerErrors { count }, Self::ServerErrors { count: more }) => *count += more,
            (Self::Limit { to, reason, moves, .. }, Self::Limit { to: now, reason: why, moves: more, .. }) => {
                (*to, *reason, *moves) = (now, why, moves.saturating_add(more));
            }
            (this, next) => *this = next,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Fault { .. } => "fault",
            Self::Limit { .. } => "limit",
            Self::Pause { .. } => "pause",
            Self::Quota { .. } => "quota",
            Self::ServerErrors { .. } => "server_error",
        }
    }

    fn says(&self) -> String {
        match self {
            Self::Fault { kind, count } => format!("{count} answered by Tidegate itself: {}", kind.label()),
            Self::Limit { from, to, moves, .. } if from == to => format!("limit moved, back at {to} (moves: {moves})"),
            Self::Limit { from, to, moves: 2.., .. } => format!("limit from {from} to {to}, step by step"),
            Self::Limit { from, to, reason, .. } => format!("limit from {from} to {to} ({})", reason.label()),
            Self::Pause { reason, left: Some(left) } => {
                format!("paused for {:.0} s ({})", left.as_secs_f64().ceil(), reason.label())
            }
            Self::Quota { spent: true } => "the upstream says that a quota is spent".to_owned(),
            Self::Quota { spent: false } => "a quota that was spent is back".to_owned(),
            Self::ServerErrors { count } => format!("{count} answered by the upstream with a server error"),
            Self::Pause { reason, left: None } => format!("paused for a moment ({})", reason.label()),
        }
    }
}

impl Event {
    fn json(&self) -> Value {
        let at = self.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let (upstream, account) = (&*self.key.0, &*self.key.1);
        json!({ "at_ms": at, "upstream": upstream, "account": account, "kind": self.what.kind(), "says": self.what.says() })
    }
}
