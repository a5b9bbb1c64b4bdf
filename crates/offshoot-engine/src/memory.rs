//! What a model takes of memory, told before it is loaded, and how much this process may take.

use offshoot_kernels::PackedMatrix;
use offshoot_models::{Checkpoint, ModelConfig, Tensor};

use crate::generate::PROMPT_CHUNK;
use crate::{Error, ExecutorKind};

/// Registers of a step, tokenizer and program, with room to spare: models of 135 and 494 million
/// weights stay below the sum.
const OVERHEAD: u64 = 96 << 20;
/// Keys are as wide as whole vectors of the kernels.
const KEY_LANES: usize = 16;
const HALF_BYTES: usize = 2;

/// The memory that a model takes while it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Bytes of the packed weights, and of what layers of experts run in.
    pub weights: u64,
    /// Bytes of keys and values that one token of context takes.
    pub per_token: u64,
}

impl MemoryNeed {
    /// What the model of `checkpoint` takes where `executor` runs it.
    pub fn on(checkpoint: &Checkpoint, executor: ExecutorKind) -> Self {
        let ExecutorKind::Dense { dtype, .. } = executor else { return Self::of(checkpoint) };
        let config = checkpoint.config();
        let numbers = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let weights = checkpoint.tensors().map(|t| numbers(&t.info.shape)).sum::<u64>();
        let row = config.num_key_value_heads * config.head_dim;
        // Keys and values are copied where some of a step's rows are kept and others are not; scores
        // of a chunk of the prompt stand as they are, masked, and twice on the way to their softmax.
        let rows = 2 * 2 * config.num_hidden_layers * row;
        let scores = 4 * 4 * config.num_attention_heads * PROMPT_CHUNK;
        let per_token = rows as u64 * dtype.bytes() + scores as u64;
        Self { weights: weights * dtype.bytes(), per_token }
    }

    /// What the model of `checkpoint` takes where the packed executor runs it.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let packed = |t: &Tensor<'_>| match t.info.shape[..] {
            [rows, cols] => PackedMatrix::packed_bytes(t.block, rows, cols).ok(),
            _ => None,
        };
        let bytes = |t: Tensor<'_>| packed(&t).unwrap_or(t.bytes().len()) as u64;
        let weights = checkpoint.tensors().map(bytes).sum::<u64>() + experts(checkpoint.config());
        Self { weights, per_token: per_token(checkpoint.config()) }
    }

    /// Bytes in all, with `context` tokens.
    pub fn total(&self, context: u64) -> u64 {
        let cache = self.per_token.saturating_mul(context);
        self.weights.saturating_add(OVERHEAD).saturating_add(cache)
    }

    /// The most tokens of context that `available` bytes have room for; 0 if not even the weights
    /// fit.
    pub fn longest_context(&self, available: u64) -> u64 {
        available.saturating_sub(self.total(0)) / self.per_token.max(1)
    }

    /// Refuses `context` tokens if they do not fit into `available` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`], with what would fit.
    pub fn check(&self, context: u64, available: u64) -> Result<(), Error> {
        let need = self.total(context);
        if need <= available {
            return Ok(());
        }
        let longest = self.longest_context(available);
        Err(Error::Memory { need, weights: self.weights, context, available, longest })
    }
}

/// Bytes of what layers of experts run in, where a chunk of the prompt is read: for each row and expert
/// that it goes through the input and the gated product, as floats and in both other forms, and the
/// result.
fn experts(config: &ModelConfig) -> u64 {
    let Some(experts) = &config.experts else { return 0 };
    let places = (PROMPT_CHUNK * experts.num_experts_per_tok) as u64;
    let width = 12 * config.hidden_size + 8 * experts.moe_intermediate_size;
    places * width as u64
}

/// Bytes of the keys and values of one token: half precision, for each layer.
fn per_token(config: &ModelConfig) -> u64 {
    let width = config.head_dim.next_multiple_of(KEY_LANES);
    let rows = 2 * config.num_hidden_layers * config.num_key_value_heads;
    (rows * width * HALF_BYTES) as u64
}

/// Bytes that this process may still take: the least of what the system has free, what its control
/// groups leave and its limit of address space. `None` where the system tells none of them.
pub fn available_memory() -> Option<u64> {
    available(&|path| std::fs::read_to_string(path).ok())
}

type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

fn available(read: Read<'_>) -> Option<u64> {
    let free = field(&read("/proc/meminfo").unwrap_or_default(), "MemAvailable:");
    [free.map(|kib| kib * 1024), control_groups(read), address_space(read)]
        .into_iter()
        .flatten()
        .min()
}

/// What the process's control groups, of either version, and all groups above them leave.
fn control_groups(read: Read<'_>) -> Option<u64> {
    let groups = read("/proc/self/cgroup")?;
    groups.lines().filter_map(|line| group_left(line, read)).min()
}

