//! Which executor a model is loaded for.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

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
}

impl DenseDevice {
    /// The device itself.
    pub(crate) fn open(self) -> Device {
        match self {
            Self::Cpu => Device::Cpu,
        }
    }
}

impl FromStr for DenseDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" | "metal" => Err(format!("{text} is not built into this program: take cpu")),
            _ => Err(format!("{text:?} is no device: expected cpu")),
        }
    }
}

impl fmt::Display for DenseDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

/// A number type of the dense executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written_and_others_are_told_to_be_missing() {
        assert_eq!("cpu".parse::<DenseDevice>().unwrap().to_string(), "cpu");
        let cuda = "cuda".parse::<DenseDevice>().unwrap_err();
        assert!(cuda.contains("cuda is not built into this program"), "{cuda}");
        assert!("tpu".parse::<DenseDevice>().unwrap_err().contains("expected cpu"));
    }

    #[test]
    fn coarser_numbers_are_trusted_less() {
        let noise = [DenseType::F32, DenseType::F16, DenseType::Bf16].map(DenseType::noise);
        assert!(noise[0] < 1e-4 && noise[0] * 4096.0 < noise[1] && noise[1] < noise[2]);
    }
}
