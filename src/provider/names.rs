//! Numbers that stand for names: where only sameness matters, eight bytes are enough.

/// FNV-1a over all parts. Source: draft-eastlake-fnv, 64-bit parameters.
///
/// Unlike the standard library's hashers it may be relied on to give the same number tomorrow.
pub(super) fn number<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    parts
        .into_iter()
        .flat_map(str::bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The same in four bytes.
pub(super) fn short_number<'a>(parts: impl IntoIterator<Item = &'a str>) -> u32 {
    let hash = number(parts);
    u32::try_from((hash >> 32) ^ (hash & u64::from(u32::MAX))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_values_come_out() {
        for (text, want) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(number([text]), want, "{text}");
        }
        assert_eq!(number(["foo", "bar"]), number(["foobar"]));
        assert_eq!(short_number([""]), 0x84222325 ^ 0xcbf29ce4);
    }
}
