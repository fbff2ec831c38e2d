//! `--once`: a plain table for pipes and logs.

use super::data::{COLUMNS, History, Status, clean};

/// Events that are shown.
const EVENTS: usize = 8;

/// The whole page.
pub(super) fn page(url: &str, status: &Status, history: &History) -> String {
    let (health, connections) = (&status.health, &status.connections);
    let mut text = format!(
        "Tidegate {} at {url}: {}\n{} in flight, {} waiting; {} client and {} upstream connections\n\n",
        clean(&status.version),
        clean(&health.says),
        health.in_flight,
        health.queued,
        connections.downstream,
        connections.upstream
    );
    if status.accounts.is_empty() {
        text.push_str("No account has been seen yet: send a request through the proxy.\n");
        return text;
    }
    let mut rows = vec![["account".to_owned()].into_iter().chain(COLUMNS.map(str::to_owned)).collect::<Vec<_>>()];
    let mut says = vec!["held back by".to_owned()];
    for account in &status.accounts {
        let name = clean(&format!("{} {}", account.upstream, account.account));
        rows.push([name].into_iter().chain(account.cells(status)).collect());
        says.push(clean(&account.says));
    }
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..=COLUMNS.len()).map(width).collect();
    for (row, says) in rows.iter().zip(says) {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text.push_str(&if index == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") });
        }
        text.push_str(&format!("  {says}\n"));
    }
    if !history.events.is_empty() {
        text.push_str("\nRecent events\n");
    }
    for event in history.events.iter().take(EVENTS) {
        let name = clean(&format!("{} {}", event.upstream, event.account));
        text.push_str(&format!("{:>11}  {name}  {}\n", event.ago(), clean(&event.says)));
    }
    text
}
