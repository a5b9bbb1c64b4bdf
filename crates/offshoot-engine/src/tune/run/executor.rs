//! What runs the model of a run, and where.
//!
//! What is tuned stays in the processor's memory, and it makes the steps: a run may go on elsewhere
//! than it began. Losses and gradients differ in their last bits from one device to another.

use serde::{Deserialize, Serialize};

use super::{Method, RunConfig, RunError, Space};
use crate::tune::zeroth_order::Activations;
use crate::{DenseDevice, DenseType, ExecutorKind};

/// What runs the model, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Executor {
    /// The kernels.
    Packed,
    /// The tensor library.
    Dense,
}

impl RunConfig {
    /// What runs the model: as asked for, or the packed executor where losses alone are asked for
    /// on the processor, and the dense one else.
    ///
    /// # Errors
    /// [`RunError::Config`] if it cannot be, or cannot run what is asked for.
    pub fn runs_on(&self) -> Result<ExecutorKind, RunError> {
        self.kind().map_err(|what| RunError::Config { place: String::new(), what })
    }

    fn kind(&self) -> Result<ExecutorKind, String> {
        let device = self.device.parse::<DenseDevice>().map_err(|e| format!("device: {e}"))?;
        let on_processor = device == DenseDevice::Cpu;
        let by_losses = matches!(self.method, Method::ZerothOrder(_));
        let dense = match self.executor {
            Some(Executor::Packed) if !by_losses => {
                return Err(format!(
                    "executor: method {} makes gradients, which the dense one does: leave it out",
                    self.method
                ));
            }
            Some(Executor::Packed) if !on_processor => {
                return Err(format!(
                    "executor: the packed one runs on the processor alone: leave it out, or device \
                     {device}"
                ));
            }
            Some(executor) => executor == Executor::Dense,
            None => !by_losses || !on_processor,
        };
        match self.dtype {
            Some(dtype) if !by_losses && dtype != DenseType::F32 => {
                return Err(format!(
                    "dtype: method {} makes gradients, which are of f32: leave {dtype} out",
                    self.method
                ));
            }
            Some(dtype) if !dense => {
                return Err(format!(
                    "dtype: {dtype} is of the dense executor: give executor dense, or leave it out"
                ));
            }
            _ => {}
        }
        if !dense {
            return Ok(ExecutorKind::Packed);
        }
        if by_losses {
            self.check_dense()?;
        }
        Ok(ExecutorKind::Dense { device, dtype: self.dtype.unwrap_or_default() })
    }

    /// Refuses what the dense executor does not compute losses of.
    fn check_dense(&self) -> Result<(), String> {
        let name = match self.space {
            Space::Lora | Space::LoraFa | Space::Full => "",
            Space::Prefix => "prefix",
            Space::Prompt => "prompt",
            Space::Scales => "scales",
        };
        if !name.is_empty() {
            return Err(format!(
                "space: {name} is tuned on the packed executor alone: leave out executor dense and \
                 device, or take lora, lora_fa or full"
            ));
        }
        if self.activations != Activations::Float {
            return Err(
                "activations: the dense executor rounds none: leave it out, or executor dense"
                    .to_owned(),
            );
        }
        if self.bfloat16 {
            let what =
                "bfloat16: the dense executor's numbers are of dtype: give dtype bf16 instead";
            return Err(what.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(method: &str) -> RunConfig {
        let method = method.parse().unwrap();
        RunConfig { model: "m".into(), data: vec!["d".into()], method, ..RunConfig::default() }
    }

    #[test]
    fn gradients_are_made_on_the_dense_executor_and_losses_where_they_are_asked_for() {
        assert_eq!(config("lora").runs_on().unwrap(), ExecutorKind::DENSE);
        assert_eq!(config("mezo").runs_on().unwrap(), ExecutorKind::Packed);
        let dense = RunConfig { executor: Some(Executor::Dense), ..config("mezo") };
        assert_eq!(dense.runs_on().unwrap(), ExecutorKind::DENSE);
        let dtype = DenseType::Bf16;
        let halves = RunConfig { dtype: Some(dtype), ..dense };
        let expected = ExecutorKind::Dense { device: DenseDevice::Cpu, dtype };
        assert_eq!(halves.runs_on().unwrap(), expected);
    }

    #[test]
    fn what_an_executor_cannot_do_is_told_by_the_setting() {
        let dense = |space| RunConfig { space, executor: Some(Executor::Dense), ..config("mezo") };
        let halves = Some(DenseType::Bf16);
        for (config, says) in [
            (RunConfig { device: "tpu".into(), ..config("mezo") }, "device: \"tpu\" is no device"),
            (RunConfig { executor: Some(Executor::Packed), ..config("lora") }, "makes gradients"),
            (RunConfig { dtype: halves, ..config("full") }, "dtype: method full makes gradients"),
            (RunConfig { dtype: halves, ..config("mezo") }, "give executor dense"),
            (dense(Space::Prefix), "space: prefix is tuned on the packed"),
            (dense(Space::Prompt), "space: prompt is tuned on the packed"),
            (dense(Space::Scales), "space: scales is tuned on the packed"),
            (
                RunConfig { activations: Activations::Stored, ..dense(Space::Lora) },
                "activations: the dense",
            ),
            (RunConfig { bfloat16: true, ..dense(Space::Full) }, "give dtype bf16"),
        ] {
            let told = config.validate().unwrap_err().to_string();
            assert!(told.contains(says), "{told}");
        }
        for space in [Space::Lora, Space::LoraFa, Space::Full] {
            dense(space).validate().unwrap();
        }
    }
}