fn group_left(line: &str, read: Read<'_>) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (root, limit, usage) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
        "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        _ => return None,
    };
    let left = |path: &str| {
        let number = |file: &str| -> Option<u64> {
            read(&format!("{root}{path}/{file}"))?.trim().parse().ok()
        };
        // File pages that nobody used lately go as soon as they are in the way.
        let stat = read(&format!("{root}{path}/memory.stat")).unwrap_or_default();
        let idle = field(&stat, "inactive_file").unwrap_or(0);
        Some(number(limit)?.saturating_sub(number(usage)?.saturating_sub(idle)))
    };
    // Inside a container the path is the host's, and only the root of the tree is there.
    let mut path = path.trim_end_matches('/');
    let mut least = left("");
    while !path.is_empty() {
        least = least.into_iter().chain(left(path)).min();
        path = &path[..path.rfind('/').unwrap_or(0)];
    }
    least
}

/// What the limit of address space leaves.
fn address_space(read: Read<'_>) -> Option<u64> {
    let limit = field(&read("/proc/self/limits")?, "Max address space")?;
    let taken = field(&read("/proc/self/status")?, "VmSize:")? * 1024;
    Some(limit.saturating_sub(taken))
}

/// The first number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_context_that_fits_fits_and_one_more_token_does_not() {
        let need = MemoryNeed { weights: 100 << 20, per_token: 23_040 };
        let available = 1 << 30;
        let longest = need.longest_context(available);
        assert!(longest > 30_000, "{longest}");
        need.check(longest, available).unwrap();
        let error = need.check(longest + 1, available).unwrap_err().to_string();
        assert!(error.contains(&format!("--ctx-size {longest} or less")), "{error}");
    }

    #[test]
    fn layers_of_experts_take_room_for_each_row_and_its_experts() {
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../offshoot-models/tests/data/logits");
        let open = |name: &str| Checkpoint::open(format!("{models}/{name}.gguf").as_ref()).unwrap();
        assert_eq!(experts(open("qwen3_tied").config()), 0);
        // 3 experts of a row, hidden 40, inner 24.
        let checkpoint = open("qwen3_moe");
        let room = experts(checkpoint.config());
        assert_eq!(room, 256 * 3 * (12 * 40 + 8 * 24));
        let weights: usize = checkpoint.tensors().map(|t| t.bytes().len()).sum();
        assert!(MemoryNeed::of(&checkpoint).weights >= room + weights as u64);
    }

    #[test]
    fn where_the_weights_alone_do_not_fit_no_context_is_offered() {
        let need = MemoryNeed { weights: 8 << 30, per_token: 1 << 17 };
        let error = need.check(1, 1 << 30).unwrap_err().to_string();
        assert!(!error.contains("--ctx-size") && error.contains("smaller model"), "{error}");
    }

    #[test]
    fn a_context_beyond_all_numbers_does_not_overflow() {
        let need = MemoryNeed { weights: u64::MAX / 2, per_token: u64::MAX / 2 };
        assert!(need.check(u64::MAX, u64::MAX - 1).is_err());
    }

    /// A system of these files.
    fn of(files: &[(&str, &str)]) -> Option<u64> {
        available(&|path| {
            files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
        })
    }

    const MEMINFO: (&str, &str) =
        ("/proc/meminfo", "MemTotal:  2000 kB\nMemAvailable:   1000 kB\n");

    #[test]
    fn the_least_of_all_limits_counts() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[MEMINFO]), Some(1_024_000));
        let status = ("/proc/self/status", "VmPeak: 9 kB\nVmSize:\t 100 kB\n");
        let limits = |limit| ("/proc/self/limits", limit);
        let tight = limits("Max address space         200000               unlimited   bytes\n");
        assert_eq!(of(&[MEMINFO, status, tight]), Some(200_000 - 102_400));
        let none = limits("Max address space         unlimited            unlimited   bytes\n");
        assert_eq!(of(&[MEMINFO, status, none]), Some(1_024_000));
    }

    #[test]
    fn control_groups_of_both_versions_and_those_above_count() {
        let two = ("/proc/self/cgroup", "0::/a/b\n");
        let used = ("/sys/fs/cgroup/a/memory.current", "300000\n");
        let most = ("/sys/fs/cgroup/a/memory.max", "500000\n");
        let idle = ("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 100000\n");
        let below = ("/sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(of(&[MEMINFO, two, used, most, below]), Some(200_000));
        assert_eq!(of(&[MEMINFO, two, used, most, idle, below]), Some(300_000));
        let one = ("/proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n0::/\n");
        let limit = ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "400000\n");
        let usage = ("/sys/fs/cgroup/memory/x/memory.usage_in_bytes", "150000\n");
        assert_eq!(of(&[MEMINFO, one, limit, usage]), Some(250_000));
        // A container sees only the root of its tree.
        let root = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "90000\n");
        let taken = ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "50000\n");
        assert_eq!(of(&[MEMINFO, one, root, taken]), Some(40_000));
    }
}
