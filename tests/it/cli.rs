//! The command line beside `serve`: what its commands print, and how they end.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::support::{Folder, Process, Reply, Upstream};

#[tokio::test]
async fn a_health_check_needs_no_shell() {
    let upstream = Upstream::start(|_| Reply::ok("fine").held()).await;
    let process =
        Process::start(&["--upstream", &upstream.url(), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], &[]);
    let admin = process.addr("admin").await;
    let named = format!("http://{admin}");
    let file = Folder::new();
    let file = (
        file.write("c.yaml", &format!("{{ admin: '0.0.0.0:{}', upstreams: [{{ url: http://h }}] }}", admin.port())),
        file,
    );
    for (args, env) in [
        (&["healthcheck", "--admin", &named][..], &[][..]),
        (&["healthcheck"], &[("TIDEGATE_ADMIN", named.as_str())]),
        (&["healthcheck", "--config", &file.0], &[]),
        (&["healthcheck"], &[("TIDEGATE_CONFIG", file.0.as_str())]),
    ] {
        let ended = Process::run(args, env).await;
        assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(0), "", ""), "{args:?}");
    }
    // A request that runs keeps it alive while it drains.
    let mut client = process.client().await;
    client.get("/held").await;
    crate::support::wait_until("the request is upstream", || upstream.in_flight() == 1).await;
    process.signal(rustix::process::Signal::TERM);
    process.admin_says("/readyz", |answer| answer.status == 503).await;
    let ended = Process::run(&["healthcheck", "--admin", &named], &[]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert_eq!(ended.err, format!("tidegate: healthcheck: {named} says 503: draining\n"));
    upstream.release(1);
    assert_eq!(process.ended().await.code, Some(0));
    let ended = Process::run(&["healthcheck", "--admin", &named], &[]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.starts_with(&format!("tidegate: healthcheck: cannot connect to {named} (")), "{}", ended.err);
    for (admin, code, why) in [
        ("off", 1, "the admin listener is off, so there is nobody to ask"),
        (":9090", 2, "\":9090\" is no admin port; name it like http://127.0.0.1:9090"),
        ("nonsense", 2, "\"nonsense\" is no admin port; name it like http://127.0.0.1:9090"),
    ] {
        let ended = Process::run(&["healthcheck", "--admin", admin], &[]).await;
        assert_eq!((ended.code, ended.err), (Some(code), format!("tidegate: healthcheck: {why}\n")));
    }
}

#[tokio::test]
async fn errors_name_the_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let port = addr.port();
    let (listen, api) = (addr.to_string(), "--upstream=http://127.0.0.1:1");
    for (args, code, want) in [
        (
            &[api, "--listen", &listen][..],
            2,
            format!("listen: cannot listen on {listen}: port {port} is taken by another process; try --listen 127.0.0.1:0 for a free one"),
        ),
        (
            &[api, "--listen", "127.0.0.1:0", "--admin", &listen],
            2,
            format!("admin: cannot listen on {listen}: port {port} is taken by another process; try --admin 127.0.0.1:0 for a free one"),
        ),
        (
            &[api, "--admin=off", "--listen", "192.0.2.1:8080"],
            2,
            "listen: cannot listen on 192.0.2.1:8080: this machine has no such address; try --listen 127.0.0.1:8080, or 0.0.0.0:8080 for all it has".to_owned(),
        ),
        (
            &["mock", "--listen", &listen],
            2,
            format!("listen: cannot listen on {listen}: port {port} is taken by another process; try --listen 127.0.0.1:0 for a free one"),
        ),
        (
            &["mock", "--listen", ":8081"],
            2,
            "invalid value ':8081' for '--listen <ADDR>': expected an IP address and a port, such as 127.0.0.1:8081 or, for every interface, 0.0.0.0:8081 (tidegate mock --help shows what there is)".to_owned(),
        ),
        (
            &["--upstream"],
            2,
            "a value is required for '--upstream <URL>' but none was supplied (tidegate --help shows what there is)".to_owned(),
        ),
        (
            &[api, "--ceiling", "-1"],
            2,
            "configuration: --ceiling: found `-1`, expected a whole number from 1 to 1000000".to_owned(),
        ),
        (
            &[api, "--ceiling", "99999999999999999999"],
            2,
            "configuration: --ceiling: found `99999999999999999999`, expected a whole number from 1 to 1000000".to_owned(),
        ),
        (
            &["top", "--admin", ":7773"],
            2,
            "top: \":7773\" is no admin port; name it like http://127.0.0.1:9090".to_owned(),
        ),
        (
            &["--config", "/nowhere.yaml"],
            2,
            "configuration: /nowhere.yaml: No such file or directory (os error 2); `tidegate init` writes one to start from".to_owned(),
        ),
        (
            &["https://api.openai.com"],
            2,
            "unrecognized subcommand 'https://api.openai.com'; try --upstream URL".to_owned(),
        ),
        (&["tidegate.yaml"], 2, "unrecognized subcommand 'tidegate.yaml'; try --config FILE".to_owned()),
        (
            &["--upstraem", "http://h"],
            2,
            "unexpected argument '--upstraem' found tip: a similar argument exists: '--upstream' (tidegate --help shows what there is)".to_owned(),
        ),
    ] {
        let ended = Process::run(args, &[]).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(code), ""), "{args:?}");
        assert_eq!(ended.err, format!("tidegate: {want}\n"), "{args:?}");
    }
}

