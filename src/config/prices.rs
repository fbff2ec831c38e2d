//! Shape → configuration: what models cost. And back to what holds for a request's model.

use super::{
    ModelPrice, Upstream,
    de::{At, Value},
    file,
    problem::Problem,
};
use crate::{
    control::cost::{Price, Tariff},
    provider::presets::Preset,
};

pub(super) fn prices(list: &[At<file::ModelPrice>]) -> Result<Vec<ModelPrice>, Problem> {
    list.iter().map(price).collect()
}

fn price(entry: &At<file::ModelPrice>) -> Result<ModelPrice, Problem> {
    let file::ModelPrice { model, input, cached, cache_write, cache_write_1h, output } = &entry.inner;
    let Some(model) = model else {
        return Err(entry.origin.problem("whose price is it? Add `model:`, a name, or how names begin and a `*`"));
    };
    let given = |key: &str, value: &Option<Value>| match value {
        Some(value) => picos(value),
        None => Err(entry.origin.problem(format_args!(
            "this entry of `prices` has no `{key}`: dollars for a million tokens, 0 if they cost nothing"
        ))),
    };
    let (input, output) = (given("input", input)?, given("output", output)?);
    let or = |value: &Option<Value>, other| value.as_ref().map_or(Ok(other), picos);
    let (cached, cache_write) = (or(cached, input)?, or(cache_write, input)?);
    let cache_write_1h = or(cache_write_1h, cache_write)?;
    Ok(ModelPrice { model: name(model)?, price: Price { input, cached, cache_write, cache_write_1h, output } })
}

fn name(value: &Value) -> Result<String, Problem> {
    let begins = value.text.strip_suffix('*').unwrap_or(&value.text);
    if value.text.is_empty() || begins.contains('*') {
        return Err(value.expected("the name of a model, or how names begin and a `*` at the end"));
    }
    Ok(value.text.clone())
}

/// Dollars for a million tokens → millionths of a millionth of a dollar for one.
fn picos(value: &Value) -> Result<u64, Problem> {
    let dollars = value.number(0.0..=DOLLARS_MAX)?;
    // Exact to six digits behind the point: below 10¹⁰, and a double holds whole numbers up to 10¹⁵.
    Ok((dollars * PICOS).round() as u64)
}

/// The price as a configuration spells it.
pub(super) fn dollars_text(picos: u64) -> String {
    let (whole, rest) = (picos / PICOS as u64, picos % PICOS as u64);
    let text = format!("{whole}.{rest:06}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl ModelPrice {
    /// It is for every model whose name begins so; an exact name is its own only beginning.
    fn begins(&self) -> (&str, bool) {
        self.model.strip_suffix('*').map_or((self.model.as_str(), false), |begins| (begins, true))
    }

    fn is_for(&self, model: &str) -> bool {
        match self.begins() {
            (begins, true) => model.starts_with(begins),
            (name, false) => model == name,
        }
    }

    /// Wherever the other is for a model, this one is too.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self.begins(), other.begins()) {
            ((begins, true), (other, _)) => other.starts_with(begins),
            ((name, false), (other, is_beginning)) => name == other && !is_beginning,
        }
    }
}

impl Upstream {
    /// By which price a request is paid for. A model whose name is not known has only that of `*`.
    #[must_use]
    pub fn tariff(&self, model: Option<&str>) -> Tariff {
        if self.prices.is_empty() {
            return Tariff::None;
        }
        let found = self.prices.iter().find(|entry| entry.is_for(model.unwrap_or_default()));
        found.map_or(Tariff::Missing, |entry| Tariff::Price(entry.price))
    }

    /// Answers are worth reading for what they cost: prices are known, or the provider says the cost itself.
    #[must_use]
    pub fn counts_spend(&self) -> bool {
        !self.prices.is_empty() || self.preset == Preset::Openrouter
    }
}

/// Dollars for a million tokens. A guess: the dearest model costs a few hundred.
pub(super) const DOLLARS_MAX: f64 = 10_000.0;

