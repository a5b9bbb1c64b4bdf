//! How `config.json` stretches the rotary frequencies, in both spellings that files have:
//! `rope_theta` with `rope_scaling`, and `rope_parameters` for all of it.

use serde_json::Value;

use super::fields::Fields;
use crate::rope_rule::{Llama3, Stretching};
use crate::shown::Shown;
use crate::yarn::{BETA_FAST, BETA_SLOW, Yarn};
use crate::{Error, Family, ModelConfig, RopeRule, RopeScaling};

/// transformers' default.
const THETA: f64 = 10_000.0;
/// Its default for Gemma's layers that see everything; those within a window have the other.
const GEMMA_THETA: f64 = 1_000_000.0;
/// Gemma's two kinds of layers, each of which newer files give parameters of its own.
const WHOLE: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

/// The fields of a scaling that are understood.
const KNOWN: [&str; 15] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "short_factor",
    "long_factor",
];

/// Gemma's parameters of one kind of layer, if the file is a newer one.
fn of_layers<'a>(fields: Fields<'a>, kind: &str) -> Result<Option<Fields<'a>>, Error> {
    let Some(both) = fields.inner("rope_parameters", "rope_parameters.")? else { return Ok(None) };
    if let Some(name) = both.names().find(|name| ![WHOLE, LOCAL].contains(name)) {
        let what = format!("is not supported, only {WHOLE} and {LOCAL}");
        return Err(both.error(&Shown(name).to_string(), what));
    }
    both.inner(
        kind,
        if kind == WHOLE {
            "rope_parameters.full_attention."
        } else {
            "rope_parameters.sliding_attention."
        },
    )
}

/// The base of the frequencies of Gemma's layers that see no further back than a window.
pub(super) fn local_theta(fields: Fields<'_>) -> Result<f64, Error> {
    let mut theta = fields.number("rope_local_base_freq")?;
    if let Some(parameters) = of_layers(fields, LOCAL)? {
        if let Some(name) = parameters.names().find(|n| !["rope_type", "rope_theta"].contains(n)) {
            return Err(parameters.error(&Shown(name).to_string(), "is not supported"));
        }
        if let Some(kind) = parameters.text("rope_type")?.filter(|kind| *kind != "default") {
            let what = format!("{} is not supported, only \"default\"", Shown(kind));
            return Err(parameters.error("rope_type", what));
        }
        theta = parameters.number("rope_theta")?.or(theta);
    }
    Ok(f64::from(theta.unwrap_or(THETA) as f32))
}

/// The object that says how, if there is one.
fn parameters<'a>(fields: Fields<'a>, family: Family) -> Result<Option<Fields<'a>>, Error> {
    let new = match family {
        Family::Gemma3 => of_layers(fields, WHOLE)?,
        _ => fields.inner("rope_parameters", "rope_parameters.")?,
    };
    let old = fields.inner("rope_scaling", "rope_scaling.")?;
    match (new, old) {
        (Some(_), Some(_)) if fields.get("rope_parameters") != fields.get("rope_scaling") => {
            Err(fields.error("rope_scaling", "given beside rope_parameters, expected one of them"))
        }
        (Some(found), _) | (None, Some(found)) => {
            match found.names().find(|n| !KNOWN.contains(n)) {
                Some(name) => Err(found.error(&Shown(name).to_string(), "is not supported")),
                None => Ok(Some(found)),
            }
        }
        (None, None) => Ok(None),
    }
}

/// The base of the frequencies, in single precision as transformers and GGUF files have it.
pub(super) fn theta(fields: Fields<'_>, family: Family) -> Result<f64, Error> {
    let inner = match parameters(fields, family)? {
        Some(parameters) => parameters.number("rope_theta")?,
        None => None,
    };
    let theta = match inner {
        Some(theta) => theta,
        None => fields.number("rope_theta")?.unwrap_or(match family {
            Family::Gemma3 => GEMMA_THETA,
            _ => THETA,
        }),
    };
    Ok(f64::from(theta as f32))
}

