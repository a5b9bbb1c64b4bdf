//! Which format each matrix of a model takes when it is quantised: llama.cpp's mixtures.
//!
//! ```text
//! name            matrices      output head, or the embedding that is one
//! f32 f16 bf16    that          that
//! q8_0 (q8)       Q8_0          Q8_0
//! q4_1 (q4)       Q4_1          Q6_K
//! q4_0 q5_0 q5_1  that          Q6_K
//! q6_k            Q6_K          Q6_K
//! q4_k_m q5_k_m   Q4_K, Q5_K    Q6_K; v and down projections of half of the layers Q6_K too
//! ```
//! Routers stay in single precision, as llama.cpp's converter writes them: a choice hangs on them.
//! Phi-3's files have one matrix of q, k and v, which takes the format of v.
//! Rows that are no whole number of blocks of 256 take Q5_0 for Q4_K, Q5_1 for Q5_K and Q8_0 for
//! Q6_K; those that are no whole number of 32 keep their float, or become F16. Vectors and biases
//! stay in single precision in a file. (llama.cpp `llama_tensor_get_type`,
//! <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp>.)

use std::str::FromStr;

use offshoot_kernels::BlockType;

use crate::{Error, Family, ModelConfig};

/// A way to quantise a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recipe {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// 8.5 bits a weight.
    Q8_0,
    /// 6.6 bits a weight.
    Q6K,
    /// 6 bits a weight.
    Q5_1,
    /// 5.5 bits a weight.
    Q5_0,
    /// 5.5 bits a weight, some matrices more.
    Q5KM,
    /// 5 bits a weight.
    Q4_1,
    /// 4.5 bits a weight.
    Q4_0,
    /// 4.5 bits a weight, some matrices more.
    Q4KM,
}

impl Recipe {
    /// Every recipe, from most bits to fewest.
    pub const ALL: [Recipe; 11] = [
        Recipe::F32,
        Recipe::F16,
        Recipe::Bf16,
        Recipe::Q8_0,
        Recipe::Q6K,
        Recipe::Q5_1,
        Recipe::Q5_0,
        Recipe::Q5KM,
        Recipe::Q4_1,
        Recipe::Q4_0,
        Recipe::Q4KM,
    ];

    /// The recipe's name, in small letters.
    pub const fn name(self) -> &'static str {
        match self {
            Recipe::F32 => "f32",
            Recipe::F16 => "f16",
            Recipe::Bf16 => "bf16",
            Recipe::Q8_0 => "q8_0",
            Recipe::Q6K => "q6_k",
            Recipe::Q5_1 => "q5_1",
            Recipe::Q5_0 => "q5_0",
            Recipe::Q5KM => "q5_k_m",
            Recipe::Q4_1 => "q4_1",
            Recipe::Q4_0 => "q4_0",
            Recipe::Q4KM => "q4_k_m",
        }
    }

    /// The number of `general.file_type` in GGUF.
    pub const fn file_type(self) -> u32 {
        match self {
            Recipe::F32 => 0,
            Recipe::F16 => 1,
            Recipe::Q4_0 => 2,
            Recipe::Q4_1 => 3,
            Recipe::Q8_0 => 7,
            Recipe::Q5_0 => 8,
            Recipe::Q5_1 => 9,
            Recipe::Q4KM => 15,
            Recipe::Q5KM => 17,
            Recipe::Q6K => 18,
            Recipe::Bf16 => 32,
        }
    }

    /// Whether weights lose bits to shared scales.
    pub fn is_quantised(self) -> bool {
        !self.matrices().is_float()
    }

    /// The format of most matrices.
    const fn matrices(self) -> BlockType {
        match self {
            Recipe::F32 => BlockType::F32,
            Recipe::F16 => BlockType::F16,
            Recipe::Bf16 => BlockType::Bf16,
            Recipe::Q8_0 => BlockType::Q8_0,
            Recipe::Q6K => BlockType::Q6K,
            Recipe::Q5_1 => BlockType::Q5_1,
            Recipe::Q5_0 => BlockType::Q5_0,
            Recipe::Q5KM => BlockType::Q5K,
            Recipe::Q4_1 => BlockType::Q4_1,
            Recipe::Q4_0 => BlockType::Q4_0,
            Recipe::Q4KM => BlockType::Q4K,
        }
    }

    /// The format that the tensor of canonical name `name`, stored as `stored`, takes. Vectors keep
    /// theirs.
    pub fn block(
        self,
        config: &ModelConfig,
        name: &str,
        shape: &[usize],
        stored: BlockType,
    ) -> BlockType {
        // Phi-3's files have q, k and v in one matrix, which takes the format of v.
        let name = match config.family {
            Family::Phi3 => &name.replace("q_proj", "v_proj").replace("k_proj", "v_proj"),
            _ => name,
        };
        self.block_of(config.num_hidden_layers, config.tie_word_embeddings, name, (shape, stored))
    }

    fn block_of(
        self,
        layers: usize,
        tied: bool,
        name: &str,
        (shape, stored): (&[usize], BlockType),
    ) -> BlockType {
        let [.., _, cols] = *shape else { return stored };
        if name.ends_with(".mlp.gate.weight") {
            return BlockType::F32;
        }
        let wanted = self.matrix(layers, tied, name);
        match [Some(wanted), narrower(wanted)].into_iter().flatten().find(|b| fits(*b, cols)) {
            Some(block) => block,
            None if stored.is_float() => stored,
            None => BlockType::F16,
        }
    }

    /// The format of a matrix whose rows suit it.
    fn matrix(self, layers: usize, tied: bool, name: &str) -> BlockType {
        let head = match tied {
            true => "model.embed_tokens.weight",
            false => "lm_head.weight",
        };
        let most = self.matrices();
        if name == head {
            return if most.is_float() || self == Recipe::Q8_0 { most } else { BlockType::Q6K };
        }
        let mixed = matches!(self, Recipe::Q4KM | Recipe::Q5KM);
        let sensitive = [".self_attn.v_proj.weight", ".down_proj.weight"];
        let sensitive = sensitive.iter().any(|part| name.ends_with(part));
        match layer(name) {
            Some(layer) if mixed && sensitive && more_bits(layer, layers) => BlockType::Q6K,
            _ => most,
        }
    }
}

