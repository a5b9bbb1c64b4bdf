//! GPT-2's byte-level alphabet: 256 printable characters that stand for the 256 bytes.
//!
//! Printable bytes stand for themselves; the other 68, in order, are U+0100 and up. The rule is
//! stated in GPT-2's published encoder, <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.

/// One past the last character of the alphabet: 256 + 68.
const END: usize = 256 + 68;

/// The alphabet, read from characters to bytes.
pub(super) struct Alphabet {
    byte_of: [Option<u8>; END],
}

impl Alphabet {
    /// Lays the table out.
    pub(super) fn new() -> Self {
        let mut byte_of = [None; END];
        let mut next = 256;
        for byte in 0..=255u8 {
            if is_printable(byte) {
                byte_of[byte as usize] = Some(byte);
            } else {
                byte_of[next] = Some(byte);
                next += 1;
            }
        }
        Self { byte_of }
    }

    /// Appends the bytes that `text` stands for; false, with `bytes` as it was, if a character is
    /// not of the alphabet.
    pub(super) fn extend(&self, bytes: &mut Vec<u8>, text: &str) -> bool {
        let start = bytes.len();
        for c in text.chars() {
            match self.byte_of.get(c as usize) {
                Some(Some(byte)) => bytes.push(*byte),
                _ => {
                    bytes.truncate(start);
                    return false;
                }
            }
        }
        true
    }
}

/// Whether a byte stands for itself.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let alphabet = Alphabet::new();
        let bytes: BTreeSet<u8> = alphabet.byte_of.iter().flatten().copied().collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(alphabet.byte_of.iter().flatten().count(), 256);
    }

    #[test]
    fn known_characters_stand_for_known_bytes() {
        let mut bytes = Vec::new();
        assert!(Alphabet::new().extend(&mut bytes, "ĠaĊĉÃ©"));
        assert_eq!(bytes, [b' ', b'a', b'\n', b'\t', 0xC3, 0xA9]);
        assert!(!Alphabet::new().extend(&mut bytes, "a b"));
        assert_eq!(bytes.len(), 6);
    }
}
