//! `/status` and `/history` as this view reads them, and numbers as people do.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) health: Health,
    pub(super) connections: Connections,
    pub(super) accounts: Vec<Account>,
    upstreams: Vec<Upstream>,
}

#[derive(Debug, Clone, Deserialize)]
struct Upstream {
    name: String,
    counts_spend: bool,
}

impl Status {
    /// The upstream and the account of a row; none: that of all together.
    pub(super) fn name_of(&self, row: usize) -> Option<(String, String)> {
        let of = self.accounts.get(row.checked_sub(1)?)?;
        Some((of.upstream.clone(), of.account.clone()))
    }

    /// Its row: rows change places.
    pub(super) fn row_of(&self, name: Option<&(String, String)>) -> usize {
        let is_it =
            |of: &Account| name.is_some_and(|(upstream, account)| of.upstream == *upstream && of.account == *account);
        self.accounts.iter().position(is_it).map_or(0, |at| at + 1)
    }

    /// Whether it is known what answers of this account cost.
    pub(super) fn counts_spend(&self, account: &Account) -> bool {
        account.spend.usd > 0.0 || self.upstreams.iter().any(|of| of.counts_spend && of.name == account.upstream)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Health {
    pub(super) state: String,
    pub(super) says: String,
    pub(super) in_flight: u64,
    pub(super) queued: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Connections {
    pub(super) downstream: i64,
    pub(super) upstream: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Account {
    pub(super) upstream: String,
    pub(super) account: String,
    pub(super) state: String,
    pub(super) says: String,
    pub(super) limit: u64,
    pub(super) ceiling: Option<u64>,
    pub(super) in_flight: u64,
    pub(super) queued: u64,
    pub(super) served_per_second: f64,
    pub(super) pace_per_second: Option<f64>,
    totals: BTreeMap<String, BTreeMap<String, u64>>,
    spend: Spend,
}

#[derive(Debug, Clone, Deserialize)]
struct Spend {
    usd: f64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct History {
    step_seconds: f64,
    points_max: usize,
    columns: Vec<String>,
    points: Vec<Vec<Option<f64>>>,
    pub(super) events: Vec<Event>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Event {
    at_ms: u64,
    pub(super) upstream: String,
    pub(super) account: String,
    pub(super) says: String,
}

impl Account {
    /// What the columns behind the name and before the sentence hold; their names are [`COLUMNS`].
    pub(super) fn cells(&self, status: &Status) -> [String; COLUMNS.len()] {
        let total = |name: &str| -> u64 { self.totals.get(name).map_or(0, |counts| counts.values().sum()) };
        let one = |name: &str, label: &str| {
            self.totals.get(name).and_then(|counts| counts.get(label)).copied().unwrap_or_default()
        };
        [
            self.in_flight.to_string(),
            self.limit.to_string(),
            self.ceiling.map_or_else(|| "-".to_owned(), |ceiling| ceiling.to_string()),
            self.queued.to_string(),
            short(self.served_per_second),
            self.pace_per_second.map_or_else(|| "-".to_owned(), |pace| short(pace * 60.0)),
            short((one("exchanges", "complete") + one("exchanges", "upgraded")) as f64),
            short(total("refusals") as f64),
            short(one("attempts", "failed") as f64),
            short(total("retries") as f64),
            short(total("faults") as f64),
            short(one("tokens", "input") as f64),
            short(one("tokens", "output") as f64),
            if status.counts_spend(self) { dollars(self.spend.usd) } else { "-".to_owned() },
        ]
    }
}

/// Names of [`Account::cells`].
pub(super) const COLUMNS: [&str; 14] = [
    "in flight",
    "limit",
    "ceiling",
    "waiting",
    "served/s",
    "rate/min",
    "answered",
    "refused",
    "5xx",
    "retried",
    "errors",
    "tokens in",
    "out",
    "spent",
];

impl History {
    /// Points that are shown: a young process is not shown as fourteen empty minutes.
    pub(super) fn span(&self) -> usize {
        [24, 60]
            .into_iter()
            .find(|span| *span >= self.points.len() && *span < self.points_max)
            .unwrap_or(self.points_max)
    }

    /// The same in minutes.
    pub(super) fn minutes(&self) -> f64 {
        self.span() as f64 * self.step_seconds / 60.0
    }

    /// One column, as a rate per second where it is a count.
    pub(super) fn of(&self, column: &str, counted: bool) -> Vec<Option<f64>> {
        let at = self.columns.iter().position(|name| name == column);
        let per = if counted { self.step_seconds.max(1.0) } else { 1.0 };
        let value = |point: &Vec<Option<f64>>| at.and_then(|at| point.get(at)).copied().flatten();
        self.points.iter().map(|point| value(point).map(|value| value / per)).collect()
    }
}

impl Event {
    /// How long ago.
    pub(super) fn ago(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        let seconds = now.saturating_sub(u128::from(self.at_ms)) / 1000;
        if seconds < 120 { format!("{seconds} s ago") } else { format!("{} min ago", seconds / 60) }
    }
}

/// Four digits or so.
pub(super) fn short(number: f64) -> String {
    match number {
        number if number >= 1e9 => format!("{:.1}G", number / 1e9),
        number if number >= 1e6 => format!("{:.1}M", number / 1e6),
        number if number >= 1e5 => format!("{:.0}k", number / 1e3),
        number if number >= 1e4 => format!("{:.1}k", number / 1e3),
        number if number >= 100.0 || number.fract() == 0.0 => format!("{number:.0}"),
        number => format!("{number:.1}"),
    }
}

/// A time in seconds.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds >= 120.0 => format!("{:.1} min", seconds / 60.0),
        seconds if seconds >= 1.0 => format!("{seconds:.1} s"),
        seconds => format!("{:.0} ms", seconds * 1e3),
    }
}

/// Money, to the cent unless that would show nothing.
pub(super) fn dollars(dollars: f64) -> String {
    match dollars {
        0.0 => "$0".to_owned(),
        dollars if dollars < 0.01 => format!("${:.6}", dollars).trim_end_matches('0').trim_end_matches('.').to_owned(),
        dollars if dollars < 1e4 => format!("${dollars:.2}"),
        dollars => format!("${}", short(dollars)),
    }
}

/// Whatever answers on that port: nothing of it may steer the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, want) in [
            (0.0, "0"),
            (0.42, "0.4"),
            (24.31, "24.3"),
            (7.0, "7"),
            (901.2, "901"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (2.5e6, "2.5M"),
        ] {
            assert_eq!(short(number), want);
        }
        assert_eq!(
            [0.0, 0.000_375, 0.01, 1234.5, 12_345.0].map(dollars),
            ["$0", "$0.000375", "$0.01", "$1234.50", "$12.3k"]
        );
        assert_eq!([0.0042, 1.25, 600.0].map(time), ["4 ms", "1.2 s", "10.0 min"]);
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\r\n"), "a[2Jb");
    }
}
