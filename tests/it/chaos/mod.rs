//! A minute of everything at once: mixed clients, upstreams that misbehave in every way, and a new configuration every
//! second. Afterwards the books must balance: each request has one outcome and it is its own, nothing that may not be
//! sent twice was, and nothing is left over.
//!
//! `TIDEGATE_CHAOS_SECONDS` makes it shorter or longer, `TIDEGATE_CHAOS_SEED` repeats the dice of a run (not its
//! timing). The seed is printed.

mod client;
mod upstream;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::process::Signal;

use crate::support::{Folder, Process, metric, soon};
use client::{Plan, Worker};
use upstream::{Ledger, One, two};

/// Clients at once, half of them over HTTP/2. Each thinks for 0 to 200 ms between requests, which comes to some 150
/// requests a second: enough to meet everything, and modest for a debug build on two cores.
const CLIENTS: u64 = 24;

/// Once idle it may hold this much more than after the warm-up: some 7 KiB for each of the requests of a minute, so that
/// a lost buffer or head for each would show; smaller losses are for longer runs. Measured: between 2 MiB less and 5 MiB
/// more, which is jemalloc's caches.
const MEMORY_BYTES_MORE: u64 = 12 << 20;

/// Once the kept upstream connections are closed, which after the warm-up were still open. Measured: four fewer.
const FILES_MORE: usize = 4;

/// Twice the time for which an idle upstream connection is kept.
const KEPT_MAX: Duration = Duration::from_secs(90);

/// A small generator: the same seed, the same dice (splitmix64).
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64, which: u64) -> Self {
        Self(seed ^ which.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// 0 to `below` - 1.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    pub(crate) fn millis(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.below(below))
    }
}

/// `length` bytes that belong to one request and to no other.
pub(crate) fn text_of(kind: &str, id: u64, length: usize) -> Vec<u8> {
    format!("{kind}-{id};").into_bytes().into_iter().cycle().take(length).collect()
}

/// The configuration of the `nth` second.
fn configuration(one: &str, two: &str, nth: u64, dice: &mut Dice) -> String {
    let ceiling = dice.pick(&["", "ceiling: 3, ", "ceiling: 8, ", "ceiling: 16, "]);
    let algorithm = dice.pick(&["tide", "aimd", "vegas", "gradient"]);
    let post = dice.pick(&["refused", "keyed"]);
    let depth = dice.pick(&[4, 1000, 1000]);
    let trace = dice.pick(&["headers", "off"]);
    // Another connect deadline is another set of connections.
    let connect = 900 + nth % 3 * 50;
    let first_byte = dice.pick(&[700, 900]);
    let upstream = |name: &str, url: &str, more: &str| {
        format!(
            "  - {{ name: {name}, url: '{url}', match: {{ path_prefix: /{name} }}, {ceiling}{more}
      limit: {{ algorithm: {algorithm} }}, queue: {{ depth_max: {depth}, wait_max: 4s }},
      retry: {{ attempts_max: 4, post: {post}, backoff: {{ base: 10ms, max: 100ms, jitter: 10ms }}, retry_after_max: 1s, budget: 1 }},
      deadlines: {{ connect: {connect}ms, first_byte: {first_byte}ms, idle: 600ms, linger: 400ms }} }}\n"
        )
    };
    format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nthreads: 2\ntrace: {trace}\nbuffers: {{ request_max: 48KiB }}\nupstreams:\n{}{}",
        upstream("one", one, ""),
        upstream("two", two, "http2: only,"),
    )
}

/// What clients found, by kind, and everything that must not be.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) outcomes: BTreeMap<String, u64>,
    pub(crate) wrong: Vec<String>,
}

impl Findings {
    fn add(&mut self, plan: &Plan, outcome: client::Outcome, ledger: &Ledger) {
        if let Err(why) = outcome.is_right(plan, ledger) {
            self.wrong.push(format!("{plan:?}: {why}; {outcome:?}; upstream: {:?}", ledger.entry(plan.id)));
        }
        *self.outcomes.entry(outcome.name()).or_default() += 1;
    }
}

struct Footprint {
    memory_bytes: u64,
    files: usize,
}

fn footprint(process: &Process) -> Footprint {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let files = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count();
    Footprint { memory_bytes: kib * 1024, files }
}

/// Nothing runs, nothing waits, nothing is held.
async fn idle(process: &Process) {
    process
        .admin_says("/status", |page| {
            let status = page.json();
            let zero = |account: &serde_json::Value| account["in_flight"] == 0 && account["queued"] == 0;
            status["accounts"].as_array().unwrap().iter().all(zero)
                && status["connections"]["downstream"] == 0
                && status["buffered_bytes"] == 0
        })
        .await;
    let page = process.admin("/metrics").await.text();
    for name in ["tidegate_in_flight", "tidegate_queue_depth", "tidegate_buffered_bytes"] {
        assert_eq!(metric(&page, name, &[]), Some(0.0), "{name}\n{page}");
    }
}

