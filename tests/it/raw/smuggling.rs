//! Two readings of where a request ends: every class by which one request could become two.

use super::{either, passed, refused, refused_with, run};

const HOST: &str = "Host: localhost\r\n";

/// A POST with these header lines, then `body`.
fn post(lines: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\n{HOST}{lines}\r\n{body}")
}

#[tokio::test]
async fn both_framings_at_once_are_one_request_at_most() {
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    run(vec![
        either("CL.TE", post("Content-Length: 44\r\nTransfer-Encoding: chunked\r\n", smuggled)),
        either("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", smuggled)),
        either(
            "CL.TE, a longer body",
            post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
        ),
        either(
            "two CL and TE",
            post("Content-Length: 4\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ),
        either("TE and an illegal CL", post("Transfer-Encoding: chunked\r\nContent-Length: +5\r\n", smuggled)),
        refused(
            "CL and TE of HTTP/1.0",
            "POST /x HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        refused("TE of HTTP/1.0", "POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        refused(
            "TE of HTTP/1.0, kept alive",
            "POST /x HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ])
    .await;
}

#[tokio::test]
async fn content_length_is_one_number_or_nothing() {
    let mut cases: Vec<_> = [
        ("a plus sign", "+5"),
        ("a minus sign", "-5"),
        ("empty", ""),
        ("two numbers and a blank", "5 5"),
        ("an equal list", "5,5"),
        ("an equal list with a blank", "5, 5"),
        ("an unequal list", "5, 6"),
        ("a list with a hole", "5,,5"),
        ("a trailing comma", "5,"),
        ("hexadecimal", "0x5"),
        ("an exponent", "5e0"),
        ("a decimal point", "5.0"),
        ("letters", "five"),
        ("an underscore", "1_0"),
        ("quoted", "\"5\""),
        ("a parameter", "5;a=b"),
        ("Arabic digits", "\u{665}"),
    ]
    .into_iter()
    .map(|(name, value)| refused(name, post(&format!("Content-Length: {value}\r\n"), "hello")))
    .collect();
    cases.extend([
        refused_with(&[400, 413, 431], "2^64", post("Content-Length: 18446744073709551616\r\n", "hello")),
        refused_with(&[400, 413, 431], "2^64 - 1", post("Content-Length: 18446744073709551615\r\n", "hello")),
        refused_with(&[400, 413, 431], "40 digits", post(&format!("Content-Length: {}\r\n", "9".repeat(40)), "hello")),
        refused("unequal lines", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        refused("unequal lines, one empty", post("Content-Length: 5\r\nContent-Length:\r\n", "hello")),
        refused(
            "unequal on GET",
            format!("GET /x HTTP/1.1\r\n{HOST}Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello"),
        ),
        refused("a blank before the colon", post("Content-Length : 5\r\n", "hello")),
        refused("a tab before the colon", post("Content-Length\t: 5\r\n", "hello")),
        either("equal lines", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
        either("leading zeros", post("Content-Length: 0005\r\n", "hello")),
        passed(
            "blanks around",
            post("Content-Length:  \t5 \t\r\n", "hello"),
            &["content-length: 5\r\n", "\r\n\r\nhello"],
            &[],
        ),
        passed("no blank", post("content-length:5\r\n", "hello"), &["content-length: 5\r\n", "\r\n\r\nhello"], &[]),
    ]);
    run(cases).await;
}

#[tokio::test]
async fn transfer_encoding_is_chunked_or_the_request_is_refused() {
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    let mut cases: Vec<_> = [
        ("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n"),
        ("gzip and chunked", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
        ("chunked, gzip", "Transfer-Encoding: chunked, gzip\r\n"),
        ("chunked, chunked", "Transfer-Encoding: chunked, chunked\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("identity", "Transfer-Encoding: identity\r\n"),
        ("identity and a length", "Transfer-Encoding: identity\r\nContent-Length: 15\r\n"),
        ("identity, chunked", "Transfer-Encoding: identity, chunked\r\n"),
        ("chunked, identity", "Transfer-Encoding: chunked, identity\r\n"),
        ("identity line, chunked line", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"),
        ("chunked line, identity line", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ("xchunked", "Transfer-Encoding: xchunked\r\n"),
        ("x, chunked", "Transfer-Encoding: x, chunked\r\n"),
        ("chunke", "Transfer-Encoding: chunke\r\n"),
        ("quoted", "Transfer-Encoding: \"chunked\"\r\n"),
        ("a parameter", "Transfer-Encoding: chunked;q=1\r\n"),
        ("a leading comma", "Transfer-Encoding: ,chunked\r\n"),
        ("a trailing comma", "Transfer-Encoding: chunked,\r\n"),
        ("empty", "Transfer-Encoding:\r\n"),
        ("empty and a length", "Transfer-Encoding:\r\nContent-Length: 15\r\n"),
        ("a blank inside", "Transfer-Encoding: chun ked\r\n"),
        ("two words", "Transfer-Encoding: chunked chunked\r\n"),
        ("vertical tab", "Transfer-Encoding: \u{b}chunked\r\n"),
        ("form feed", "Transfer-Encoding: chunked\u{c}\r\n"),
        ("a no-break space", "Transfer-Encoding: \u{a0}chunked\r\n"),
        ("NUL", "Transfer-Encoding: chunked\0\r\n"),
        ("a blank before the colon", "Transfer-Encoding : chunked\r\n"),
        ("a tab before the colon", "Transfer-Encoding\t: chunked\r\n"),
        ("a blank before the name", " Transfer-Encoding: chunked\r\n"),
        ("folded", "Transfer-Encoding:\r\n chunked\r\n"),
        ("folded after a header", "X-A: b\r\n Transfer-Encoding: chunked\r\n"),
        ("bare CR before", "X-A: b\rTransfer-Encoding: chunked\r\n"),
        ("bare CR after", "Transfer-Encoding: chunked\rX-A: b\r\n"),
    ]
    .into_iter()
    .map(|(name, lines)| refused_with(&[400, 501], name, post(lines, chunked)))
    .collect();
    let clean: &[&str] = &["\r\ntransfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"];
    cases.extend([
        passed("chunked", post("Transfer-Encoding: chunked\r\n", chunked), clean, &["content-length"]),
        passed("capitals", post("TRANSFER-ENCODING: CHUNKED\r\n", chunked), clean, &["content-length"]),
        passed("blanks around", post("Transfer-Encoding:\t chunked \t\r\n", chunked), clean, &["content-length"]),
        passed(
            "named by Connection",
            post("Connection: close, transfer-encoding\r\nTransfer-Encoding: chunked\r\n", chunked),
            clean,
            &["content-length"],
        ),
        passed(
            "Content-Length named by Connection",
            post("Connection: close, content-length\r\nContent-Length: 5\r\n", "hello"),
            &["content-length: 5\r\n", "\r\n\r\nhello"],
            &["transfer-encoding"],
        ),
        passed(
            "a name with an underscore is another name",
            post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "hello"),
            &["content-length: 5\r\n", "\r\n\r\nhello"],
            &["transfer-encoding"],
        ),
    ]);
    run(cases).await;
}

#[tokio::test]
async fn a_body_is_a_body_whatever_the_method() {
    let inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = inner.len();
    let mut cases = Vec::new();
    for (name, method) in [
        ("CL.0 on GET", "GET"),
        ("CL.0 on DELETE", "DELETE"),
        ("CL.0 on OPTIONS", "OPTIONS"),
        ("CL.0 on POST", "POST"),
        ("CL.0 on an unknown method", "BREW"),
    ] {
        let bytes = format!("{method} /x HTTP/1.1\r\n{HOST}Content-Length: {length}\r\n\r\n{inner}");
        cases.push(passed(name, bytes, &["\r\n\r\nget /smuggled"], &["transfer-encoding"]));
    }
    for (name, method) in [("TE.0 on GET", "GET"), ("TE.0 on OPTIONS", "OPTIONS"), ("TE.0 on DELETE", "DELETE")] {
        let bytes = format!(
            "{method} /x HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{inner}\r\n0\r\n\r\n"
        );
        cases.push(passed(name, bytes, &["transfer-encoding: chunked", "\r\nget /smuggled"], &["content-length"]));
    }
    let expect = format!("POST /x HTTP/1.1\r\n{HOST}Expect: y 100-continue\r\nContent-Length: {length}\r\n\r\n{inner}");
    cases.push(passed("an obfuscated Expect", expect, &["\r\n\r\nget /smuggled"], &["expect"]));
    run(cases).await;
}

#[tokio::test]
async fn a_body_that_a_local_answer_leaves_unread_is_no_request() {
    use super::say;
    use crate::support::{Proxy, Reply, Upstream};
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.path_prefix = "/v1".to_owned());
    let inner = "GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for body in [
        format!("Content-Length: {}\r\n\r\n{inner}", inner.len()),
        format!("Content-Length: {}\r\n\r\n{inner}", inner.len() + 100_000),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}", inner.len() + 5),
    ] {
        for _ in 0..5 {
            let got = say(proxy.addr, format!("POST /elsewhere HTTP/1.1\r\nHost: h\r\n{body}").as_bytes()).await;
            assert_eq!(got.statuses, [404], "{body}: {}", got.text);
            assert_eq!(upstream.count(), 0, "{body}");
        }
    }
}

#[tokio::test]
async fn a_bad_chunk_is_the_clients_fault_and_ends_its_connection() {
    let rest = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let chunked = |body: String| post("Transfer-Encoding: chunked\r\n", &body);
    let mut cases: Vec<_> = [
        ("no size", "\r\nhello\r\n"),
        ("not a number", "xyz\r\nhello\r\n"),
        ("a sign", "+5\r\nhello\r\n"),
        ("a minus sign", "-5\r\nhello\r\n"),
        ("0x", "0x5\r\nhello\r\n"),
        ("an underscore", "0_5\r\nhello\r\n"),
        ("a blank before", " 5\r\nhello\r\n"),
        ("two numbers", "5 5\r\nhello\r\n"),
        ("a blank and junk", "5 x\r\nhello\r\n"),
        ("2^64", "10000000000000000\r\nhello\r\n"),
        ("a comma", "5,5\r\nhello\r\n"),
        ("bare LF after the size", "5\nhello\r\n"),
        ("bare CR after the size", "5\rhello\r\n"),
        ("bare LF after the data", "5\r\nhello\n"),
        ("bare CR after the data", "5\r\nhello\r"),
        ("nothing after the data", "5\r\nhello"),
        ("data longer than its chunk", "5\r\nhello!!\r\n"),
        ("data shorter than its chunk", "8\r\nhello\r\n"),
        ("bare LF in an extension", "5;a=b\nhello\r\n"),
        ("bare LF after an extension", "5;a\nhello\r\n"),
        ("bare CR in an extension", "5;a\rb\r\nhello\r\n"),
        ("NUL as the size", "\0\r\nhello\r\n"),
    ]
    .into_iter()
    .map(|(name, chunk)| refused(name, chunked(format!("{chunk}{rest}"))))
    .collect();
    cases.extend([
        refused("bare LF ends the last chunk", chunked("5\r\nhello\r\n0\n\r\n".into())),
        // hyper takes what follows for a trailer: it goes nowhere.
        either("bare LF ends the body", chunked("5\r\nhello\r\n0\r\n\nGET /smuggled HTTP/1.1\r\n\r\n".into())),
        refused("bare CR ends the body", chunked("5\r\nhello\r\n0\r\n\rGET /smuggled HTTP/1.1\r\n\r\n".into())),
        refused("a trailer without a colon", chunked("5\r\nhello\r\n0\r\nx\r\n\r\n".into())),
        refused("a blank before a trailer's colon", chunked("5\r\nhello\r\n0\r\nx : y\r\n\r\n".into())),
        refused("NUL in a trailer", chunked("5\r\nhello\r\n0\r\nx: \0\r\n\r\n".into())),
        refused("a long extension", chunked(format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(100_000)))),
        refused("long trailers", chunked(format!("5\r\nhello\r\n0\r\nx: {}\r\n\r\n", "a".repeat(100_000)))),
        refused("many trailers", chunked(format!("5\r\nhello\r\n0\r\n{}\r\n", "x: y\r\n".repeat(2_000)))),
        refused("endless zeros", chunked("0".repeat(6 << 20))),
        refused("endless zeros after a chunk", chunked(format!("5\r\nhello\r\n{}", "0".repeat(6 << 20)))),
        passed(
            "extensions are dropped",
            chunked("5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n".into()),
            &["\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
            &["a=b"],
        ),
        passed("leading zeros", chunked("0005\r\nhello\r\n000\r\n\r\n".into()), &["5\r\nhello\r\n0\r\n\r\n"], &[]),
        passed("capital digits", chunked("A\r\nhellohello\r\n0\r\n\r\n".into()), &["a\r\nhellohello\r\n0\r\n"], &[]),
        passed(
            "framing fields in trailers",
            post(
                "Transfer-Encoding: chunked\r\nTrailer: content-length, host, transfer-encoding, x-ok\r\n",
                "5\r\nhello\r\n0\r\nContent-Length: 9\r\nHost: evil\r\nTransfer-Encoding: gzip\r\nX-Ok: 1\r\n\r\n",
            ),
            &["0\r\nx-ok: 1\r\n\r\n"],
            &["content-length: 9", "host: evil", "gzip"],
        ),
    ]);
    run(cases).await;
}

#[tokio::test]
async fn a_bad_chunk_in_a_body_that_streams_is_the_clients_fault_too() {
    use super::say;
    use crate::support::{Proxy, Reply, Upstream};
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.buffers.request_max_bytes = 16);
    let good = format!("40\r\n{}\r\n", "x".repeat(64));
    let zeros = "0".repeat(6 << 20);
    for bad in ["xyz\r\n", "5\nhello\r\n", "5\r\nhello!!\r\n", "5;a\nhello\r\n", "-1\r\n", &zeros] {
        let bytes = format!("POST /x HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{good}{bad}0\r\n\r\n");
        let got = say(proxy.addr, bytes.as_bytes()).await;
        let bad: String = bad.chars().take(20).collect();
        assert!(got.statuses == [400] && got.closed, "{bad:?}: {}", got.text);
        assert_eq!(upstream.count(), 0, "{bad:?}: a whole request went upstream");
    }
    proxy.idle().await;
}
