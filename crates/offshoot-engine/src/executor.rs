//! Which executor a model is loaded for.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::Error;

/// What runs a model's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecutorKind {
    /// The kernels, on packed weights. Rows beside a row change no bit of its logits.
    #[default]
    Packed,
    /// The tensor library, on weights that are dequantised. A row's logits differ in the last bits
    /// with the rows beside it, so drafting has to be asked for, and is guarded.
    Dense {
        /// Where steps run.
        device: DenseDevice,
        /// What weights and activations are made of.
        dtype: DenseType,
    },
}

impl ExecutorKind {
    /// The dense executor on the processor, in single precision.
    pub const DENSE: Self = Self::Dense { device: DenseDevice::Cpu, dtype: DenseType::F32 };

    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Packed => "packed",
            Self::Dense { .. } => "dense",
        }
    }
}

impl fmt::Display for ExecutorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A device of the dense executor, as this program was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DenseDevice {
    /// The processor. The tensor library takes all its threads, or as many as `RAYON_NUM_THREADS`.
    #[default]
    Cpu,
    /// The graphics processor of this number.
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

/// What a device may be called in this program.
#[cfg(feature = "cuda")]
const DEVICES: &str = "cpu, cuda or cuda:NUMBER";
#[cfg(not(feature = "cuda"))]
const DEVICES: &str = "cpu";

impl DenseDevice {
    /// The device itself.
    ///
    /// # Errors
    /// [`Error::Device`] if the machine has no such device. Without its driver, a program that is built for
    /// it does not start.
    pub(crate) fn open(self) -> Result<Device, Error> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => {
                let failed = |e: candle_core::Error| Error::Device {
                    device: self.to_string(),
                    // The library's errors may go on with a backtrace.
                    what: e.to_string().lines().next().unwrap_or_default().to_owned(),
                };
                Device::new_cuda(number).map_err(failed)
            }
        }
    }

    /// Whether its memory is the machine's own.
    pub(crate) fn shares_memory(self) -> bool {
        self == Self::Cpu
    }
}

impl FromStr for DenseDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => return Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            "cuda" => return Ok(Self::Cuda(0)),
            _ => {}
        }
        let (kind, number) = text.split_once(':').unwrap_or((text, "0"));
        match (kind, number.parse::<usize>()) {
            #[cfg(feature = "cuda")]
            ("cuda", Ok(number)) => Ok(Self::Cuda(number)),
            #[cfg(not(feature = "cuda"))]
            ("cuda", Ok(_)) => Err(format!(
                "{text} is not built into this program: take cpu, or build with --features cuda"
            )),
            ("metal", _) => Err(format!("{text} is not built into this program: take {DEVICES}")),
            _ => Err(format!("{text:?} is no device: expected {DEVICES}")),
        }
    }
}

impl fmt::Display for DenseDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A number type of the dense executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseType {
    /// Single precision.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
}

/// How much a row's logits change with the rows beside it, in units of the number type's epsilon
/// times the greatest magnitude among them: nearly four times the most that was measured, which was
/// 34 in single precision over hundreds of rows of a real model (`LOG.md`). A row has tens of
/// thousands of logits and a choice hangs on a few of them, so even the most is seldom met. Coarser
/// types are taken to err alike, in their own units.
const NOISE_EPSILONS: f32 = 128.0;

impl DenseType {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of a number.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The tensor library's name for it.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// By how much at most a logit of a row changes with the rows beside it and with how the cache
    /// before it was made, over the greatest magnitude among the row's logits.
    pub(crate) fn noise(self) -> f32 {
        let epsilon = match self {
            Self::F32 => f32::EPSILON,
            Self::F16 => half::f16::EPSILON.to_f32(),
            Self::Bf16 => half::bf16::EPSILON.to_f32(),
        };
        NOISE_EPSILONS * epsilon
    }
}

impl FromStr for DenseType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::F32, Self::F16, Self::Bf16];
        let found = all.into_iter().find(|dtype| dtype.name() == text);
        found.ok_or_else(|| format!("{text:?} is no number type: expected f32, f16 or bf16"))
    }
}

impl fmt::Display for DenseType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written_and_others_are_told_to_be_missing() {
        assert_eq!("cpu".parse::<DenseDevice>().unwrap().to_string(), "cpu");
        for wrong in ["tpu", "cpu:1", "cuda:", "cuda:-1", "cuda:1:2"] {
            let told = wrong.parse::<DenseDevice>().unwrap_err();
            assert!(told.contains("expected cpu"), "{told}");
        }
        for cuda in ["cuda", "cuda:1"] {
            match cuda.parse::<DenseDevice>() {
                Ok(device) => assert!(device.to_string().starts_with(cuda)),
                Err(told) => assert!(told.contains("is not built into this program"), "{told}"),
            }
        }
    }

    #[test]
    fn number_types_are_read_as_they_are_written() {
        for dtype in [DenseType::F32, DenseType::F16, DenseType::Bf16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert!("f64".parse::<DenseType>().unwrap_err().contains("expected f32, f16 or bf16"));
    }

    #[test]
    fn coarser_numbers_are_trusted_less() {
        let noise = [DenseType::F32, DenseType::F16, DenseType::Bf16].map(DenseType::noise);
        assert!(noise[0] < 1e-4 && noise[0] * 4096.0 < noise[1] && noise[1] < noise[2]);
    }
}
