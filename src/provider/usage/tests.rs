use std::io::Write;

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream; charset=utf-8";

fn scanner(kind: &'static str, coding: &'static str) -> Option<UsageScanner> {
    sized(kind, coding, None)
}

fn sized(kind: &'static str, coding: &'static str, bytes: Option<usize>) -> Option<UsageScanner> {
    let mut headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_ENCODING, HeaderValue::from_static(coding)),
    ]);
    headers.extend(bytes.map(|bytes| (header::CONTENT_LENGTH, HeaderValue::from(bytes))));
    Readable::of(&headers).map(|readable| readable.scanner())
}

/// Of an answer that tells its length and comes in one piece.
fn read_at_once(kind: &'static str, answer: &[u8]) -> Option<Usage> {
    let mut scanner = sized(kind, "", Some(answer.len())).unwrap();
    scanner.feed(answer);
    scanner.usage()
}

fn read(kind: &'static str, coding: &'static str, chunks: &[&[u8]]) -> Option<Usage> {
    let mut scanner = scanner(kind, coding).unwrap();
    for chunk in chunks {
        scanner.feed(chunk);
    }
    scanner.usage()
}

/// Input, output, cached.
type Want = Option<(u32, u32, u32)>;

const ANTHROPIC_STREAM: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","model":"claude-x-2026","content":[],"usage":{"input_tokens":25,"cache_creation_input_tokens":10,"cache_read_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":6,"ephemeral_1h_input_tokens":4},"output_tokens":1}}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"say \"usage\":{\"input_tokens\":9} \\"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":null,"output_tokens":15}}

event: message_stop
data: {"type":"message_stop"}

"#;

const RESPONSES_STREAM: &str = r#"event: response.created
data: {"type":"response.created","response":{"id":"resp_1","usage":null}}

