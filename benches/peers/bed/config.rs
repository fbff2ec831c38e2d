//! What each proxy is told: what somebody who knows it well would write for this work.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::json;

use super::{
    Bed, cpu,
    proxy::{Kind, Setup},
};

/// A limit that never binds.
pub(crate) const WIDE: u32 = 100_000;

/// Writes the configuration into `dir` and says how to start the proxy.
pub(crate) fn command(bed: &Bed, kind: Kind, setup: &Setup, port: u16, dir: &Path) -> Result<Vec<String>> {
    let binary = bed.options.binary(kind).display().to_string();
    let threads = setup.threads.unwrap_or_else(cpu::count);
    let origin = if setup.tls { bed.origin.tls } else { bed.origin.plain };
    let ca = bed.origin.ca.display().to_string();
    let here = dir.display().to_string();
    let file = dir.join(match kind {
        Kind::Tidegate => "tidegate.yaml",
        Kind::Nginx => "nginx.conf",
        Kind::Haproxy => "haproxy.cfg",
        Kind::Envoy => "envoy.json",
    });
    let path = file.display().to_string();
    let (text, arguments) = match kind {
        Kind::Tidegate => (tidegate(setup, &origin.to_string(), &ca, port), vec!["--config".to_owned(), path]),
        Kind::Nginx => {
            // Before it has read its configuration, nginx would write to a log file of the system's.
            let log = format!("{here}/error.log");
            let arguments = ["-p", &here, "-e", &log, "-c", &path].map(str::to_owned).to_vec();
            (nginx(setup, threads, &origin.to_string(), &ca, port, &here), arguments)
        }
        Kind::Haproxy => {
            (haproxy(setup, threads, &origin.to_string(), &ca, port), vec!["-db".to_owned(), "-f".to_owned(), path])
        }
        Kind::Envoy => {
            let mut arguments = vec!["--disable-hot-restart".to_owned(), "-l".to_owned(), "error".to_owned()];
            arguments.extend(["--concurrency".to_owned(), threads.to_string(), "-c".to_owned(), path]);
            (envoy(setup, origin.port(), &ca, port).to_string(), arguments)
        }
    };
    fs::write(file, text)?;
    Ok([vec![binary], arguments].concat())
}

/// Defaults, but for the limit, and where a row needs more.
fn tidegate(setup: &Setup, origin: &str, ca: &str, port: u16) -> String {
    let scheme = if setup.tls { "https" } else { "http" };
    let tls = if setup.tls { format!("\n    tls: {{ ca: {ca} }}") } else { String::new() };
    let threads = setup.threads.map_or(String::new(), |threads| format!("threads: {threads}\n"));
    let ceiling = setup.limit.unwrap_or(WIDE);
    let mut text = format!("listen: 127.0.0.1:{port}\nadmin: 127.0.0.1:0\n{threads}");
    if let Some(accounts) = setup.accounts {
        text += &format!("limits: {{ accounts_max: {accounts} }}\n");
    }
    text += &format!("upstreams:\n  - name: origin\n    url: {scheme}://{origin}\n    ceiling: {ceiling}{tls}\n");
    // A limit that does not bind, or not below the ceiling: without this it would be found, from 10 on; and whoever else
    // makes answers late on this machine, where they take less than a millisecond, would have the guard lower it. The
    // guard stays at work.
    text += &format!("    limit: {{ initial: {ceiling}, delay_tolerance: 100 }}\n");
    text
}

fn nginx(setup: &Setup, threads: usize, origin: &str, ca: &str, port: u16, dir: &str) -> String {
    let http2 = if setup.h2 { " http2" } else { "" };
    let scheme = if setup.tls { "https" } else { "http" };
    let tls = if setup.tls {
        format!(
            "proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca}; proxy_ssl_name localhost; \
             proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.2 TLSv1.3;"
        )
    } else {
        String::new()
    };
    let master = if setup.single { "off" } else { "on" };
    let pass = format!("proxy_pass {scheme}://origin;");
    format!(
        "daemon off; master_process {master}; worker_processes {threads}; worker_rlimit_nofile 20000;
pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_timeout 1h; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_buffer_size 16k; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_read_timeout 10m; proxy_max_temp_file_size 0; {tls}
  upstream origin {{ server {origin}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }}
  server {{
    listen 127.0.0.1:{port} reuseport backlog=4096{http2};
    location / {{ {pass} }}
    location /sse {{ {pass} proxy_buffering off; }}
    location /up {{ {pass} proxy_request_buffering off; }}
  }}
}}
"
    )
}

fn haproxy(setup: &Setup, threads: usize, origin: &str, ca: &str, port: u16) -> String {
    let h2 = if setup.h2 { " proto h2" } else { "" };
    let tls = if setup.tls {
        format!(" ssl verify required ca-file {ca} verifyhost localhost sni str(localhost)")
    } else {
        String::new()
    };
    let limit = setup.limit.map_or(String::new(), |limit| format!(" maxconn {limit}"));
    // Its books take memory for each connection it may have, which valgrind slows down.
    let most = if setup.single { 1000 } else { 9900 };
    format!(
        "global
  nbthread {threads}
  maxconn {most}
defaults
  mode http
  timeout client 1h
  timeout server 1h
  timeout connect 10s
  timeout queue 10m
  timeout http-keep-alive 1h
  http-reuse always
frontend clients
  bind 127.0.0.1:{port} backlog 4096{h2}
  use_backend streams if {{ path_beg /sse }}
  default_backend origin
backend origin
  server origin {origin} pool-purge-delay 1h{limit}{tls}
backend streams
  option http-no-delay
  server origin {origin} pool-purge-delay 1h{tls}
"
    )
}

fn envoy(setup: &Setup, origin: u16, ca: &str, port: u16) -> serde_json::Value {
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", "suppress_envoy_headers": true }
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients", "codec_type": if setup.h2 { "HTTP2" } else { "HTTP1" }, "generate_request_id": false,
        "stream_idle_timeout": "3600s", "http_filters": [router],
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "origin", "timeout": "0s" } }] }] }
    });
    let most = json!({ "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 });
    let mut cluster = json!({
        "name": "origin", "type": "STATIC", "connect_timeout": "10s",
        "circuit_breakers": { "thresholds": [most] },
        "load_assignment": { "cluster_name": "origin",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(origin) } }] }] }
    });
    if setup.tls
        && let Some(cluster) = cluster.as_object_mut()
    {
        let context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": "localhost",
            "common_tls_context": { "validation_context": { "trusted_ca": { "filename": ca } } }
        });
        cluster.insert(
            "transport_socket".to_owned(),
            json!({ "name": "envoy.transport_sockets.tls", "typed_config": context }),
        );
    }
    json!({ "static_resources": {
        "listeners": [{ "address": address(port), "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }] }] }],
        "clusters": [cluster]
    } })
}
