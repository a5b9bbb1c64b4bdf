//! Adapters that Python's PEFT saves: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The format is <https://huggingface.co/docs/peft/developer_guides/checkpoint>; positions before texts
//! are read in `peft_virtual.rs`. Tensors of LoRA are named
//! `base_model.model.{matrix}.lora_A.weight [r, cols]` and `...lora_B.weight [rows, r]`. The matrices of
//! the base are named as in its folder, so one adapter fits a base in whatever format it has.
//!
//! What PEFT can do to a model beside that is refused by the name of its field: an adapter that is
//! applied in part gives wrong answers, and nobody sees why.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use offshoot_kernels::FileMap;
use onig::{MatchParam, Regex, SearchOptions};
use serde_json::Value;

use super::fields::Fields;
use super::peft_scales;
use super::peft_virtual::{self, PeftKind};
use super::safetensors::{self, Place};
use super::{canonical, not_json, wrong};
use crate::adapter::{Adapter, LoraAdapter, LowRank};
use crate::shown::Shown;
use crate::{Architecture, Error, LinearSpec, ModelConfig};

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
/// The weights as pickles, which execute what they like.
const PICKLED: &str = "adapter_model.bin";
/// Longest configuration that is read: one with a rank for each matrix takes a tenth.
const CONFIG_MAX: u64 = 1 << 20;
/// Highest rank: no matrix needs more.
const RANK_MAX: usize = 1 << 14;
/// Longest pattern that names matrices, and most of them.
const PATTERN_CHARS: usize = 512;
const PATTERNS_MAX: usize = 1 << 12;
/// Steps back that a pattern may take on a name.
const RETRIES: u32 = 2_000;
/// Pairs of a pattern and a matrix that are compared at most.
const PAIRS_MAX: usize = 1 << 22;

/// Fields that are read, and those that say what was trained, and how, but not what is computed with.
/// Others must be as good as absent.
const HARMLESS: [&str; 28] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];
/// Initialisations that change the base as well, unless PEFT converted the adapter when saving it.
const CHANGES_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl Adapter {
    /// Reads the adapter in `folder` for a base of `model`.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::File`] if one is damaged, is of a kind that
    /// offshoot does not apply, or does not fit the base.
    pub fn open(folder: &Path, model: &ModelConfig) -> Result<Self, Error> {
        let read = || {
            let config = bounded(&folder.join(CONFIG))?;
            let path = folder.join(WEIGHTS);
            if !path.exists() && folder.join(PICKLED).exists() {
                let what = "pickled weights are not read: save the adapter with safe_serialization";
                return Err(wrong(PICKLED, what));
            }
            let io = |source| Error::Io { path: path.clone(), source };
            let weights = FileMap::open(&path).map_err(io)?;
            parse(&config, &weights, model)
        };
        read().map_err(|error| error.within(folder))
    }
}

fn bounded(path: &Path) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(CONFIG_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > CONFIG_MAX {
        return Err(wrong(CONFIG, format_args!("longer than {CONFIG_MAX} bytes")));
    }
    Ok(bytes)
}

impl LoraAdapter {
    /// As [`Adapter::open`], of differences of matrices alone.
    ///
    /// # Errors
    /// As [`Adapter::open`], and if it is an adapter of another kind.
    pub fn open(folder: &Path, model: &ModelConfig) -> Result<Self, Error> {
        match Adapter::open(folder, model)? {
            Adapter::Lora(adapter) => Ok(adapter),
            Adapter::Virtual(_) | Adapter::Scales(_) => {
                Err(wrong(CONFIG, "peft_type: no LORA").within(folder))
            }
        }
    }
}

/// The adapter of the bytes of its two files, for a base of `model`.
///
/// # Errors
/// [`Error::File`], whose path is the file's name, as [`Adapter::open`].
pub fn parse(config: &[u8], weights: &[u8], model: &ModelConfig) -> Result<Adapter, Error> {
    let value: Value = serde_json::from_slice(config).map_err(|e| not_json(CONFIG, &e))?;
    let fields = Fields::whole(CONFIG, &value)?;
    Ok(match PeftKind::of(fields)? {
        PeftKind::Lora => Adapter::Lora(lora(fields, weights, model)?),
        PeftKind::Virtual(kind) => {
            Adapter::Virtual(peft_virtual::parse(kind, fields, weights, model)?)
        }
        PeftKind::Scales => Adapter::Scales(peft_scales::parse(fields, weights, model)?),
    })
}

