//! What a run is told: everything that a file or the command line may say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_kernels::FloatStore;
use offshoot_methods::tune::{Curve, FwdgradOptions, HybridOptions, Schedule, SpaceKind, mistaken};
use offshoot_models::{ModelConfig, VirtualKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::executor::Executor;
use super::objective::Objective;
use super::{Method, RunError, Share};
use crate::DenseType;
use crate::tune::data::Overlong;
use crate::tune::zeroth_order::Activations;

/// The settings of a run. A file of them is TOML or YAML with these names, see
/// [`super::read_config`]; what it leaves out is as in [`RunConfig::default`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The model that is tuned: a file, a folder, or a name of the store.
    pub model: String,
    /// Files of examples.
    pub data: Vec<PathBuf>,
    /// Files of held-out examples.
    pub eval_data: Vec<PathBuf>,
    /// The share of the examples that is held out, drawn by the seed, where no file is given.
    pub eval_fraction: f64,
    /// What a row holds, by name; detected if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The task whose template rows are put into, by name or as a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Which column is read as which field.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub map: BTreeMap<String, String>,
    /// Most tokens of an example; 1024 if it is not said, or as many as the model's context has room
    /// for, if that is fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// What becomes of a longer one.
    pub overlong: Overlong,
    /// How it is tuned.
    pub method: Method,
    /// The method's own options, by name, where they are other than its defaults.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub options: Map<String, Value>,
    /// What a method without gradients tunes.
    pub space: Space,
    /// What it makes less.
    pub objective: Objective,
    /// Tokens of a prefix.
    pub prefix_tokens: usize,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// What activations are in the products of a base that is left as it is.
    pub activations: Activations,
    /// Where all weights may be tuned, a regular expression that finds something in the names of
    /// those that are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// One that finds something in the names of those that are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    /// Whether a method without gradients that tunes all weights multiplies in bfloat16, whatever they
    /// are stored as.
    pub bfloat16: bool,
    /// What it stores matrices as: bfloat16 takes half the memory, rounded by chance after every step.
    #[serde(with = "super::float_store")]
    pub store: FloatStore,
    /// Where all weights that such a method tunes are kept while it does; no bit depends on it.
    pub offload: Offload,
    /// What runs the model; the packed one if it is not said, or the dense one for gradients and on
    /// other devices than the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executor: Option<Executor>,
    /// Where the dense one runs it, by name: a run is read where its device is not.
    pub device: String,
    /// What its numbers are where losses alone are asked for; f32 if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DenseType>,
    /// What float matrices of the base are quantised to while they are loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<String>,
    /// Rank of what is added to a matrix.
    pub rank: usize,
    /// Its scale, times the rank.
    pub alpha: f64,
    /// The share of an adapter's inputs that is left out while training.
    pub dropout: f64,
    /// Scales by the root of the rank.
    pub rslora: bool,
    /// The matrices that are tuned, by the ends of their names, or `all-linear`.
    pub target_modules: Vec<String>,
    /// Draft heads that learn beside an adapter; none if 0.
    pub medusa_heads: usize,
    /// Residual blocks of a head.
    pub medusa_layers: usize,
    /// Tokens that heads score: the most frequent ones of what is trained on.
    pub medusa_vocabulary: usize,
    /// Heads of the base to begin with; their form counts then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub medusa_from: Option<PathBuf>,
    /// The share of the steps in which heads learn alone, before the adapter learns, too.
    pub medusa_alone: f64,
    /// How much the adapter hears of the heads; the paper's of the objective if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub medusa_weight: Option<f64>,
    /// The heads' learning rate over the adapter's.
    pub medusa_rate: f64,
    /// Whether the adapter is held to the base's distribution and not to the text.
    pub medusa_self_distillation: bool,
    /// What turns gradients into steps.
    pub optimizer: Optimizer,
    /// What is lost of each weight of a matrix in a step, times the learning rate.
    pub weight_decay: f64,
    /// The norm that gradients are cut to.
    pub max_grad_norm: f64,
    /// Runs blocks again in the backward pass rather than keep what they made.
    pub gradient_checkpointing: bool,
    /// Passes over the examples, where no steps are given.
    pub epochs: f64,
    /// Steps to make.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Examples that are run at once.
    pub batch: u32,
    /// Batches that make a step: with gradients their sum, of a method of rounds its local steps.
    pub accumulation: u32,
    /// How processes that make a run together share a step of a method without gradients.
    pub share: Share,
    /// The greatest learning rate. If it is not said, a method without gradients finds one from
    /// losses about the weights, and another has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// The shape of the learning rate; the method's own if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Curve>,
    /// Steps until the rate is reached.
    pub warmup_steps: u64,
    /// The same as a share of all steps; counts where no steps are given.
    pub warmup_ratio: f64,
    /// What chance depends on.
    pub seed: u64,
    /// Steps between evaluations; a tenth of the run if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// What is best by which evaluations are compared.
    pub metric: Metric,
    /// Evaluations without a better one after which the run ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// Steps between checkpoints; a tenth of the run, 500 at most, if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_every: Option<u64>,
    /// Checkpoints that are kept, beside the best.
    pub keep: usize,
    /// The run's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            data: Vec::new(),
            eval_data: Vec::new(),
            eval_fraction: 0.0,
            format: None,
            task: None,
            map: BTreeMap::new(),
            max_length: None,
            overlong: Overlong::default(),
            method: Method::default(),
            options: Map::new(),
            space: Space::default(),
            objective: Objective::default(),
            prefix_tokens: 5,  // MeZO's
            prompt_tokens: 10, // Zhang et al. 2024, <https://arxiv.org/abs/2402.11592>
            activations: Activations::default(),
            train: None,
            freeze: None,
            bfloat16: false,
            store: FloatStore::default(),
            offload: Offload::default(),
            executor: None,
            device: "cpu".to_owned(),
            dtype: None,
            quantize: None,
            rank: 8,     // PEFT's LoraConfig
            alpha: 16.0, // twice the rank, as PEFT's own examples; its default is 8
            dropout: 0.0,
            rslora: false,
            target_modules: vec!["all-linear".to_owned()], // Dettmers et al. 2023, section 4
            medusa_heads: 0,
            medusa_layers: 1,        // Cai et al. 2024, section 2.1.1
            medusa_vocabulary: 4096, // as heads are trained without an adapter
            medusa_from: None,
            medusa_alone: 0.3,
            medusa_weight: None,
            medusa_rate: 4.0, // Cai et al. 2024, section 2.2.2
            medusa_self_distillation: false,
            optimizer: Optimizer::default(),
            weight_decay: 0.0,
            max_grad_norm: 1.0,           // transformers' TrainingArguments
            gradient_checkpointing: true, // TRL's SFTConfig
            epochs: 3.0,                  // transformers' TrainingArguments, as the next two
            steps: None,
            batch: 8,
            accumulation: 1,
            share: Share::default(),
            learning_rate: None,
            schedule: None,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            seed: 42, // transformers' TrainingArguments
            eval_every: None,
            metric: Metric::default(),
            patience: None,
            save_every: None,
            keep: 2,
            output: None,
        }
    }
}

