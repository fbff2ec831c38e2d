//! How busy the machine was meanwhile: figures of a run that did not get the processor show the machine, not the proxy.

use std::{
    collections::HashMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Threads come and go; what one waited is lost with it but for the last look.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs it, and tells how many threads of this process were ready but not running meanwhile, on average. 0 where the
/// system does not say.
pub fn watched<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let done = AtomicBool::new(false);
    let began = Instant::now();
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let before = look(HashMap::new());
            let mut latest = before.clone();
            while !done.load(Ordering::Relaxed) {
                thread::sleep(LOOK_EVERY);
                latest = look(latest);
            }
            let waited = latest.iter().map(|(id, nanos)| nanos - before.get(id).unwrap_or(&0));
            waited.sum::<u64>() as f64 / 1e9
        });
        let result = {
            let _done = Done(&done);
            run()
        };
        let waited = watching.join().unwrap();
        (result, waited / began.elapsed().as_secs_f64())
    })
}

/// Set even if the run panics: the scope waits for the watcher.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Nanoseconds that each thread has waited for a processor so far.
fn look(mut known: HashMap<String, u64>) -> HashMap<String, u64> {
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let waited = fs::read_to_string(task.path().join("schedstat"));
        let waited = waited.ok().and_then(|text| text.split_whitespace().nth(1)?.parse().ok());
        known.extend(waited.map(|waited| (task.file_name().to_string_lossy().into_owned(), waited)));
    }
    known
}
