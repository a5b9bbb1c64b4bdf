//! Heads that are ready to draft: a file's, with their calibration, and those that come with offshoot.

use offshoot_methods::draft::Calibration;
use offshoot_models::medusa::HeadsFile;
use offshoot_models::{BaseId, Error as ModelError};

use crate::Error;

/// Heads of the default model; `data/heads/README.md` says how they were made.
const SHIPPED: &[&[u8]] = &[include_bytes!("../../data/heads/smollm2.safetensors")];

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
                let what = e.to_string().escape_debug().to_string();
                Error::Model(ModelError::Heads(format!("calibration: {what}")))
            })?;
            calibration.validate(file.heads.len())?;
            Ok::<_, Error>(calibration)
        };
        let calibration = json.map(read).transpose()?;
        Ok(Self { file, calibration })
    }
}

/// The heads that come with offshoot for the model `base`, if there are any.
pub fn shipped(base: BaseId) -> Option<ReadyHeads> {
    let heads = SHIPPED.iter().filter_map(|bytes| HeadsFile::parse(bytes).ok());
    let own = |file: &HeadsFile| file.card.as_ref().is_some_and(|card| card.base == base);
    ReadyHeads::new(heads.into_iter().find(own)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heads_that_ship_are_small_sound_and_found_by_their_base() {
        for bytes in SHIPPED {
            assert!(bytes.len() < 4_000_000, "{} bytes", bytes.len());
            let file = HeadsFile::parse(bytes).unwrap();
            let base = file.card.as_ref().unwrap().base;
            let heads = shipped(base).unwrap();
            assert_eq!(heads.file, file);
            let accuracy = crate::medusa::HeadsReport::of(&heads.calibration.unwrap()).accuracy;
            assert!(accuracy.iter().is_sorted_by(|a, b| a[0] > b[0]), "{accuracy:?}");
        }
        assert!(shipped(BaseId::from_bytes([0; 32])).is_none());
    }

    #[test]
    fn a_calibration_of_other_heads_is_refused() {
        let mut file = HeadsFile::parse(SHIPPED[0]).unwrap();
        file.heads.pop();
        assert!(ReadyHeads::new(file.clone()).is_err());
        let card = file.card.as_mut().unwrap();
        card.calibration = Some(serde_json::json!({ "places": "many\n" }));
        let error = ReadyHeads::new(file).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}