#[tokio::test]
async fn every_command_teaches_by_example() {
    let top = Process::run(&["--help"], &[]).await;
    assert_eq!((top.code, top.err.as_str()), (Some(0), ""));
    let commands: Vec<&str> = top
        .out
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"serve") && commands.contains(&"init"), "{commands:?}");
    for command in commands {
        let help = Process::run(&[command, "--help"], &[]).await;
        assert_eq!((help.code, help.err.as_str()), (Some(0), ""), "{command}");
        assert!(help.out.contains(&format!("  tidegate {command}")), "{command} has no example\n{}", help.out);
    }
}

#[tokio::test]
async fn completions_and_the_manual_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = Process::run(&["completions", shell], &[]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{shell}");
        for word in ["healthcheck", "upstream", "log-level"] {
            assert!(ended.out.contains(word), "{shell} does not know {word}");
        }
    }
    let page = Process::run(&["man"], &[]).await;
    assert_eq!((page.code, page.err.as_str()), (Some(0), ""));
    assert!(
        page.out.contains(".TH") && page.out.contains("healthcheck") && page.out.contains("Examples"),
        "{}",
        page.out
    );
    let folder = Folder::new();
    let pages = folder.path().join("new/man1");
    let ended = Process::run(&["man", "--dir", pages.to_str().unwrap()], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(pages.join("tidegate-serve.1").exists());
}

#[tokio::test]
async fn what_init_writes_is_accepted() {
    let folder = Folder::new();
    let file = folder.path().join("tidegate.yaml");
    let file = file.to_str().unwrap();
    for preset in tidegate::provider::presets::Preset::ALL.map(|preset| preset.name()) {
        let ended = Process::run(&["init", "--preset", preset, "--force", file], &[]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{preset}");
        let starts_with_placeholder = ["azure", "generic"].contains(&preset);
        let checked = Process::run(&["check", file], &[]).await;
        assert_eq!(
            (checked.code, checked.err.is_empty()),
            (Some(0), !starts_with_placeholder),
            "{preset}: {}",
            checked.err
        );
        assert!(checked.out.contains(&format!("preset: {preset}\n")), "{preset}: {}", checked.out);
        let value: serde_json::Value = yaml_serde::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert!(jsonschema::is_valid(&tidegate::config::schema(), &value), "{preset}");
    }
    let again = Process::run(&["init", file], &[]).await;
    assert_eq!(again.code, Some(1));
    assert_eq!(
        again.err,
        format!("tidegate: init: {file} is there already; --force replaces it, another name spares it\n")
    );
    let own = Process::run(&["init", "--upstream", "https://api.groq.com", "-"], &[]).await;
    assert!(own.out.contains("url: https://api.groq.com\n    preset: groq "), "{}", own.out);
    let wrong = Process::run(&["init", "--preset", "opnai", "-"], &[]).await;
    assert_eq!(
        (wrong.code, wrong.err.as_str()),
        (Some(2), "tidegate: init: --preset: found `opnai`; did you mean `openai`?\n")
    );
}

#[tokio::test]
async fn check_warns_on_standard_error_and_accepts() {
    let folder = Folder::new();
    let file =
        folder.write("c.yaml", "{ admin: '0.0.0.0:9090', upstreams: [{ url: https://h, queue: { wait_max: 20m } }] }");
    let ended = Process::run(&["check", &file], &[]).await;
    assert_eq!(ended.code, Some(0));
    let lines: Vec<_> = ended.err.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("tidegate: warning: `admin` is 0.0.0.0:9090: other machines"), "{lines:?}");
    assert!(lines[1].starts_with("tidegate: warning: upstream h: `queue.wait_max` is 20m"), "{lines:?}");
}

