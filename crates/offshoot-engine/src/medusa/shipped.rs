//! Heads that are ready to draft: a file's, with their calibration; and what comes with offshoot.

use std::path::Path;

use offshoot_methods::draft::medusa::Calibration;
use offshoot_models::Error as ModelError;
use offshoot_models::medusa::HeadsFile;

use crate::Error;
use crate::datastore::{Datastore, StoreFile};
use crate::error::one_line;

/// What comes with offshoot for the model of a file: a model is known by its file without every
/// weight being read. `data/heads/README.md` says how it was made.
struct Shipped {
    /// Length and BLAKE3 of the model's file.
    file_len: u64,
    digest: &'static str,
    heads: &'static [u8],
    /// Its own answers as a datastore.
    answers: &'static [u8],
}

const SHIPPED: &[Shipped] = &[Shipped {
    file_len: 98_362_432,
    digest: "5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3",
    heads: include_bytes!("../../data/heads/smollm2.safetensors"),
    answers: include_bytes!("../../data/heads/smollm2.store"),
}];

/// The heads of a file and what was counted of them.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadyHeads {
    /// The heads.
    pub file: HeadsFile,
    /// What they did on text they were not trained on; heads from elsewhere come without.
    pub calibration: Option<Calibration>,
}

impl ReadyHeads {
    /// Reads the calibration of `file`, if it has one.
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Method`] if it cannot be that of these heads.
    pub fn new(file: HeadsFile) -> Result<Self, Error> {
        let json = file.card.as_ref().and_then(|card| card.calibration.clone());
        let read = |json| {
            let read = serde_json::from_value::<Calibration>(json);
            let calibration = read.map_err(|e| {
                let what = one_line(&e);
                Error::Model(ModelError::Heads(format!("calibration: {what}")))
            })?;
            calibration.validate(file.heads.len())?;
            Ok::<_, Error>(calibration)
        };
        let calibration = json.map(read).transpose()?;
        Ok(Self { file, calibration })
    }
}

/// Whether something may come for a model whose file is `len` bytes long, so that others need not be
/// hashed.
pub(crate) fn may_ship(len: u64) -> bool {
    SHIPPED.iter().any(|shipped| shipped.file_len == len)
}

/// The heads that come with offshoot for the model whose file has this BLAKE3, if there are any.
pub fn shipped(file: [u8; 32]) -> Option<ReadyHeads> {
    ReadyHeads::new(HeadsFile::parse(find(file)?.heads).ok()?).ok()
}

/// The answers that come with offshoot for the model whose file has this BLAKE3, if there are any.
pub fn shipped_answers(file: [u8; 32]) -> Option<Datastore> {
    let bytes = find(file)?.answers.to_vec();
    let name = Path::new("the answers that come with offshoot");
    Datastore::of(vec![StoreFile::from_bytes(name, bytes).ok()?]).ok()
}

fn find(file: [u8; 32]) -> Option<&'static Shipped> {
    let name = blake3::Hash::from_bytes(file).to_hex();
    SHIPPED.iter().find(|shipped| shipped.digest == name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heads_that_ship_are_small_sound_and_found_by_their_file() {
        for Shipped { file_len, digest, heads: bytes, answers } in SHIPPED {
            assert!(bytes.len() < 4_000_000, "{} bytes", bytes.len());
            assert!(answers.len() < 4_000_000, "{} bytes", answers.len());
            let digest = *blake3::Hash::from_hex(digest).unwrap().as_bytes();
            let heads = shipped(digest).unwrap();
            assert!(may_ship(*file_len) && !may_ship(file_len + 1));
            assert_eq!(heads.file, HeadsFile::parse(bytes).unwrap());
            let answers = shipped_answers(digest).unwrap();
            assert!(answers.tokens() > 200_000, "{}", answers.tokens());
            answers.files().iter().for_each(|file| file.verify().unwrap());
            answers.require_tokenizer(heads.file.card.as_ref().unwrap().tokenizer).unwrap();
            let accuracy = crate::medusa::HeadsReport::of(&heads.calibration.unwrap()).accuracy;
            assert!(accuracy.iter().is_sorted_by(|a, b| a[0] > b[0]), "{accuracy:?}");
        }
        assert!(shipped([0; 32]).is_none() && shipped_answers([0; 32]).is_none());
    }

    #[test]
    fn a_calibration_of_other_heads_is_refused() {
        let mut file = HeadsFile::parse(SHIPPED[0].heads).unwrap();
        file.heads.pop();
        assert!(ReadyHeads::new(file.clone()).is_err());
        let card = file.card.as_mut().unwrap();
        card.calibration = Some(serde_json::json!({ "places": "many\n" }));
        let error = ReadyHeads::new(file).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}
