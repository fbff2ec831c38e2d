//! Where JSON strings end.

/// The first quote in `text` that no backslash escapes.
///
/// Text is full of `\n`, so that stopping at each backslash costs several times as much as looking back from the quotes,
/// which are few.
pub(super) fn closing(text: &[u8]) -> Option<usize> {
    if let Some(end) = near(text) {
        return Some(end);
    }
    memchr::memchr_iter(b'"', text).find(|end| !is_escaped(text.get(..*end).unwrap_or_default()))
}

/// The same, if it is among the first bytes and no backslash stands before it: so it is with keys and words, for which
/// a search that is made for long texts takes longer to begin than this takes to end.
pub(super) fn near(text: &[u8]) -> Option<usize> {
    const LOW: u64 = u64::from_le_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
    // The lowest bit of what this finds is of the first byte that is zero; a higher one may be of another.
    let zeros = |word: u64| word.wrapping_sub(LOW) & !word & HIGH;
    let (words, _) = text.as_chunks();
    let mut at = 0;
    for word in words.iter().take(4) {
        let word = u64::from_le_bytes(*word);
        let quotes = zeros(word ^ u64::from_le_bytes([b'"'; 8]));
        let stops = quotes | zeros(word ^ u64::from_le_bytes([b'\\'; 8]));
        if stops != 0 {
            let is_quote = quotes & stops & stops.wrapping_neg() != 0;
            return is_quote.then_some(at + stops.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    None
}

/// Whether what follows `text` is escaped.
pub(super) fn is_escaped(text: &[u8]) -> bool {
    text.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_quote_is_found_wherever_it_is() {
        for at in 0..40 {
            // Among them what differs from a quote, or from a backslash, in its lowest bit or in its highest.
            for filler in [b'#', b'!', b' ', b'a', b'"' | 0x80, b']', b'\\' | 0x80, 0, 0xff] {
                let mut text = vec![filler; at];
                text.extend_from_slice(b"\"\"#]following");
                assert_eq!(near(&text), (at < 32).then_some(at), "{filler} {at}");
                if let Some(before) = at.checked_sub(1) {
                    text[before] = b'\\';
                    assert_eq!(near(&text), None, "{filler} {at}");
                }
            }
        }
    }

    #[test]
    fn an_escaped_quote_ends_nothing() {
        for (text, want) in [
            (r#"""#, Some(0)),
            (r#"a\"b"c""#, Some(4)),
            (r#"\\""#, Some(2)),
            (r#"\\\""#, None),
            (r#"\n\n\n""#, Some(6)),
            (r#"a\"#, None),
            ("", None),
            (r#"0123456""#, Some(7)),
            (r#"01234567" and more"#, Some(8)),
            (r#"0123456\" and" more"#, Some(13)),
            (r#"0123456789 0123456789 0123456789 0123456789" and more"#, Some(43)),
        ] {
            assert_eq!(closing(text.as_bytes()), want, "{text}");
        }
        assert!(is_escaped(br"a\") && !is_escaped(br"a\\") && is_escaped(br"\\\") && !is_escaped(b""));
    }
}
