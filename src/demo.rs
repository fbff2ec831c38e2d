//! `tidegate demo`: a rate-limited API, a naive burst straight at it, and the same burst through Tidegate.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    app::App,
    clock,
    config::Config,
    mock::{self, Mock, Settings},
};

/// Arguments of `tidegate demo`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  tidegate demo
  tidegate demo --requests 2000 --ceiling 50
  tidegate demo --keep
      and then open the status page it names")]
pub struct DemoArgs {
    /// Requests in each burst
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: u32,
    /// What the API allows in flight
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    ceiling: u32,
    /// Leave API, proxy and status page running afterwards, until interrupted
    #[arg(long)]
    keep: bool,
}

/// Time the API takes for an answer, in the mean: long enough to look like work, short enough for a demo.
const LATENCY_MEAN: Duration = Duration::from_millis(200);
const LATENCY_SIGMA: f64 = 0.3;
/// No request of the demo takes longer, whatever the machine.
const PATIENCE: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(100);

/// What became of one burst.
#[derive(Debug, Default)]
struct Tally {
    done: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    mixed_up: AtomicU64,
}

struct Burst {
    done: u64,
    failed: u64,
    refused: u64,
    mixed_up: u64,
    took: Duration,
    ideal: Option<f64>,
    in_flight_max: u32,
    processed_twice: u64,
}

/// Runs the demo. `true`: the proxied half lost nothing.
pub async fn run(args: DemoArgs) -> anyhow::Result<bool> {
    let settings = Settings {
        ceiling: Some(args.ceiling),
        latency: mock::Latency::LogNormal { mean: LATENCY_MEAN, sigma: LATENCY_SIGMA },
        ..Settings::default()
    };
    let mock = mock::start_with(SocketAddr::from(([127, 0, 0, 1], 0)), settings)?;
    let app = proxy(&mock, args.ceiling)?;
    let (count, ceiling) = (args.requests, args.ceiling);
    say(&format!(
        "A rate-limited API at http://{} allows {ceiling} requests in flight; each takes about {} ms.\n\
         A naive client sends {count} requests at once.\n\n",
        mock.addr(),
        LATENCY_MEAN.as_millis()
    ));
    let direct = burst("straight at the API", mock.addr(), &mock, count).await?;
    mock.clear_ledger();
    let proxied = burst("through Tidegate", app.proxy, &mock, count).await?;
    say(&table(&direct, &proxied));
    let lost_nothing = proxied.done == u64::from(count) && proxied.refused == 0 && proxied.mixed_up == 0;
    say(&verdict(&direct, &proxied, count, ceiling));
    if args.keep {
        keep(&mock, &app).await?;
    }
    app.stop();
    Ok(lost_nothing)
}

fn proxy(mock: &Mock, ceiling: u32) -> anyhow::Result<App> {
    let mut config = Config::for_upstream(&format!("http://{}", mock.addr()))?;
    config.listen.set_port(0);
    config.admin = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    for upstream in &mut config.upstreams {
        upstream.ceiling = Some(ceiling);
    }
    App::start(config).context("the proxy cannot start")
}

/// `count` requests at once, each on its own connection, as `asyncio.gather` would send them.
async fn burst(what: &str, at: SocketAddr, mock: &Mock, count: u32) -> anyhow::Result<Burst> {
    let tally = Arc::new(Tally::default());
    let began = clock::now();
    let mut requests = JoinSet::new();
    for id in 0..count {
        let tally = Arc::clone(&tally);
        requests.spawn(async move {
            let counter = match tokio::time::timeout(PATIENCE, ask(at, id)).await {
                Ok(Ok(Answer::Own)) => &tally.done,
                Ok(Ok(Answer::Other)) => &tally.mixed_up,
                Ok(Ok(Answer::Refused)) => &tally.refused,
                Ok(Ok(Answer::Failed) | Err(_)) | Err(_) => &tally.failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        });
    }
    let progress = Progress::new(what, count);
    loop {
        progress.show(&tally, began);
        match tokio::time::timeout(TICK, requests.join_next()).await {
            Ok(None) => break,
            Ok(Some(ended)) => ended.context("a request of the demo panicked")?,
            Err(_) => {}
        }
    }
    let took = clock::now().saturating_duration_since(began);
    progress.finish(&tally, began);
    let ledger = mock.ledger();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Burst {
        done: read(&tally.done),
        failed: read(&tally.failed),
        refused: read(&tally.refused),
        mixed_up: read(&tally.mixed_up),
        took,
        ideal: ledger.ideal_seconds,
        in_flight_max: ledger.total.in_flight_max,
        processed_twice: ledger.duplicates_total,
    })
}

enum Answer {
    Failed,
    Other,
    Own,
    Refused,
}

