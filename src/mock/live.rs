//! Limits that change while the mock runs: steps for the tests of limiters.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::{Latency, Settings};

/// What `/__settings` shows and takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Live {
    ceiling: Option<NonZeroU32>,
    rps: Option<NonZeroU32>,
    rpm: Option<NonZeroU32>,
    burst: Option<NonZeroU32>,
    tpm: Option<NonZeroU32>,
    knee: Option<NonZeroU32>,
    latency: Option<String>,
    error_rate: Option<f64>,
}

impl From<&Settings> for Live {
    fn from(settings: &Settings) -> Self {
        let count = |count: Option<u32>| count.and_then(NonZeroU32::new);
        Self {
            ceiling: count(settings.ceiling),
            rps: count(settings.rps),
            rpm: count(settings.rpm),
            burst: count(settings.burst),
            tpm: count(settings.tpm),
            knee: count(settings.knee),
            latency: Some(settings.latency.to_string()),
            error_rate: Some(settings.error_rate),
        }
    }
}

/// The settings with those changed that `patch` names. All of it is taken, or nothing.
pub(super) fn patched(settings: &Settings, patch: &[u8]) -> Result<Settings, String> {
    let patch: Value = serde_json::from_slice(patch).map_err(|error| format!("the body is not JSON: {error}"))?;
    let mut merged = serde_json::to_value(Live::from(settings)).map_err(|error| error.to_string())?;
    let (Value::Object(fields), Value::Object(changes)) = (&mut merged, patch) else {
        return Err("the body must be a JSON object".to_owned());
    };
    fields.extend(changes);
    let live: Live = serde_json::from_value(merged).map_err(|error| error.to_string())?;
    let count = |count: Option<NonZeroU32>| count.map(NonZeroU32::get);
    if live.burst.is_some() && settings.fixed_window {
        return Err("`burst` means nothing with fixed windows".to_owned());
    }
    let error_rate = live.error_rate.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&error_rate) {
        return Err("`error_rate` is a number from 0 to 1".to_owned());
    }
    let latency = live.latency.as_deref().unwrap_or("0s").parse::<Latency>();
    Ok(Settings {
        ceiling: count(live.ceiling),
        rps: count(live.rps),
        rpm: count(live.rpm),
        burst: count(live.burst),
        tpm: count(live.tpm),
        knee: count(live.knee),
        latency: latency.map_err(|error| format!("`latency`: {error}"))?,
        error_rate,
        ..settings.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_what_it_names() {
        let before = Settings { ceiling: Some(3), rpm: Some(5), ..Settings::default() };
        let after = patched(&before, br#"{"ceiling": 10, "rpm": null, "latency": "tokens:2ms"}"#).unwrap();
        assert_eq!((after.ceiling, after.rpm, after.tpm), (Some(10), None, None));
        assert_eq!(after.latency.to_string(), "tokens:2ms");
        let whole = serde_json::to_vec(&Live::from(&after)).unwrap();
        assert_eq!(format!("{:?}", patched(&after, &whole).unwrap()), format!("{after:?}"));
        for wrong in ["", "[]", r#"{"ceiling":0}"#, r#"{"ceilings":1}"#, r#"{"error_rate":2}"#, r#"{"latency":"9y"}"#] {
            assert!(patched(&before, wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
