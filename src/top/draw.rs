//! The page on a terminal.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table, TableState},
};

use super::{
    Seen,
    data::{Account, COLUMNS, Event, History, Status, clean, dollars, short, time},
};

/// Colours, or none of them.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn of(self, colour: Color) -> Style {
        if self.0 { Style::new().fg(colour) } else { Style::new() }
    }

    /// By state: nothing wrong, at work, held back.
    fn tone(self, state: &str) -> (Style, &'static str) {
        match state {
            "idle" | "flowing" => (self.of(Color::Green), "●"),
            "ceiling" | "limit" | "rate" => (self.of(Color::Yellow), "◆"),
            _ => (self.of(Color::Red).add_modifier(Modifier::BOLD), "▲"),
        }
    }
}

/// Name, unit, what it shows, and whether that is a count.
type Chart = (&'static str, fn(f64) -> String, &'static [&'static str], bool, Color);

/// Where there is no room for all of them, the first six are shown.
const CHARTS: [Chart; 8] = [
    ("in flight", short, &["in_flight"], false, Color::Blue),
    ("waiting", short, &["queued"], false, Color::Yellow),
    ("answers/s", short, &["answers"], true, Color::Green),
    (
        "refusals/s",
        short,
        &["refused_ceiling", "refused_rate", "refused_quota", "refused_overload", "refused_unknown"],
        true,
        Color::Red,
    ),
    ("waited, 99 %", time, &["wait_p99"], false, Color::Magenta),
    ("first byte, 99 %", time, &["first_byte_p99"], false, Color::Cyan),
    ("tokens/s", short, &["input_tokens", "output_tokens"], true, Color::Blue),
    ("spent/h", per_hour, &["spend_usd"], true, Color::Green),
];
/// Dollars a second, said for an hour.
fn per_hour(per_second: f64) -> String {
    dollars(per_second * 3600.0)
}

/// Numbers that are shown on any terminal.
const LEAST: usize = 4;
/// Columns that the sentence has at least.
const SAYS: u16 = 20;
/// Rows of a chart.
const CHART_ROWS: u16 = 3;

/// The whole page. `row`: which account is chosen, 0 for none.
pub(super) fn page(frame: &mut Frame<'_>, url: &str, seen: &Seen, row: usize, gone: Option<&str>, colour: bool) {
    let (paint, area) = (Paint(colour), frame.area());
    let accounts = u16::try_from(seen.status.accounts.len().max(1)).unwrap_or(u16::MAX).saturating_add(1);
    // What is most worth knowing keeps its room: head, accounts, charts, events.
    let charts = match area.height {
        32.. => 1 + 4 * CHART_ROWS,
        20.. => 1 + 3 * CHART_ROWS,
        _ => 0,
    };
    let events = if area.height >= 14 { 6 } else { 0 };
    let [head, table, past, news, keys] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Max(accounts.saturating_add(1).max(3)),
        Constraint::Length(charts),
        Constraint::Min(events.min(3)),
        Constraint::Length(1),
    ])
    .areas(area);
    header(frame, head, url, seen, row, gone, paint);
    table_of(frame, table, &seen.status, row, paint);
    if charts > 0 {
        let of = seen.of.as_ref();
        let of = of.map_or_else(|| "all accounts".to_owned(), |of| clean(&format!("{} {}", of.0, of.1)));
        sparks(frame, past, &of, &seen.history, paint);
    }
    if events > 0 {
        recent(frame, news, &seen.history, paint);
    }
    let help = " q quit   ↑ ↓ choose an account: its past is shown";
    frame.render_widget(Paragraph::new(help).style(paint.of(Color::DarkGray)), keys);
}

fn header(frame: &mut Frame<'_>, area: Rect, url: &str, seen: &Seen, row: usize, gone: Option<&str>, paint: Paint) {
    let Status { version, health, connections, .. } = &seen.status;
    let (style, mark) = paint.tone(&health.state);
    let first = match gone {
        Some(gone) => Line::from(Span::styled(format!("▲ {}", clean(gone)), paint.tone("").0)),
        None => Line::from(Span::styled(format!("{mark} {}", clean(&health.says)), style.add_modifier(Modifier::BOLD))),
    };
    let second = format!(
        "{} in flight, {} waiting; {} client and {} upstream connections",
        health.in_flight, health.queued, connections.downstream, connections.upstream
    );
    // The chosen account, else the one the first line speaks of.
    let (chosen, worst) = (row.checked_sub(1), |of: &&Account| of.state == health.state);
    let account = chosen.map_or_else(|| seen.status.accounts.iter().find(worst), |at| seen.status.accounts.get(at));
    let third = account.map_or_else(String::new, told);
    let title = format!(" Tidegate {} at {url} ", clean(version));
    let block = Block::new().borders(Borders::TOP).title(title).border_style(paint.of(Color::DarkGray));
    frame.render_widget(Paragraph::new(vec![first, Line::from(third), Line::from(second)]).block(block), area);
}

