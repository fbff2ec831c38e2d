//! What clients, upstreams and the configuration say in confidence is shown nowhere, however talkative the log is.

use rustix::process::Signal;

use crate::support::{
    Client, Folder, Http2Client, Http2Step, Http2Upstream, Issuer, Process, Reply, Step, TlsUpstream, Upstream, soon,
    wait_until,
};

/// Everything that is planted has this in it.
const MARK: &str = "canary-";

/// What was planted and can be read in `text`.
fn leaks(text: &str) -> Vec<&str> {
    text.match_indices(MARK)
        .map(|(at, _)| text[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap())
        .collect()
}

fn no_leak(place: &str, text: &str) {
    assert!(leaks(text).is_empty(), "{place} shows {:?}:\n{text}", leaks(text));
}

const HEADERS: &str = "authorization: Bearer canary-authorization\r\n\
    x-api-key: canary-x-api-key\r\n\
    api-key: canary-api-key\r\n\
    x-goog-api-key: canary-x-goog-api-key\r\n\
    proxy-authorization: Basic canary-proxy-authorization\r\n\
    cookie: session=canary-cookie\r\n\
    idempotency-key: canary-idempotency-key\r\n\
    x-team: canary-team\r\n\
    x-tidegate-flow: canary-flow\r\n";
const PROMPT: &str = r#"{"model":"canary-model","messages":[{"content":"canary-prompt"}]}"#;

/// What an upstream does, by what the path says.
fn moods(path: &str, nth: usize) -> Reply {
    const SECRETS: &str = "set-cookie: id=canary-set-cookie\r\nx-request-id: canary-request-id\r\n";
    const RATE: &str = r#"{"error":{"message":"Rate limit reached in organization canary-org on requests per min","type":"requests"}}"#;
    const QUOTA: &str =
        r#"{"error":{"message":"canary-quota","type":"insufficient_quota","code":"insufficient_quota"}}"#;
    match path {
        _ if path.contains("refused") && nth.is_multiple_of(2) => {
            Reply::new(429, &format!("retry-after-ms: 5\r\n{SECRETS}"), RATE)
        }
        _ if path.contains("overload") => Reply::new(503, SECRETS, "canary-overload"),
        _ if path.contains("quota") => Reply::new(429, SECRETS, QUOTA),
        _ if path.contains("error") => Reply::new(500, SECRETS, "canary-error"),
        _ if path.contains("broken") => Reply(vec![Step::Reset]),
        _ if path.contains("garbage") => Reply::raw("canary-garbage and no HTTP\r\n\r\n").then(Step::Close),
        _ if path.contains("header") => {
            Reply::raw("HTTP/1.1 200 OK\r\ncanary header: canary-bad-header\r\n\r\n").then(Step::Close)
        }
        _ if path.contains("chunks") => {
            Reply::raw(format!("HTTP/1.1 200 OK\r\n{SECRETS}transfer-encoding: chunked\r\n\r\ncanary-chunk\r\n"))
                .then(Step::Close)
        }
        _ if path.contains("truncated") => {
            Reply::raw(format!("HTTP/1.1 200 OK\r\n{SECRETS}content-length: 99\r\n\r\ncanary-truncated"))
                .then(Step::Close)
        }
        _ if path.contains("events") => Reply::new(
            200,
            &format!("content-type: text/event-stream\r\n{SECRETS}"),
            "data: {\"text\":\"canary-event\",\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
        ),
        _ if path.contains("upgrade") => Reply::raw(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\ncanary-early",
        )
        .then(Step::Echo),
        _ => Reply::new(200, &format!("content-type: application/json\r\n{SECRETS}"), r#"{"answer":"canary-answer"}"#),
    }
}

/// Requests as they should be, and as they should not.
fn requests(prefix: &str) -> Vec<String> {
    let length = PROMPT.len();
    let mut requests = Vec::new();
    for mood in [
        "fine",
        "refused",
        "overload",
        "error",
        "broken",
        "garbage",
        "header",
        "chunks",
        "truncated",
        "events",
        "quota",
    ] {
        let line =
            format!("{prefix}/canary-path/{mood}/v1/chat/completions?key=canary-query HTTP/1.1\r\nhost: canary-host");
        requests.push(format!("POST {line}\r\ncontent-length: {length}\r\nconnection: close\r\n{HEADERS}\r\n{PROMPT}"));
        requests.push(format!("GET {line}\r\nconnection: close\r\n{HEADERS}\r\n"));
    }
    let with =
        |lines: &str| format!("POST {prefix}/canary-path?key=canary-query HTTP/1.1\r\nhost: h\r\n{HEADERS}{lines}");
    requests.extend([
        with("canary-name : canary-value\r\n\r\n"),
        with("transfer-encoding: canary-coding\r\n\r\n"),
        with("transfer-encoding: chunked\r\n\r\ncanary-size\r\n"),
        with("content-length: canary-length\r\n\r\n"),
        with("host: canary-second-host\r\n\r\n"),
        with(&format!("x-large: canary-large{}\r\n\r\n", "x".repeat(100_000))),
        with("content-length: 99\r\n\r\ncanary-cut"),
        format!("canary-method {prefix}/x canary-version\r\n\r\n"),
        format!("CONNECT canary-connect:443 HTTP/1.1\r\nhost: h\r\n{HEADERS}\r\n"),
        format!("GET /canary-{} HTTP/1.1\r\nhost: h\r\n\r\n", "x".repeat(40_000)),
        format!("GET http://canary-user:canary-password@h/x HTTP/1.1\r\nhost: h\r\n{HEADERS}\r\n"),
        format!(
            "GET {prefix}/upgrade HTTP/1.1\r\nhost: h\r\n{HEADERS}connection: upgrade\r\nupgrade: websocket\r\n\r\ncanary-tunnel"
        ),
    ]);
    requests
}

/// Says it, hangs up the sending side, and takes whatever comes. What Tidegate made itself must give nothing away.
async fn say(process: &Process, request: &str) {
    let mut client = process.client().await;
    client.send(request).await;
    if !request.ends_with(PROMPT) && !request.contains("connection: close") {
        // What is complete is answered at once, and what is not should not be waited for.
        let quiet = std::time::Duration::from_millis(150);
        drop(tokio::time::timeout(quiet, client.stream.readable()).await);
        tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.ok();
    }
    let (said, _) = client.rest().await;
    let said = String::from_utf8_lossy(&said);
    if said.contains("x-tidegate-fault") || said.starts_with("HTTP/1.1 4") && !said.contains("canary-set-cookie") {
        no_leak(&format!("the answer to {:?}", &request[..request.len().min(60)]), &said);
    }
}

fn with_upstreams(plain: &str, two: &str, tls: &str, ca: &str) -> String {
    format!(
        "listen: 127.0.0.1:0
admin: 127.0.0.1:0
threads: 2
upstreams:
  - name: plain
    url: {plain}
    match: {{ path_prefix: /plain }}
    account: {{ tiers: [{{ credential: canary-configured, ceiling: 3 }}, {{ credential: '${{CREDENTIAL}}', ceiling: 4 }}] }}
    retry: {{ attempts_max: 2, backoff: {{ base: 1ms, jitter: 1ms }}, budget: 10 }}
    queue: {{ wait_max: 2s }}
  - name: teams
    url: {plain}
    match: {{ path_prefix: /teams }}
    account: {{ by: {{ header: x-team }}, split_by_model: true }}
    retry: {{ attempts_max: 1 }}
    queue: {{ wait_max: 2s }}
  - name: two
    url: {two}
    match: {{ path_prefix: /two }}
    http2: only
    retry: {{ attempts_max: 1 }}
  - name: tls
    url: {tls}
    match: {{ path_prefix: /tls }}
    tls: {{ roots: none, ca: '{ca}' }}
    retry: {{ attempts_max: 1 }}
"
    )
}

async fn nothing_is_shown(format: &str) {
    let upstream = Upstream::start(|seen| moods(seen.line(), seen.nth)).await;
    let two = Http2Upstream::start(|seen| match seen.head.uri.path() {
        path if path.contains("broken") => vec![Http2Step::Reset(h2::Reason::INTERNAL_ERROR)],
        path if path.contains("truncated") => {
            vec![
                Http2Step::Head(200, &[("set-cookie", "canary-set-cookie")]),
                Http2Step::Data("canary-cut".into()),
                Http2Step::Reset(h2::Reason::CANCEL),
            ]
        }
        _ => vec![
            Http2Step::Head(200, &[("set-cookie", "canary-set-cookie")]),
            Http2Step::Data("canary-answer".into()),
            Http2Step::Trailers(&[("x-sum", "canary-trailer")]),
        ],
    })
    .await;
    let issuer = Issuer::new();
    let tls = TlsUpstream::start(&issuer.identity("localhost"), &["h2", "http/1.1"], None).await;
    let folder = Folder::new();
    let good = with_upstreams(&upstream.url(), &two.url(), &tls.url(), &issuer.file().display().to_string());
    let file = folder.write("tidegate.yaml", &good);
    let env = [
        ("CREDENTIAL", "canary-environment"),
        ("RUST_LOG", "trace"),
        ("RUST_BACKTRACE", "1"),
        ("TIDEGATE_LOG_LEVEL", "trace"),
    ];
    let process = Process::start(&["--config", &file, "--log-format", format, "--log-level", "trace"], &env);
    for prefix in ["/plain", "/teams", "/two", "/tls", "/nowhere"] {
        for request in requests(prefix) {
            say(&process, &request).await;
        }
    }
    let client = Http2Client::connect(process.addr("proxy").await).await;
    let headers: Vec<(&str, &str)> = HEADERS.lines().filter_map(|line| line.split_once(": ")).collect();
    for path in [
        "/plain/fine",
        "/plain/refused",
        "/plain/broken",
        "/plain/garbage",
        "/two/fine",
        "/two/broken",
        "/two/truncated",
        "/tls/fine",
    ] {
        for method in ["GET", "POST"] {
            let answer = client.send(method, &format!("{path}/canary-path?key=canary-query"), &headers, PROMPT).await;
            let ours = answer.headers().contains_key("x-tidegate-fault");
            let body = soon("the body's end", http_body_util::BodyExt::collect(answer.into_body())).await;
            if let (true, Ok(body)) = (ours, body) {
                no_leak(path, &String::from_utf8_lossy(&body.to_bytes()));
            }
        }
    }
    // A client that leaves in the middle, and one that is refused by the admin listener.
    let mut client = process.client().await;
    client
        .send(format!("POST /plain/canary-path HTTP/1.1\r\nhost: h\r\n{HEADERS}content-length: 99\r\n\r\ncanary-left"))
        .await;
    drop(client);
    let mut client = Client::connect(process.addr("admin").await).await;
    client
        .send(format!(
            "POST /canary-path HTTP/1.1\r\nhost: canary-host\r\norigin: http://canary-origin\r\n{HEADERS}\r\n"
        ))
        .await;
    no_leak("the admin listener", &format!("{:?}", client.response().await));
    for page in ["/metrics", "/status", "/", "/canary-nowhere", "/readyz"] {
        no_leak(page, &process.admin(page).await.text());
    }
    for bad in bad_configurations() {
        let before = process.err().matches("configuration rejected").count();
        folder.write("tidegate.yaml", &bad);
        process.signal(Signal::HUP);
        wait_until("it is refused", || process.err().matches("configuration rejected").count() > before).await;
    }
    folder.write("tidegate.yaml", &good);
    process.signal(Signal::TERM);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(
        ended.err.contains("exchange") && ended.err.contains("attempt is made again"),
        "it is talkative: {}",
        ended.err
    );
    if format == "json" {
        for line in ended.err.lines() {
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line.is_object()), "{line}");
        }
    }
    no_leak("standard error", &ended.err);
    no_leak("standard output", &ended.out);
}

