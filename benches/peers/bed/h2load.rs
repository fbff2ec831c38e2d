//! HTTP/2 load, with prior knowledge: a few connections with several streams each.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use tokio::{net::TcpStream, task::JoinSet};

use super::{cpu, load::Turn, wire};

#[derive(Debug)]
pub(crate) struct Pool {
    lanes: Vec<SendRequest<Bytes>>,
    connections: JoinSet<()>,
}

impl Pool {
    pub(crate) async fn open(addr: SocketAddr, connections: usize, streams: usize) -> Result<Self> {
        let mut pool = Self { lanes: Vec::new(), connections: JoinSet::new() };
        for _ in 0..connections {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = h2::client::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 24)
                .handshake(stream)
                .await?;
            pool.connections.spawn(async move {
                if let Err(error) = connection.await {
                    eprintln!("peers: HTTP/2: {error}");
                }
            });
            pool.lanes.extend((0..streams).map(|_| sender.clone()));
        }
        Ok(pool)
    }

    pub(crate) async fn run(&mut self, long: Duration, pids: &[u32]) -> Result<Turn> {
        let stop = Arc::new(AtomicBool::new(false));
        let body = Bytes::from(wire::request_body());
        let (cpu, own, start) = (cpu::spent(pids), cpu::own(), Instant::now());
        let mut lanes = JoinSet::new();
        for lane in self.lanes.drain(..) {
            lanes.spawn(drive(lane, body.clone(), Arc::clone(&stop)));
        }
        tokio::time::sleep(long).await;
        stop.store(true, Relaxed);
        let mut done = 0;
        while let Some(lane) = lanes.join_next().await {
            let (lane, count) = lane??;
            self.lanes.push(lane);
            done += count;
        }
        let (wall, own) = (start.elapsed(), cpu::own() - own);
        tokio::time::sleep(Duration::from_millis(2)).await;
        Ok(Turn {
            done,
            wall,
            cpu: cpu::spent(pids) - cpu,
            own: own.as_secs_f64() / wall.as_secs_f64(),
            latencies: Vec::new(),
        })
    }
}

async fn drive(mut lane: SendRequest<Bytes>, body: Bytes, stop: Arc<AtomicBool>) -> Result<(SendRequest<Bytes>, u64)> {
    let mut done = 0;
    while !stop.load(Relaxed) {
        lane = lane.ready().await?;
        let request = http::Request::post("http://127.0.0.1/v1/chat/completions")
            .header("authorization", "Bearer sk-abcdefgh")
            .header("content-type", "application/json")
            .header("user-agent", "load")
            .header("accept", "*/*")
            .header("content-length", body.len())
            .body(())?;
        let (answer, mut send) = lane.send_request(request, false)?;
        send.send_data(body.clone(), true)?;
        let answer = answer.await?;
        ensure!(answer.status() == 200, "the proxy answered {}", answer.status());
        let mut answer = answer.into_body();
        let mut bytes = 0;
        while let Some(data) = answer.data().await {
            let data = data?;
            bytes += data.len();
            answer.flow_control().release_capacity(data.len())?;
        }
        ensure!(bytes == wire::ANSWER_BYTES, "an answer of {bytes} bytes");
        done += 1;
    }
    Ok((lane, done))
}
