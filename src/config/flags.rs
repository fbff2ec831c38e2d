//! The command line laid over the file: a flag beats what the file says.

use std::path::Path;

use super::{
    Config, ConfigError, check,
    de::{At, Value},
    file::{self, Root},
    otlp,
    problem::{Origin, Problem},
};

/// What the flags of `serve` say about the configuration. `None`: not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--upstream`: URL of the only upstream.
    pub upstream: Option<String>,
    /// `--listen`: address of the proxy.
    pub listen: Option<String>,
    /// `--admin`: address of the admin listener, or `off`.
    pub admin: Option<String>,
    /// `--tier`: tier of every upstream.
    pub tier: Option<String>,
    /// `--ceiling`: ceiling of every upstream.
    pub ceiling: Option<String>,
    /// `--preset`: preset of every upstream.
    pub preset: Option<String>,
    /// `--threads`: worker threads.
    pub threads: Option<String>,
}

impl Config {
    /// The configuration that a file, if any, and the flags give together. `env` answers for `${NAME}` in the file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, at its first wrong place, or at the first wrong flag.
    pub fn build(
        file: Option<&Path>,
        overrides: &Overrides,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let (name, text) = match file {
            Some(path) => (path.display().to_string(), Some(file::text(path)?)),
            None => (String::new(), None),
        };
        let root = match &text {
            Some(text) => file::shape(text, env),
            None if overrides.upstream.is_none() => Err(Origin::Flag("--upstream")
                .problem("not given; write `tidegate --upstream https://api.openai.com`, or `tidegate --config FILE`")),
            None => Ok(Root::default()),
        };
        root.and_then(|root| overrides.lay_over(otlp::lay_under(root, env)))
            .and_then(check::config)
            .map_err(|problem| problem.in_file(&name))
    }

    /// The configuration of `tidegate --upstream URL`: everything else has its default, the name is the URL's host.
    ///
    /// # Errors
    ///
    /// When the URL is none of http or https, or carries more than host, port and path.
    pub fn for_upstream(url: &str) -> Result<Self, ConfigError> {
        let overrides = Overrides { upstream: Some(url.to_owned()), ..Overrides::default() };
        Self::build(None, &overrides, &|_| None)
    }
}

impl Overrides {
    fn lay_over(&self, mut root: Root) -> Result<Root, Problem> {
        if self.tier.is_some() && self.ceiling.is_some() {
            return Err(Origin::Flag("--tier").problem("given together with --ceiling; keep one of them"));
        }
        for (to, flag, text) in [
            (&mut root.listen, "--listen", self.listen.clone()),
            (&mut root.admin, "--admin", self.admin.clone()),
            (&mut root.threads, "--threads", self.threads.clone()),
        ] {
            replace(to, flag, text);
        }
        let upstreams = self.upstreams(&mut root)?;
        for upstream in upstreams {
            let upstream = &mut upstream.inner;
            if self.tier.is_some() || self.ceiling.is_some() {
                (upstream.tier, upstream.ceiling) = (None, None);
            }
            replace(&mut upstream.tier, "--tier", self.tier.clone());
            replace(&mut upstream.ceiling, "--ceiling", self.ceiling.clone());
            replace(&mut upstream.preset, "--preset", self.preset.clone());
        }
        Ok(root)
    }

    /// The upstreams, the only one with the URL of `--upstream`.
    fn upstreams<'a>(&self, root: &'a mut Root) -> Result<&'a mut Vec<At<file::Upstream>>, Problem> {
        let origin = if self.upstream.is_some() { Origin::Flag("--upstream") } else { Origin::START };
        let list = &mut root.upstreams.get_or_insert_with(|| At { origin, inner: Vec::new() }).inner;
        let Some(url) = &self.upstream else { return Ok(list) };
        if list.is_empty() {
            list.push(At { origin, inner: file::Upstream::default() });
        }
        match list.as_mut_slice() {
            [only] => only.inner.url = Some(Value::of_flag("--upstream", url)),
            several => {
                return Err(origin.problem(format_args!(
                    "the file has {} upstreams and the flag replaces the only one; leave the flag out or change the `url` in the file",
                    several.len()
                )));
            }
        }
        Ok(list)
    }
}