#[tokio::test]
async fn nothing_is_shown_in_text() {
    nothing_is_shown("text").await;
}

#[tokio::test]
async fn nothing_is_shown_in_json() {
    nothing_is_shown("json").await;
}

/// Mistakes somebody could make with a credential at hand.
fn bad_configurations() -> Vec<String> {
    let tiers = |tiers: &str| format!("upstreams: [{{ url: http://h, account: {{ tiers: {tiers} }} }}]");
    vec![
        tiers("canary-tiers"),
        tiers("[canary-item]"),
        tiers("[{ canary-key: pro }]"),
        tiers("[{ credential: canary-a, tier: unknown }]"),
        tiers("[{ credential: canary-a, ceiling: 1 }, { credential: Bearer canary-a, ceiling: 2 }]"),
        tiers("[{ credential: { canary-key: x }, ceiling: 1 }]"),
        tiers("[{ credential: [canary-item], ceiling: 1 }]"),
        tiers("[{ sha256: canary-hash, ceiling: 1 }]"),
        tiers("[{ sha256: '${CREDENTIAL}', ceiling: 1 }]"),
        tiers("[{ credential: canary-a }]"),
        tiers("[{ credential: canary-a, ceiling: '${CREDENTIAL}' }]"),
        "upstreams: [{ url: 'https://canary-user:canary-password@h' }]".to_owned(),
        "upstreams: [{ url: 'canary-user:canary-password@h' }]".to_owned(),
        "upstreams: [{ url: 'https://u:canary-pass/word@h' }]".to_owned(),
        "upstreams: [{ url: 'ftp://u:canary-password@h' }]".to_owned(),
        "upstreams: [{ url: 'https://h?key=canary-query' }]".to_owned(),
        "upstreams: [{ url: 'h/v1?key=canary-query' }]".to_owned(),
        "upstreams: [{ url: 'https://h/#canary-fragment' }]".to_owned(),
        "upstreams: [{ url: '${CREDENTIAL}' }]".to_owned(),
        "upstreams: [{ url: 'http://${CREDENTIAL}:x' }]".to_owned(),
        "upstreams: [{ url: http://h, tier: '${CREDENTIAL}' }]".to_owned(),
        "upstreams: [{ url: http://h, name: '${CREDENTIAL} ' }]".to_owned(),
        "upstreams: [{ url: http://h, account: { by: '${CREDENTIAL}' } }]".to_owned(),
        "upstreams: [{ url: http://h, deadlines: { total: '${CREDENTIAL}' } }]".to_owned(),
        "upstreams: [{ url: http://h, account: { tiers: [{ credential: canary-a, ceiling: 1 }] } ".to_owned(),
        "upstreams: [{ url: http://h, account: { tiers: [{ credential: \"canary-a, ceiling: 1 }] } }]\n".to_owned(),
        "upstreams:\n  - url: http://h\n    account:\n      tiers:\n        - credential: canary-a: b\n".to_owned(),
        "upstreams:\n  - url: http://h\n    account:\n      tiers:\n        - credential: *canary-alias\n".to_owned(),
        "upstreams:\n  - url: http://h\n    account:\n      tiers:\n        - credential: !canary-tag x\n".to_owned(),
    ]
}

