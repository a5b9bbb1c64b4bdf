//! What was learned, in the form in which it is served.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use offshoot_models::ExportError;
use offshoot_models::Recipe;
use offshoot_models::huggingface::{
    FolderExport, FolderOptions, PeftOptions, adapter_files, write_weights,
};

use super::FirstOrder;
use super::options::FirstOrderSpace;
use super::state::{write_bytes, written};
use crate::Error;

/// All weights in one file.
const WEIGHTS: &str = "model.safetensors";

impl FirstOrder {
    /// An adapter as PEFT saves it, with its draft heads if it has some, or a whole model's folder.
    pub(super) fn write_learned(&self, folder: &Path) -> Result<(), Error> {
        match (self.tuning.adapter()?, &self.options.space) {
            (Some(adapter), FirstOrderSpace::Lora(lora)) => {
                let base_model = self.checkpoint.name().map(str::to_owned);
                let options =
                    PeftOptions { rslora: lora.rslora, dropout: lora.dropout, base_model };
                let config = self.checkpoint.config();
                for (name, bytes) in adapter_files(&adapter, config, &options)? {
                    write_bytes(folder, &name, &bytes)?;
                }
                self.write_heads(folder)
            }
            _ => self.write_model(folder),
        }
    }

    fn write_model(&self, folder: &Path) -> Result<(), Error> {
        let options =
            FolderOptions { floats: Recipe::F32, single_vectors: false, shard_bytes: u64::MAX };
        let export = FolderExport::new(&self.checkpoint, &options)?;
        for (name, bytes) in export.side_files() {
            write_bytes(folder, name, bytes)?;
        }
        written(folder, WEIGHTS, |file, _| self.write_weights_to(file, folder))
    }

    fn write_weights_to(&self, file: &mut File, folder: &Path) -> Result<(), Error> {
        let output = |source| Error::Output { path: folder.join(WEIGHTS), source };
        let mut out = BufWriter::new(file);
        write_weights(self.tuning.model(), &mut out).map_err(|error| match error {
            ExportError::Model(error) => Error::Model(error),
            ExportError::Output(source) => output(source),
            ExportError::Stopped => Error::Stopped,
        })?;
        out.flush().map_err(output)
    }
}