/// What a method without gradients tunes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Low-rank differences of matrices.
    #[default]
    Lora,
    /// The same, of which one factor stays as it was drawn.
    LoraFa,
    /// Keys and values before every text.
    Prefix,
    /// Embeddings before every text.
    Prompt,
    /// Multiples of the scales of quantised matrices.
    Scales,
    /// The model's own weights.
    Full,
}

impl Space {
    /// What it is to a method.
    pub(crate) fn kind(self) -> SpaceKind {
        match self {
            Self::Lora | Self::LoraFa => SpaceKind::Lora,
            Self::Prefix => SpaceKind::Prefix,
            Self::Prompt => SpaceKind::Prompt,
            Self::Scales => SpaceKind::Scales,
            Self::Full => SpaceKind::Full,
        }
    }
}

/// Where weights are kept that are too many for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// In memory.
    #[default]
    None,
    /// In a file without a name on the disk of the run's folder, which a step reads and writes once, layer
    /// by layer.
    Disk,
}

/// What turns gradients into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam with decoupled decay.
    #[default]
    Adamw,
    /// Gradient descent with momentum.
    Sgd,
    /// Orthogonalised momentum for matrices.
    Muon,
}

/// What evaluations are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The loss; less is better.
    #[default]
    Loss,
    /// The share of right choices; more is better.
    Accuracy,
    /// The mean over classes of F1; more is better.
    MacroF1,
    /// The share of written answers that are a right one; more is better.
    ExactMatch,
    /// The overlap of their words with the right one's; more is better.
    TokenF1,
}

