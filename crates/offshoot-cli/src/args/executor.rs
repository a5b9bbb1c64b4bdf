//! What runs a model, and which variant of it.

use std::path::PathBuf;

use clap::Args;
use offshoot_engine::{DenseDevice, DenseType, ExecutorKind};

use crate::failure::Failure;

/// Which variant of the model is run.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AdapterArgs {
    /// A LoRA adapter, a prefix or a prompt of this model, as Python's PEFT saves it: a folder with
    /// adapter_config.json and adapter_model.safetensors.
    #[arg(
        long, env = "OFFSHOOT_ADAPTER", value_name = "FOLDER", conflicts_with_all = ["variant", "used"]
    )]
    pub(crate) adapter: Option<PathBuf>,
    /// A variant of this model and what to call it: the folder of a run of `offshoot tune`, or of
    /// an adapter; may be given several times.
    #[arg(long, env = "OFFSHOOT_VARIANT", value_name = "NAME=FOLDER", value_parser = named_folder)]
    pub(crate) variant: Vec<NamedFolder>,
    /// Which of the variants is run [default: the only one]
    #[arg(long = "use", env = "OFFSHOOT_USE", value_name = "NAME", requires = "variant")]
    pub(crate) used: Option<String>,
}

/// A folder and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedFolder {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

fn named_folder(text: &str) -> Result<NamedFolder, String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
            Ok(NamedFolder { name: name.to_owned(), folder: folder.into() })
        }
        _ => Err("expected NAME=FOLDER, as in poet=./smollm2-lora".to_owned()),
    }
}

impl AdapterArgs {
    /// The folder of the variant that is run, if one is given by name.
    pub(crate) fn chosen(&self) -> Result<Option<PathBuf>, Failure> {
        let names = || self.variant.iter().map(|v| v.name.as_str()).collect::<Vec<_>>().join(", ");
        let mut seen = self.variant.iter().map(|v| &v.name).collect::<Vec<_>>();
        seen.sort();
        if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Failure::Usage(format!("--variant {}: there are two of it", twice[0])));
        }
        match (&self.used, &self.variant[..]) {
            (None, []) => Ok(None),
            (None, [only]) => Ok(Some(only.folder.clone())),
            (None, _) => {
                Err(Failure::Usage(format!("--variant: say with --use which of {}", names())))
            }
            (Some(name), all) => match all.iter().find(|variant| variant.name == *name) {
                Some(variant) => Ok(Some(variant.folder.clone())),
                None => Err(Failure::Usage(format!("--use {name}: there are {}", names()))),
            },
        }
    }
}

/// What runs the steps of an answer.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ExecutorArgs {
    /// What runs the model [default: packed, or dense where --device is not the processor].
    #[arg(long, env = "OFFSHOOT_EXECUTOR", value_enum)]
    pub(crate) executor: Option<ExecutorName>,
    /// Where the dense executor runs it: cpu, or cuda (cuda:1 for the second) in a program built
    /// with that feature.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_variant_is_the_one_and_of_several_one_is_named() {
        let named = |text: &str| named_folder(text).unwrap();
        let chosen = |variant: &[&str], used: Option<&str>| {
            let variant = variant.iter().map(|text| named(text)).collect();
            let args = AdapterArgs { adapter: None, variant, used: used.map(str::to_owned) };
            args.chosen().map_err(|e| e.to_string())
        };
        assert_eq!(chosen(&[], None), Ok(None));
        assert_eq!(chosen(&["a=x"], None), Ok(Some("x".into())));
        assert_eq!(chosen(&["a=x", "b=y=z"], Some("b")), Ok(Some("y=z".into())));
        assert!(chosen(&["a=x", "b=y"], None).unwrap_err().contains("--use which of a, b"));
        assert!(chosen(&["a=x", "b=y"], Some("c")).unwrap_err().contains("there are a, b"));
        assert!(chosen(&["a=x", "a=y"], Some("a")).unwrap_err().contains("two of it"));
        assert!(["a", "=x", "a="].iter().all(|text| named_folder(text).is_err()));
    }
}
