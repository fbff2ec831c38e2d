//! Shape → configuration: whose ceiling is which.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{
    Account, AccountBy, AccountTier,
    check::CEILING_MAX,
    de::{At, Value, ValueOr},
    file,
    problem::Problem,
    upstream,
};

/// Tier name → attempts in flight.
pub(super) type Tiers = BTreeMap<String, u32>;

/// The ceiling and, if a tier gave it, the tier's name.
pub(super) fn ceiling(
    tier: Option<&Value>,
    ceiling: Option<&Value>,
    tiers: &Tiers,
) -> Result<Option<(u32, Option<String>)>, Problem> {
    match (tier, ceiling) {
        (None, None) => Ok(None),
        (None, Some(value)) => Ok(Some((value.count(1..=CEILING_MAX)?, None))),
        (Some(value), None) => match tiers.get(&value.text) {
            Some(&ceiling) => Ok(Some((ceiling, Some(value.text.clone())))),
            None if tiers.is_empty() => {
                Err(value.problem(format_args!("unknown tier {:?}; `tiers` is empty", value.shown)))
            }
            None => {
                let known: Vec<&str> = tiers.keys().map(String::as_str).collect();
                Err(value.problem(format_args!("unknown tier {:?}; known: {}", value.shown, known.join(", "))))
            }
        },
        (Some(_), Some(value)) => {
            Err(value.problem("both `tier` and `ceiling` are given; a tier is a named ceiling, keep one of them"))
        }
    }
}

pub(super) fn account(shape: file::Account, tiers: &Tiers) -> Result<Account, Problem> {
    let by = match shape.by {
        None => AccountBy::Credential,
        Some(ValueOr::Section(file::Header { header })) => AccountBy::Header(header.header()?),
        Some(ValueOr::Value(value)) => match value.text.as_str() {
            "credential" => AccountBy::Credential,
            "upstream" => AccountBy::Upstream,
            _ => return Err(value.expected("`credential`, `upstream` or a header such as `{ header: x-team }`")),
        },
    };
    let mut own: Vec<AccountTier> = Vec::with_capacity(shape.tiers.len());
    for item in shape.tiers {
        if by != AccountBy::Credential {
            return Err(item
                .origin
                .problem("`account.tiers` are told apart by credential; they need `by: credential`"));
        }
        let tier = account_tier(&item, tiers)?;
        if own.iter().any(|other| other.sha256 == tier.sha256) {
            return Err(item.origin.problem("this credential has an entry in `account.tiers` already"));
        }
        own.push(tier);
    }
    Ok(Account { by, split_by_model: upstream::flag(shape.split_by_model.as_ref())?, tiers: own })
}

fn account_tier(item: &At<file::AccountTier>, tiers: &Tiers) -> Result<AccountTier, Problem> {
    let shape = &item.inner;
    let sha256 = match (&shape.credential, &shape.sha256) {
        (Some(value), None) => Sha256::digest(token(value)?).into(),
        (None, Some(value)) => {
            sha256(&value.text).ok_or_else(|| value.expected("the 64 hexadecimal digits of a SHA-256"))?
        }
        (Some(_), Some(value)) => {
            return Err(value.problem("both `credential` and `sha256` are given; keep one of them"));
        }
        (None, None) => {
            return Err(item
                .origin
                .problem("whose tier is it? Add `credential: ${NAME}`, or `sha256:` of the credential"));
        }
    };
    match ceiling(shape.tier.as_ref(), shape.ceiling.as_ref(), tiers)? {
        Some((ceiling, tier)) => Ok(AccountTier { sha256, tier, ceiling }),
        None => Err(item.origin.problem("this entry of `account.tiers` gives neither `tier` nor `ceiling`")),
    }
}

/// The token alone: without the scheme it is sent with, and without the line end a file gave it.
fn token(value: &Value) -> Result<&str, Problem> {
    let text = value.text.trim();
    let token = match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        Some(_) | None => text,
    };
    if token.is_empty() {
        return Err(value.problem("`credential` is empty"));
    }
    Ok(token)
}

fn sha256(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    if text.len() == 64 { bytes.try_into().ok() } else { None }
}