impl Metric {
    /// Its name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macro_f1",
            Self::ExactMatch => "exact_match",
            Self::TokenF1 => "token_f1",
        }
    }

    /// Whether it is of answers that have to be written.
    pub(crate) fn is_of_answers(self) -> bool {
        matches!(self, Self::ExactMatch | Self::TokenF1)
    }

    /// Whether `a` is better than `b`.
    pub fn better(self, a: f64, b: f64) -> bool {
        if self == Self::Loss { a < b } else { a > b }
    }
}

/// What the loop of a run goes by, all of it decided.
#[derive(Debug, Clone, PartialEq)]
pub struct RunPlan {
    /// What the order of examples depends on.
    pub seed: u64,
    /// Steps in all.
    pub steps: u64,
    /// Examples of a step.
    pub batch: u32,
    /// The greatest learning rate.
    pub rate: f64,
    /// How the learning rate goes through the run.
    pub schedule: Schedule,
    /// Steps between evaluations; without held-out examples there are none.
    pub eval_every: u64,
    /// What evaluations are compared by.
    pub metric: Metric,
    /// Whether the later of two equal evaluations is the better one: where heads learn alone, the text
    /// stays what it was.
    pub later: bool,
    /// Evaluations without a better one after which the run ends.
    pub patience: Option<u32>,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Checkpoints that are kept, beside the best.
    pub keep: usize,
}

impl RunConfig {
    /// Whether all weights are tuned by their gradients.
    pub(crate) fn tunes_all_by_gradients(&self) -> bool {
        let of_space = matches!(self.method, Method::ForwardGradient | Method::Hybrid);
        self.method == Method::Full || (of_space && self.space == Space::Full)
    }

    /// Whether all weights are tuned without gradients.
    pub fn tunes_all_without_gradients(&self) -> bool {
        matches!(self.method, Method::ZerothOrder(_)) && self.space == Space::Full
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// [`RunError::Config`] with the field and its bound.
    pub fn validate(&self) -> Result<(), RunError> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let share = |x: f64| (0.0..1.0).contains(&x);
        let rules = [
            (!self.model.is_empty(), "model", "give the base, a file, a folder or a name"),
            (!self.data.is_empty(), "data", "give at least one file of examples"),
            (share(self.eval_fraction), "eval_fraction", "must be at least 0 and below 1"),
            (self.max_length.is_none_or(|n| n >= 2), "max_length", "must be at least 2"),
            (
                self.format.is_none() || self.task.is_none(),
                "format",
                "the task says what a row holds: give one of the two",
            ),
            ((1..=1 << 14).contains(&self.rank), "rank", "must be from 1 to 16384"),
            (
                (1..=1 << 12).contains(&self.prefix_tokens),
                "prefix_tokens",
                "must be from 1 to 4096",
            ),
            (
                (1..=1 << 12).contains(&self.prompt_tokens),
                "prompt_tokens",
                "must be from 1 to 4096",
            ),
            (
                self.activations == Activations::Float
                    || matches!(self.space, Space::Lora | Space::LoraFa)
                        && matches!(self.method, Method::ZerothOrder(_)),
                "activations",
                "only a method without gradients in space lora or lora_fa takes others than float",
            ),
            (
                self.method.card().is_none_or(|card| match card.space {
                    Some(SpaceKind::Scales) => self.space == Space::Scales,
                    _ => true,
                }),
                "space",
                "the method tunes scales alone: give --space scales",
            ),
            (
                !matches!(self.method, Method::ForwardGradient | Method::Hybrid)
                    || matches!(self.space, Space::Lora | Space::LoraFa | Space::Full),
                "space",
                "fwdgrad and hybrid tune lora, lora_fa or full",
            ),
            (positive(self.alpha), "alpha", "must be above 0"),
            (share(self.dropout), "dropout", "must be at least 0 and below 1"),
            (!self.target_modules.is_empty(), "target_modules", "must name a matrix"),
            (self.medusa_heads <= 8, "medusa_heads", "must be at most 8"),
            (!self.has_heads() || self.method == Method::Lora, "medusa_heads", OF_LORA),
            (
                !self.medusa_self_distillation || self.has_heads(),
                "medusa_self_distillation",
                HEADLESS,
            ),
            ((1..=4).contains(&self.medusa_layers), "medusa_layers", "must be from 1 to 4"),
            (
                (1..=1 << 20).contains(&self.medusa_vocabulary),
                "medusa_vocabulary",
                "must be from 1 to 1048576",
            ),
            ((0.0..=1.0).contains(&self.medusa_alone), "medusa_alone", "must be from 0 to 1"),
            (
                self.medusa_weight.is_none_or(|x| (0.0..=1e3).contains(&x)),
                "medusa_weight",
                "must be from 0 to 1000",
            ),
            (positive(self.medusa_rate), "medusa_rate", "must be above 0"),
            (self.weight_decay.is_finite() && self.weight_decay >= 0.0, "weight_decay", NOT_LESS),
            (positive(self.max_grad_norm), "max_grad_norm", "must be above 0"),
            (positive(self.epochs), "epochs", "must be above 0"),
            (self.steps != Some(0), "steps", "must be at least 1"),
            (self.batch > 0, "batch", "must be at least 1"),
            (self.accumulation > 0, "accumulation", "must be at least 1"),
            (self.step_examples().is_some(), "accumulation", "times batch must be below 2^32"),
            (self.learning_rate.is_none_or(positive), "learning_rate", "must be above 0"),
            (
                self.rate().is_some() || self.is_level(),
                "learning_rate",
                "a method without gradients finds one that stays the same: give one, or take no \
                 warm-up and schedule = \"constant\"",
            ),
            (share(self.warmup_ratio), "warmup_ratio", "must be at least 0 and below 1"),
            (self.eval_every != Some(0), "eval_every", "must be at least 1"),
            (self.save_every != Some(0), "save_every", "must be at least 1"),
            (self.patience != Some(0), "patience", "must be at least 1"),
            (self.keep > 0, "keep", "must be at least 1"),
        ];
        let wrong = |what| Err(RunError::Config { place: String::new(), what });
        if let Some((_, field, bound)) = rules.iter().find(|(holds, ..)| !holds) {
            return wrong(format!("{field}{}: {bound}", self.shown(field)));
        }
        self.runs_on()?;
        if let Some(told) = self.wrong_option() {
            return wrong(format!("options: {told}"));
        }
        match self.idle() {
            None => Ok(()),
            Some((field, what)) => wrong(format!(
                "{field}{}: is for {what}, and would do nothing here: leave it out",
                self.shown(field)
            )),
        }
    }

