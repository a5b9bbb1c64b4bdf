//! Strangers' text in an error.

/// Shows a string of a file: quoted, on one line, and short.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const CHARS: usize = 80;
        let cut = self.0.char_indices().nth(CHARS).map_or(self.0.len(), |(at, _)| at);
        let rest = if cut < self.0.len() { "..." } else { "" };
        write!(f, "{:?}{rest}", &self.0[..cut])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_text_is_one_short_line() {
        assert_eq!(Shown("a\nb").to_string(), r#""a\nb""#);
        let long = Shown(&"é\u{7}".repeat(500)).to_string();
        assert!(long.ends_with("\"...") && long.len() < 500 && !long.contains('\u{7}'), "{long}");
    }
}