fn replace(to: &mut Option<Value>, flag: &'static str, text: Option<String>) {
    if let Some(text) = text {
        *to = Some(Value::of_flag(flag, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::presets::Preset;

    fn build(text: &str, overrides: &Overrides) -> Result<Config, String> {
        file::shape(text, &|_| None)
            .and_then(|root| overrides.lay_over(root))
            .and_then(check::config)
            .map_err(|problem| problem.in_file("f").to_string())
    }

    fn flags(change: impl Fn(&mut Overrides)) -> Overrides {
        let mut overrides = Overrides::default();
        change(&mut overrides);
        overrides
    }

    const ONE: &str = "{listen: '127.0.0.1:1', tiers: {a: 3}, upstreams: [{name: x, url: http://h, ceiling: 5}]}";
    const TWO: &str = "upstreams: [{name: a, url: http://h}, {name: b, url: http://h, match: {path_prefix: /b}}]";

    #[test]
    fn a_flag_beats_the_file() {
        let all = flags(|flags| {
            flags.upstream = Some("https://api.openai.com/v1".into());
            flags.listen = Some("127.0.0.1:0".into());
            flags.admin = Some("off".into());
            flags.tier = Some("a".into());
            flags.preset = Some("groq".into());
            flags.threads = Some("3".into());
        });
        let config = build(ONE, &all).unwrap();
        let upstream = &config.upstreams[0];
        assert_eq!((config.listen.port(), config.admin, config.threads), (0, None, 3));
        assert_eq!((upstream.name.as_str(), upstream.url.path()), ("x", "/v1"));
        assert_eq!((upstream.ceiling, upstream.tier.as_deref()), (Some(3), Some("a")));
        assert_eq!(upstream.preset, Preset::Groq);
    }

    #[test]
    fn tier_and_ceiling_reach_every_upstream() {
        let config = build(TWO, &flags(|flags| flags.ceiling = Some("7".into()))).unwrap();
        assert!(config.upstreams.iter().all(|upstream| upstream.ceiling == Some(7)));
        let config = build(TWO, &flags(|flags| flags.tier = Some("pro".into()))).unwrap();
        assert!(config.upstreams.iter().all(|upstream| upstream.ceiling == Some(50)));
    }

    #[test]
    fn a_wrong_flag_is_named() {
        let set = |change: fn(&mut Overrides)| flags(change);
        for (overrides, want) in [
            (set(|flags| flags.tier = Some("x".into())), "--tier: unknown tier \"x\"; known: enterprise, free, pro"),
            (
                set(|flags| (flags.tier, flags.ceiling) = (Some("pro".into()), Some("1".into()))),
                "--tier: given together with --ceiling; keep one of them",
            ),
            (
                set(|flags| flags.ceiling = Some("-1".into())),
                "--ceiling: found `-1`, expected a whole number from 1 to 1000000",
            ),
            (
                set(|flags| flags.threads = Some("0".into())),
                "--threads: found `0`, expected a whole number from 1 to 1024, or `auto`",
            ),
            (set(|flags| flags.preset = Some("opnai".into())), "--preset: found `opnai`; did you mean `openai`?"),
            (
                set(|flags| flags.listen = Some("8080".into())),
                "--listen: found `8080`, expected an address and a port: `127.0.0.1:8080` (this machine only) or `0.0.0.0:8080`",
            ),
            (
                set(|flags| flags.admin = Some("of".into())),
                "--admin: found `of`, expected an IP address and a port, such as `127.0.0.1:8080`, or `off`",
            ),
            (
                set(|flags| flags.admin = Some("0.0.0.0:8080".into())),
                "--admin: `listen` is 127.0.0.1:8080 and `admin` is 0.0.0.0:8080, which overlap; they need different ports",
            ),
            (
                set(|flags| flags.admin = Some("127.0.0.1:8080".into())),
                "--admin: `listen` and `admin` are both 127.0.0.1:8080; they need different ports",
            ),
            (
                set(|flags| flags.listen = Some("127.0.0.1:9090".into())),
                "--listen: `listen` and `admin` are both 127.0.0.1:9090; they need different ports",
            ),
            (
                set(|flags| flags.upstream = Some("http://h".into())),
                "--upstream: the file has 2 upstreams and the flag replaces the only one; leave the flag out or change the `url` in the file",
            ),
        ] {
            assert_eq!(build(TWO, &overrides).unwrap_err(), want);
        }
    }

    #[test]
    fn an_upstream_alone_is_enough() {
        let config = Config::for_upstream("https://api.openai.com").unwrap();
        let upstream = &config.upstreams[0];
        assert_eq!((upstream.name.as_str(), upstream.preset), ("api.openai.com", Preset::Openai));
        assert_eq!((upstream.ceiling, upstream.path_prefix.as_str()), (None, "/"));
        for (url, want) in [
            (
                "api.openai.com",
                "--upstream: found `api.openai.com`, expected a URL with its scheme: `https://api.openai.com`",
            ),
            (
                "localhost:9/v1",
                "--upstream: found `localhost:9/v1`, expected a URL with its scheme: `http://localhost:9/v1`",
            ),
            (
                "http://localhost:8080/v1",
                "--upstream: localhost:8080 is where `listen` is: requests would go round in a circle; name the API instead",
            ),
            ("ftp://h", "--upstream: `--upstream` must begin with `https://` or `http://`"),
        ] {
            assert_eq!(Config::for_upstream(url).unwrap_err().to_string(), want);
        }
        let error = Config::build(None, &Overrides::default(), &|_| None).unwrap_err().to_string();
        assert!(error.starts_with("--upstream: not given; write `tidegate --upstream"), "{error}");
    }
}
