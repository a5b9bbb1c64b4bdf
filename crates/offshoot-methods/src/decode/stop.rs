//! Ending a text at a stop string, while the text still streams in.
//!
//! A piece of text that could be the beginning of a stop string is held back until later pieces
//! decide. The rule does not depend on how the text was cut into pieces:
//! ```text
//! e = the least end of an occurrence of any stop string in the whole text
//! s = the least start of the occurrences that end at e
//! the text given out is text[..s]
//! ```
//! So of stop strings that overlap the one completed first wins, and of two completed by the same
//! character the longer. Cost: one search of each new piece for each stop string; memory, the
//! newest piece and less than one stop string before it.

use crate::Error;

/// Room for the newest piece, so that most texts take one allocation.
const PIECE_BYTES: usize = 256;

/// What a push lets out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emit<'a> {
    /// Text that no later piece can take back. It follows on what was let out before.
    pub text: &'a str,
    /// The index of the stop string that ended the text, if one has.
    pub stop: Option<usize>,
}

/// Watches a stream of text for stop strings.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text not known to be safe, behind the first `n_emitted` bytes let out by the last push.
    buffer: String,
    n_emitted: usize,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// Watches for any of `stops`; none at all lets everything through.
    ///
    /// # Errors
    /// [`Error::EmptyStop`] if one of them has no characters.
    pub fn new(stops: Vec<String>) -> Result<Self, Error> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::EmptyStop { index });
        }
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let buffer = String::with_capacity(longest + PIECE_BYTES);
        Ok(Self { stops, buffer, n_emitted: 0, stopped: None })
    }

    /// Takes the next piece of text and returns what may be shown.
    ///
    /// Once a stop string was found, this and every later push lets out no more than what stood
    /// before it.
    pub fn push(&mut self, text: &str) -> Emit<'_> {
        self.buffer.drain(..self.n_emitted);
        self.n_emitted = 0;
        if self.stopped.is_none() {
            self.buffer.push_str(text);
            self.n_emitted = match self.first_match() {
                Some((start, stop)) => {
                    self.stopped = Some(stop);
                    self.buffer.truncate(start);
                    start
                }
                None => self.buffer.len() - self.n_held(),
            };
        }
        Emit { text: &self.buffer[..self.n_emitted], stop: self.stopped }
    }

    /// Ends the text and returns what was still held back: the text ended before a stop string did.
    pub fn finish(&mut self) -> Emit<'_> {
        self.buffer.drain(..self.n_emitted);
        self.n_emitted = self.buffer.len();
        Emit { text: &self.buffer, stop: self.stopped }
    }

    /// The start and the index of the stop string that ends first, and starts first of those.
    fn first_match(&self) -> Option<(usize, usize)> {
        let places = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.buffer.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        places.min().map(|(_, start, index)| (start, index))
    }

    /// The length in bytes of the longest end of the buffer that begins a stop string.
    fn n_held(&self) -> usize {
        let text = self.buffer.as_str();
        let held = |stop: &String| {
            let n_max = text.len().min(stop.len() - 1);
            (1..=n_max).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
        };
        self.stops.iter().filter_map(held).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(ToString::to_string).collect()).unwrap()
    }

    /// All that comes out of `pieces`, and the stop string that ended them.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = matcher(stops);
        let mut shown = String::new();
        for piece in pieces {
            shown.push_str(matcher.push(piece).text);
        }
        let last = matcher.finish();
        (shown + last.text, last.stop)
    }

    #[test]
    fn a_stop_string_across_pieces_is_found_and_not_shown() {
        assert_eq!(run(&["</s>"], &["Hi <", "/", "s> there"]), ("Hi ".into(), Some(0)));
    }

    #[test]
    fn text_is_held_only_while_it_may_be_a_stop_string() {
        let mut matcher = matcher(&["\n\nUser:"]);
        assert_eq!(matcher.push("one\n").text, "one");
        assert_eq!(matcher.push("two").text, "\ntwo");
        assert_eq!(matcher.push("\n\n\nUs").text, "\n");
        assert_eq!(matcher.finish(), Emit { text: "\n\nUs", stop: None });
    }

    #[test]
    fn a_failed_beginning_may_hold_another() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "b", "c"]), ("a".into(), Some(0)));
    }

    #[test]
    fn the_first_to_end_wins_and_the_longer_of_those() {
        assert_eq!(run(&["bcd", "c"], &["abcd"]), ("ab".into(), Some(1)));
        assert_eq!(run(&["c", "bc"], &["abc"]), ("a".into(), Some(1)));
    }

    #[test]
    fn characters_of_several_bytes_are_never_cut() {
        assert_eq!(run(&["é!"], &["caf", "é", "?é", "!"]), ("café?".into(), Some(0)));
        assert_eq!(run(&["日本"], &["日", "日", "語"]), ("日日語".into(), None));
    }

    #[test]
    fn nothing_comes_out_after_a_stop() {
        let mut matcher = matcher(&["."]);
        assert_eq!(matcher.push("a.b"), Emit { text: "a", stop: Some(0) });
        assert_eq!(matcher.push("c.d"), Emit { text: "", stop: Some(0) });
        assert_eq!(matcher.finish(), Emit { text: "", stop: Some(0) });
    }

    #[test]
    fn without_stop_strings_all_passes_at_once() {
        assert_eq!(matcher(&[]).push("anything"), Emit { text: "anything", stop: None });
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        let error = StopMatcher::new(vec!["a".into(), String::new()]).unwrap_err();
        assert_eq!(error, Error::EmptyStop { index: 1 });
    }

    /// The rule of the header, by trying every end and then every start.
    fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            for start in 0..end {
                let is_match = |stop: &String| text.as_bytes()[start..end] == *stop.as_bytes();
                if let Some(index) = stops.iter().position(is_match) {
                    return (text[..start].to_string(), Some(index));
                }
            }
        }
        (text.to_string(), None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// An alphabet this small makes overlaps and false beginnings the rule.
        #[test]
        fn streaming_equals_searching_the_whole_text(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abé]{0,4}", 0..10),
        ) {
            let mut matcher = StopMatcher::new(stops.clone())?;
            let mut shown = String::new();
            for piece in &pieces {
                shown.push_str(matcher.push(piece).text);
            }
            let last = matcher.finish();
            shown.push_str(last.text);
            prop_assert_eq!((shown, last.stop), naive(&stops, &pieces.concat()));
        }

        /// Holding back is not overdone: what is held could be completed to a stop string.
        #[test]
        fn what_is_held_begins_a_stop_string(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abé]{0,4}", 0..10),
        ) {
            let mut matcher = StopMatcher::new(stops.clone())?;
            for piece in &pieces {
                matcher.push(piece);
            }
            let held = matcher.finish().text.to_string();
            prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(&held)));
        }
    }
}
