//! The command line beside `serve`: what its commands print, and how they end.

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
        ("nonsense", 2, "\"nonsense\" is no admin port; name it like http://127.0.0.1:9090"),
    ] {
        let ended = Process::run(&["healthcheck", "--admin", admin], &[]).await;
        assert_eq!((ended.code, ended.err), (Some(code), format!("tidegate: healthcheck: {why}\n")));
    }
}