    /// What is wrong with the kind of an option of the method's own, if something is.
    fn wrong_option(&self) -> Option<String> {
        if self.has_local_steps() && self.options.contains_key(LOCAL_STEPS) {
            return Some(format!("{LOCAL_STEPS}: give accumulation instead"));
        }
        let options = Value::Object(self.options.clone());
        let of_defaults = |defaults: serde_json::Result<Value>| mistaken(&defaults.ok()?, &options);
        match self.method {
            Method::Hybrid => of_defaults(serde_json::to_value(HybridOptions::default())),
            Method::ForwardGradient => of_defaults(serde_json::to_value(FwdgradOptions::default())),
            method => Some(method.card()?.check(&options).err()?.to_string()),
        }
    }

    /// What stands before every text while it is tuned, and of how many positions.
    pub(super) fn before(&self) -> Option<(VirtualKind, usize)> {
        match (self.method, self.space) {
            (Method::ZerothOrder(_), Space::Prefix) => {
                Some((VirtualKind::Prefix, self.prefix_tokens))
            }
            (Method::ZerothOrder(_), Space::Prompt) => {
                Some((VirtualKind::Prompt, self.prompt_tokens))
            }
            _ => None,
        }
    }

    /// Most tokens of an example.
    pub fn length(&self) -> usize {
        self.max_length.unwrap_or(USUAL_LENGTH)
    }

    /// The same settings for a model of `model`, whose context bounds the length of an example.
    ///
    /// # Errors
    /// [`RunError::Config`] if longer ones are asked for.
    pub fn fitted(&self, model: &ModelConfig) -> Result<Self, RunError> {
        let (context, before) = (model.max_position_embeddings, self.before().map_or(0, |b| b.1));
        let room = context.saturating_sub(before);
        let taken = match before {
            0 => String::new(),
            n => format!(", {n} of which stand before every text"),
        };
        match self.max_length.is_some_and(|asked| asked > room) || room < 2 {
            true => Err(RunError::Config {
                place: String::new(),
                what: format!(
                    "max_length is {}: the model's context is {context} tokens{taken}: give {room} \
                     or less",
                    self.length()
                ),
            }),
            false => Ok(Self { max_length: Some(self.length().min(room)), ..self.clone() }),
        }
    }

