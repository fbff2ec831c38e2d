//! The admin listener and the browsers on its machine: no page of somebody else's reads or changes anything, under
//! whatever name it comes.

use sha2::{Digest, Sha256};

use crate::support::{Client, Proxy, Reply, Response, Upstream};

async fn ask(proxy: &Proxy, request: &str) -> Response {
    let mut client = Client::connect(proxy.admin).await;
    client.send(request).await;
    client.response().await
}

#[tokio::test]
async fn only_names_of_this_machine_are_answered() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.admin_hosts = vec!["tidegate.internal".to_owned()]);
    let port = proxy.admin.port();
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 200),
        ("localhost".to_owned(), 200),
        (format!("localhost:{port}"), 200),
        ("LOCALHOST:1".to_owned(), 200),
        ("[::1]:9090".to_owned(), 200),
        (format!("tidegate.internal:{port}"), 200),
        (format!("evil.test:{port}"), 403),
        ("evil.test".to_owned(), 403),
        ("127.0.0.1.evil.test".to_owned(), 403),
        ("localhost.evil.test".to_owned(), 403),
        ("tidegate.internal.evil.test".to_owned(), 403),
        ("192.0.2.1".to_owned(), 403),
        (String::new(), 403),
    ] {
        for path in ["/", "/status", "/metrics", "/healthz", "/readyz", "/nowhere"] {
            let response = ask(&proxy, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
            let want = if path == "/nowhere" && status == 200 { 404 } else { status };
            assert_eq!(response.status, want, "{host}{path}");
            assert!(status == 200 || !response.text().contains("tidegate_in_flight"), "{host}{path}");
        }
        if status != 200 {
            let drain = format!("POST /drain HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n");
            assert_eq!(ask(&proxy, &drain).await.status, 403, "{host}");
        }
    }
    for (request, status) in [
        ("GET http://evil.test/status HTTP/1.1\r\nhost: localhost\r\n\r\n", 403),
        ("GET http://localhost/status HTTP/1.1\r\nhost: localhost\r\n\r\n", 200),
        ("GET /status HTTP/1.1\r\n\r\n", 400),
        ("GET /status HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
    ] {
        assert_eq!(ask(&proxy, request).await.status, status, "{request}");
    }
    assert!(!proxy.app().drain_asked.is_cancelled());
}

#[tokio::test]
async fn no_page_of_another_site_changes_anything() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let own = proxy.admin;
    for lines in [
        "origin: http://evil.test\r\n".to_owned(),
        "origin: null\r\n".to_owned(),
        "origin:\r\n".to_owned(),
        "origin: http://127.0.0.1:1\r\n".to_owned(),
        format!("origin: http://localhost:{}\r\n", own.port()),
        format!("origin: file://{own}\r\n"),
        format!("origin: http://{own}.evil.test\r\n"),
        format!("origin: http://{own}\r\norigin: http://evil.test\r\n"),
        format!("origin: http://{own}\r\nsec-fetch-site: cross-site\r\n"),
        "sec-fetch-site: cross-site\r\n".to_owned(),
        "sec-fetch-site: same-site\r\n".to_owned(),
    ] {
        let form = "content-type: text/plain\r\ncontent-length: 0\r\n";
        let response = ask(&proxy, &format!("POST /drain HTTP/1.1\r\nhost: {own}\r\n{form}{lines}\r\n")).await;
        assert_eq!(response.status, 403, "{lines}");
        assert!(!response.head.to_lowercase().contains("access-control"), "{lines}: {}", response.head);
    }
    let preflight = format!("OPTIONS /drain HTTP/1.1\r\nhost: {own}\r\norigin: http://evil.test\r\n\r\n");
    let response = ask(&proxy, &preflight).await;
    assert!(response.status >= 400 && !response.head.to_lowercase().contains("access-control"), "{response:?}");
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH"] {
        let request = format!("{method} /drain HTTP/1.1\r\nhost: {own}\r\ncontent-length: 0\r\n\r\n");
        let mut client = Client::connect(own).await;
        client.send(request).await;
        assert_eq!(client.response_to_head().await.status, 405, "{method}");
    }
    assert!(!proxy.app().drain_asked.is_cancelled());
    let own_page = format!("origin: http://{own}\r\nsec-fetch-site: same-origin\r\ncontent-length: 0\r\n");
    assert_eq!(ask(&proxy, &format!("POST /drain HTTP/1.1\r\nhost: {own}\r\n{own_page}\r\n")).await.status, 202);
    assert!(proxy.app().drain_asked.is_cancelled());
}

#[tokio::test]
async fn every_answer_tells_browsers_to_do_nothing_with_it() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    for (path, host) in [
        ("/", "localhost"),
        ("/status", "localhost"),
        ("/metrics", "localhost"),
        ("/nowhere", "localhost"),
        ("/", "evil"),
    ] {
        let response = ask(&proxy, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        let policy = response.header("content-security-policy").unwrap_or_default();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        for (name, want) in [
            ("cache-control", "no-store"),
            ("cross-origin-resource-policy", "same-origin"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(response.header(name), Some(want), "{path}");
        }
    }
}

#[tokio::test]
async fn the_page_runs_its_own_script_and_no_other() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let response = proxy.admin("/").await;
    let (policy, page) = (response.header("content-security-policy").unwrap(), response.text());
    for element in ["script", "style"] {
        let source = policy.split(&format!("{element}-src 'sha256-")).nth(1).and_then(|rest| rest.split('\'').next());
        let hash = decoded(source.unwrap_or_else(|| panic!("no hash of the {element}: {policy}")));
        let text = page.split(&format!("<{element}>")).nth(1).and_then(|rest| rest.split("</").next()).unwrap();
        assert_eq!(hash, Sha256::digest(text).as_slice(), "{element}");
        assert_eq!(page.matches(&format!("<{element}")).count(), 1, "{element}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    // What the configuration says reaches the page as text, never as markup.
    for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " onclick=", " style=\""] {
        assert!(!page.contains(way), "{way}");
    }
}

fn decoded(base64: &str) -> Vec<u8> {
    let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let bits: String = base64
        .trim_end_matches('=')
        .chars()
        .map(|letter| format!("{:06b}", letters.iter().position(|known| *known == letter).unwrap()))
        .collect();
    bits.as_bytes()
        .chunks_exact(8)
        .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
        .collect()
}

#[tokio::test]
async fn nothing_of_it_is_on_the_proxys_port() {
    let upstream = Upstream::start(|_| Reply::ok("the upstream's")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    for (nth, path) in ["/", "/metrics", "/status", "/healthz", "/readyz"].into_iter().enumerate() {
        assert_eq!(proxy.get(path).await.text(), "the upstream's", "{path}");
        assert_eq!(upstream.count(), nth + 1, "{path}");
    }
    assert_eq!(proxy.post("/drain", "", "").await.text(), "the upstream's");
    assert!(!proxy.app().drain_asked.is_cancelled());
}