#[tokio::test]
async fn a_variable_is_blamed_by_its_name_and_only_where_it_matters() {
    let folder = Folder::new();
    let file = folder.write("c.yaml", "{ upstreams: [{ url: https://h, ceiling: 5 }] }");
    for (args, env, code, want) in [
        (&["schema"][..], ("TIDEGATE_LOG_LEVEL", "loud"), 0, ""),
        (
            &["--upstream", "http://h"],
            ("TIDEGATE_LOG_LEVEL", "loud"),
            2,
            "tidegate: invalid value 'loud' for 'TIDEGATE_LOG_LEVEL <LEVEL>' [possible values: error, warn, info, debug, trace] (tidegate --help shows what there is)\n",
        ),
        (
            &["serve", "--upstream", "http://h"],
            ("TIDEGATE_CEILING", "x"),
            2,
            "tidegate: configuration: TIDEGATE_CEILING: found `x`, expected a whole number from 1 to 1000000\n",
        ),
        (
            &["check", &file],
            ("TIDEGATE_CEILING", "0"),
            2,
            "tidegate: configuration: TIDEGATE_CEILING: found `0`, expected a whole number from 1 to 1000000\n",
        ),
        (&["check", &file], ("TIDEGATE_CEILING", ""), 0, ""),
        (&["--version"], ("TIDEGATE_LOG_FORMAT", ""), 0, ""),
        (
            &["--config", "/nowhere.yaml"],
            ("TIDEGATE_LOG_FORMAT", ""),
            2,
            "tidegate: configuration: /nowhere.yaml: No such file or directory (os error 2); `tidegate init` writes one to start from\n",
        ),
    ] {
        let ended = Process::run(args, &[env]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(code), want), "{args:?} {env:?}");
    }
    let checked = Process::run(&["check", &file], &[("TIDEGATE_CEILING", "3")]).await;
    assert!(checked.out.contains("ceiling: 3\n") && !checked.out.contains("ceiling: 5"), "{}", checked.out);
}

#[tokio::test]
async fn check_refuses_the_files_that_serve_would() {
    let folder = Folder::new();
    let none = folder.write("none.pem", "nothing\n");
    for (text, want) in [
        ("{ tls: { cert: /nope.pem, key: /nope2.pem }, upstreams: [{ url: https://h }] }".to_owned(), "tls: /nope"),
        ("upstreams: [{ name: a, url: https://h, tls: { ca: /nope } }]".to_owned(), "upstream `a`: /nope: "),
        (
            format!("upstreams: [{{ name: a, url: https://h, tls: {{ ca: {none} }} }}]"),
            format!("upstream `a`: {none}: no certificate in it").as_str(),
        ),
    ] {
        let file = folder.write("c.yaml", &text);
        let checked = Process::run(&["check", &file], &[]).await;
        assert_eq!((checked.code, checked.out.as_str()), (Some(2), ""), "{text}");
        assert!(checked.err.starts_with(&format!("tidegate: {want}")), "{text}: {}", checked.err);
        let served = Process::run(&["--config", &file], &[("TIDEGATE_LISTEN", "127.0.0.1:0")]).await;
        assert_eq!((served.code, served.err), (Some(2), checked.err), "{text}");
    }
}

#[test]
fn check_reads_standard_input() {
    let mut check = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let mut check =
        check.args(["check", "-"]).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(b"upstreams: [{ url: https://h, ceiling: 7 }]").unwrap();
    let ended = check.wait_with_output().unwrap();
    assert!(ended.status.success() && String::from_utf8_lossy(&ended.stdout).contains("ceiling: 7"));
}

#[cfg(target_os = "linux")]
#[test]
fn what_could_not_be_written_is_not_done_and_a_reader_may_leave() {
    let run = |args: &[&str], out: Stdio| {
        let ended = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(args).env_clear().stdout(out).output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    for args in [&["schema"][..], &["man"], &["completions", "zsh"], &["init", "-"], &["--help"], &["--version"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (code, said) = run(args, full.into());
        assert_eq!(code, Some(1), "{args:?}");
        assert!(said.starts_with("tidegate: cannot write to standard output: No space left"), "{args:?}: {said}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(args, writer.into()), (Some(0), String::new()), "{args:?}");
    }
}

#[test]
fn bash_is_offered_presets_and_files() {
    let script = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(["completions", "bash"]).output().unwrap().stdout;
    let folder = Folder::new();
    let script = folder.write("tidegate.bash", &String::from_utf8(script).unwrap());
    folder.write("mine.yaml", "");
    for (words, want) in [("check ''", "mine.yaml"), ("init ''", "mine.yaml"), ("--preset anth", "anthropic")] {
        let words: Vec<&str> = words.split(' ').collect();
        let ask = format!(
            "source {script}; cd {}; COMP_WORDS=(tidegate {} {}); COMP_CWORD=2; _tidegate tidegate {} {}; echo \"${{COMPREPLY[*]}}\"",
            folder.path().display(),
            words[0],
            words[1],
            words[1],
            words[0],
        );
        let Ok(said) = Command::new("bash").args(["--norc", "-c", &ask]).output() else { return };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains(want) && !said.contains("--help"), "{words:?}: {said}");
    }
}