/// How many elements of a head are rotated, the first of it.
pub(super) fn rotary_dim(
    fields: Fields<'_>,
    family: Family,
    head_dim: usize,
) -> Result<usize, Error> {
    let name = "partial_rotary_factor";
    let mut told = None;
    for fields in [Some(fields), parameters(fields, family)?].into_iter().flatten() {
        let Some(part) = fields.number(name)? else { continue };
        let refused = |what: String| Err(fields.error(name, what));
        if let Some((other, _)) = told.filter(|(other, _)| *other != part) {
            return refused(format!("{part}, but {name} is {other}"));
        }
        // The product is cut off, as transformers does.
        let rotary_dim = if part == 1.0 { head_dim } else { (head_dim as f64 * part) as usize };
        if part != 1.0 && family != Family::Phi3 {
            // transformers' code of the other families turns a head whole.
            return refused(format!("{part} is not supported of this model, only 1"));
        }
        if part > 1.0 || part != 1.0 && (rotary_dim == 0 || !rotary_dim.is_multiple_of(2)) {
            return refused(format!(
                "{part} of a head of {head_dim}, expected an even number of elements of it"
            ));
        }
        told = Some((part, rotary_dim));
    }
    Ok(told.map_or(head_dim, |(_, rotary_dim)| rotary_dim))
}

/// The stretching of the frequencies of a model whose sizes are sound.
pub(super) fn scaling(fields: Fields<'_>, config: &ModelConfig) -> Result<Stretching, Error> {
    let (family, theta, rotary_dim) = (config.family, config.rope_theta, config.rotary_dim);
    let unscaled = Stretching::plain(RopeScaling::None);
    let Some(parameters) = parameters(fields, family)? else { return Ok(unscaled) };
    let (new, old) = (parameters.text("rope_type")?, parameters.text("type")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        let what = format!("{}, but rope_type is {}", Shown(old), Shown(new));
        return Err(parameters.error("type", what));
    }
    let name = if new.is_none() && old.is_some() { "type" } else { "rope_type" };
    match new.or(old) {
        None if parameters.get("factor").is_some() => Err(parameters.missing(name)),
        None | Some("default") => Ok(unscaled),
        Some("linear") => {
            let factor = parameters.required_number("factor")? as f32;
            Ok(Stretching::plain(RopeScaling::Linear { factor: f64::from(factor) }))
        }
        Some("llama3") => {
            let rule = llama3(fields, parameters)?;
            Ok(Stretching {
                rule: Some(RopeRule::Llama3(rule)),
                ..Stretching::plain(RopeScaling::Factors(rule.factors(theta as f32, rotary_dim)))
            })
        }
        Some("yarn") => {
            let yarn = yarn(fields, parameters)?;
            let magnitude = yarn_magnitude(parameters, &yarn)?;
            let scaling = RopeScaling::Factors(yarn.factors(theta, rotary_dim));
            let reach = yarn.reach();
            Ok(Stretching { scaling, magnitude, rule: Some(RopeRule::Yarn(yarn)), reach })
        }
        // Older files of Phi-3 call it "su".
        Some("longrope" | "su") if family == Family::Phi3 => long(fields, parameters, config),
        Some(other) => Err(parameters.error(
            name,
            format_args!(
                "{} is not supported, only \"default\", \"linear\", \"llama3\" and \"yarn\"",
                Shown(other)
            ),
        )),
    }
}

/// A number above zero, in single precision.
fn positive(parameters: Fields<'_>, name: &str, value: f64) -> Result<f32, Error> {
    let value = value as f32;
    if value > 0.0 && value.is_finite() {
        Ok(value)
    } else {
        Err(parameters.error(name, format_args!("{value}, expected a number above 0")))
    }
}

fn positive_or(parameters: Fields<'_>, name: &str, absent: f32) -> Result<f32, Error> {
    parameters.number(name)?.map_or(Ok(absent), |value| positive(parameters, name, value))
}

/// The context that the model was trained with, before any stretching.
fn trained_context(fields: Fields<'_>, parameters: Fields<'_>) -> Result<Option<f32>, Error> {
    let trained = match parameters.number(TRAINED)? {
        Some(trained) => Some(trained),
        None => fields.number(TRAINED)?,
    };
    trained.map(|trained| positive(parameters, TRAINED, trained)).transpose()
}