    /// The first setting that was changed and that this run has no use for, and what has.
    fn idle(&self) -> Option<(&'static str, &'static str)> {
        let zeroth = matches!(self.method, Method::ZerothOrder(_));
        let has_space = zeroth || matches!(self.method, Method::Hybrid | Method::ForwardGradient);
        let space = |space| has_space && self.space == space;
        let low_rank = space(Space::Lora) || space(Space::LoraFa);
        let rules: [(bool, &[&str], &str); 9] = [
            (has_space, &["options", "space"], "methods that follow random directions"),
            (
                !zeroth,
                &["dropout", "rslora", "optimizer", "max_grad_norm", "gradient_checkpointing"],
                "methods with gradients",
            ),
            (low_rank || self.method == Method::Lora, &["rank", "alpha", "dropout"], "LoRA"),
            (low_rank || !zeroth, &["target_modules"], "LoRA and method full"),
            (space(Space::Prefix), &["prefix_tokens"], "space = \"prefix\""),
            (space(Space::Prompt), &["prompt_tokens"], "space = \"prompt\""),
            (zeroth, &["activations"], "methods without gradients"),
            (
                self.tunes_all_without_gradients(),
                &["train", "freeze", "bfloat16", "store", "offload"],
                "methods without gradients and space = \"full\"",
            ),
            (self.eval_data.is_empty(), &["eval_fraction"], "runs without eval_data"),
        ];
        let tree = |config: &Self| serde_json::to_value(config).ok();
        let (own, usual) = (tree(self)?, tree(&Self::default())?);
        let changed = |field: &&&str| own.get(**field) != usual.get(**field);
        let mut idle = rules.iter().filter(|(used, ..)| !used);
        idle.find_map(|(_, fields, what)| Some((*fields.iter().find(changed)?, *what)))
    }

    /// Whether draft heads learn beside the adapter.
    pub fn has_heads(&self) -> bool {
        self.medusa_heads > 0 || self.medusa_from.is_some()
    }

    /// ` is VALUE`, of a field that has one.
    fn shown(&self, field: &str) -> String {
        let value = serde_json::to_value(self).ok().and_then(|all| all.get(field).cloned());
        match value {
            Some(value) if value.is_number() => format!(" is {value}"),
            _ => String::new(),
        }
    }

    fn step_examples(&self) -> Option<u32> {
        self.batch.checked_mul(self.accumulation)
    }

    /// Whether a step is a round of local steps, which every process of several makes of examples of its
    /// own.
    pub fn has_local_steps(&self) -> bool {
        self.method.card().is_some_and(|card| card.defaults().get(LOCAL_STEPS).is_some())
    }

    /// The learning rate that is asked for, or the method's own; none where it is found from losses
    /// about the weights.
    pub fn rate(&self) -> Option<f64> {
        self.learning_rate.or_else(|| self.method.learning_rate(self.space))
    }

    /// Whether the learning rate is the same in all steps.
    fn is_level(&self) -> bool {
        self.curve() == Curve::Constant && self.warmup_steps == 0 && self.warmup_ratio == 0.0
    }

    /// The shape of the learning rate that is asked for, or the method's own.
    pub fn curve(&self) -> Curve {
        self.schedule.unwrap_or_else(|| self.method.curve())
    }

    /// The run's folder: the one asked for, or one named for the model and the method.
    pub fn folder(&self) -> PathBuf {
        if let Some(folder) = &self.output {
            return folder.clone();
        }
        let name = Path::new(&self.model).file_stem().unwrap_or_default().to_string_lossy();
        PathBuf::from(format!("{name}-{}", self.method))
    }

    /// The loop's plan for `examples` examples and `held_out` others.
    ///
    /// # Errors
    /// [`RunError::NoExamples`], [`RunError::Config`].
    pub fn plan(&self, examples: usize, held_out: usize) -> Result<RunPlan, RunError> {
        self.validate()?;
        if examples == 0 || u32::try_from(examples).is_err() {
            return Err(RunError::NoExamples { what: "no examples to train on", least: 1 });
        }
        if held_out == 0 && self.patience.is_some() {
            let what = "patience: there are no held-out examples: give eval_data or eval_fraction";
            return Err(RunError::Config { place: String::new(), what: what.to_owned() });
        }
        let batch = self.step_examples().unwrap_or(self.batch);
        let of_epochs = (self.epochs * examples as f64 / f64::from(batch)).ceil() as u64;
        let steps = self.steps.unwrap_or(of_epochs.max(1));
        let warmup = match self.warmup_steps {
            0 => (self.warmup_ratio * steps as f64).ceil() as u64,
            n => n,
        };
        let short = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let (warmup, length) = (short(warmup), short(steps));
        let schedule = Schedule { curve: self.curve(), warmup, steps: length, floor: 0.0 };
        Ok(RunPlan {
            seed: self.seed,
            steps,
            batch,
            // One that is found is the trainer's business, which then takes none from here.
            rate: self.rate().unwrap_or(0.0),
            schedule,
            eval_every: self.eval_every.unwrap_or(steps.div_ceil(10)),
            metric: self.metric,
            later: self.has_heads() && self.medusa_alone == 1.0,
            patience: self.patience,
            save_every: self.save_every.unwrap_or(steps.div_ceil(10).min(500)),
            keep: self.keep,
        })
    }
}

