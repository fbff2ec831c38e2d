//! `tidegate top`: what the status page shows, in a terminal.

mod data;
mod draw;
mod plain;

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use anyhow::Context;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::runtime::Runtime;

use crate::{clock, config::defaults, remote::Remote};
use data::{History, Status, clean};

/// Arguments of `tidegate top`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  tidegate top
  tidegate top --admin http://127.0.0.1:9090
  ssh gateway tidegate top --once
      a plain table; `watch tidegate top --once` where there is no terminal to draw on")]
pub struct TopArgs {
    /// The admin port of the Tidegate to watch
    #[arg(long, value_name = "URL", env = "TIDEGATE_ADMIN", hide_env_values = true, default_value = defaults::ADMIN)]
    admin: String,
    /// Print a plain table once and end
    #[arg(long)]
    once: bool,
}

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Shows it until `q` is pressed.
///
/// # Errors
///
/// When there is nobody to ask, or no terminal to draw on.
pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let remote = Remote::new(&args.admin)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let first = Seen::ask(&runtime, &remote, None)?;
    if args.once {
        let text = plain::page(&remote.url(), &first.status, &first.history);
        return io::Write::write_all(&mut io::stdout(), text.as_bytes()).context("cannot write");
    }
    if !io::stdout().is_terminal() {
        anyhow::bail!("standard output is no terminal; --once prints a plain table");
    }
    let mut terminal = ratatui::try_init().context("cannot draw on this terminal")?;
    let ended = watch(&mut terminal, &runtime, &remote, first);
    ratatui::try_restore().context("cannot restore the terminal")?;
    ended
}

/// What was seen last.
struct Seen {
    status: Status,
    history: History,
}

impl Seen {
    /// `account`: whose past is wanted; `None`: that of all together.
    fn ask(runtime: &Runtime, remote: &Remote, account: Option<&(String, String)>) -> anyhow::Result<Self> {
        let past = account.map_or_else(
            || "/history".to_owned(),
            |(upstream, account)| format!("/history?upstream={upstream}&account={account}"),
        );
        let (status, history) = runtime.block_on(async {
            let json = |path: String| async move {
                let (status, body) = remote.get(&path).await?;
                if status != http::StatusCode::OK {
                    let said: String = clean(&String::from_utf8_lossy(&body)).chars().take(200).collect();
                    anyhow::bail!("{}{path} says {}: {said}", remote.url(), status.as_u16());
                }
                Ok(body)
            };
            anyhow::Ok((json("/status".to_owned()).await?, json(past).await?))
        })?;
        let unknown = || format!("{} answers as no Tidegate of this version does", remote.url());
        Ok(Self {
            status: serde_json::from_slice(&status).with_context(unknown)?,
            history: serde_json::from_slice(&history).with_context(unknown)?,
        })
    }
}

/// What the keys have chosen.
#[derive(Debug, Default)]
struct Chosen {
    /// The account whose past is shown; 0: all together.
    row: usize,
    end: bool,
}

impl Chosen {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other keys do nothing, those of future versions too")]
    fn press(&mut self, key: KeyEvent, accounts: usize) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => self.end = true,
            KeyCode::Char('q') | KeyCode::Esc => self.end = true,
            KeyCode::Down | KeyCode::Char('j') => self.row = (self.row + 1).min(accounts),
            KeyCode::Up | KeyCode::Char('k') => self.row = self.row.saturating_sub(1),
            KeyCode::PageDown => self.row = (self.row + 10).min(accounts),
            KeyCode::PageUp => self.row = self.row.saturating_sub(10),
            KeyCode::Home => self.row = 0,
            KeyCode::End => self.row = accounts,
            _ => {}
        }
    }
}

fn watch(terminal: &mut DefaultTerminal, runtime: &Runtime, remote: &Remote, first: Seen) -> anyhow::Result<()> {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (mut seen, mut chosen, mut gone) = (first, Chosen::default(), None);
    let mut next = clock::now() + LOOK_EVERY;
    while !chosen.end {
        let url = remote.url();
        terminal.draw(|frame| draw::page(frame, &url, &seen, chosen.row, gone.as_deref(), colour))?;
        let before = chosen.row;
        if event::poll(left(next))? {
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                chosen.press(key, seen.status.accounts.len());
            }
            if chosen.row == before {
                continue;
            }
        }
        let of = seen.status.accounts.get(chosen.row.wrapping_sub(1));
        let of = of.map(|account| (account.upstream.clone(), account.account.clone()));
        match Seen::ask(runtime, remote, of.as_ref()) {
            Ok(now) => {
                (seen, gone) = (now, None);
                chosen.row = chosen.row.min(seen.status.accounts.len());
            }
            Err(error) => gone = Some(format!("{error:#}")),
        }
        next = clock::now() + LOOK_EVERY;
    }
    Ok(())
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(clock::now())
}
