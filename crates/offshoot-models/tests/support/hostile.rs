//! Files that lie: each kind of lie that has broken a GGUF reader, and a few more.
//!
//! Among them are the shapes of CVE-2024-21802 and its kin (counts and lengths in the header),
//! CVE-2025-53630, CVE-2026-27940 and CVE-2026-33298 (sizes that wrap), CVE-2026-7482 (data past
//! the end) and CVE-2025-66960 (allocation by a length in the file).

use offshoot_kernels::BlockType;
use offshoot_models::gguf::{Array, Value};

use super::tiny::{FFN, HIDDEN, TOKENS, Tiny};

/// A file and a part of the error that it must end in.
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) error: &'static str,
}

const F32: u32 = 0;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A file put together by hand, with no check.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, keys: u64) -> Self {
        let raw = Self(b"GGUF".to_vec());
        raw.u32(version).u64(tensors).u64(keys)
    }

    fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    fn key_u32(self, key: &str, n: u32) -> Self {
        self.string(key).u32(4).u32(n)
    }

    /// A tensor's record; `dims` in the file's order.
    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let raw = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, n| raw.u64(*n)).u32(kind).u64(offset)
    }

    /// Fills up to the next multiple of 32 and adds `data` zeros.
    fn data(mut self, data: usize) -> Self {
        let len = self.0.len().next_multiple_of(32) + data;
        self.0.resize(len, 0);
        self
    }
}

/// A file with one tensor and `data` bytes.
fn one_tensor(dims: &[u64], kind: u32, offset: u64, data: usize) -> Vec<u8> {
    Raw::new(3, 1, 0).tensor("t", dims, kind, offset).data(data).0
}

/// A file with one key, whose value is `kind` and `value`.
fn one_key(kind: u32, value: Vec<u8>) -> Vec<u8> {
    Raw::new(3, 0, 1).string("k").u32(kind).bytes(&value).data(64).0
}

fn aligned(alignment: u32) -> Vec<u8> {
    Raw::new(3, 1, 1).key_u32("general.alignment", alignment).tensor("t", &[4], F32, 0).data(256).0
}

fn nested_arrays(depth: usize) -> Vec<u8> {
    let arrays = (0..depth).fold(Raw(Vec::new()), |raw, _| raw.u32(ARRAY).u64(1));
    one_key(ARRAY, arrays.u32(0).u64(1).bytes(&[7]).0)
}

fn changed(change: impl FnOnce(&mut Tiny)) -> Vec<u8> {
    let mut tiny = Tiny::llama();
    change(&mut tiny);
    tiny.bytes()
}

fn set(key: &str, value: impl Into<Value<'static>>) -> Vec<u8> {
    changed(|tiny| tiny.set(key, value))
}