/// Differences of matrices.
fn lora(fields: Fields<'_>, weights: &[u8], model: &ModelConfig) -> Result<LoraAdapter, Error> {
    let scaling = Scaling::read(fields)?;
    let blueprint = Architecture::new(model).1;
    let linears = blueprint.linears.iter().map(|linear| (linear.name.as_str(), linear));
    let linears: HashMap<&str, &LinearSpec> = linears.collect();
    let head = blueprint.linears.last().map_or("", |head| head.name.as_str());
    let mut halves: BTreeMap<String, [Option<Place>; 2]> = BTreeMap::new();
    for (name, place) in safetensors::read(WEIGHTS, weights)? {
        if is_copy(&name) {
            if place.shape == [model.vocab_size, model.hidden_size] {
                continue;
            }
            let what = format!(
                "tensor {}: shape {:?}, but the model has {} tokens of {}: adapters that add tokens \
                 are not read, merge it into its base",
                Shown(&name),
                place.shape,
                model.vocab_size,
                model.hidden_size
            );
            return Err(wrong(WEIGHTS, what));
        }
        let Some((matrix, half)) = matrix_of(&name) else {
            let what = format!("tensor {}: not one of a LoRA adapter's matrices", Shown(&name));
            return Err(wrong(WEIGHTS, what));
        };
        if halves.entry(matrix.to_owned()).or_default()[half].replace(place).is_some() {
            let what = format!("tensor {}: there under another name, too", Shown(&name));
            return Err(wrong(WEIGHTS, what));
        }
    }
    if halves.is_empty() {
        return Err(wrong(WEIGHTS, "no tensors"));
    }
    if halves.len().saturating_mul(scaling.ranks.len() + scaling.alphas.len()) > PAIRS_MAX {
        return Err(wrong(
            CONFIG,
            "more patterns than names of so many matrices are compared with",
        ));
    }
    let mut adapter = LoraAdapter::default();
    for (matrix, halves) in halves {
        let [Some(a), Some(b)] = halves else {
            let what = format!("matrix {}: one of lora_A and lora_B is missing", Shown(&matrix));
            return Err(wrong(WEIGHTS, what));
        };
        let parts = parts_of(&matrix, model, &linears, head);
        if parts.is_empty() {
            let what = format!(
                "matrix {}: a {} model of these sizes has none of that name",
                Shown(&matrix),
                model.family.name()
            );
            return Err(wrong(WEIGHTS, what));
        }
        let rows = parts.iter().map(|(_, rows, _)| rows).sum::<usize>();
        let cols = parts[0].2;
        let rank = a.shape.first().copied().unwrap_or(0);
        if a.shape != [rank, cols] || b.shape != [rows, rank] || !(1..=RANK_MAX).contains(&rank) {
            let what = format!(
                "matrix {}: lora_A {:?} and lora_B {:?}, expected [r, {cols}] and [{rows}, r]",
                Shown(&matrix),
                a.shape,
                b.shape
            );
            return Err(wrong(WEIGHTS, what));
        }
        let scale = scaling.of(&matrix, rank)?;
        let (a, b) = (values(&matrix, &a, weights)?, values(&matrix, &b, weights)?);
        let mut first = 0;
        for (name, rows, _) in parts {
            let b = b[first * rank..(first + rows) * rank].to_vec();
            first += rows;
            let part = LowRank { rank, scale, a: a.clone(), b };
            if adapter.matrices.insert(name.clone(), part).is_some() {
                let what = format!("matrix {}: given twice", Shown(&name));
                return Err(wrong(WEIGHTS, what));
            }
        }
    }
    Ok(adapter)
}

/// Whether a tensor is the base's own embedding or output head, which PEFT saves beside an adapter of
/// one of them. Of the base's size, no tokens were added to it.
fn is_copy(name: &str) -> bool {
    let inner = name.strip_prefix("base_model.model.").unwrap_or(name);
    let inner = inner.strip_suffix(".weight").unwrap_or(inner);
    let inner = inner.strip_suffix(".base_layer").unwrap_or(inner);
    matches!(inner, "lm_head" | "model.embed_tokens")
}

/// The matrix of a tensor's name, and whether it is `A` (0) or `B` (1).
fn matrix_of(name: &str) -> Option<(&str, usize)> {
    let inner = name.strip_prefix("base_model.model.").unwrap_or(name);
    // The second form is that of a model's own state, saved without PEFT's help.
    let ends = [".weight", ".default.weight"];
    ["lora_A", "lora_B"].iter().enumerate().find_map(|(half, letter)| {
        let matrix = ends.iter().find_map(|end| inner.strip_suffix(&format!(".{letter}{end}")));
        matrix.map(|matrix| (matrix, half))
    })
}

/// The base's matrices, with rows and columns, that a folder keeps as `matrix`: one, or those of
/// neighbouring rows; none if there is no such matrix.
fn parts_of(
    matrix: &str,
    model: &ModelConfig,
    linears: &HashMap<&str, &LinearSpec>,
    head: &str,
) -> Vec<(String, usize, usize)> {
    let found = |name: &str| {
        let linear = linears.get(name)?;
        Some((linear.name.clone(), linear.rows, linear.cols))
    };
    // A tied output head is the embedding's matrix, which PEFT would name otherwise.
    if matrix == "lm_head" {
        return found(head).into_iter().collect();
    }
    if matrix == "model.embed_tokens" {
        return Vec::new();
    }
    if let Some((room, names)) = canonical::fused_parts(matrix, model) {
        return names.iter().filter_map(|name| found(&format!("{room}.{name}"))).collect();
    }
    found(matrix).into_iter().collect()
}

