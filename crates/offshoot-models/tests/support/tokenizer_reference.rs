//! Holds a real model's tokenizer against `scripts/oracles/tokenizer_ids.py`'s account of it.

use offshoot_models::{Controls, Special, Tokenizer};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::mixed_text::Source;

/// What the script wrote of one model.
#[derive(Deserialize)]
pub(crate) struct Reference {
    /// SHA-256 of the model file it was made from.
    sha256: String,
    vocab_size: usize,
    mixed: Digests,
    random: Digests,
    decoded: Digests,
    examples: Vec<Example>,
}

/// A digest of everything, and one of each part to say where a difference lies.
#[derive(Deserialize)]
struct Digests {
    total: String,
    parts: Vec<String>,
}

/// One text and its ids, control tokens parsed and not.
#[derive(Deserialize)]
struct Example {
    text: String,
    parse: Vec<u32>,
    plain: Vec<u32>,
}

impl Reference {
    /// Reads the script's JSON.
    pub(crate) fn load(json: &str) -> Self {
        serde_json::from_str(json).expect("the script writes JSON of this form")
    }

    /// Whether it was made from these bytes of a model file.
    pub(crate) fn is_of(&self, file: &[u8]) -> bool {
        hex(&Sha256::digest(file)) == self.sha256
    }

    /// Checks ids of the examples, of the mixed text (1 MB) and of 100,000 random strings, and the
    /// text of 10,000 random lists of ids.
    pub(crate) fn check(&self, tokenizer: &Tokenizer) {
        assert_eq!(tokenizer.vocab_size(), self.vocab_size);
        let encode = |text: &str, special| {
            tokenizer.encode(text, special).expect("no text here has a run of millions")
        };
        for example in &self.examples {
            let parse = encode(&example.text, Special::Parse);
            assert_eq!(parse, example.parse, "{:?}, control tokens parsed", example.text);
            let plain = encode(&example.text, Special::Text);
            assert_eq!(plain, example.plain, "{:?}, control tokens as text", example.text);
        }
        let source = Source::load();
        let text = source.mixed_text(1_000_000);
        let mixed = encode(&text, Special::Parse);
        self.mixed.check("mixed text, 4096 ids a part", mixed.chunks(4096).map(id_bytes));

        let strings = source.random_strings(100_000);
        let ids = strings.chunks(1000).map(|part| {
            part.iter().flat_map(|text| sized(&id_bytes(&encode(text, Special::Text)))).collect()
        });
        self.random.check("random strings, 1000 a part", ids);

        let lists = source.random_ids(10_000, self.vocab_size);
        let texts = lists.chunks(100).map(|part| {
            let decode = |ids: &Vec<u32>| tokenizer.decode(ids, Controls::Keep);
            part.iter().flat_map(|ids| sized(decode(ids).as_bytes())).collect()
        });
        self.decoded.check("decoded ids, 100 lists a part", texts);
    }
}

impl Digests {
    fn check(&self, what: &str, parts: impl Iterator<Item = Vec<u8>>) {
        let mut total = Sha256::new();
        let mut digests = Vec::new();
        for part in parts {
            total.update(&part);
            digests.push(hex(&Sha256::digest(&part))[..8].to_owned());
        }
        let differs = digests.iter().zip(&self.parts).position(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "{what}: the first part that differs");
        assert_eq!(digests.len(), self.parts.len(), "{what}: number of parts");
        assert_eq!(hex(&total.finalize()), self.total, "{what}: all");
    }
}

/// Ids as little-endian bytes.
fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// Bytes with their number before them.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