/// Clients for some time, until each has its last outcome and has hung up.
async fn traffic(process: &Process, seed: u64, during: Duration, ledger: &Arc<Ledger>, found: &Arc<Mutex<Findings>>) {
    let (addr, until) = (process.addr("proxy").await, Instant::now() + during);
    let workers: Vec<_> = (0..CLIENTS)
        .map(|which| {
            let (ledger, found) = (Arc::clone(ledger), Arc::clone(found));
            tokio::spawn(async move {
                let mut dice = Dice::new(seed, which + 1);
                let mut worker = Worker::new(addr, which % 2 == 0);
                while Instant::now() < until {
                    let plan = Plan::new(ledger.next_id(), &mut dice);
                    let outcome = worker.carry_out(&plan, &mut dice).await;
                    // What the upstream notes last, it may note a moment after the client has all of it.
                    let settled = outcome.is_cut();
                    if settled {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    found.lock().add(&plan, outcome, &ledger);
                    tokio::time::sleep(dice.millis(200)).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

#[tokio::test]
async fn a_minute_of_chaos_leaves_nothing_behind() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("TIDEGATE_CHAOS_SECONDS").unwrap_or(60);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("TIDEGATE_CHAOS_SEED").unwrap_or(u64::from(now.subsec_nanos()) ^ now.as_secs());
    eprintln!("TIDEGATE_CHAOS_SEED={seed} TIDEGATE_CHAOS_SECONDS={seconds}");

    let (ledger, found) = (Arc::new(Ledger::default()), Arc::<Mutex<Findings>>::default());
    let one = One::start(Arc::clone(&ledger), seed);
    let two = two(Arc::clone(&ledger), seed).await;
    let (folder, mut dice) = (Folder::new(), Dice::new(seed, 0));
    let file = folder.write("tidegate.yaml", &configuration(&one.url(), &two.url(), 0, &mut dice));
    let process = Process::start(&["--config", &file, "--log-format", "json", "--log-level", "info"], &[]);

    // The warm-up is of the same kind, so that what is reached once is reached before the first look.
    let whole = Duration::from_secs(seconds);
    traffic(&process, seed, whole / 5, &ledger, &found).await;
    idle(&process).await;
    let before = footprint(&process);

    let over = AtomicBool::new(false);
    let reloads = async {
        let mut nth = 0;
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            nth += 1;
            let good = configuration(&one.url(), &two.url(), nth, &mut dice);
            let text = if nth % 7 == 6 { good.replace("retry:", "retries:") } else { good };
            folder.write("next.yaml", &text);
            std::fs::rename(folder.path().join("next.yaml"), &file).unwrap();
            process.signal(Signal::HUP);
        }
        nth
    };
    let absences = async {
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_secs(5)).await;
            one.go_away();
            tokio::time::sleep(Duration::from_millis(800)).await;
            one.come_back();
        }
    };
    let clients = async {
        traffic(&process, seed.wrapping_add(1), whole * 4 / 5, &ledger, &found).await;
        over.store(true, Ordering::Relaxed);
    };
    let (reloads, (), ()) = tokio::join!(reloads, absences, clients);

    idle(&process).await;
    // Not the first moment at which a generous bound holds, but the end of what is kept on purpose.
    let idle_since = Instant::now();
    while footprint(&process).files > before.files + FILES_MORE && idle_since.elapsed() < KEPT_MAX {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let after = footprint(&process);
    let page = process.admin("/metrics").await.text();
    let taken = |result: &str| metric(&page, "tidegate_config_reloads_total", &[&format!("result=\"{result}\"")]);
    // The file's change and the signal may each cause one.
    assert!(taken("accepted").unwrap_or(0.0) + taken("rejected").unwrap_or(0.0) >= reloads as f64, "{page}");
    process.signal(Signal::TERM);
    let ended = soon("the end", process.ended()).await;
    let summary = format!(
        "TIDEGATE_CHAOS_SEED={seed}: {} requests, {reloads} reloads, RSS {} -> {} KiB, files {} -> {}\nclients: {:?}\nupstream: {:?}",
        ledger.count(),
        before.memory_bytes / 1024,
        after.memory_bytes / 1024,
        before.files,
        after.files,
        found.lock().outcomes,
        ledger.acts(),
    );
    eprintln!("{summary}");

    let mut wrong = std::mem::take(&mut found.lock().wrong);
    wrong.extend(ledger.violations());
    wrong.extend(ended.err.lines().filter(|line| line.contains("panic")).map(str::to_owned));
    assert!(wrong.is_empty(), "{summary}\n{} wrong:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    assert_eq!(ended.code, Some(0), "{summary}\n{}", ended.err);
    assert!(after.files <= before.files + FILES_MORE, "{summary}");
    assert!(after.memory_bytes <= before.memory_bytes + MEMORY_BYTES_MORE, "{summary}");
    for kind in ["done", "cancelled", "cut", "fault unreachable", "fault upstream_protocol", "refused 429"] {
        assert!(seconds < 30 || found.lock().outcomes.contains_key(kind), "it met no `{kind}`: {summary}");
    }
}