/// What is going on with an account, as a sentence with its name.
fn told(of: &Account) -> String {
    let does = match of.state.as_str() {
        "ceiling" | "limit" => format!(" is held back by {}", of.says),
        _ => format!(": {}", of.says.strip_prefix("nothing: ").unwrap_or(&of.says)),
    };
    clean(&format!("{} {}{does}", of.upstream, of.account))
}

/// What an account is called in so many columns: of a long name of the upstream the middle goes first, since it is the
/// account that tells rows apart.
fn called(of: &Account, width: usize) -> String {
    let (upstream, account) = (clean(&of.upstream), clean(&of.account));
    let account = shortened(&account, width - width / 3);
    let upstream = shortened(&upstream, width.saturating_sub(account.chars().count() + 1));
    format!("{upstream} {account}")
}

fn shortened(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let (start, end) = (kept.div_ceil(2), kept / 2);
    text.chars().take(start).chain(['…']).chain(text.chars().skip(count - end)).collect()
}

fn table_of(frame: &mut Frame<'_>, area: Rect, status: &Status, row: usize, paint: Paint) {
    let block = Block::new().borders(Borders::TOP).title(" Accounts ").border_style(paint.of(Color::DarkGray));
    if status.accounts.is_empty() {
        let text = "No account has been seen yet: send a request through the proxy.";
        return frame.render_widget(Paragraph::new(text).block(block), area);
    }
    // Numbers that do not fit are left out from the right: the sentence matters more.
    let columns = |text: usize| u16::try_from(text).unwrap_or(u16::MAX);
    let names = status.accounts.iter().map(|of| of.upstream.chars().count().max(8) + of.account.chars().count() + 1);
    let longest_name = columns(names.max().unwrap_or(12));
    let cells: Vec<[String; COLUMNS.len()]> = status.accounts.iter().map(|of| of.cells(status)).collect();
    let width = |at: usize| {
        let longest = cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let name = COLUMNS.get(at).map_or(0, |name| name.chars().count());
        u16::try_from(longest.max(name)).unwrap_or(8)
    };
    let least: u16 = (0..LEAST).map(|at| width(at).saturating_add(1)).fold(SAYS + 1, u16::saturating_add);
    let mut name_width = longest_name.min(32).min(area.width.saturating_sub(least).max(12));
    let room = area.width.saturating_sub(name_width + 44);
    let mut used = 0_u16;
    let shown = (0..COLUMNS.len())
        .take_while(|at| {
            used = used.saturating_add(width(*at) + 1);
            *at < LEAST || used <= room
        })
        .count();
    // Columns that nothing else needs are for the names.
    let used: u16 = (0..shown).map(|at| width(at).saturating_add(1)).fold(0, u16::saturating_add);
    let says = columns(status.accounts.iter().map(|of| of.says.chars().count() + 2).max().unwrap_or(0)).max(SAYS);
    let spare = area.width.saturating_sub(name_width.saturating_add(used).saturating_add(says).saturating_add(1));
    name_width = longest_name.min(name_width.saturating_add(spare));
    let number = |text: &str| Cell::from(Line::from(text.to_owned()).alignment(Alignment::Right));
    let head = [Cell::from("account")]
        .into_iter()
        .chain(COLUMNS.iter().take(shown).map(|name| number(name)))
        .chain([Cell::from("held back by")]);
    let rows = status.accounts.iter().zip(&cells).map(|(account, cells)| {
        let (style, mark) = paint.tone(&account.state);
        let name = called(account, usize::from(name_width));
        let says = Line::from(vec![Span::styled(format!("{mark} "), style), Span::raw(clean(&account.says))]);
        Row::new(
            [Cell::from(name)]
                .into_iter()
                .chain(cells.iter().take(shown).map(|cell| number(cell)))
                .chain([Cell::from(says)]),
        )
    });
    let widths = [Constraint::Length(name_width)]
        .into_iter()
        .chain((0..shown).map(|at| Constraint::Length(width(at))))
        .chain([Constraint::Min(SAYS)]);
    let table = Table::new(rows, widths)
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(block);
    let mut state = TableState::new().with_selected(row.checked_sub(1));
    frame.render_stateful_widget(table, area, &mut state);
}

