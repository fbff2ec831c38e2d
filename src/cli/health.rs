//! `tidegate healthcheck`: what a container's health check runs where there is no shell and no curl.

use std::path::PathBuf;

use clap::Args;
use http::StatusCode;

use super::{DONE, FAILED, USAGE, fail, load, refuse};
use crate::{
    config::{Overrides, defaults},
    remote::Remote,
};

/// Arguments of `tidegate healthcheck`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidegate healthcheck
  tidegate healthcheck --admin http://127.0.0.1:9090
  HEALTHCHECK CMD [\"tidegate\", \"healthcheck\"]         in a Dockerfile")]
pub(super) struct HealthArgs {
    /// Its admin port, or the address it was told to listen on [default: 127.0.0.1:9090]
    #[arg(long, value_name = "URL", env = "TIDEGATE_ADMIN", hide_env_values = true)]
    admin: Option<String>,
    /// The configuration it runs with, to read `admin` from unless --admin is given
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

/// Exit code 0: `/readyz` says ready.
pub(super) fn check(args: HealthArgs) -> u8 {
    let admin = match (args.admin, args.config) {
        (Some(admin), _) => admin,
        (None, None) => defaults::ADMIN.to_owned(),
        (None, Some(file)) => match load(Some(&file), &Overrides::default()) {
            Ok(config) => config.admin.map_or_else(|| "off".to_owned(), |admin| admin.to_string()),
            Err(error) => return refuse(&error),
        },
    };
    if admin == "off" {
        return fail(FAILED, &"healthcheck: the admin listener is off, so there is nobody to ask");
    }
    let remote = match Remote::new(&admin) {
        Ok(remote) => remote,
        Err(error) => return fail(USAGE, &format_args!("healthcheck: {error}")),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format_args!("healthcheck: {error}")),
    };
    match runtime.block_on(remote.get("/readyz")) {
        Ok((StatusCode::OK, _)) => DONE,
        Ok((status, said)) => {
            let said = String::from_utf8_lossy(&said);
            let said: String = said.trim().chars().filter(|char| !char.is_control()).take(200).collect();
            fail(FAILED, &format_args!("healthcheck: {} says {}: {said}", remote.url(), status.as_u16()))
        }
        Err(error) => fail(FAILED, &format_args!("healthcheck: {error}")),
    }
}
