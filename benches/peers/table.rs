//! Figures, ratios, and whether the bar is met.

use std::{collections::BTreeMap, fmt::Write};

use crate::bed::Kind;

/// What must be true of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bar {
    /// Tidegate's figure over that of the best peer, at most.
    Ratio(f64),
    /// The same where more is better, at least.
    RatioAtLeast(f64),
    /// Tidegate's figure itself, at most.
    AtMost(f64),
    /// For information, in the second table alone.
    None,
}

/// One figure of every proxy, a value per round.
#[derive(Debug)]
pub(crate) struct Line {
    pub what: String,
    pub unit: &'static str,
    pub bar: Bar,
    /// With whom Tidegate is compared.
    pub peers: Vec<Kind>,
    pub figures: BTreeMap<Kind, Vec<f64>>,
    pub notes: Vec<String>,
}

impl Line {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, bar: Bar) -> Self {
        let peers = vec![Kind::Nginx, Kind::Haproxy, Kind::Envoy];
        Self { what: what.into(), unit, bar, peers, figures: BTreeMap::new(), notes: Vec::new() }
    }

    pub(crate) fn add(&mut self, kind: Kind, value: f64) {
        self.figures.entry(kind).or_default().push(value);
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn median(&self, kind: Kind) -> Option<f64> {
        self.figures.get(&kind).map(|values| quantile(values, 0.5))
    }

    /// The peer with the best median. Taking the best of each round instead would compare with luck.
    fn best(&self) -> Option<Kind> {
        let sign = if matches!(self.bar, Bar::RatioAtLeast(_)) { -1.0 } else { 1.0 };
        let medians = self.peers.iter().filter_map(|kind| self.median(*kind).map(|median| (*kind, sign * median)));
        medians.min_by(|one, other| one.1.total_cmp(&other.1)).map(|(kind, _)| kind)
    }

    /// Tidegate over the best peer, round by round.
    fn ratios(&self) -> Vec<f64> {
        let (Some(ours), Some(best)) = (self.figures.get(&Kind::Tidegate), self.best()) else { return Vec::new() };
        let Some(theirs) = self.figures.get(&best) else { return Vec::new() };
        ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
    }

    /// What is held against the bar, its quartiles, the bar, and whether it is met.
    fn verdict(&self) -> (String, String, String, &'static str) {
        let ours = self.figures.get(&Kind::Tidegate).cloned().unwrap_or_default();
        let values = if matches!(self.bar, Bar::AtMost(_)) { ours } else { self.ratios() };
        if values.is_empty() {
            return (String::new(), String::new(), String::new(), "");
        }
        let middle = quantile(&values, 0.5);
        let spread = format!("{} – {}", short(quantile(&values, 0.25)), short(quantile(&values, 0.75)));
        let (bar, met) = match self.bar {
            Bar::Ratio(most) => (format!("≤ {most}"), middle <= most),
            Bar::RatioAtLeast(least) => (format!("≥ {least}"), middle >= least),
            Bar::AtMost(most) => (format!("≤ {most} {}", self.unit), middle <= most),
            Bar::None => (String::new(), true),
        };
        (short(middle), spread, bar, if met { "pass" } else { "MISS" })
    }
}

/// By linear interpolation; `NaN` of nothing.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * (sorted.len().saturating_sub(1)) as f64;
    let value = |index: f64| sorted.get(index as usize).copied().unwrap_or(f64::NAN);
    value(at.floor()) + (value(at.ceil()) - value(at.floor())) * at.fract()
}

fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Both tables as Markdown: ratios against the bars, then the medians of everybody.
pub(crate) fn render(lines: &[Line]) -> String {
    let mut ratios = vec![["row", "figure", "quartiles", "best peer", "bar", ""].map(str::to_owned).to_vec()];
    let mut figures = vec![vec!["row".to_owned(), "unit".to_owned()]];
    if let Some(head) = figures.first_mut() {
        head.extend(Kind::ALL.iter().map(|kind| kind.name().to_owned()));
    }
    for line in lines {
        let (figure, spread, bar, met) = line.verdict();
        let against = match line.bar {
            Bar::AtMost(_) | Bar::None => String::new(),
            Bar::Ratio(_) | Bar::RatioAtLeast(_) => line.best().map_or(String::new(), |kind| kind.name().to_owned()),
        };
        if line.bar != Bar::None {
            ratios.push(vec![line.what.clone(), figure, spread, against, bar, met.to_owned()]);
        }
        let medians = Kind::ALL.iter().map(|kind| line.median(*kind).map_or(String::new(), short));
        figures.push([line.what.clone(), line.unit.to_owned()].into_iter().chain(medians).collect());
    }
    let mut text = format!("{}\n{}", markdown(&ratios), markdown(&figures));
    for line in lines {
        for note in &line.notes {
            let _written = write!(text, "\n{}: {note}", line.what);
        }
    }
    text
}

fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _written = write!(text, "| {cell:width$} ");
        }
        text += "|\n";
        if index == 0 {
            widths.iter().for_each(|width| text += &format!("|{}", "-".repeat(width + 2)));
            text += "|\n";
        }
    }
    text
}