fn sparks(frame: &mut Frame<'_>, area: Rect, of: &str, history: &History, paint: Paint) {
    let block = Block::new()
        .borders(Borders::TOP)
        .title(format!(" The last {:.0} minutes of {of} ", history.minutes()))
        .border_style(paint.of(Color::DarkGray));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let halves: [Rect; 2] = Layout::horizontal([Constraint::Ratio(1, 2); 2]).spacing(2).areas(inside);
    // Down the left half, then down the right one, of which a higher terminal shows more.
    let rows = usize::from(inside.height / CHART_ROWS);
    let places = halves.into_iter().flat_map(|half| {
        Layout::vertical(vec![Constraint::Length(CHART_ROWS); rows]).split(half).iter().copied().collect::<Vec<_>>()
    });
    let (usual, more) = CHARTS.split_at(6);
    let (left, right) = usual.split_at(3);
    let (below_left, below_right) = more.split_at(1);
    let shown = match rows {
        4.. => [left, below_left, right, below_right].concat(),
        _ => usual.to_vec(),
    };
    for ((name, unit, columns, counted, colour), place) in shown.into_iter().zip(places) {
        let lists: Vec<Vec<Option<f64>>> = columns.iter().map(|column| history.of(column, counted)).collect();
        let count = lists.first().map_or(0, Vec::len);
        let value =
            |at: usize| -> f64 { lists.iter().filter_map(|list| list.get(at)).flatten().fold(0.0, |sum, of| sum + of) };
        let values: Vec<f64> = (0..count).map(value).collect();
        let highest = values.iter().copied().fold(0.0, f64::max);
        let now = values.last().copied().unwrap_or_default();
        let [title, bars] = Layout::vertical([Constraint::Length(1), Constraint::Length(2)]).areas(place);
        let text = format!("{name} {} (at most {})", unit(now), unit(highest));
        frame.render_widget(Paragraph::new(text).style(paint.of(colour)), title);
        // As many columns as there is room for, the newest to the right.
        let columns = usize::from(bars.width).max(1);
        let bins: Vec<u64> = (0..columns)
            .map(|column| {
                let span = history.span();
                let part = |column: usize| column * span / columns;
                let missing = span.saturating_sub(values.len());
                let range = part(column).saturating_sub(missing)
                    ..part(column + 1).max(part(column) + 1).saturating_sub(missing);
                let peak = values.get(range).unwrap_or_default().iter().copied().fold(0.0, f64::max);
                (peak / highest.max(f64::MIN_POSITIVE) * 1000.0) as u64
            })
            .collect();
        frame.render_widget(Sparkline::default().data(&bins).max(1000).style(paint.of(colour)), bars);
    }
}

