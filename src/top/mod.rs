//! `tidegate top`: what the status page shows, in a terminal.

mod data;
mod draw;
mod plain;

use std::{
    io::{self, IsTerminal},
    sync::mpsc,
    time::Duration,
};

use anyhow::Context;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{config::defaults, remote::Remote, telemetry};
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

/// Time between two looks for news; keys are seen at once.
const KEYS_EVERY: Duration = Duration::from_millis(50);

/// Longest time in which a signal is heard by the thread that reads the keys.
const END_MAX: Duration = Duration::from_secs(1);

/// Shows it until `q` is pressed.
///
/// # Errors
///
/// When there is nobody to ask, or no terminal to draw on.
pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let remote = Remote::new(&args.admin)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let first = runtime.block_on(Seen::ask(&remote, None))?;
    if args.once {
        let text = plain::page(&remote.url(), &first.status, &first.history);
        return io::Write::write_all(&mut io::stdout(), text.as_bytes()).context("cannot write");
    }
    if !io::stdout().is_terminal() {
        anyhow::bail!("standard output is no terminal; --once prints a plain table");
    }
    if !telemetry::can_steer() {
        anyhow::bail!("this terminal (TERM=dumb) cannot be drawn on; --once prints a plain table");
    }
    let (url, (choice, chosen), (sender, news)) = (remote.url(), watch::channel(None), mpsc::channel());
    let (end, ended) = mpsc::channel();
    keep_asking(runtime, remote, chosen, sender, end.clone()).context("cannot watch for signals")?;
    let mut terminal = ratatui::try_init().context("cannot draw on this terminal")?;
    // Not on this thread: where the terminal is gone, the wait for its keys does not come back, since crossterm reads
    // its end again and again.
    let draw = move || {
        let ended = watch(&mut terminal, &url, first, &choice, &news);
        // It shows the cursor again.
        drop(terminal);
        drop(end.send(ended));
    };
    std::thread::Builder::new().name("drawing".to_owned()).spawn(draw).context("cannot draw")?;
    let ended = ended.recv().unwrap_or_else(|_| Err(anyhow::anyhow!("the view broke off")));
    ratatui::try_restore().context("cannot restore the terminal")?;
    ended
}

/// What was seen last.
struct Seen {
    status: Status,
    /// Whose past it is.
    of: Choice,
    history: History,
}

impl Seen {
    /// `of`: whose past is wanted; `None`: that of all together.
    async fn ask(remote: &Remote, of: Choice) -> anyhow::Result<Self> {
        let past = of.as_ref().map_or_else(
            || "/history".to_owned(),
            |(upstream, account)| format!("/history?upstream={upstream}&account={account}"),
        );
        let json = |path: String| async move {
            let (status, body) = remote.get(&path).await?;
            if status != http::StatusCode::OK {
                let said: String = clean(&String::from_utf8_lossy(&body)).chars().take(200).collect();
                anyhow::bail!("{}{path} says {}: {said}", remote.url(), status.as_u16());
            }
            Ok(body)
        };
        let (status, history) = (json("/status".to_owned()).await?, json(past).await?);
        let unknown = || format!("{} answers as no Tidegate of this version does", remote.url());
        Ok(Self {
            status: serde_json::from_slice(&status).with_context(unknown)?,
            of,
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

/// What the asking thread says.
enum News {
    Seen(Box<Seen>),
    /// It did not answer, or not properly.
    Gone(anyhow::Error),
    /// A signal came.
    End,
}

/// An account, or none: all together.
type Choice = Option<(String, String)>;

/// Asks again and again. Not on the thread that reads the keys: a port that hangs must not keep anybody here.
fn keep_asking(
    runtime: Runtime,
    remote: Remote,
    mut choice: watch::Receiver<Choice>,
    news: mpsc::Sender<News>,
    ended: mpsc::Sender<anyhow::Result<()>>,
) -> io::Result<()> {
    // Caught from here on, so that the terminal is given back.
    let mut signals = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?)
    };
    let end = news.clone();
    let ask = async move {
        loop {
            // The first look has been taken already.
            drop(tokio::time::timeout(LOOK_EVERY, choice.changed()).await);
            let of = choice.borrow_and_update().clone();
            let heard = Seen::ask(&remote, of).await.map_or_else(News::Gone, |seen| News::Seen(Box::new(seen)));
            if news.send(heard).is_err() {
                return;
            }
        }
    };
    let ask_until_signal = async move {
        tokio::select! {
            () = ask => return,
            _ = signals.0.recv() => {}
            _ = signals.1.recv() => {}
            _ = signals.2.recv() => {}
        }
        // Nobody listens any more: then it has ended.
        drop(end.send(News::End));
        tokio::time::sleep(END_MAX).await;
        drop(ended.send(Ok(())));
    };
    std::thread::Builder::new().name("asking".to_owned()).spawn(move || runtime.block_on(ask_until_signal))?;
    Ok(())
}

fn watch(
    terminal: &mut DefaultTerminal,
    url: &str,
    first: Seen,
    choice: &watch::Sender<Choice>,
    news: &mpsc::Receiver<News>,
) -> anyhow::Result<()> {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (mut seen, mut chosen, mut gone, mut stale) = (first, Chosen::default(), None, true);
    loop {
        if std::mem::take(&mut stale) {
            terminal.draw(|frame| draw::page(frame, url, &seen, chosen.row, gone.as_deref(), colour))?;
        }
        if event::poll(KEYS_EVERY)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    chosen.press(key, seen.status.accounts.len());
                }
                Event::FocusGained
                | Event::FocusLost
                | Event::Key(_)
                | Event::Mouse(_)
                | Event::Paste(_)
                | Event::Resize(..) => {}
            }
            stale = true;
        }
        for news in news.try_iter() {
            stale = true;
            match news {
                News::Seen(now) => {
                    chosen.row = now.status.row_of(seen.status.name_of(chosen.row).as_ref());
                    (seen, gone) = (*now, None);
                }
                News::Gone(error) => gone = Some(format!("{error:#}")),
                News::End => chosen.end = true,
            }
        }
        if chosen.end {
            return Ok(());
        }
        let now = seen.status.name_of(chosen.row);
        choice.send_if_modified(|choice| {
            let changed = *choice != now;
            *choice = now;
            changed
        });
    }
}