fn values(matrix: &str, place: &Place, file: &[u8]) -> Result<Vec<f32>, Error> {
    let mut out = vec![0.0; place.shape.iter().product()];
    let bytes = &file[place.range.clone()];
    let read = place.block.dequantize(bytes, &mut out);
    read.map_err(|e| wrong(WEIGHTS, format_args!("matrix {}: {e}", Shown(matrix))))?;
    match out.iter().all(|x| x.is_finite()) {
        true => Ok(out),
        false => Err(wrong(WEIGHTS, format_args!("matrix {}: not all finite", Shown(matrix)))),
    }
}

/// How `alpha` and `r` are turned into a scale.
struct Scaling {
    rank: usize,
    alpha: f64,
    ranks: Vec<(String, Regex, f64)>,
    alphas: Vec<(String, Regex, f64)>,
    stabilised: bool,
}

impl Scaling {
    fn read(fields: Fields<'_>) -> Result<Self, Error> {
        peft_virtual::refuse_others(fields, &HARMLESS)?;
        if let Some(bias) = fields.text("bias")?
            && bias != "none"
        {
            return Err(fields.error("bias", format_args!("{}, expected none", Shown(bias))));
        }
        if fields.flag("fan_in_fan_out")? == Some(true) {
            return Err(fields.error("fan_in_fan_out", "no model that offshoot runs is stored so"));
        }
        if let Some(Value::String(how)) = fields.get("init_lora_weights")
            && CHANGES_BASE.iter().any(|kind| how.to_lowercase().starts_with(kind))
        {
            let what = format!(
                "{}: such an adapter belongs to a changed base, unless PEFT converts it as it is saved \
                 (path_initial_model_for_weight_conversion)",
                Shown(how)
            );
            return Err(fields.error("init_lora_weights", what));
        }
        let alpha = fields.required_number("lora_alpha")?;
        if !alpha.is_finite() || alpha.abs() > 1e6 {
            return Err(fields.error("lora_alpha", format_args!("{alpha} is out of bounds")));
        }
        Ok(Self {
            rank: fields.required_size("r")?,
            alpha,
            ranks: patterns(fields, "rank_pattern")?,
            alphas: patterns(fields, "alpha_pattern")?,
            stabilised: fields.flag("use_rslora")?.unwrap_or(false),
        })
    }

    /// The scale of `matrix`, whose matrices have this rank.
    fn of(&self, matrix: &str, rank: usize) -> Result<f32, Error> {
        let expected = matching("rank_pattern", &self.ranks, matrix)?.unwrap_or(self.rank as f64);
        if expected != rank as f64 {
            let what =
                format!("matrix {}: rank {rank}, expected {expected} by {CONFIG}", Shown(matrix));
            return Err(wrong(WEIGHTS, what));
        }
        let alpha = matching("alpha_pattern", &self.alphas, matrix)?.unwrap_or(self.alpha);
        let root = if self.stabilised { (rank as f64).sqrt() } else { rank as f64 };
        Ok((alpha / root) as f32)
    }
}

/// Patterns of names of matrices: a regular expression for all of a name, or for its end behind a dot.
fn patterns(fields: Fields<'_>, field: &str) -> Result<Vec<(String, Regex, f64)>, Error> {
    let Some(value) = fields.get(field) else { return Ok(Vec::new()) };
    let entries = value.as_object().filter(|entries| entries.len() <= PATTERNS_MAX);
    let Some(entries) = entries else {
        return Err(
            fields.error(field, format_args!("no object of at most {PATTERNS_MAX} numbers"))
        );
    };
    let one = |(pattern, number): (&String, &Value)| {
        let bad = |what: &str| fields.error(field, format_args!("{}: {what}", Shown(pattern)));
        let number = number.as_f64().filter(|n| n.is_finite() && n.abs() <= 1e6);
        let number = number.ok_or_else(|| bad("no number"))?;
        if pattern.chars().count() > PATTERN_CHARS {
            return Err(bad("too long"));
        }
        let regex = Regex::new(&format!(r"\A(?:.*\.)?(?:{pattern})\z"));
        Ok((pattern.clone(), regex.map_err(|_| bad("no regular expression"))?, number))
    };
    entries.iter().map(one).collect()
}

/// What the patterns say of `matrix`, if one fits.
fn matching(
    field: &str,
    patterns: &[(String, Regex, f64)],
    matrix: &str,
) -> Result<Option<f64>, Error> {
    let mut found: Option<(&str, f64)> = None;
    for (pattern, regex, number) in patterns {
        let mut bounds = MatchParam::default();
        bounds.set_retry_limit_in_match(RETRIES);
        let options = SearchOptions::SEARCH_OPTION_NONE;
        let fits = regex.match_with_param(matrix, 0, options, None, bounds).map_err(|_| {
            wrong(CONFIG, format_args!("{field}: {} takes too long to match", Shown(pattern)))
        })?;
        if fits.is_none() {
            continue;
        }
        match found {
            Some((first, other)) if other != *number => {
                let what = format!(
                    "{field}: {} and {} both fit {} and differ",
                    Shown(first),
                    Shown(pattern),
                    Shown(matrix)
                );
                return Err(wrong(CONFIG, what));
            }
            _ => found = Some((pattern, *number)),
        }
    }
    Ok(found.map(|(_, number)| number))
}