fn recent(frame: &mut Frame<'_>, area: Rect, history: &History, paint: Paint) {
    let block = Block::new().borders(Borders::TOP).title(" Recent events ").border_style(paint.of(Color::DarkGray));
    let lines: Vec<Line<'_>> = if history.events.is_empty() {
        vec![Line::from("None: no limit moved, nothing was paused, nothing failed.")]
    } else {
        let line = |event: &Event| {
            let name = clean(&format!("{} {}", event.upstream, event.account));
            Line::from(format!("{:>11}  {name}  {}", event.ago(), clean(&event.says)))
        };
        history.events.iter().map(line).collect()
    };
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;

    use super::*;

    fn seen(accounts: usize) -> Seen {
        let account = |n: usize| {
            json!({
                "upstream": "openai", "account": format!("{n:08x}"), "state": "ceiling",
                "says": "the ceiling: 50 of 50 in flight; 120 waiting, about 8 s for a newcomer\u{1b}[31m",
                "limit": 50, "ceiling": 50, "in_flight": 50, "queued": 120, "served_per_second": 15.25,
                "pace_per_second": null, "spend": { "usd": 12.5, "unpriced_answers": 0 }, "totals": { "exchanges": { "complete": 123_456 }, "refusals": { "ceiling": 3 } },
            })
        };
        let status = json!({
            "version": "0.1.0", "connections": { "downstream": 170, "upstream": 50 },
            "health": { "state": "ceiling", "says": "Working at the ceiling", "in_flight": 50, "queued": 120 },
            "upstreams": [{ "name": "openai", "counts_spend": true }],
            "accounts": (0..accounts).map(account).collect::<Vec<_>>(),
        });
        let points: Vec<_> = (0..40).map(|n| json!([n, 2 * n, null])).collect();
        let history = json!({
            "step_seconds": 5, "points_max": 180, "columns": ["in_flight", "queued", "wait_p99"], "points": points,
            "events": [{ "at_ms": 0, "upstream": "openai", "account": "a", "kind": "limit", "says": "limit from 10 to 50 (growth)" }],
        });
        Seen {
            status: serde_json::from_value(status).unwrap(),
            of: (accounts > 0).then(|| ("openai".to_owned(), "00000000".to_owned())),
            history: serde_json::from_value(history).unwrap(),
        }
    }

    fn text(width: u16, height: u16, accounts: usize, colour: bool) -> (String, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| page(frame, "http://127.0.0.1:9090", &seen(accounts), 1, None, colour)).unwrap();
        let buffer = terminal.backend().buffer();
        let coloured = buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        let lines: Vec<String> = buffer
            .content()
            .chunks(usize::from(width))
            .map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>())
            .collect();
        (lines.join("\n"), coloured)
    }

    #[test]
    fn everything_is_there_on_a_wide_terminal() {
        let (text, coloured) = text(170, 40, 3, true);
        for word in [
            "Tidegate 0.1.0 at http://127.0.0.1:9090",
            "◆ Working at the ceiling",
            "50 in flight, 120 waiting; 170 client and 50 upstream connections",
            "openai 00000002",
            "123k",
            "$12.50",
            "tokens/s",
            "spent/h $0",
            "the ceiling: 50 of 50 in flight; 120 waiting",
            "The last 5 minutes of openai 00000000",
            "openai 00000000 is held back by the ceiling: 50 of 50 in flight; 120 waiting, about 8 s for a newcomer",
            "in flight 39 (at most 39)",
            "limit from 10 to 50 (growth)",
            "q quit",
        ] {
            assert!(text.contains(word), "no {word:?} in\n{text}");
        }
        assert!(!text.contains("-0"), "{text}");
        assert!(coloured && !text.contains('\u{1b}'), "{text}");
    }

    fn table(width: u16, upstream: &str) -> String {
        let mut seen = seen(2);
        for account in &mut seen.status.accounts {
            (account.upstream, account.state) = (upstream.to_owned(), "flowing".to_owned());
            account.says = "nothing: 2 in flight, 50 allowed".to_owned();
        }
        let mut terminal = Terminal::new(TestBackend::new(width, 24)).unwrap();
        terminal.draw(|frame| page(frame, "http://127.0.0.1:9090", &seen, 1, None, false)).unwrap();
        let cells = terminal.backend().buffer().content().chunks(usize::from(width));
        cells.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
    }

    #[test]
    fn accounts_of_an_upstream_with_a_long_name_can_be_told_apart() {
        let host = "generativelanguage.googleapis.com";
        for width in [80, 100, 160] {
            let text = table(width, host);
            for account in [" 00000000 ", " 00000001 "] {
                let rows = text.lines().skip(5).filter(|line| line.starts_with("gen") && line.contains(account));
                assert_eq!(rows.count(), 1, "{account}at {width}\n{text}");
            }
            assert_eq!(text.lines().skip(5).any(|line| line.starts_with(host)), width == 160, "{width}\n{text}");
        }
        assert_eq!(
            (shortened("abcdefg", 5), shortened("abc", 3), shortened("abc", 0)),
            ("ab…fg".into(), "abc".into(), "…".into())
        );
    }

    #[test]
    fn what_is_held_back_by_nothing_is_not_said_to_be() {
        let text = table(160, "openai");
        assert!(text.contains("openai 00000000: 2 in flight, 50 allowed"), "{text}");
        assert!(!text.contains("is held back by"), "{text}");
    }

    #[test]
    fn the_chosen_account_stays_chosen_when_rows_change_places() {
        let mut status = seen(3).status;
        let chosen = status.name_of(1);
        status.accounts.rotate_left(1);
        assert_eq!((status.row_of(chosen.as_ref()), status.row_of(status.name_of(0).as_ref())), (3, 0));
        status.accounts.pop();
        assert_eq!(status.row_of(chosen.as_ref()), 0, "it is gone");
    }

    #[test]
    fn a_small_terminal_shows_what_matters_and_none_is_too_small() {
        let (small, coloured) = text(80, 12, 2, false);
        assert!(small.contains("Working at the ceiling") && small.contains("the ceiling: 50 of 50"), "{small}");
        assert!(!coloured, "NO_COLOR");
        for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 24), (300, 100)] {
            for accounts in [0, 1, 100] {
                text(width, height, accounts, true);
            }
        }
    }
}
