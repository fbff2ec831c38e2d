//! Named background tasks with one cancellation token. The only place that spawns.

use std::{future::Future, time::Duration};

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// Spawns tasks on the current thread's runtime, tells them when to stop, and waits for them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that is waited for separately and stops with this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), stop: self.stop.child_token() }
    }

    /// Runs `task` on the current thread's runtime. It is not aborted: it ends by itself, soon after
    /// [`stopping`](Self::stopping) if it runs long. On a thread whose runtime is gone nothing runs any more, and
    /// the task is dropped.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Ok(runtime) = Handle::try_current() {
            self.tracker.spawn_on(task.instrument(tracing::trace_span!("task", name)), &runtime);
        }
    }

    /// Tells the tasks to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Completes when the tasks are to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// How many run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// None runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until none runs. `false`: some still did after `max`.
    pub async fn finished(&self, max: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(max, self.tracker.wait()).await.is_ok()
    }
}