#[tokio::test]
async fn check_and_help_show_no_secret() {
    let all = [("CREDENTIAL", "canary-environment"), ("TIDEGATE_UPSTREAM", "https://u:canary-password@h")];
    let env = [all[0]];
    let folder = Folder::new();
    let issuer = Issuer::new();
    let good = with_upstreams("http://h", "http://h", "https://h", &issuer.file().display().to_string());
    let file = folder.write("good.yaml", &good);
    let checked = Process::run(&["check", &file], &env).await;
    assert_eq!(checked.code, Some(0), "{}", checked.err);
    assert!(checked.out.contains("sha256"), "{}", checked.out);
    no_leak("check", &format!("{}{}", checked.out, checked.err));
    let mut wrong = Vec::new();
    for bad in bad_configurations() {
        let file = folder.write("bad.yaml", &bad);
        let checked = Process::run(&["check", &file], &env).await;
        let said = format!("{}{}", checked.out, checked.err);
        if checked.code != Some(2) || said.contains(MARK) || checked.err.lines().count() != 1 {
            wrong.push(format!("{:?} for {bad}\n  {said}", checked.code));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for args in [&["--help"][..], &["serve", "--help"], &[], &["--ceiling", "x"], &["check", &file]] {
        let ended = Process::run(args, &all).await;
        no_leak(&format!("{args:?}"), &format!("{}{}", ended.out, ended.err));
    }
}
