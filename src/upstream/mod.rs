//! Connections to the upstream: a small pool per thread, on hyper's low-level client.
//!
//! Why not hyper-util's pooled client: whoever owns the connection knows whether a failed request was written, which
//! decides what may be sent again, and when an abandoned attempt is really gone, which decides when its slot is free.
//! It is also cheaper: everything of a request stays on one thread.

mod answered;
#[cfg(feature = "otlp")]
mod ask;
mod body;
mod connect;
mod hold;
mod pool;
mod ways;

pub(crate) use body::plus;
pub use body::{BodyError, ClientBody, SendBody, Upload};
pub use connect::{Connector, ConnectorError, NotReached};
pub use hold::{Hold, Unheard};
pub use pool::{Failed, Pool, Want};
pub use ways::{Ages, Resolve, Resolving, Ways};