const TRAINED: &str = "original_max_position_embeddings";

/// LongRoPE (Ding et al. 2024, <https://arxiv.org/abs/2402.13753>). The magnitude is
/// `sqrt(1 + ln(context / trained) / ln(trained))`, unless the file gives another.
fn long(
    fields: Fields<'_>,
    parameters: Fields<'_>,
    config: &ModelConfig,
) -> Result<Stretching, Error> {
    let read = |name: &str| {
        let list = parameters.list(name)?.ok_or_else(|| parameters.missing(name))?;
        if list.len() != config.rotary_dim / 2 {
            let what = format!("{} of them, expected {}", list.len(), config.rotary_dim / 2);
            return Err(parameters.error(name, what));
        }
        let number = |value: &Value| {
            let number =
                value.as_f64().ok_or_else(|| parameters.error(name, "expected numbers"))?;
            positive(parameters, name, number)
        };
        list.iter().map(number).collect::<Result<Vec<_>, _>>()
    };
    let trained = trained_context(fields, parameters)?;
    let trained = trained.ok_or_else(|| parameters.missing(TRAINED))?;
    let factor = parameters.number("factor")?;
    let reach = factor.map_or(0, |factor| (factor * f64::from(trained)).round() as usize);
    let stretch = factor.unwrap_or(config.max_position_embeddings as f64 / f64::from(trained));
    let magnitude = long_magnitude(stretch, f64::from(trained));
    let magnitude = positive_or(parameters, "attention_factor", magnitude)?;
    let (short, long) = (read("short_factor")?, read("long_factor")?);
    let scaling = RopeScaling::Long { short, long, trained: trained as usize };
    Ok(Stretching { magnitude, reach, ..Stretching::plain(scaling) })
}

/// The magnitude of contexts that are `stretch` times the trained one.
pub(super) fn long_magnitude(stretch: f64, trained: f64) -> f32 {
    match stretch > 1.0 {
        true => (1.0 + stretch.ln() / trained.ln()).sqrt() as f32,
        false => 1.0,
    }
}

fn yarn(fields: Fields<'_>, parameters: Fields<'_>) -> Result<Yarn, Error> {
    Ok(Yarn {
        factor: positive(parameters, "factor", parameters.required_number("factor")?)?,
        context: match trained_context(fields, parameters)? {
            Some(context) => context,
            None => fields.required_number("max_position_embeddings")? as f32,
        },
        beta_fast: positive_or(parameters, "beta_fast", BETA_FAST)?,
        beta_slow: positive_or(parameters, "beta_slow", BETA_SLOW)?,
    })
}

/// YaRN's magnitude: what the file says, else by the rule. Zeros weigh nothing, as in transformers.
fn yarn_magnitude(parameters: Fields<'_>, yarn: &Yarn) -> Result<f32, Error> {
    let (name, all) = ("mscale", "mscale_all_dim");
    let weight =
        |name: &str| Ok::<_, Error>(parameters.number(name)?.filter(|weight| *weight != 0.0));
    let by_rule = match (weight(name)?, weight(all)?) {
        (Some(a), Some(b)) => yarn.weighed_magnitude(a) / yarn.weighed_magnitude(b),
        _ => yarn.weighed_magnitude(1.0),
    };
    positive_or(parameters, "attention_factor", positive(parameters, name, by_rule)?)
}

fn llama3(fields: Fields<'_>, parameters: Fields<'_>) -> Result<Llama3, Error> {
    let read = |name: &str| positive(parameters, name, parameters.required_number(name)?);
    let rule = Llama3 {
        factor: read("factor")?,
        low_freq_factor: read("low_freq_factor")?,
        high_freq_factor: read("high_freq_factor")?,
        context: trained_context(fields, parameters)?.ok_or_else(|| parameters.missing(TRAINED))?,
    };
    if rule.high_freq_factor <= rule.low_freq_factor {
        let what = format!("expected more than low_freq_factor, {}", rule.low_freq_factor);
        return Err(parameters.error("high_freq_factor", what));
    }
    Ok(rule)
}
