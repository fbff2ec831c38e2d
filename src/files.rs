//! File descriptors: every connection is one, so thousands of clients need thousands.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than this is not asked for: a table of this size takes a few MiB.
const WANTED: u64 = 65_536;

/// Raises the limit on open files as far as the system allows, and makes the kernel's table that large now: growing
/// it later, with threads running, stalls all of them for milliseconds. Call before threads start.
pub fn make_room() {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(WANTED);
    let wanted = WANTED.min(hard);
    if now.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: now.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit on open files could not be raised");
            return;
        }
    }
    if let (Ok(null), Ok(top)) = (std::fs::File::open("/dev/null"), i32::try_from(wanted.saturating_sub(1))) {
        // The copy is closed again at once; the table stays.
        drop(rustix::io::fcntl_dupfd_cloexec(&null, top));
    }
}
