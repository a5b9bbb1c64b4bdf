//! What runs a model, and which variant of it.

use std::path::PathBuf;

use clap::Args;
use offshoot_engine::{DenseDevice, DenseType, ExecutorKind};

use crate::failure::Failure;

/// Which variant of the model is run.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AdapterArgs {
    /// A LoRA adapter of this model, as Python's PEFT saves it: a folder with adapter_config.json and
    /// adapter_model.safetensors.
    #[arg(long, env = "OFFSHOOT_ADAPTER", value_name = "FOLDER")]
    pub(crate) adapter: Option<PathBuf>,
}

/// What runs the steps of an answer.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ExecutorArgs {
    /// What runs the model [default: packed, or dense where --device is not the processor].
    #[arg(long, env = "OFFSHOOT_EXECUTOR", value_enum)]
    pub(crate) executor: Option<ExecutorName>,
    /// Where the dense executor runs it: cpu, or cuda (cuda:1 for the second) in a program built with
    /// that feature.
    #[arg(long, env = "OFFSHOOT_DEVICE", default_value = "cpu")]
    pub(crate) device: DenseDevice,
    /// What the dense executor's numbers are: f32, f16 or bf16 [default: f32]
    #[arg(long, env = "OFFSHOOT_DTYPE")]
    pub(crate) dtype: Option<DenseType>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum ExecutorName {
    /// The kernels, on packed weights
    Packed,
    /// The tensor library, on weights of --dtype: slow on a processor, on all its threads or
    /// RAYON_NUM_THREADS of them, and drafts only where --spec names who drafts
    Dense,
}

impl ExecutorArgs {
    pub(crate) fn kind(self) -> Result<ExecutorKind, Failure> {
        let on_processor = self.device == DenseDevice::Cpu;
        let dense = match self.executor {
            Some(ExecutorName::Packed) if !on_processor => {
                return Err(Failure::Usage(format!(
                    "--executor packed (or OFFSHOOT_EXECUTOR) runs on the processor alone: leave it \
                     out, or --device {}",
                    self.device
                )));
            }
            Some(ExecutorName::Packed) => false,
            Some(ExecutorName::Dense) => true,
            None => !on_processor,
        };
        match (dense, self.dtype) {
            (true, dtype) => {
                let dtype = dtype.unwrap_or_default();
                Ok(ExecutorKind::Dense { device: self.device, dtype })
            }
            (false, None) => Ok(ExecutorKind::Packed),
            (false, Some(dtype)) => Err(Failure::Usage(format!(
                "--dtype {dtype} (or OFFSHOOT_DTYPE) is of the dense executor: add --executor dense, or \
                 leave it out"
            ))),
        }
    }
}
