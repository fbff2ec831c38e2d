//! Shape → configuration: where spans go. What the file leaves out is taken from OpenTelemetry's own variables.

use http::{HeaderName, HeaderValue};

use super::{
    Otlp,
    de::{At, Named, Value},
    defaults,
    env::Env,
    file::{self, Root},
    problem::{Origin, Problem},
    upstream,
};

/// Whether this binary can send spans.
const BUILT_IN: bool = cfg!(feature = "otlp");

/// Turns it on, or names the collector's address.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";

/// May hold a `service.name`, among others.
const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";

impl Otlp {
    /// Fields that belong to the connection, or to what is sent.
    pub const NOT_TO_BE_SET: [&str; 6] =
        ["connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"];
}

/// What the file leaves out. A binary that cannot send spans does not ask: the variables are there for others too.
pub(super) fn lay_under(mut root: Root, env: Env<'_>) -> Root {
    if !BUILT_IN {
        return root;
    }
    let value = |name: &'static str| {
        env(name).filter(|text| !text.trim().is_empty()).map(|text| Value::of_flag(name, text.trim()))
    };
    let endpoint = value(ENDPOINT);
    if root.otlp.is_none() && endpoint.is_some() {
        root.otlp = Some(At { origin: Origin::Flag(ENDPOINT), inner: file::Otlp::default() });
    }
    if let Some(At { inner, .. }) = &mut root.otlp {
        inner.endpoint = inner.endpoint.take().or(endpoint);
        let among_others = || service_name(&value(RESOURCE_ATTRIBUTES)?.text);
        inner.service_name = inner.service_name.take().or_else(|| value(SERVICE_NAME)).or_else(among_others);
    }
    root
}

/// As the exporter reads the others: `key=value`, separated by commas, the last of a key.
fn service_name(attributes: &str) -> Option<Value> {
    let pairs = attributes.rsplit(',').filter_map(|pair| pair.split_once('='));
    let (_, name) = pairs.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == "service.name")?;
    (!name.is_empty()).then(|| Value::of_flag(RESOURCE_ATTRIBUTES, name))
}

pub(super) fn otlp(shape: At<file::Otlp>) -> Result<Otlp, Problem> {
    let At { origin, inner: file::Otlp { endpoint, sample, headers, service_name } } = shape;
    let otlp = Otlp {
        endpoint: match &endpoint {
            Some(value) => upstream::url(value)?,
            None => http::Uri::from_static(defaults::OTLP_ENDPOINT),
        },
        sample: match &sample {
            Some(value) => value.number(0.0..=1.0)?,
            None => defaults::OTLP_SAMPLE,
        },
        headers: headers.map_or(Ok(Vec::new()), |Named(entries)| entries.iter().map(header).collect())?,
        service_name: match service_name {
            Some(value) if value.text.trim().is_empty() => return Err(value.expected("a name, such as `tidegate`")),
            Some(value) => value.text,
            None => defaults::OTLP_SERVICE_NAME.to_owned(),
        },
    };
    if !BUILT_IN {
        return Err(origin.problem(
            "`otlp` is given, and this binary was built without it; leave it out, or build one that has it: \
             cargo build --release --features otlp",
        ));
    }
    Ok(otlp)
}

