use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn demand(headers: &HeaderMap, path: &str, body: &[u8]) -> Demand {
    super::demand(&Told::of(headers), path, body)
}

fn json() -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"))])
}

fn number(name: &str) -> u64 {
    names::number([name])
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn each_providers_request_is_read() {
    for (path, body, model, output) in [
        (CHAT, r#"{"model":"gpt-6","messages":[{"content":"hi"}],"max_tokens":100}"#, Some("gpt-6"), Some(100)),
        (CHAT, r#"{"max_completion_tokens":7,"stream":true,"model":"o9"}"#, Some("o9"), Some(7)),
        ("/v1/responses", r#"{"model":"gpt-6","input":"hi","max_output_tokens":16}"#, Some("gpt-6"), Some(16)),
        ("/v1/messages", r#"{"model":"claude-5","max_tokens":1024,"messages":[]}"#, Some("claude-5"), Some(1024)),
        (
            "/v1beta/models/gemini-3-flash:generateContent",
            r#"{"contents":[],"generationConfig":{"temperature":0.1,"maxOutputTokens":256}}"#,
            Some("gemini-3-flash"),
            Some(256),
        ),
        (
            "/v1/projects/p/locations/l/publishers/google/models/gemini-3:streamGenerateContent",
            "{}",
            Some("gemini-3"),
            None,
        ),
        ("/openai/deployments/mine/chat/completions", r#"{"model":"gpt-6"}"#, Some("mine"), None),
        (
            "/model/anthropic.claude-v1:0/converse",
            r#"{"inferenceConfig":{"maxTokens":5}}"#,
            Some("anthropic.claude-v1:0"),
            Some(5),
        ),
        (CHAT, r#"{"model":"a\u0062c"}"#, Some("abc"), None),
        (CHAT, r#"{"model":null,"max_tokens":null}"#, None, None),
        (CHAT, r#"{"model":"m","max_tokens":"many","max_output_tokens":[1,{"a":2}]}"#, Some("m"), None),
        (CHAT, r#"{"max_tokens":{"a":[1]},"model":"m","max_completion_tokens":-3}"#, Some("m"), None),
        (CHAT, r#"{"model":5,"max_tokens":3}"#, None, Some(3)),
        (CHAT, r#"{"model":["a",{"b":1}],"max_tokens":3,"model":"m"}"#, Some("m"), Some(3)),
        (CHAT, r#"{"model":"m","model":1.5,"max_tokens":3}"#, Some("m"), Some(3)),
        (CHAT, r#"{"generationConfig":null,"inferenceConfig":[{"maxTokens":1}],"model":"m"}"#, Some("m"), None),
        (CHAT, r#"{"generation_config":"none","inferenceConfig":true,"max_tokens":3}"#, None, Some(3)),
        (CHAT, r#"{"max_tokens":99999999999,"model":"m"}"#, Some("m"), Some(u32::MAX)),
        (CHAT, r#"{"max_tokens":12.9,"model":"m"}"#, Some("m"), Some(12)),
        (CHAT, r#"{"max_tokens":5,"max_tokens":9,"max_tokens":7,"model":"m"}"#, Some("m"), Some(9)),
        (CHAT, r#"{"messages":[{"model":"inner","max_tokens":9}],"model":"m"}"#, Some("m"), None),
        (CHAT, r#"{"model":"m","max_tokens":3,"messages":[{"content":"cut off"#, Some("m"), Some(3)),
        (CHAT, r#"[{"model":"m"}]"#, None, None),
        (CHAT, r#""model""#, None, None),
        (CHAT, "not json", None, None),
        (CHAT, "", None, None),
    ] {
        let want = Demand {
            model: model.map_or(0, number),
            input_tokens: u32::try_from(body.len() / 4).unwrap(),
            output_tokens_max: output,
            stream: path.contains(":stream") || body.contains(r#""stream":true"#),
            read: body.starts_with('{'),
        };
        assert_eq!(demand(&json(), path, body.as_bytes()), want, "{path} {body}");
        assert_eq!(super::model(path, body.as_bytes()).as_deref(), model, "{path} {body}");
    }
}

#[test]
fn whether_the_answer_streams_is_read() {
    for (path, body, want) in [
        (CHAT, r#"{"stream":true,"model":"m"}"#, true),
        (CHAT, r#"{"messages":[{"content":"cut off"}],"stream": true,"x":"#, true),
        (CHAT, r#"{"stream":false,"stream_options":{"include_usage":true}}"#, false),
        (CHAT, r#"{"stream":null}"#, false),
        (CHAT, r#"{"stream":{"a":[true]},"model":"m"}"#, false),
        (CHAT, r#"{"messages":[{"stream":true}]}"#, false),
        ("/v1beta/models/gemini-3:streamGenerateContent", "", true),
        ("/v1beta/models/gemini-3:generateContent", "{}", false),
        ("/model/anthropic.claude-v1:0/converse-stream", "{}", true),
        ("/model/anthropic.claude-v1:0/invoke-with-response-stream", "{}", true),
        ("/model/upstream/converse", "{}", false),
    ] {
        assert_eq!(demand(&json(), path, body.as_bytes()).stream, want, "{path} {body}");
    }
    let after = demand(&json(), CHAT, br#"{"stream":["x",{}],"model":"m"}"#);
    assert_ne!(after.model, 0, "an odd value does not end the reading");
}

#[test]
fn what_was_not_read_is_told_from_what_says_nothing() {
    let text = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
    for (headers, body, want) in [
        (json(), "{}", true),
        (json(), r#"{"model":"m"#, true),
        (json(), "", false),
        (json(), "[]", false),
        (json(), "nothing", false),
        (text, "{}", false),
    ] {
        assert_eq!(demand(&headers, "/v1/models/m:x", body.as_bytes()).read, want, "{body}");
    }
}

#[test]
fn only_json_is_read_and_a_type_may_be_missing() {
    let body = br#"{"model":"m"}"#;
    for (kind, want) in [
        (Some("application/json"), true),
        (Some("Application/JSON ; charset=utf-8"), true),
        (Some("application/vnd.api+json"), true),
        (None, true),
        (Some("multipart/form-data; boundary=json"), false),
        (Some("text/plain"), false),
    ] {
        let headers = kind.map(|kind| (header::CONTENT_TYPE, HeaderValue::from_static(kind)));
        let demand = demand(&HeaderMap::from_iter(headers), CHAT, body);
        assert_eq!((demand.model != 0, demand.input_tokens), (want, 3), "{kind:?}");
    }
}

#[test]
fn a_body_that_passes_through_counts_with_its_length() {
    for (length, want) in [("4000", 1000), ("2", 0), ("99999999999999", u32::MAX), ("-4", 0), ("x", 0)] {
        let mut headers = json();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static(length));
        assert_eq!(demand(&headers, CHAT, b"").input_tokens, want, "{length}");
    }
}

#[test]
fn a_path_tells_the_model_of_some_apis() {
    for (path, want) in [
        ("/v1beta/models/gemini-3:countTokens", Some("gemini-3")),
        ("/v1/models/gpt-6", Some("gpt-6")),
        ("/v1/models", None),
        ("/v1/models/", None),
        ("/v1/models/:x", None),
        ("/model/a:0/invoke", Some("a:0")),
        ("/v1/chat/completions", None),
        ("", None),
    ] {
        assert_eq!(model_in(path), want, "{path}");
    }
}

#[test]
fn a_model_in_a_path_is_named_as_it_is_meant() {
    for (path, want) in [
        ("/model/anthropic.claude-v2%3A0/converse", "anthropic.claude-v2:0"),
        ("/model/anthropic.claude-v2:0/converse", "anthropic.claude-v2:0"),
        ("/model/%61%2fb%2Fc/converse", "a/b/c"),
        ("/model/m%C3%BCl/converse", "m\u{fc}l"),
        ("/model/m%C3/converse", "m%C3"),
        ("/model/100%/converse", "100%"),
        ("/model/%/converse", "%"),
        ("/model/%4/converse", "%4"),
        ("/model/%%41%4g%+1%\u{fc}/converse", "%A%4g%+1%\u{fc}"),
        ("/v1beta/models/tuned%2Dmine:generateContent", "tuned-mine"),
    ] {
        assert_eq!(model(path, b"").as_deref(), Some(want), "{path}");
        let (demand, named) = of_model(&Told::default(), path, b"");
        assert_eq!((demand.model, named.as_deref()), (names::number([want]), Some(want)), "{path}");
    }
    assert!(matches!(unescaped("gpt-5"), Cow::Borrowed("gpt-5")), "nothing is copied for nothing");
}

proptest! {
    #[test]
    fn no_body_breaks_the_reading(
        path in "(/[a-z:%4]{0,8}|/models){0,4}",
        body in proptest::collection::vec(any::<u8>(), 0..200),
        shaped in "(\\{|\\}|\\[|\\]|:|,|\"model\"|\"max_tokens\"|\"generationConfig\"|null|1e9|-1|\"x\"){0,30}",
    ) {
        for body in [&body[..], shaped.as_bytes()] {
            prop_assert!(demand(&json(), &path, body).input_tokens <= 60);
        }
    }
}