/// Tokens of an example at most: TRL's SFTConfig.
const USUAL_LENGTH: usize = 1024;
/// The option of a method of rounds that says how many local steps one has.
pub(super) const LOCAL_STEPS: &str = "local_steps";
const NOT_LESS: &str = "must be at least 0";
const OF_LORA: &str = "draft heads learn beside an adapter: take method lora, or 0";
const HEADLESS: &str = "an adapter is held to the base where draft heads learn: give medusa_heads";

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RunConfig {
        RunConfig { model: "m".into(), data: vec!["d".into()], ..RunConfig::default() }
    }

    #[test]
    fn a_setting_that_would_do_nothing_is_refused() {
        let mezo = |space| RunConfig { method: "mezo".parse().unwrap(), space, ..config() };
        for (config, says) in [
            (RunConfig { space: Space::Full, ..config() }, "space: is for methods that"),
            (
                RunConfig { dropout: 0.1, ..mezo(Space::Lora) },
                "dropout is 0.1: is for methods with",
            ),
            (RunConfig { rank: 4, ..mezo(Space::Full) }, "rank is 4: is for LoRA"),
            (
                RunConfig { train: Some("x".into()), ..mezo(Space::Lora) },
                "train: is for methods without gradients and space",
            ),
            (RunConfig { prefix_tokens: 9, ..mezo(Space::Lora) }, "prefix_tokens is 9: is for"),
            (RunConfig { warmup_steps: 3, ..mezo(Space::Lora) }, "learning_rate: a method without"),
        ] {
            let told = config.validate().unwrap_err().to_string();
            assert!(told.contains(says), "{told}");
        }
        for space in [Space::Lora, Space::LoraFa, Space::Prefix, Space::Full] {
            mezo(space).validate().unwrap();
        }
        let given = RunConfig { warmup_steps: 3, learning_rate: Some(1e-3), ..mezo(Space::Lora) };
        given.validate().unwrap();
    }

    #[test]
    fn steps_follow_from_epochs_and_the_whole_batch() {
        let plan = RunConfig { batch: 4, accumulation: 2, epochs: 1.5, ..config() };
        let plan = plan.plan(100, 0).unwrap();
        assert_eq!((plan.batch, plan.steps), (8, 19)); // 150 / 8 = 18.75
        assert_eq!((plan.eval_every, plan.save_every), (2, 2));
        assert_eq!(config().plan(3, 0).unwrap().steps, 2); // 9 / 8
        let given = RunConfig { steps: Some(7), warmup_ratio: 0.2, ..config() };
        let plan = given.plan(100, 0).unwrap();
        assert_eq!((plan.steps, plan.schedule.warmup), (7, 2));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        let refused = |config: RunConfig| config.plan(10, 0).unwrap_err().to_string();
        for (config, says) in [
            (RunConfig { data: Vec::new(), ..config() }, "data: give at least one"),
            (RunConfig { rank: 0, ..config() }, "rank is 0: must be from 1"),
            (RunConfig { learning_rate: Some(-1.0), ..config() }, "learning_rate is -1.0: must"),
            (RunConfig { epochs: f64::NAN, ..config() }, "epochs: must be above 0"),
            (RunConfig { batch: 1 << 20, accumulation: 1 << 12, ..config() }, "times batch"),
            (RunConfig { eval_fraction: 1.0, ..config() }, "eval_fraction is 1.0"),
            (RunConfig { patience: Some(2), ..config() }, "no held-out examples"),
        ] {
            let told = refused(config);
            assert!(told.contains(says), "{told}");
        }
        let none = config().plan(0, 0).unwrap_err().to_string();
        assert!(none.contains("give --data with at least 1 example"), "{none}");
    }

    #[test]
    fn a_folder_is_named_for_the_model_and_the_method() {
        let config = RunConfig { model: "a/b/SmolLM2.gguf".into(), ..config() };
        assert_eq!(config.folder(), Path::new("SmolLM2-lora"));
    }
}
