//! Strangers' text in an error.

/// Shows a string of a file: quoted, on one line, and short.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const CHARS: usize = 80;
        const BYTES: usize = 240;
        let mut bytes = 0;
        let mut fits = |(n, (_, c)): &(usize, (usize, char))| {
            bytes += c.len_utf8().max(c.escape_debug().len());
            *n < CHARS && bytes <= BYTES
        };
        let end = self.0.char_indices().enumerate().find(|at| !fits(at));
        let cut = end.map_or(self.0.len(), |(_, (at, _))| at);
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
        assert!(long.ends_with("\"...") && long.len() < 250 && !long.contains('\u{7}'), "{long}");
        assert_eq!(Shown(&"x".repeat(80)).to_string().len(), 82);
    }
}
