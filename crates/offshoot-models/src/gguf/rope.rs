//! How a GGUF file stretches the rotary frequencies.

use offshoot_kernels::BlockType;

use super::canonical::missing;
use super::reader::Gguf;
use super::{Shown, malformed};
use crate::rope_rule::{Llama3, Stretching};
use crate::yarn::{BETA_FAST, BETA_SLOW, Yarn};
use crate::{Error, ModelConfig, RopeRule, RopeScaling};

/// The tensors that say it: Llama 3's factors, and LongRoPE's for short texts and for long ones.
pub(super) const TENSORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// The stretching of the rotary frequencies.
pub(super) fn scaling(
    gguf: &Gguf<'_>,
    arch: &str,
    config: &ModelConfig,
) -> Result<Stretching, Error> {
    let ModelConfig { rotary_dim, .. } = *config;
    let type_key = format!("{arch}.rope.scaling.type");
    let factors = read_factors(gguf, "rope_freqs.weight", rotary_dim)?;
    let [_, short, long] = TENSORS;
    match (read_factors(gguf, short, rotary_dim)?, read_factors(gguf, long, rotary_dim)?) {
        (None, None) => {}
        (Some(short), Some(long)) if arch == "phi3" => return self::long(gguf, arch, short, long),
        _ => {
            return Err(malformed(format_args!(
                "tensors {short:?} and {long:?}: expected both, of a model of phi3"
            )));
        }
    }
    match (gguf.text(&type_key)?, factors) {
        (None, factors) => match (unnamed_factor(gguf, arch)?, factors) {
            (None, None) => Ok(Stretching::plain(RopeScaling::None)),
            (None, Some(factors)) => Ok(by_factors(factors, config)),
            (Some(factor), None) => Ok(Stretching::plain(RopeScaling::Linear { factor })),
            (Some(_), Some(_)) => Err(malformed(format_args!(
                "key \"{arch}.rope.scaling.factor\": linear scaling beside tensor \
                 \"rope_freqs.weight\", expected one"
            ))),
        },
        (Some("none"), None) => Ok(Stretching::plain(RopeScaling::None)),
        (Some("none"), Some(factors)) => Ok(by_factors(factors, config)),
        (Some("linear"), None) => {
            let key = format!("{arch}.rope.scaling.factor");
            let factor = gguf.float(&key)?.ok_or_else(|| missing(&key))?;
            Ok(Stretching::plain(RopeScaling::Linear { factor }))
        }
        (Some("yarn"), None) => yarn(gguf, arch, config),
        (Some(kind @ ("linear" | "yarn")), Some(_)) => Err(malformed(format_args!(
            "key \"{type_key}\": {kind} scaling beside tensor \"rope_freqs.weight\", expected one"
        ))),
        (Some(other), _) => Err(malformed(format_args!(
            "key \"{type_key}\": {} scaling is not supported, only none, linear and yarn",
            Shown(other)
        ))),
    }
}

/// Frequencies divided by `factors`. Those of a published rule are the rule's own, as a folder has them:
/// whoever wrote the file rounded them in their own way.
fn by_factors(factors: Vec<f32>, config: &ModelConfig) -> Stretching {
    let ModelConfig { rope_theta: theta, rotary_dim, .. } = *config;
    match Llama3::published(&factors, theta as f32, rotary_dim) {
        Some(rule) => Stretching {
            rule: Some(RopeRule::Llama3(rule)),
            ..Stretching::plain(RopeScaling::Factors(rule.factors(theta as f32, rotary_dim)))
        },
        None => Stretching::plain(RopeScaling::Factors(factors)),
    }
}

/// The divisor of all positions that a file gives without a type, which is linear then; the second key
/// is that of files from before the first.
fn unnamed_factor(gguf: &Gguf<'_>, arch: &str) -> Result<Option<f64>, Error> {
    for key in ["rope.scaling.factor", "rope.scale_linear"] {
        if let Some(factor) = gguf.float(&format!("{arch}.{key}"))? {
            return Ok(Some(factor).filter(|factor| ![0.0, 1.0].contains(factor)));
        }
    }
    Ok(None)
}