const PICOS: f64 = 1e6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, file};

    fn config(prices: &str) -> Config {
        file::parse(&format!("upstreams: [{{ url: https://h, prices: [{prices}] }}]"), "f", &|_| None).unwrap()
    }

    fn cost(config: &Config, model: Option<&str>) -> Option<u64> {
        match config.upstreams[0].tariff(model) {
            Tariff::Missing | Tariff::None | Tariff::Paid => None,
            Tariff::Price(price) => Some(price.input),
        }
    }

    #[test]
    fn the_first_entry_for_a_model_holds() {
        let prices = "{ model: gpt-5, input: 1, output: 0 }, { model: gpt-5-mini*, input: 2, output: 0 }, \
                      { model: gpt-*, input: 3, output: 0 }";
        let (some, all) = (config(prices), config(&format!("{prices}, {{ model: '*', input: 4, output: 0 }}")));
        for (model, want, with_all) in [
            (Some("gpt-5"), Some(1), 1),
            (Some("gpt-5-mini"), Some(2), 2),
            (Some("gpt-5-mini-2026"), Some(2), 2),
            (Some("gpt-5-nano"), Some(3), 3),
            (Some("GPT-5"), None, 4),
            (Some("o9"), None, 4),
            (Some(""), None, 4),
            (None, None, 4),
        ] {
            assert_eq!(cost(&some, model), want.map(|dollars| dollars * 1_000_000), "{model:?}");
            assert_eq!(cost(&all, model), Some(with_all * 1_000_000), "{model:?}");
        }
        assert_eq!(some.upstreams[0].tariff(Some("o9")), Tariff::Missing);
        assert_eq!(Config::for_upstream("https://h").unwrap().upstreams[0].tariff(Some("o9")), Tariff::None);
    }

    #[test]
    fn prices_are_exact_and_spelt_back() {
        for (text, picos, spelt) in [
            ("0", 0, "0"),
            ("10", 10_000_000, "10"),
            ("1.25", 1_250_000, "1.25"),
            ("0.0375", 37_500, "0.0375"),
            ("0.000001", 1, "0.000001"),
            ("9999.999999", 9_999_999_999, "9999.999999"),
            ("0.1", 100_000, "0.1"),
            (".30", 300_000, "0.3"),
        ] {
            let config = config(&format!("{{ model: m, input: {text}, output: 7 }}"));
            let price = config.upstreams[0].prices[0].price;
            let (cached, cache_write, cache_write_1h) = (picos, picos, picos);
            let want = Price { input: picos, cached, cache_write, cache_write_1h, output: 7_000_000 };
            assert_eq!(price, want, "{text}");
            assert_eq!(dollars_text(picos), spelt);
        }
    }

    #[test]
    fn what_is_written_to_a_cache_costs_as_much_as_is_said_of_it() {
        for (text, want) in [
            ("", (2, 2, 2)),
            (", cached: 1", (1, 2, 2)),
            (", cache_write: 3", (2, 3, 3)),
            (", cache_write: 3, cache_write_1h: 4", (2, 3, 4)),
            (", cache_write_1h: 4", (2, 2, 4)),
            (", cached: 0, cache_write: 0, cache_write_1h: 0", (0, 0, 0)),
        ] {
            let config = config(&format!("{{ model: m, input: 2, output: 7{text} }}"));
            let price = config.upstreams[0].prices[0].price;
            let found = (price.cached, price.cache_write, price.cache_write_1h);
            assert_eq!(found, (want.0 * 1_000_000, want.1 * 1_000_000, want.2 * 1_000_000), "{text}");
        }
    }

    #[test]
    fn what_stands_behind_something_wider_never_holds() {
        let price = Price { input: 0, cached: 0, cache_write: 0, cache_write_1h: 0, output: 0 };
        let entry = |model: &str| ModelPrice { model: model.to_owned(), price };
        for (first, second, want) in [
            ("*", "gpt-5", true),
            ("gpt-5*", "gpt-5-mini*", true),
            ("gpt-5*", "gpt-5", true),
            ("gpt-5", "gpt-5", true),
            ("gpt-5*", "gpt-5*", true),
            ("gpt-5", "gpt-5*", false),
            ("gpt-5-mini*", "gpt-5*", false),
            ("gpt-5", "o9", false),
        ] {
            assert_eq!(entry(first).covers(&entry(second)), want, "{first} {second}");
        }
    }
}
