//! The real binary as a process of its own, and folders for its files.

use std::{
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::{Client, Response, wait_until};

/// A running `tidegate`. Ends with its handle.
pub struct Process {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None`: a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Process {
    /// Starts it with nothing in its environment but `env`.
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(args)
            .env_clear()
            .envs(env.iter().copied())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, err) = (Arc::default(), Arc::default());
        let readers = vec![
            follow(child.stdout.take().unwrap(), Arc::clone(&out)),
            follow(child.stderr.take().unwrap(), Arc::clone(&err)),
        ];
        Self { child, out, err, readers }
    }

    /// Runs it to its end.
    pub async fn run(args: &[&str], env: &[(&str, &str)]) -> Ended {
        Self::start(args, env).ended().await
    }

    /// The value of a word `name=value` in the ready line, once it is there.
    pub async fn told(&self, name: &str) -> String {
        wait_until("a line on standard output", || self.out().contains('\n') || self.readers[0].is_finished()).await;
        let (out, start) = (self.out(), format!("{name}="));
        let found = out.split_whitespace().find_map(|word| word.strip_prefix(&start)).map(str::to_owned);
        found.unwrap_or_else(|| panic!("no {name} in {out:?}; standard error: {}", self.err()))
    }

    /// The address in the ready line.
    pub async fn addr(&self, name: &str) -> SocketAddr {
        self.told(name).await.split_once("://").unwrap().1.parse().unwrap()
    }

    /// A connection to the proxy.
    pub async fn client(&self) -> Client {
        Client::connect(self.addr("proxy").await).await
    }

    /// One GET at the admin listener.
    pub async fn admin(&self, path: &str) -> Response {
        let mut client = Client::connect(self.addr("admin").await).await;
        client.get(path).await;
        client.response().await
    }

    /// Waits until a page of the admin listener says so.
    pub async fn admin_says(&self, path: &str, mut so: impl FnMut(&Response) -> bool) {
        super::soon(&format!("what {path} should say"), async {
            while !so(&self.admin(path).await) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Standard output so far.
    pub fn out(&self) -> String {
        self.out.lock().clone()
    }

    /// Standard error so far.
    pub fn err(&self) -> String {
        self.err.lock().clone()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        let mut status = None;
        wait_until("the process has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Ended { code: status.unwrap().code(), out: self.out(), err: self.err() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(mut from: impl Read + Send + 'static, text: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            text.lock().push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    })
}

/// A folder that goes with its handle.
pub struct Folder(PathBuf);

impl Folder {
    /// An empty one.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidegate-it-{}-{nth}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The sum of all samples of a metric whose labels contain every one of `labels` (`end="fault"`); `None`: there is none.
pub fn metric(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let samples = page.lines().filter_map(|line| line.rsplit_once(' ')).filter(|(series, _)| {
        let (found, rest) = series.split_once('{').unwrap_or((series, ""));
        found == name && labels.iter().all(|label| rest.contains(label))
    });
    let values: Vec<f64> = samples.map(|(_, value)| value.parse().unwrap()).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}