fn yarn(gguf: &Gguf<'_>, arch: &str, config: &ModelConfig) -> Result<Stretching, Error> {
    let ModelConfig { rope_theta: theta, rotary_dim, max_position_embeddings, .. } = *config;
    let read = |key: &str, absent: Option<f32>| {
        let key = format!("{arch}.rope.scaling.{key}");
        let value = match gguf.get(&key).and_then(|value| value.as_integer()) {
            Some(whole) => Some(whole as f64),
            None => gguf.float(&key)?,
        };
        match value.map(|value| value as f32).or(absent) {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value),
            Some(value) => Err(malformed(format_args!(
                "key \"{key}\": {value}, expected a finite number above 0"
            ))),
            None => Err(missing(&key)),
        }
    };
    for (key, idle) in [("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0)] {
        let key = format!("{arch}.rope.scaling.{key}");
        if let Some(other) = gguf.float(&key)?.filter(|value| *value != idle) {
            return Err(malformed(format_args!(
                "key \"{key}\": {other} is not supported, only {idle}"
            )));
        }
    }
    let rule = Yarn {
        factor: read("factor", None)?,
        context: read("original_context_length", Some(max_position_embeddings as f32))?,
        beta_fast: read("yarn_beta_fast", Some(BETA_FAST))?,
        beta_slow: read("yarn_beta_slow", Some(BETA_SLOW))?,
    };
    // llama.cpp's converter writes config.json's `attention_factor`, which replaces the rule's.
    let magnitude = read("yarn_attn_factor", Some(rule.magnitude()))?;
    let magnitude = read("attn_factor", Some(1.0))? * magnitude;
    let scaling = RopeScaling::Factors(rule.factors(theta, rotary_dim));
    Ok(Stretching { scaling, magnitude, rule: Some(RopeRule::Yarn(rule)), reach: rule.reach() })
}

/// LongRoPE's two sets of factors.
fn long(gguf: &Gguf<'_>, arch: &str, short: Vec<f32>, long: Vec<f32>) -> Result<Stretching, Error> {
    let type_key = format!("{arch}.rope.scaling.type");
    if let Some(kind) = gguf.text(&type_key)?.filter(|kind| !["none", "longrope"].contains(kind)) {
        return Err(malformed(format_args!(
            "key \"{type_key}\": {} beside tensors of LongRoPE, expected \"longrope\"",
            Shown(kind)
        )));
    }
    let key = format!("{arch}.rope.scaling.original_context_length");
    let trained = gguf.unsigned(&key)?.ok_or_else(|| missing(&key))?;
    let trained = usize::try_from(trained).map_err(|_| malformed(format_args!("key \"{key}\"")))?;
    let attention = gguf.float(&format!("{arch}.rope.scaling.attn_factor"))?.unwrap_or(1.0) as f32;
    let scaling = RopeScaling::Long { short, long, trained };
    Ok(Stretching { magnitude: attention, ..Stretching::plain(scaling) })
}

/// The divisors in a tensor of the file, if it has that.
fn read_factors(gguf: &Gguf<'_>, name: &str, rotary_dim: usize) -> Result<Option<Vec<f32>>, Error> {
    let Some(tensor) = gguf.tensor(name) else { return Ok(None) };
    if tensor.block != BlockType::F32 || tensor.shape != [rotary_dim / 2] {
        return Err(malformed(format_args!(
            "tensor {name:?}: {} of shape {:?}, expected F32 of [{}]",
            tensor.block,
            tensor.shape,
            rotary_dim / 2
        )));
    }
    let values = gguf.data(tensor).chunks_exact(4);
    Ok(Some(values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
}