async fn ask(at: SocketAddr, id: u32) -> anyhow::Result<Answer> {
    let stream = TcpStream::connect(at).await?;
    let (mut sender, conn) = http1::handshake(TokioIo::new(stream)).await?;
    let conn = std::pin::pin!(conn);
    let body = format!(r#"{{"model":"mock-1","messages":[{{"role":"user","content":"question {id}"}}]}}"#);
    let request = Request::post("/v1/chat/completions")
        .header(header::HOST, at.to_string())
        .header(header::AUTHORIZATION, "Bearer demo")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, answer))
    };
    let mut exchange = std::pin::pin!(exchange);
    let (status, answer) = tokio::select! {
        ended = &mut exchange => ended?,
        // The connection's side may end first, with the answer already on its way.
        _ = conn => exchange.await?,
    };
    let own = String::from_utf8_lossy(&answer).contains(&format!("echo: question {id}\""));
    Ok(match status {
        StatusCode::OK if own => Answer::Own,
        StatusCode::OK => Answer::Other,
        StatusCode::TOO_MANY_REQUESTS => Answer::Refused,
        _ => Answer::Failed,
    })
}

/// A bar that fills on a terminal; one line at the end elsewhere.
struct Progress {
    what: String,
    count: u32,
    live: bool,
}

impl Progress {
    fn new(what: &str, count: u32) -> Self {
        Self { what: what.to_owned(), count, live: io::stderr().is_terminal() }
    }

    fn line(&self, tally: &Tally, began: Instant) -> String {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (done, refused) = (read(&tally.done), read(&tally.refused));
        let over = done + refused + read(&tally.failed) + read(&tally.mixed_up);
        let width = 30;
        let filled = usize::try_from(over * width / u64::from(self.count.max(1))).unwrap_or(0);
        let seconds = clock::now().saturating_duration_since(began).as_secs_f64();
        format!(
            "{:<20} [{:<30}] {done:>5} answered {refused:>5} refused {seconds:>6.1} s",
            self.what,
            "#".repeat(filled)
        )
    }

    fn show(&self, tally: &Tally, began: Instant) {
        if self.live {
            let mut stderr = io::stderr().lock();
            drop(write!(stderr, "\r{}", self.line(tally, began)));
            drop(stderr.flush());
        }
    }

    fn finish(&self, tally: &Tally, began: Instant) {
        let start = if self.live { "\r" } else { "" };
        drop(writeln!(io::stderr(), "{start}{}", self.line(tally, began)));
    }
}

fn table(direct: &Burst, proxied: &Burst) -> String {
    let seconds = |burst: &Burst| burst.took.as_secs_f64();
    let rate = |burst: &Burst| burst.done as f64 / seconds(burst).max(0.001);
    let ideal = |burst: &Burst| burst.ideal.map_or_else(|| "-".to_owned(), |ideal| format!("{ideal:.1} s"));
    let rows = [
        ("done", direct.done.to_string(), proxied.done.to_string()),
        ("failed", direct.failed.to_string(), proxied.failed.to_string()),
        ("429s seen by the client", direct.refused.to_string(), proxied.refused.to_string()),
        ("highest in flight at the API", direct.in_flight_max.to_string(), proxied.in_flight_max.to_string()),
        ("processed twice", direct.processed_twice.to_string(), proxied.processed_twice.to_string()),
        ("seconds", format!("{:.1} s", seconds(direct)), format!("{:.1} s", seconds(proxied))),
        ("ideal for what was done", ideal(direct), ideal(proxied)),
        ("requests/s", format!("{:.1}", rate(direct)), format!("{:.1}", rate(proxied))),
    ];
    let mut text = format!("\n{:<30} {:>14} {:>18}\n{}\n", "", "without", "with Tidegate", "-".repeat(64));
    for (name, without, with) in rows {
        text.push_str(&format!("{name:<30} {without:>14} {with:>18}\n"));
    }
    text
}

fn verdict(direct: &Burst, proxied: &Burst, count: u32, ceiling: u32) -> String {
    let lost = u64::from(count).saturating_sub(direct.done);
    let over = proxied.ideal.map_or_else(String::new, |ideal| {
        format!(", in {:.2} times the ideal time", proxied.took.as_secs_f64() / ideal.max(0.001))
    });
    format!(
        "\nWithout Tidegate {lost} of {count} requests were refused or lost. With it {} of {count} came back, never more \
         than {} of {ceiling} in flight{over}.\n",
        proxied.done, proxied.in_flight_max
    )
}

async fn keep(mock: &Mock, app: &App) -> anyhow::Result<()> {
    let admin = app.admin.map_or_else(|| "off".to_owned(), |admin| format!("http://{admin}/"));
    say(&format!(
        "\nStill running:\n  API          http://{}\n  through us   http://{}\n  status page  {admin}\n\
         Try: curl http://{}/v1/infer -d '{{\"input\":\"hi\"}}'\nInterrupt to end.\n",
        mock.addr(),
        app.proxy,
        app.proxy
    ));
    tokio::signal::ctrl_c().await?;
    Ok(())
}

fn say(text: &str) {
    drop(io::stdout().write_all(text.as_bytes()));
    drop(io::stdout().flush());
}
