//! Breaks an answer between words where a line of the terminal ends.

use unicode_width::UnicodeWidthChar;

const TAB: usize = 8;

/// A text on its way to a terminal. Its last word is held back until it is known to fit.
#[derive(Debug)]
pub(crate) struct Wrap {
    /// Columns of the terminal; `None` breaks nothing.
    columns: Option<usize>,
    /// Columns of the line that are taken.
    taken: usize,
    word: String,
    word_columns: usize,
}

impl Wrap {
    pub(crate) fn new(columns: Option<usize>) -> Self {
        Self { columns, taken: 0, word: String::new(), word_columns: 0 }
    }

    /// What can be shown now that `text` has come.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let Some(columns) = self.columns else { return text.to_owned() };
        let mut out = String::new();
        for c in text.chars() {
            self.add(c, columns, &mut out);
        }
        out
    }

    /// What was held back.
    pub(crate) fn finish(&mut self) -> String {
        self.word_columns = 0;
        std::mem::take(&mut self.word)
    }

    fn add(&mut self, c: char, columns: usize, out: &mut String) {
        if c == '\n' {
            self.end_word(out);
            out.push(c);
            self.taken = 0;
        } else if matches!(c, ' ' | '\t') {
            self.end_word(out);
            let width = if c == ' ' { 1 } else { TAB - self.taken % TAB };
            if self.taken + width > columns {
                // The break stands for the space.
                self.break_line(out);
            } else {
                out.push(c);
                self.taken += width;
            }
        } else {
            self.add_to_word(c, columns, out);
        }
    }

    fn add_to_word(&mut self, c: char, columns: usize, out: &mut String) {
        let width = c.width().unwrap_or(0);
        // Scripts of wide characters have no spaces, and are broken anywhere.
        if width > 1 {
            self.end_word(out);
        }
        self.word.push(c);
        self.word_columns += width;
        if self.taken + self.word_columns > columns {
            if self.taken > 0 && self.word_columns <= columns {
                self.break_line(out);
            } else {
                // Longer than a line: the terminal breaks it.
                self.end_word(out);
                self.taken %= columns.max(1);
            }
        }
        if width > 1 {
            self.end_word(out);
        }
    }

    fn end_word(&mut self, out: &mut String) {
        out.push_str(&self.word);
        self.taken += self.word_columns;
        self.word.clear();
        self.word_columns = 0;
    }

    fn break_line(&mut self, out: &mut String) {
        out.push('\n');
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wrap(columns: usize, text: &str) -> String {
        let mut wrap = Wrap::new(Some(columns));
        let mut out = wrap.push(text);
        out.push_str(&wrap.finish());
        out
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap(10, "one two three four"), "one two \nthree four");
        assert_eq!(wrap(9, "one two three"), "one two \nthree");
        assert_eq!(wrap(7, "one two three"), "one two\nthree");
        assert_eq!(wrap(10, "a\n  b c\n"), "a\n  b c\n");
        assert_eq!(wrap(5, "日本語です"), "日本\n語で\nす");
        assert_eq!(wrap(4, "abcdefgh i"), "abcdefgh\ni");
    }

    #[test]
    fn without_a_terminal_nothing_changes() {
        let mut wrap = Wrap::new(None);
        assert_eq!(wrap.push("one two"), "one two");
        assert_eq!(wrap.finish(), "");
    }

    proptest! {
        #[test]
        fn no_line_of_short_words_is_too_wide_and_no_word_is_lost(
            text in "([a-zé日]{1,6}[ \n]){0,30}", columns in 14usize..40, cut in 0usize..60
        ) {
            let mut wrap = Wrap::new(Some(columns));
            let at = text.char_indices().nth(cut).map_or(text.len(), |(at, _)| at);
            let mut out = wrap.push(&text[..at]);
            out += &wrap.push(&text[at..]);
            out += &wrap.finish();
            let width = |line: &str| line.chars().filter_map(char::width).sum::<usize>();
            prop_assert!(out.lines().all(|line| width(line) <= columns), "{out}");
            let letters = |text: &str| text.split_whitespace().collect::<String>();
            prop_assert_eq!(letters(&out), letters(&text));
        }
    }
}
