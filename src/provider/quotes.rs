//! Where JSON strings end.

/// The first quote in `text` that no backslash escapes.
///
/// Text is full of `\n`, so that stopping at each backslash costs several times as much as looking back from the quotes,
/// which are few.
pub(super) fn closing(text: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'"', text).find(|end| !is_escaped(text.get(..*end).unwrap_or_default()))
}

/// Whether what follows `text` is escaped.
pub(super) fn is_escaped(text: &[u8]) -> bool {
    text.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert_eq!(closing(text.as_bytes()), want, "{text}");
        }
        assert!(is_escaped(br"a\") && !is_escaped(br"a\\") && is_escaped(br"\\\") && !is_escaped(b""));
    }
}
