//! The `tidegate` binary. Everything lives in the library.

use std::process::ExitCode;

// Chosen for memory with thousands of requests waiting, which `tests/sdk/test_memory.py` watches: each connection has
// buffers of 8 KiB that stay untouched while it waits, and in page-aligned runs they take no resident memory. Not
// elsewhere than on Linux, since it was measured on Linux only.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    tidegate::cli::run()
}