fn fits(block: BlockType, cols: usize) -> bool {
    cols.is_multiple_of(block.block_len())
}

/// The format of 32 weights that stands in for one of 256.
fn narrower(block: BlockType) -> Option<BlockType> {
    match block {
        BlockType::Q4K => Some(BlockType::Q5_0),
        BlockType::Q5K => Some(BlockType::Q5_1),
        BlockType::Q6K => Some(BlockType::Q8_0),
        _ => None,
    }
}

/// The layer that a tensor belongs to.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// The first and the last eighth of the layers, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

impl FromStr for Recipe {
    type Err = Error;

    /// A name, in capitals or not; `q8` and `q4` stand for `q8_0` and `q4_1`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let name = text.to_ascii_lowercase();
        let name = match name.as_str() {
            "q8" => "q8_0",
            "q4" => "q4_1",
            other => other,
        };
        Self::ALL.into_iter().find(|recipe| recipe.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Recipe::name).join(", ");
            let text: String = text.chars().take(40).collect();
            Error::Recipe(format!("{text:?} is none, expected q8, q4 or one of {names}"))
        })
    }
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: usize = 16;

    fn block(recipe: Recipe, name: &str, cols: usize) -> BlockType {
        recipe.block_of(LAYERS, true, name, (&[64, cols], BlockType::F32))
    }

    #[test]
    fn names_go_both_ways_and_others_are_refused() {
        for recipe in Recipe::ALL {
            assert_eq!(recipe.name().parse::<Recipe>().unwrap(), recipe);
            assert_eq!(recipe.name().to_uppercase().parse::<Recipe>().unwrap(), recipe);
        }
        assert_eq!("q8".parse::<Recipe>().unwrap(), Recipe::Q8_0);
        assert_eq!("Q4".parse::<Recipe>().unwrap(), Recipe::Q4_1);
        for wrong in ["", "q3", "q4_k", "iq4_nl", &"q\n".repeat(100)] {
            let error = wrong.parse::<Recipe>().unwrap_err().to_string();
            assert!(error.contains("q4_k_m") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_head_keeps_more_bits_and_an_embedding_that_is_none_does_not() {
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        for recipe in [Recipe::Q4_0, Recipe::Q4_1, Recipe::Q5_0, Recipe::Q4KM, Recipe::Q6K] {
            assert_eq!(block(recipe, embedding, 256), BlockType::Q6K);
            assert_eq!(block(recipe, embedding, 576), BlockType::Q8_0, "as the shipped model has");
            let of = |name| recipe.block_of(LAYERS, false, name, (&[100, 256], BlockType::Bf16));
            assert_eq!((of(head), of(embedding)), (BlockType::Q6K, recipe.matrices()));
        }
        assert_eq!(block(Recipe::Q8_0, embedding, 256), BlockType::Q8_0);
        assert_eq!(block(Recipe::F16, embedding, 7), BlockType::F16);
    }

    #[test]
    fn mixtures_give_half_of_the_layers_more() {
        let more = |part: &str| -> Vec<usize> {
            let name = |layer| format!("model.layers.{layer}.{part}.weight");
            (0..16).filter(|&i| block(Recipe::Q4KM, &name(i), 256) == BlockType::Q6K).collect()
        };
        assert_eq!(more("self_attn.v_proj"), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(more("mlp.down_proj"), more("self_attn.v_proj"));
        assert!(more("mlp.up_proj").is_empty());
    }

    #[test]
    fn rows_of_no_whole_blocks_fall_back() {
        let name = "model.layers.2.mlp.up_proj.weight";
        assert_eq!(block(Recipe::Q4KM, name, 576), BlockType::Q5_0);
        assert_eq!(block(Recipe::Q5KM, name, 576), BlockType::Q5_1);
        assert_eq!(block(Recipe::Q6K, name, 576), BlockType::Q8_0);
        for recipe in Recipe::ALL.into_iter().filter(|recipe| recipe.is_quantised()) {
            assert_eq!(block(recipe, name, 40), BlockType::F32);
            let of = |stored| recipe.block_of(LAYERS, true, name, (&[64, 40], stored));
            assert_eq!(
                (of(BlockType::Bf16), of(BlockType::Iq4Nl)),
                (BlockType::Bf16, BlockType::F16)
            );
            let vector =
                recipe.block_of(LAYERS, true, "model.norm.weight", (&[256], BlockType::F32));
            assert_eq!(vector, BlockType::F32);
        }
    }
}
