//! A whole Tidegate in this process: worker threads, listeners and all.

use std::{net::SocketAddr, sync::Arc};

use tidegate::{
    app::App,
    config::{Config, Upstream},
    control::{gate::GateView, signals::Attribution},
    gate::Gate,
    upstream::Ways,
};

use super::{Client, Response, wait_until};

/// A running proxy. Stops with its handle.
pub struct Proxy {
    /// The program.
    pub app: Option<App>,
    /// Where the proxy listens.
    pub addr: SocketAddr,
    /// Where the admin listener listens.
    pub admin: SocketAddr,
}

impl Proxy {
    /// In front of `url`, with changes to the one upstream's settings.
    pub fn start(url: &str, change: impl FnOnce(&mut Upstream)) -> Self {
        Self::configured(url, |config| change(&mut config.upstreams[0]))
    }

    /// In front of `url`, with changes to any setting.
    pub fn configured(url: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::by(Ways::default(), url, change)
    }

    /// The same, with names and connection ages of the test's own.
    pub fn by(ways: Ways, url: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::for_upstream(url).unwrap();
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.threads = 2;
        change(&mut config);
        let app = App::start_by(config, ways).unwrap();
        let (addr, admin) = (app.proxy, app.admin.unwrap());
        Self { app: Some(app), addr, admin }
    }

    /// The program.
    pub fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// A client connection.
    pub async fn client(&self) -> Client {
        Client::connect(self.addr).await
    }

    /// One POST on a connection of its own.
    pub async fn post(&self, path: &str, headers: &str, body: &str) -> Response {
        let mut client = self.client().await;
        client.post(path, headers, body).await;
        client.response().await
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, path: &str) -> Response {
        let mut client = self.client().await;
        client.get(path).await;
        client.response().await
    }

    /// One GET at the admin listener.
    pub async fn admin(&self, path: &str) -> Response {
        let mut client = Client::connect(self.admin).await;
        client.get(path).await;
        client.response().await
    }

    /// The gates of all accounts.
    pub fn gates(&self) -> Vec<Arc<Gate>> {
        self.app().shared.gates()
    }

    /// The numbers of the only account; all zero before the first request.
    pub fn view(&self) -> GateView {
        let gates = self.gates();
        assert!(gates.len() <= 1, "{} accounts", gates.len());
        gates.first().map_or(
            GateView {
                limit: 0,
                ceiling: None,
                in_flight: 0,
                queued: 0,
                paused: None,
                drain_per_second: 0.0,
                delay_limit: None,
                overload_limit: None,
                rates: Vec::new(),
                unknown_means: Attribution::Unknown,
                quotas_spent: 0,
            },
            |gate| gate.view(),
        )
    }

    /// Waits until nothing is in flight and nobody waits, in any account.
    pub async fn idle(&self) {
        wait_until("nothing in flight and nobody waiting", || {
            self.gates().iter().all(|gate| gate.view().in_flight == 0 && gate.view().queued == 0)
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(app) = self.app.take() {
            app.stop();
        }
    }
}