fn strings(texts: &[&'static str]) -> Array<'static> {
    texts.iter().copied().collect()
}

/// The tiny model of experts after `change`.
fn experts(change: impl FnOnce(&mut Tiny)) -> Vec<u8> {
    let mut tiny = Tiny::qwen3moe();
    change(&mut tiny);
    tiny.bytes()
}

/// All hostile files.
pub(crate) fn all() -> Vec<Hostile> {
    let cases = [headers(), values(), shapes(), places(), models(), tokenizers()];
    cases.into_iter().flatten().map(|(name, bytes, error)| Hostile { name, bytes, error }).collect()
}

type Case = (&'static str, Vec<u8>, &'static str);

fn headers() -> Vec<Case> {
    let no_magic = Raw::new(3, 0, 0).0[4..].to_vec();
    vec![
        ("empty", Vec::new(), "magic: 4 bytes needed"),
        ("magic-only", b"GGUF".to_vec(), "version: 4 bytes needed"),
        ("other-magic", [b"GG\nF".as_slice(), &no_magic].concat(), r#"magic: "GG\nF", expected"#),
        ("version-0", Raw::new(0, 0, 0).0, "version: 0, expected 2 or 3"),
        ("version-1", Raw::new(1, 0, 0).0, "version: 1, whose lengths have 32 bits"),
        ("version-4", Raw::new(4, 0, 0).0, "version: 4, expected 2 or 3"),
        ("big-endian", Raw::new(3u32.swap_bytes(), 0, 0).0, "version: 3 in big-endian order"),
        ("tensors-max", Raw::new(3, u64::MAX, 0).data(64).0, "number of tensors: 18446744073709"),
        ("tensors-2-60", Raw::new(3, 1 << 60, 0).data(64).0, "number of tensors: 11529215046068"),
        ("keys-max", Raw::new(3, 0, u64::MAX).data(64).0, "number of keys: 18446744073709551615"),
        ("keys-2-61", Raw::new(2, 0, 1 << 61).data(64).0, "number of keys: 2305843009213693952"),
        ("tensors-absent", Raw::new(3, 1, 0).0, "number of tensors: 1, expected at most 0"),
        ("keys-too-many", Raw::new(3, 0, 100_000).data(2_000_000).0, "expected at most 65536"),
    ]
}

fn values() -> Vec<Case> {
    let len = |n: u64| Raw(Vec::new()).u64(n).0;
    let array = |kind: u32, n: u64| Raw(Vec::new()).u32(kind).u64(n).0;
    let twice = Raw::new(3, 0, 2).key_u32("k", 1).key_u32("k", 1).0;
    let long_key = Raw::new(3, 0, 1).key_u32(&"k".repeat(65_536), 1).0;
    let bad_bools = Raw(array(7, 3)).bytes(&[0, 1, 2]).0;
    let bad_text = Raw(len(3)).bytes(&[b'a', 0xff, b'b']).0;
    let bad_texts = Raw(array(STRING, 1)).bytes(&bad_text).0;
    let bad_key = Raw::new(3, 0, 1).u64(2).bytes(&[0xc3, 0x28]).u32(0).data(8).0;
    vec![
        ("key-length-max", Raw::new(3, 0, 1).u64(u64::MAX).data(64).0, "key 0: 1844674407370955"),
        ("key-empty", Raw::new(3, 0, 1).key_u32("", 1).0, "key 0: 0 bytes long"),
        ("key-long", long_key, "key 0: 65536 bytes long"),
        ("key-not-utf8", bad_key, "key 0: not UTF-8 from byte 0"),
        ("key-twice", twice, r#"key "k": given twice"#),
        ("kind-13", one_key(13, vec![0; 8]), r#"key "k": value type 13"#),
        ("kind-max", one_key(u32::MAX, vec![0; 8]), r#"key "k": value type 4294967295"#),
        ("bool-2", one_key(7, vec![2]), r#"key "k": bool 2, expected 0 or 1"#),
        ("bools-2", one_key(ARRAY, bad_bools), r#"key "k": bool 2"#),
        ("string-max", one_key(STRING, len(u64::MAX)), r#"key "k": 18446744073709551615 bytes"#),
        ("string-2-40", one_key(STRING, len(1 << 40)), r#"key "k": 1099511627776 bytes"#),
        ("string-not-utf8", one_key(STRING, bad_text), r#"key "k": not UTF-8 from byte 1"#),
        ("strings-not-utf8", one_key(ARRAY, bad_texts), r#"key "k": not UTF-8 from byte 1"#),
        ("array-max-u8", one_key(ARRAY, array(0, u64::MAX)), "an array of 18446744073709551615 u8"),
        ("array-2-61-u64", one_key(ARRAY, array(10, 1 << 61)), "an array of 2305843009213693952"),
        ("array-2-40-strings", one_key(ARRAY, array(STRING, 1 << 40)), "1099511627776 string"),
        ("array-2-40-arrays", one_key(ARRAY, array(ARRAY, 1 << 40)), "1099511627776 array"),
        ("array-of-kind-99", one_key(ARRAY, array(99, 1)), r#"key "k": value type 99"#),
        ("nested-5", nested_arrays(4), "arrays nested more than 4 deep"),
        ("nested-10000", nested_arrays(10_000), "arrays nested more than 4 deep"),
        ("alignment-0", aligned(0), r#""general.alignment": 0, expected a power of two"#),
        ("alignment-33", aligned(33), r#""general.alignment": 33, expected a power of two"#),
        ("alignment-2-31", aligned(1 << 31), r#""general.alignment": 2147483648, expected"#),
        (
            "alignment-text",
            Raw::new(3, 0, 1).string("general.alignment").u32(STRING).string("32").0,
            r#""general.alignment": a value of type string"#,
        ),
    ]
}

fn shapes() -> Vec<Case> {
    let big = 1 << 32;
    let long_name = Raw::new(3, 1, 0).tensor(&"t".repeat(65), &[4], F32, 0).data(64).0;
    let no_name = Raw::new(3, 1, 0).tensor("", &[4], F32, 0).data(64).0;
    let no_dims = Raw::new(3, 1, 0).tensor("t", &[], F32, 0).data(64).0;
    vec![
        ("2-32-squared", one_tensor(&[big, big], F32, 0, 64), "has no or too many weights"),
        ("2-32-squared-q4", one_tensor(&[big, big], 2, 0, 64), "has no or too many weights"),
        ("wraps-to-0", one_tensor(&[1 << 16; 4], F32, 0, 64), "has no or too many weights"),
        ("wraps-to-4", one_tensor(&[(1 << 62) + 1, 4], F32, 0, 64), "no or too many weights"),
        ("dim-max", one_tensor(&[u64::MAX], F32, 0, 64), "has no or too many weights"),
        ("dim-i64-max", one_tensor(&[i64::MAX as u64], F32, 0, 64), "no or too many weights"),
        ("bytes-2-62", one_tensor(&[1 << 60], F32, 0, 64), "4611686018427387904 bytes at offset 0"),
        ("dim-0", one_tensor(&[4, 0], F32, 0, 64), "has no or too many weights"),
        ("dims-0", no_dims, "0 dimensions, expected 1 to 4"),
        ("dims-5", one_tensor(&[1; 5], F32, 0, 64), "5 dimensions, expected 1 to 4"),
        ("ragged-q4", one_tensor(&[33], 2, 0, 64), "rows of 33 are no multiple of Q4_0's block"),
        ("ragged-q4-k", one_tensor(&[128, 2], 12, 0, 512), "rows of 128 are no multiple of Q4_K"),
        ("type-4", one_tensor(&[32], 4, 0, 64), "type Q4_2 (4) is not read, only F32, F16"),
        ("type-iq2-xxs", one_tensor(&[256], 16, 0, 128), "type IQ2_XXS (16) is not read"),
        ("type-mxfp4", one_tensor(&[32], 39, 0, 64), "type MXFP4 (39) is not read"),
        ("type-max", one_tensor(&[32], u32::MAX, 0, 64), "type 4294967295 is not read"),
        ("name-long", long_name, "name of tensor 0: 65 bytes long"),
        ("name-empty", no_name, "name of tensor 0: 0 bytes long"),
    ]
}

fn places() -> Vec<Case> {
    let pair = |second: &'static str, offset| {
        let raw = Raw::new(3, 2, 0).tensor("t", &[16], F32, 0);
        raw.tensor(second, &[16], F32, offset).data(128).0
    };
    vec![
        ("offset-odd", one_tensor(&[4], F32, 4, 64), "offset 4, expected a multiple of 32"),
        ("offset-past-end", one_tensor(&[4], F32, 1 << 20, 64), "16 bytes at offset 1048576"),
        ("offset-wraps", one_tensor(&[4], F32, u64::MAX - 31, 64), "16 bytes at offset 18446744"),
        (
            "end-wraps",
            one_tensor(&[(1 << 61) - 1], F32, (1 << 63) + 32, 64),
            "9223372036854775804 ",
        ),
        ("size-past-end", one_tensor(&[17], F32, 0, 64), "68 bytes at offset 0 of the data"),
        ("no-data", Raw::new(3, 1, 0).tensor("t", &[4], F32, 0).0, "16 bytes at offset 0"),
        ("overlap", pair("u", 32), r#"tensor "u": begins at byte 128, inside tensor "t""#),
        ("same-place", pair("u", 0), r#"tensor "u": begins at byte 96, inside tensor "t""#),
        ("tensor-twice", pair("t", 64), r#"tensor "t": given twice"#),
    ]
}

fn models() -> Vec<Case> {
    let many_layers = changed(|tiny| tiny.set("llama.block_count", 4096u32));
    let no_layer = changed(|tiny| {
        tiny.tensors.remove("blk.1.ffn_up.weight");
    });
    let wide = changed(|tiny| {
        tiny.matrix("blk.0.ffn_up.weight", FFN, 2 * HIDDEN, BlockType::Q4_0);
    });
    let flat = changed(|tiny| tiny.vector("token_embd.weight", HIDDEN));
    let factors = changed(|tiny| tiny.floats("rope_freqs.weight", &[4], &[1.0, 2.0, 0.0, 4.0]));
    let factors_odd = changed(|tiny| tiny.vector("rope_freqs.weight", 5));
    let yarn_head = changed(|tiny| {
        tiny.set("llama.attention.key_length", 1u64 << 40);
        tiny.set("llama.rope.scaling.type", "yarn");
        tiny.set("llama.rope.scaling.factor", 4f32);
        tiny.set("llama.rope.scaling.original_context_length", 32u32);
    });
    vec![
        ("no-keys", Raw::new(3, 0, 0).0, r#"key "general.architecture": missing"#),
        ("arch-mamba", set("general.architecture", "mamba\n"), r#""mamba\n" is not supported"#),
        ("arch-number", set("general.architecture", 7u32), "U32(7), expected a string"),
        ("adapter", set("general.type", "adapter"), r#""adapter", expected "model""#),
        ("split", set("split.count", 3u16), "split over 3 files"),
        ("layers-2-64", set("llama.block_count", u64::MAX), "num_hidden_layers is 1844674407"),
        ("layers-4096", many_layers, r#"tensor "blk.2.attn_norm.weight": missing"#),
        ("layers-negative", set("llama.block_count", -1i32), "I32(-1), expected an integer of 0"),
        ("heads-0", set("llama.attention.head_count", 0u32), "no multiple of the 0 heads"),
        ("kv-heads-0", set("llama.attention.head_count_kv", 0u32), "num_key_value_heads is 0"),
        ("kv-heads-3", set("llama.attention.head_count_kv", 3u32), "no multiple of num_key_value"),
        ("head-dim-odd", set("llama.attention.key_length", 7u32), "head_dim 7 is odd"),
        ("head-dim-big", set("llama.attention.key_length", 1u64 << 40), "head_dim is 1099511627"),
        ("head-dim-0", set("llama.attention.key_length", 0u32), "head_dim is 0"),
        (
            "rope-partial",
            set("llama.rope.dimension_count", 4u32),
            "4, expected the width of a head",
        ),
        ("context-0", set("llama.context_length", 0u32), "max_position_embeddings is 0"),
        ("eps-nan", set("llama.attention.layer_norm_rms_epsilon", f32::NAN), "rms_norm_eps is NaN"),
        ("theta-inf", set("llama.rope.freq_base", f32::INFINITY), "rope_theta is inf"),
        ("longrope", set("llama.rope.scaling.type", "longrope"), r#""longrope" scaling is not"#),
        ("yarn-bare", set("llama.rope.scaling.type", "yarn"), "rope.scaling.factor\": missing"),
        ("yarn-head", yarn_head, "head_dim is 1099511627"),
        ("linear-bare", set("llama.rope.scaling.type", "linear"), "rope.scaling.factor\": missing"),
        ("rope-factor-0", factors, "rope factors: 4 of them, expected 4 finite numbers above 0"),
        ("rope-factors-odd", factors_odd, "F32 of shape [5], expected F32 of [4]"),
        ("experts", set("llama.expert_count", 8u32), "mixtures of experts are not supported"),
        (
            "experts-0",
            experts(|tiny| {
                tiny.set("qwen3moe.expert_count", 0u32);
                tiny.tensors.remove("blk.1.ffn_gate_inp.weight");
            }),
            "num_experts is 0, expected 1 to 4096",
        ),
        (
            "experts-many",
            experts(|tiny| tiny.set("qwen3moe.expert_count", 4000u32)),
            r#""blk.1.ffn_gate_inp.weight": shape [4, 32], expected [4000, 32]"#,
        ),
        (
            "experts-2-40",
            experts(|tiny| tiny.set("qwen3moe.expert_count", 1u64 << 40)),
            "shape [4, 32], expected [1099511627776, 32]",
        ),
        (
            "experts-top-5",
            experts(|tiny| tiny.set("qwen3moe.expert_used_count", 5u32)),
            "num_experts_per_tok is 5, expected 1 to 4",
        ),
        (
            "experts-top-0",
            experts(|tiny| tiny.set("qwen3moe.expert_used_count", 0u32)),
            "num_experts_per_tok is 0, expected 1 to 4",
        ),
        (
            "experts-bare",
            experts(|tiny| {
                tiny.keys.remove("qwen3moe.expert_feed_forward_length");
            }),
            r#"key "qwen3moe.expert_feed_forward_length": missing"#,
        ),
        (
            "experts-narrow",
            experts(|tiny| tiny.set("qwen3moe.expert_feed_forward_length", 31u32)),
            r#""blk.1.ffn_gate_exps.weight": shape [4, 32, 32], expected [4, 31, 32]"#,
        ),
        (
            "experts-flat",
            experts(|tiny| tiny.matrix("blk.1.ffn_up_exps.weight", 128, 32, BlockType::Q5_0)),
            r#""blk.1.ffn_up_exps.weight": shape [128, 32], expected [4, 32, 32]"#,
        ),
        (
            "experts-half",
            experts(|tiny| {
                tiny.tensors.remove("blk.1.ffn_down_exps.weight");
            }),
            r#"tensor "blk.1.ffn_down_exps.weight": missing"#,
        ),
        (
            "experts-shared",
            experts(|tiny| tiny.set("qwen3moe.expert_shared_count", 1u32)),
            r#"key "qwen3moe.expert_shared_count": 1 is not supported"#,
        ),
        (
            "experts-sigmoid",
            experts(|tiny| tiny.set("qwen3moe.expert_gating_func", 2u32)),
            r#"key "qwen3moe.expert_gating_func": 2 is not supported"#,
        ),
        (
            "experts-beside",
            experts(|tiny| tiny.matrix("blk.1.ffn_up.weight", FFN, HIDDEN, BlockType::Q4_0)),
            r#"tensor "blk.1.ffn_up.weight": not one of a qwen3_moe model"#,
        ),
        ("tensor-missing", no_layer, r#"tensor "blk.1.ffn_up.weight": missing"#),
        ("tensor-wide", wide, r#""blk.0.ffn_up.weight": shape [64, 64], expected [64, 32]"#),
        ("embedding-flat", flat, "shape [32], expected two axes"),
    ]
}

fn tokenizers() -> Vec<Case> {
    let tokens = "tokenizer.ggml.tokens";
    let kinds = "tokenizer.ggml.token_type";
    let merges = "tokenizer.ggml.merges";
    let kinds_of = |n: usize, kind: i32| std::iter::repeat_n(kind, n).collect::<Array<'_>>();
    let no_merges = changed(|tiny| {
        tiny.keys.remove(merges);
    });
    let numbers: Array<'_> = (0u32..TOKENS.len() as u32).collect();
    let halves: Array<'_> = [0.5f32; TOKENS.len()].into_iter().collect();
    vec![
        ("tokens-few", set(tokens, strings(&TOKENS[1..])), "11 tokens, but tensor"),
        ("tokens-many", set(tokens, strings(&["a"; 13])), "13 tokens, but tensor"),
        ("tokens-none", set(tokens, strings(&[])), "0 tokens, but tensor"),
        ("tokens-text", set(tokens, "abc"), r#"the string "abc", expected an array"#),
        ("tokens-numbers", set(tokens, numbers), "expected an array of strings"),
        ("kinds-few", set(kinds, kinds_of(11, 1)), "11 entries for 12 tokens"),
        ("kinds-many", set(kinds, kinds_of(13, 1)), "13 entries for 12 tokens"),
        ("kinds-0", set(kinds, kinds_of(12, 0)), "0 for token 0, expected 1 to 6"),
        ("kinds-7", set(kinds, kinds_of(12, 7)), "7 for token 0, expected 1 to 6"),
        ("kinds-halves", set(kinds, halves), "expected an array of integers"),
        ("merges-missing", no_merges, r#""tokenizer.ggml.merges": missing"#),
        ("merge-of-one", set(merges, strings(&["a b", "ab"])), r#""ab" at rank 1, expected two"#),
        ("merge-of-three", set(merges, strings(&["a b c"])), r#""a b c" at rank 0, expected two"#),
        ("merge-empty", set(merges, strings(&[" "])), r#"" " at rank 0, expected two tokens"#),
        ("merges-text", set(merges, "a b"), r#"the string "a b", expected an array"#),
        ("eos-12", set("tokenizer.ggml.eos_token_id", 12u32), "12, but there are 12 tokens"),
        ("bos-max", set("tokenizer.ggml.bos_token_id", u32::MAX), "4294967295, but there are 12"),
        ("eot-2-40", set("tokenizer.ggml.eot_token_id", 1u64 << 40), "1099511627776, but there"),
        ("pad-negative", set("tokenizer.ggml.padding_token_id", -1i32), "I32(-1), expected an int"),
        ("add-bos-2", set("tokenizer.ggml.add_bos_token", 1u8), "U8(1), expected a bool"),
        ("template-number", set("tokenizer.chat_template", 1u32), "U32(1), expected a string"),
    ]
}