event: response.completed
data: {"type":"response.completed","response":{"id":"resp_1","usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":30,"cache_write_tokens":4},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":64},"total_tokens":123}}}

"#;

const GEMINI_STREAM: &str = "data: {\"candidates\": [{}],\"usageMetadata\": {\"promptTokenCount\": 8,\"candidatesTokenCount\": 3,\"totalTokenCount\": 11}}\r\n\r\ndata: {\"usageMetadata\": {\"promptTokenCount\": 8,\"cachedContentTokenCount\": 4,\"candidatesTokenCount\": 12,\"thoughtsTokenCount\": 30,\"toolUsePromptTokenCount\": 5,\"totalTokenCount\": 55}}\r\n\r\n";

#[rustfmt::skip] // one case, a line or two
const CASES: &[(&str, &str, &str, Want)] = &[
    ("OpenAI chat", JSON, r#"{"id":"c","choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":7,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":3}}}"#, Some((19, 10, 7))),
    ("OpenAI chat, a stream with include_usage", EVENTS, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12}}\n\ndata: [DONE]\n\n", Some((5, 7, 0))),
    ("OpenAI chat, a stream without", EVENTS, "data: {\"choices\":[],\"usage\":null}\n\ndata: [DONE]\n\n", None),
    ("OpenAI embeddings, null details", JSON, r#"{"data":[{"embedding":[0.1,-2e-3]}],"usage":{"prompt_tokens_details":null,"prompt_tokens":8,"total_tokens":8}}"#, Some((8, 0, 0))),
    ("OpenAI responses", EVENTS, RESPONSES_STREAM, Some((36, 87, 30))),
    ("Anthropic", JSON, r#"{"content":[{"type":"tool_use","input":{"usage":{"input_tokens":1,"cached_tokens":99}}}],"usage":{"input_tokens":25,"cache_creation_input_tokens":0,"cache_read_input_tokens":3,"output_tokens":15}}"#, Some((28, 15, 3))),
    ("Anthropic, a stream", EVENTS, ANTHROPIC_STREAM, Some((135, 15, 100))),
    ("Gemini, a stream", EVENTS, GEMINI_STREAM, Some((13, 42, 4))),
    ("Gemini, an array, pretty-printed", JSON, "[{\n  \"candidates\": [],\n  \"usageMetadata\" :\n {\n \"promptTokenCount\": 8\n }\n}\n,\r\n{\"usageMetadata\": {\"candidatesTokenCount\": 12}}]", Some((8, 12, 0))),
    ("Cohere", JSON, r#"{"message":{"role":"assistant"},"usage":{"tokens":{"input_tokens":71.0,"output_tokens":5.0},"billed_units":{"input_tokens":5.0,"output_tokens":4.0},"cached_tokens":16}}"#, Some((71, 5, 16))),
    ("Cohere, only what is billed", EVENTS, "event: message-end\ndata: {\"type\":\"message-end\",\"delta\":{\"finish_reason\":\"COMPLETE\",\"usage\":{\"billed_units\":{\"input_tokens\":5,\"output_tokens\":4}}}}\n\n", Some((5, 4, 0))),
    ("Groq, a stream", EVENTS, "data: {\"choices\":[],\"x_groq\":{\"id\":\"r\",\"usage\":{\"queue_time\":0.1,\"prompt_tokens\":4,\"completion_tokens\":2}}}\n\n", Some((4, 2, 0))),
    ("DeepSeek, after blank lines", JSON, "\n\n\n{\"usage\":{\"prompt_tokens\":9,\"prompt_cache_hit_tokens\":6,\"prompt_cache_miss_tokens\":3,\"completion_tokens\":1}}", Some((9, 1, 6))),
    ("DeepSeek, a stream after comments with quotes", EVENTS, ": keep-alive \"\n\n: it's \"{[\n\ndata: {\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1}}\n\n", Some((9, 1, 0))),
    ("xAI, reasoning beside the output", JSON, r#"{"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"prompt_tokens_details":{"text_tokens":32,"cached_tokens":6},"completion_tokens_details":{"reasoning_tokens":94,"audio_tokens":0}}}"#, Some((32, 103, 6))),
    ("xAI, the details first", JSON, r#"{"usage":{"completion_tokens_details":{"reasoning_tokens":94},"total_tokens":135,"completion_tokens":9,"prompt_tokens":32}}"#, Some((32, 103, 0))),
    ("xAI, a stream that counts on", EVENTS, "data: {\"usage\":{\"prompt_tokens\":32,\"completion_tokens\":0,\"total_tokens\":72,\"completion_tokens_details\":{\"reasoning_tokens\":40}}}\n\ndata: {\"usage\":{\"prompt_tokens\":32,\"completion_tokens\":9,\"total_tokens\":135,\"completion_tokens_details\":{\"reasoning_tokens\":94}}}\n\n", Some((32, 103, 0))),
    ("a total that comes out neither way", JSON, r#"{"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":99,"completion_tokens_details":{"reasoning_tokens":4}}}"#, Some((32, 9, 0))),
    ("reasoning without a total", JSON, r#"{"usage":{"prompt_tokens":32,"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":94}}}"#, Some((32, 9, 0))),
    ("Bedrock", JSON, r#"{"output":{},"usage":{"inputTokens":30,"outputTokens":628,"totalTokens":658,"cacheReadInputTokens":2,"cacheWriteInputTokens":1}}"#, Some((33, 628, 2))),
    ("gateways that use both vocabularies", JSON, r#"{"usage":{"prompt_tokens":50,"input_tokens":50,"completion_tokens":1,"output_tokens":1,"cache_read_input_tokens":20}}"#, Some((50, 1, 20))),
    ("the word as a value, and in a string", JSON, r#"{"a":"usage","b":"\"usage\":{\"prompt_tokens\":5}","c":"{\\\"usage\\\":{","usage" : {"prompt_tokens" : 3}}"#, Some((3, 0, 0))),
    ("the word as a value before an object", JSON, r#"["usage",{"prompt_tokens":5}]"#, None),
    ("a key that only begins like it", JSON, r#"{"usages":{"prompt_tokens":5},"usageMetadataX":{"prompt_tokens":5},"usag":{"prompt_tokens":5}}"#, None),
    ("no object", JSON, r#"{"usage":[{"prompt_tokens":5}],"usageMetadata":5}"#, None),
    ("a total under Cohere's name", JSON, r#"{"usage":{"tokens":12,"input_tokens":5}}"#, Some((5, 0, 0))),
    ("nothing known in it", JSON, r#"{"usage":{"seconds":3}}"#, None),
    ("too deep", JSON, r#"{"a":{"b":{"usage":{"prompt_tokens":5}}}}"#, None),
    ("odd kinds of numbers", JSON, r#"{"usage":{"prompt_tokens":"5","completion_tokens":-5,"input_tokens":99999999999,"output_tokens":[1],"cached_tokens":true}}"#, Some((u32::MAX, 0, 0))),
    ("details of odd kinds", JSON, r#"{"usage":{"prompt_tokens_details":[{"cached_tokens":4}],"input_tokens_details":"none","tokens":-1,"billed_units":true,"prompt_tokens":5,"completion_tokens":6}}"#, Some((5, 6, 0))),
    ("a total with a fraction under Cohere's name", JSON, r#"{"usage":{"tokens":12.5,"input_tokens":5}}"#, Some((5, 0, 0))),
    ("cut off before its end", JSON, r#"{"usage":{"prompt_tokens":5,"completion_tokens":6"#, None),
    ("a cut-off event does not hide the next", EVENTS, "data: {\"usage\":{\"a\":\"x\ndata: {\"usage\":{\"prompt_tokens\":5}}\n", Some((5, 0, 0))),
    ("no line end at the end", EVENTS, "data: {\"usage\":{\"prompt_tokens\":5}}", Some((5, 0, 0))),
    ("nothing", JSON, "", None),
];

/// What is said of the tokens themselves.
fn tokens(usage: Option<Usage>) -> Want {
    usage.map(|usage| (usage.input_tokens, usage.output_tokens, usage.cached_tokens))
}

#[test]
fn each_providers_usage_is_read_wherever_it_is_cut() {
    for (name, kind, body, told) in CASES {
        let body = body.as_bytes();
        for at in 0..=body.len() {
            let (before, after) = body.split_at(at);
            assert_eq!(tokens(read(kind, "", &[before, after])), *told, "{name}, cut at {at}");
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(tokens(read(kind, "", &bytes)), *told, "{name}, byte by byte");
        assert_eq!(tokens(read_at_once(kind, body)), *told, "{name}, at once");
    }
}

#[test]
fn what_was_written_to_a_cache_is_a_part_of_the_input() {
    for (name, kind, body, want) in [
        (
            "Anthropic",
            JSON,
            r#"{"usage":{"input_tokens":25,"cache_creation_input_tokens":300,"cache_read_input_tokens":3,"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200},"output_tokens":15}}"#,
            (328, 300, 200),
        ),
        (
            "only its parts",
            JSON,
            r#"{"usage":{"cache_creation":{"ephemeral_1h_input_tokens":200,"ephemeral_5m_input_tokens":100},"input_tokens":25}}"#,
            (325, 300, 200),
        ),
        (
            "no parts",
            JSON,
            r#"{"usage":{"input_tokens":25,"cache_creation_input_tokens":300,"cache_creation":null}}"#,
            (325, 300, 0),
        ),
        ("its stream, which says the parts once", EVENTS, ANTHROPIC_STREAM, (135, 10, 4)),
        ("OpenAI responses", EVENTS, RESPONSES_STREAM, (36, 4, 0)),
        (
            "OpenAI chat",
            JSON,
            r#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cache_write_tokens":5}}}"#,
            (9, 5, 0),
        ),
        (
            "LiteLLM, which says it in both words",
            JSON,
            r#"{"usage":{"prompt_tokens":328,"prompt_tokens_details":{"cached_tokens":3,"cache_creation_tokens":300},"cache_creation_input_tokens":300,"cache_read_input_tokens":3}}"#,
            (328, 300, 0),
        ),
        (
            "Bedrock",
            JSON,
            r#"{"usage":{"inputTokens":30,"cacheReadInputTokens":2,"cacheWriteInputTokens":1}}"#,
            (33, 1, 0),
        ),
        (
            "elsewhere it means something else",
            JSON,
            r#"{"usage":{"prompt_tokens":5,"cache_write_tokens":3,"ephemeral_1h_input_tokens":2}}"#,
            (5, 0, 0),
        ),
    ] {
        let body = body.as_bytes();
        for at in 0..=body.len() {
            let (before, after) = body.split_at(at);
            let usage = read(kind, "", &[before, after]).unwrap();
            let found = (usage.input_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens);
            assert_eq!(found, want, "{name}, cut at {at}");
        }
    }
}

#[test]
fn what_is_billed_is_told_apart_from_what_was_used() {
    for (name, body, want) in [
        (
            "both",
            r#"{"usage":{"billed_units":{"input_tokens":10,"output_tokens":9},"tokens":{"input_tokens":100,"output_tokens":20}}}"#,
            Some((10, 9)),
        ),
        (
            "only the input is",
            r#"{"meta":{"usage":{"billed_units":{"input_tokens":5},"tokens":{"input_tokens":7,"output_tokens":3}}}}"#,
            Some((5, 0)),
        ),
        (
            "nothing that is a token",
            r#"{"usage":{"billed_units":{"search_units":1},"tokens":{"input_tokens":7}}}"#,
            None,
        ),
        ("everybody else", r#"{"usage":{"prompt_tokens":5,"completion_tokens":7}}"#, None),
    ] {
        let billed = read_at_once(JSON, body.as_bytes()).unwrap().billed;
        assert_eq!(billed.map(|billed| (billed.input_tokens, billed.output_tokens)), want, "{name}");
    }
}

#[test]
fn what_an_answer_says_it_cost_is_read() {
    for (name, kind, body, want) in [
        (
            "OpenRouter",
            JSON,
            r#"{"usage":{"prompt_tokens":194,"completion_tokens":2,"cost":0.95e-4,"cost_details":{"upstream_inference_cost":19}}}"#,
            Some(95_000),
        ),
        (
            "its stream: the last",
            EVENTS,
            "data: {\"usage\":{\"prompt_tokens\":1,\"cost\":0.5}}\n\ndata: {\"usage\":{\"prompt_tokens\":1,\"cost\":0.25}}\n\n",
            Some(250_000_000),
        ),
        ("no number", JSON, r#"{"usage":{"prompt_tokens":1,"cost":{"total_cost":1}}}"#, None),
        ("absurd", JSON, r#"{"usage":{"prompt_tokens":1,"cost":1e300}}"#, None),
        ("of a part", JSON, r#"{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cost":1}}}"#, None),
    ] {
        let body = body.as_bytes();
        for at in 0..=body.len() {
            let (before, after) = body.split_at(at);
            assert_eq!(read(kind, "", &[before, after]).unwrap().cost_nanos, want, "{name}, cut at {at}");
        }
        assert_eq!(read_at_once(kind, body).unwrap().cost_nanos, want, "{name}, at once");
    }
}

fn encoded(coding: &str, body: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        "zlib" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        _ => {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
    }
}

#[test]
fn compressed_answers_are_read_wherever_they_are_cut() {
    for (form, coding) in [("gzip", "gzip"), ("gzip", "X-GZIP"), ("zlib", "deflate"), ("raw", "identity, deflate")] {
        let body = encoded(form, ANTHROPIC_STREAM.as_bytes());
        for at in 0..=body.len() {
            let (before, after) = body.split_at(at);
            assert_eq!(tokens(read(EVENTS, coding, &[before, after])), Some((135, 15, 100)), "{form}, cut at {at}");
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(tokens(read(EVENTS, coding, &bytes)), Some((135, 15, 100)), "{form}, byte by byte");
    }
}

#[test]
fn a_damaged_answer_keeps_what_was_found() {
    let mut body = encoded("gzip", ANTHROPIC_STREAM.as_bytes());
    let mut scanner = scanner(EVENTS, "gzip").unwrap();
    scanner.feed(&body);
    body.reverse();
    scanner.feed(&body);
    assert_eq!(tokens(scanner.usage()), Some((135, 15, 100)));
    for coding in ["gzip", "deflate"] {
        assert_eq!(read(JSON, coding, &[br#"{"usage":{"prompt_tokens":5}}"#]), None, "{coding}");
    }
}

#[test]
fn a_bomb_is_given_up_in_time() {
    let mut text = vec![b' '; 8 * 1024 * 1024];
    text.extend(br#"{"usage":{"prompt_tokens":5}}"#);
    let bomb = encoded("gzip", &text);
    assert!(bomb.len() < 10_000);
    assert_eq!(read(JSON, "gzip", &[&bomb]), None);
}

#[test]
fn an_endless_object_is_given_up_and_the_next_is_found() {
    let long =
        format!(r#"{{"usage":{{"prompt_tokens":5,"x":"{}"}},"usage":{{"prompt_tokens":7}}}}"#, "x".repeat(10_000));
    assert_eq!(tokens(read(JSON, "", &[long.as_bytes()])), Some((7, 0, 0)));
    let bytes: Vec<&[u8]> = long.as_bytes().chunks(1).collect();
    assert_eq!(tokens(read(JSON, "", &bytes)), Some((7, 0, 0)));
}

#[test]
fn only_what_can_be_read_is_scanned() {
    for (kind, coding, is_read) in [
        ("application/json", "", true),
        ("Application/JSON; charset=utf-8", "identity", true),
        ("application/problem+json", "gzip", true),
        ("text/event-stream", "deflate", true),
        ("text/event-stream", "br", false),
        ("application/json", "gzip, gzip", false),
        ("text/html", "", false),
        ("application/vnd.amazon.eventstream", "", false),
        ("audio/mpeg", "", false),
    ] {
        assert_eq!(scanner(kind, coding).is_some(), is_read, "{kind} {coding}");
    }
    assert!(Readable::of(&HeaderMap::new()).is_none());
}

fn model(kind: &'static str, coding: &'static str, chunks: &[&[u8]]) -> Option<String> {
    let headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_ENCODING, HeaderValue::from_static(coding)),
    ]);
    let mut scanner = Readable::of(&headers).unwrap().with_model(true).scanner();
    chunks.iter().for_each(|chunk| scanner.feed(chunk));
    scanner.model().map(str::to_owned)
}

#[test]
fn who_answered_is_found_wherever_it_is_cut() {
    for (name, kind, body, want) in [
        (
            "OpenAI chat",
            JSON,
            r#"{"id":"c","object":"chat.completion","model":"gpt-5-2026","choices":[]}"#,
            Some("gpt-5-2026"),
        ),
        (
            "OpenAI chat, a stream without usage",
            EVENTS,
            "data: {\"id\":\"c\",\"model\":\"gpt-5-2026\",\"choices\":[{}]}\n\ndata: [DONE]\n\n",
            Some("gpt-5-2026"),
        ),
        (
            "Azure, a stream",
            EVENTS,
            "data: {\"choices\":[],\"model\":\"\"}\n\ndata: {\"choices\":[],\"model\":\"gpt-5\"}\n\n",
            Some("gpt-5"),
        ),
        (
            "OpenAI responses",
            EVENTS,
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"metadata\":{\"model\":\"mine\"},\"model\":\"gpt-5\"}}\n\n",
            Some("gpt-5"),
        ),
        (
            "Anthropic",
            JSON,
            r#"{"type":"message","content":[{"type":"tool_use","input":{"model":"T","response":{"model":"U"}}}],"model":"claude-x"}"#,
            Some("claude-x"),
        ),
        ("Anthropic, a stream", EVENTS, ANTHROPIC_STREAM, Some("claude-x-2026")),
        ("Gemini", JSON, "{\"candidates\": [{\"content\": {}}],\n \"modelVersion\" : \"gemini-3\"}", Some("gemini-3")),
        ("Gemini, an array", JSON, "[{\"candidates\": [],\n \"modelVersion\": \"gemini-3\"}\n,{}]", Some("gemini-3")),
        (
            "Gemini, a stream",
            EVENTS,
            "data: {\"candidates\": [],\"modelVersion\": \"gemini-3\"}\r\n\r\n",
            Some("gemini-3"),
        ),
        (
            "embeddings",
            JSON,
            r#"{"data":[{"object":"embedding","embedding":[0.1,2]}],"model":"e-3","usage":{}}"#,
            Some("e-3"),
        ),
        ("escapes", JSON, r#"{"mo\"del":"a","model":"meta\/llama \u0041"}"#, Some("meta/llama A")),
        ("after a comment with quotes", EVENTS, ": it's \"{[\n\ndata: {\"model\":\"m\"}\n\n", Some("m")),
        (
            "what users keep there",
            JSON,
            r#"{"metadata":{"model":"mine"},"choices":[{"model":"x"}],"input":{"model":"y"}}"#,
            None,
        ),
        ("as a value", JSON, r#"{"object":"model","message":"model","id":["model",{"a":"b"}]}"#, None),
        ("in a string", JSON, r#"{"text":"\"model\":\"x\"","a":"{\"model\":\"y\"}"}"#, None),
        ("no text", JSON, r#"{"model":{"model":"x"},"model":7,"model":null,"model":""}"#, None),
        ("no name is that long", JSON, &format!(r#"{{"model":"{}"}}"#, "m".repeat(257)), None),
        (
            "one can be this long",
            JSON,
            &format!(r#"{{"model":"{}"}}"#, "m".repeat(256)),
            Some("m".repeat(256).as_str()),
        ),
        ("deeper", JSON, r#"{"response":{"response":{"model":"x"}},"message":[{"model":"y"}]}"#, None),
        ("no end", JSON, r#"{"model":"gpt-5"#, None),
        ("no JSON", JSON, "\"model\":\"x\"", None),
        ("nothing", EVENTS, "", None),
    ] {
        let body = body.as_bytes();
        for at in 0..=body.len() {
            let (before, after) = body.split_at(at);
            assert_eq!(model(kind, "", &[before, after]).as_deref(), want, "{name}, cut at {at}");
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(model(kind, "", &bytes).as_deref(), want, "{name}, byte by byte");
        assert_eq!(model(kind, "gzip", &[&encoded("gzip", body)]).as_deref(), want, "{name}, packed");
    }
}

#[test]
fn who_answered_is_looked_for_only_if_wanted_and_not_forever() {
    let body = br#"{"model":"m","usage":{"prompt_tokens":5}}"#;
    let mut scanner = scanner(JSON, "").unwrap();
    scanner.feed(body);
    assert_eq!((scanner.model(), tokens(scanner.usage())), (None, Some((5, 0, 0))));
    let far = |before: usize| format!(r#"{{"a":"{}","model":"m"}}"#, "x".repeat(before));
    assert_eq!(model(JSON, "", &[far(1000 * 1024).as_bytes()]).as_deref(), Some("m"));
    let text = far(1100 * 1024);
    let pieces: Vec<&[u8]> = text.as_bytes().chunks(16 * 1024).collect();
    assert_eq!(model(JSON, "", &pieces), None);
}

proptest! {
    #[test]
    fn no_answer_breaks_the_scan(
        is_lines in any::<bool>(),
        coding in proptest::sample::select(&["", "gzip", "deflate"][..]),
        chunks in proptest::collection::vec(prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            "(\"usage\"|\"usageMetadata\"|\"model\"|\"message\"|\"prompt_tokens\"|:|,|\\{|\\}|\\[|\\]|\"|\\\\|[0-9]{1,30}|\n|\r| ){0,20}"
                .prop_map(String::into_bytes),
        ], 0..12),
    ) {
        let kind = if is_lines { EVENTS } else { JSON };
        let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let whole = chunks.concat();
        prop_assert_eq!(model(kind, coding, &parts), model(kind, coding, &[&whole]));
        prop_assert_eq!(read(kind, coding, &parts), read(kind, coding, &[&whole]));
        let packed = encoded("gzip", &whole);
        prop_assert_eq!(read(kind, "gzip", &[&packed]), read(kind, "", &[&whole]));
    }
}

/// JSON in which the words stand everywhere: as keys, as values, in strings that look like keys.
fn wordy() -> impl Strategy<Value = serde_json::Value> {
    let word = || {
        prop_oneof![
            Just("usage"),
            Just("usageMetadata"),
            Just("prompt_tokens"),
            Just("input_tokens"),
            Just("a"),
            Just("\"usage\":{\"prompt_tokens\":7}"),
            Just("\\"),
            Just("x\"usage"),
            Just("\n\t{[")
        ]
    };
    let leaf = prop_oneof![
        (0_u32..100).prop_map(serde_json::Value::from),
        word().prop_map(serde_json::Value::from),
        Just(serde_json::Value::Null),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            proptest::collection::vec((word(), inner), 0..5).prop_map(|members| serde_json::Value::Object(
                members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
            )),
        ]
    })
}

proptest! {
    #[test]
    fn a_text_read_at_once_says_what_one_in_pieces_does(value in wordy(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        let pieces: Vec<&[u8]> = text.chunks(7).collect();
        prop_assert_eq!(read_at_once(JSON, &text), read(JSON, "", &pieces), "{}", String::from_utf8_lossy(&text));
    }
}