/// The value is in no message: it is a credential as a rule.
fn header((name, value): &(String, Value)) -> Result<(HeaderName, HeaderValue), Problem> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| value.problem("a name under `otlp.headers` is none that a header can have, such as `x-team`"))?;
    if Otlp::NOT_TO_BE_SET.contains(&parsed.as_str()) {
        return Err(value.problem(format_args!("`otlp.headers.{parsed}` is set by Tidegate itself; leave it out")));
    }
    let mut secret = HeaderValue::from_str(&value.text).ok().filter(|text| text.to_str().is_ok()).ok_or_else(|| {
        value.problem(format_args!("`otlp.headers.{parsed}` has a character that no header may have"))
    })?;
    secret.set_sensitive(true);
    Ok((parsed, secret))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, Overrides, file};

    fn parse(otlp: &str) -> Result<Config, ConfigError> {
        file::parse(&format!("otlp: {otlp}\nupstreams: [{{ url: http://h }}]"), "f", &|_| None)
    }

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn a_binary_without_it_says_how_to_get_one_that_has_it() {
        for (otlp, column) in [("", 1), ("{}", 7), ("{ endpoint: 'http://127.0.0.1:4318', sample: 0.1 }", 7)] {
            let error = parse(otlp).unwrap_err().to_string();
            assert_eq!(
                error.strip_prefix(&format!("f:1:{column}: ")).unwrap(),
                "`otlp` is given, and this binary was built without it; leave it out, or build one that has it: \
                 cargo build --release --features otlp"
            );
        }
        // Set for whoever else runs here.
        let overrides = Overrides { upstream: Some("http://h".to_owned()), ..Overrides::default() };
        let config = Config::build(None, &overrides, &|_| Some("nonsense".to_owned())).unwrap();
        assert_eq!(config.otlp, None);
    }

    #[cfg(feature = "otlp")]
    mod with {
        use super::*;
        use crate::config::show;

        #[test]
        fn what_is_left_out_has_a_default() {
            assert_eq!(Config::for_upstream("http://h").unwrap().otlp, None);
            for otlp in
                ["{}", "", "{ endpoint: 'http://127.0.0.1:4318', sample: 1, headers: {}, service_name: tidegate }"]
            {
                let otlp = parse(otlp).unwrap().otlp.unwrap();
                assert_eq!(otlp.endpoint, "http://127.0.0.1:4318/");
                assert_eq!((otlp.sample, otlp.headers.len(), otlp.service_name.as_str()), (1.0, 0, "tidegate"));
            }
        }

        #[test]
        fn credentials_are_shown_nowhere() {
            let config =
                parse("{ headers: { Authorization: Bearer canary, x-a: 1 }, sample: 0.25, service_name: a b }");
            let config = config.unwrap();
            let otlp = config.otlp.clone().unwrap();
            assert_eq!(otlp.headers[0].1, "Bearer canary");
            let shown = show::effective(&config);
            assert!(!format!("{config:?}{shown}").contains("canary"), "{shown}");
            // All but the credentials loads again.
            let again = file::parse(&shown, "f", &|_| None).unwrap().otlp.unwrap();
            let names =
                |otlp: &crate::config::Otlp| otlp.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            assert_eq!(names(&again), names(&otlp));
            assert_eq!(
                (again.endpoint, again.sample, again.service_name),
                (otlp.endpoint, otlp.sample, otlp.service_name)
            );
            for wrong in [
                "{ authorization: { canary: 1 } }",
                "{ authorization: [canary] }",
                "{ 'a b': canary }",
                "canary",
                "{ host: canary }",
            ] {
                let error = parse(&format!("{{ headers: {wrong} }}")).unwrap_err().to_string();
                assert!(error.starts_with("f:1:") && !error.contains("canary"), "{error}");
            }
        }

        #[test]
        fn opentelemetrys_own_variables_stand_in_for_what_the_file_leaves_out() {
            let build = |text: &str, variables: &[(&str, &str)]| {
                let folder = std::env::temp_dir().join(format!("tidegate-otlp-{}", std::process::id()));
                std::fs::create_dir_all(&folder).unwrap();
                let path = folder.join("c.yaml");
                std::fs::write(&path, format!("{text}\nupstreams: [{{ url: http://h }}]")).unwrap();
                let env = |name: &str| {
                    variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
                };
                let built = Config::build(Some(&path), &Overrides::default(), &env);
                std::fs::remove_dir_all(&folder).unwrap();
                built.map(|config| config.otlp).map_err(|error| error.to_string())
            };
            let both = [("OTEL_EXPORTER_OTLP_ENDPOINT", " http://c:1/base "), ("OTEL_SERVICE_NAME", "env")];
            assert_eq!(build("", &[]), Ok(None));
            assert_eq!(build("", &both[1..]), Ok(None), "a name alone turns nothing on");
            assert_eq!(build("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
            for (text, want) in [
                ("", ("http://c:1/base", "env")),
                ("otlp: {}", ("http://c:1/base", "env")),
                ("otlp: { endpoint: 'http://f:2', service_name: file }", ("http://f:2/", "file")),
            ] {
                let otlp = build(text, &both).unwrap().unwrap();
                assert_eq!((otlp.endpoint.to_string().as_str(), otlp.service_name.as_str()), want, "{text}");
            }
            for (text, attributes, want) in [
                ("otlp: {}", "team=ml, service.name = gw ", "gw"),
                ("otlp: {}", "service.name=a,service.name=b=c", "b=c"),
                ("otlp: {}", "service.name=,service.name,x", "tidegate"),
                ("otlp: { service_name: file }", "service.name=gw", "file"),
            ] {
                let otlp = build(text, &[("OTEL_RESOURCE_ATTRIBUTES", attributes)]).unwrap().unwrap();
                assert_eq!(otlp.service_name, want, "{attributes}");
            }
            let named = [("OTEL_SERVICE_NAME", "env"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=gw")];
            assert_eq!(build("otlp: {}", &named).unwrap().unwrap().service_name, "env");
            assert_eq!(build("", &named), Ok(None), "a name alone turns nothing on");
            let error = build("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4318")]).unwrap_err();
            assert!(error.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: found `c:4318`, expected a URL"), "{error}");
        }
    }
}
