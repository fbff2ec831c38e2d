//! The real side: the mock, a proxy and more callers than any limit, all over loopback.

use std::{
    fmt,
    time::{Duration, Instant},
};

use tidegate::mock::{self, HeaderFamily, Latency, LedgerSnapshot, Mock, RetryAfterForm, Says, Settings};
use tokio::task::JoinSet;

use super::{
    Figures,
    scenario::{self, Headers, RetryAfter, Scenario, Service},
    simulated::Simulated,
    support::{Client, Http2Client, Proxy, text},
};

/// Somebody always waits: as many as the largest limit, and these besides. More would only keep the processors busy
/// with arrivals while the first round trips are measured.
const CALLERS_MORE: u32 = 40;
const CONNECTIONS: usize = 4;
const PATH: &str = "/v1/chat/completions";
const CHAT: &str = r#"{"messages":[{"role":"user","content":"hi"}],"model":"m","max_tokens":5}"#;

/// What a real run came to, from the mock's ledger.
pub struct Measured {
    /// After the warm-up: slot-seconds where slots are the measure, else answers.
    work: f64,
    refused: u64,
    attempts: u64,
    answers: u64,
    slot_seconds: f64,
    in_flight_max: u32,
    limit_at_end: u32,
}

impl Measured {
    /// Against what could be done.
    pub fn over(&self, simulated: &Simulated) -> Figures {
        Figures {
            utilisation: self.work / simulated.best.max(1e-9),
            refused: self.refused as f64 / self.attempts.max(1) as f64,
            delay: simulated.fixed.map_or(0.0, |fixed| self.slot_seconds / self.answers.max(1) as f64 / fixed),
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { refused, answers, in_flight_max, limit_at_end, .. } = self;
        write!(f, "{answers} answers, {refused} refused, at most {in_flight_max} at once, limit {limit_at_end}")
    }
}

pub fn run(scenario: &Scenario) -> Measured {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(drive(scenario))
}

async fn drive(scenario: &Scenario) -> Measured {
    let mock = mock::start_with("127.0.0.1:0".parse().unwrap(), settings(scenario)).unwrap();
    let proxy = Proxy::configured(&format!("http://{}", mock.addr()), |config| {
        config.threads = 1;
        config.upstreams[0].ceiling = scenario.known_ceiling();
    });
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Http2Client::connect(proxy.addr).await);
    }
    let began = Instant::now();
    let after = |seconds: f64| tokio::time::sleep_until((began + Duration::from_secs_f64(seconds)).into());
    let mut callers = JoinSet::new();
    for caller in 0..callers_of(scenario) {
        let (client, may_fail) = (connections[caller % CONNECTIONS].clone(), scenario.errors() > 0.0);
        callers.spawn(async move {
            loop {
                let answer = client.send("POST", PATH, &[], CHAT).await;
                let status = answer.status().as_u16();
                let body = text(answer).await;
                assert!(status == 200 || (status == 500 && may_fail), "{status}: {body}");
            }
        });
    }
    let steps = async {
        for (at, ceiling) in scenario.ceilings().iter().skip(1) {
            after(*at).await;
            set_ceiling(&mock, *ceiling).await;
        }
    };
    let marks = async {
        after(scenario.warmup()).await;
        let warm = mock.ledger();
        after(scenario.seconds().as_secs_f64()).await;
        (warm, mock.ledger())
    };
    let (warm, end) = tokio::select! {
        // Callers go on for ever: one that ends has failed.
        failed = callers.join_next() => panic!("a caller ended: {failed:?}"),
        ((), marks) = async { tokio::join!(steps, marks) } => marks,
    };
    let (total, refused) = (&end.total, end.total.refused);
    Measured {
        work: work(scenario, &end) - work(scenario, &warm),
        refused: refused.ceiling + refused.requests,
        attempts: total.accepted + refused.ceiling + refused.requests + refused.fault,
        answers: total.processed,
        slot_seconds: total.slot_seconds_total,
        in_flight_max: total.in_flight_max,
        limit_at_end: proxy.view().limit,
    }
}

fn callers_of(scenario: &Scenario) -> usize {
    let limits = scenario.ceilings().iter().map(|(_, ceiling)| *ceiling).chain(scenario.known_ceiling());
    (limits.max().unwrap_or_default() + CALLERS_MORE) as usize
}

fn work(scenario: &Scenario, ledger: &LedgerSnapshot) -> f64 {
    if scenario.counts_slots() { ledger.total.slot_seconds_total } else { ledger.total.processed as f64 }
}

async fn set_ceiling(mock: &Mock, ceiling: u32) {
    let mut client = Client::connect(mock.addr()).await;
    let body = format!("{{\"ceiling\":{ceiling}}}");
    let length = body.len();
    client.send(format!("PUT /__settings HTTP/1.1\r\nhost: mock\r\ncontent-length: {length}\r\n\r\n{body}")).await;
    assert_eq!(client.response().await.status, 200);
}

/// The mock as the scenario has its upstream. What the mock cannot do, a scenario may not ask for.
fn settings(scenario: &Scenario) -> Settings {
    let bucket = scenario.buckets().first();
    let says = match scenario.says() {
        scenario::Says::Kind => Says::Kind,
        scenario::Says::Nothing => Says::Nothing,
    };
    let retry_after = match scenario.retry_after() {
        RetryAfter::None => RetryAfterForm::None,
        RetryAfter::Exact => RetryAfterForm::Ms,
        RetryAfter::Seconds => RetryAfterForm::Seconds,
        RetryAfter::AlwaysOne => panic!("the mock has no such form"),
    };
    if let Some(bucket) = bucket {
        assert!(scenario.buckets().len() == 1 && bucket.period() == Duration::from_secs(1), "requests per second");
        // A refusal that says why says in its text when to come back, too.
        assert!(says == Says::Nothing || scenario.retry_after() != RetryAfter::None, "the mock would tell the delay");
    }
    Settings {
        ceiling: scenario.ceilings().first().map(|(_, ceiling)| *ceiling),
        rps: bucket.map(|bucket| bucket.limit as u32),
        burst: bucket.and_then(|bucket| bucket.burst).map(|burst| burst as u32),
        fixed_window: bucket.is_some_and(|bucket| bucket.window == scenario::Window::Fixed),
        knee: scenario.knee(),
        latency: match scenario.spread() {
            Service { lognormal: Some((mean, sigma)), .. } => {
                Latency::LogNormal { mean: Duration::from_secs_f64(mean), sigma }
            }
            Service { fixed, .. } => Latency::Fixed(Duration::from_secs_f64(fixed.expect("a service time"))),
        },
        retry_after: Some(retry_after),
        says,
        headers: match scenario.headers() {
            Headers::None => HeaderFamily::None,
            Headers::Openai => HeaderFamily::Openai,
            Headers::Ietf => HeaderFamily::Ietf,
            Headers::Bare | Headers::Plain => panic!("the mock has no such family"),
        },
        error_rate: scenario.errors(),
        ..Settings::default()
    }
}
